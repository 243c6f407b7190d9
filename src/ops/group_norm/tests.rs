//! Group norm beside its composition.

use super::*;
use crate::ops::testing::{check, check_derivative, check_on, random, relative, rng};
use candle_core::{DType, Device};
use rand::Rng as _;

fn kernel(groups: usize) -> impl Fn(&[Tensor]) -> Result<Tensor> + Sync {
    move |args| group_norm(&args[0], groups, &args[1], &args[2], 1e-5)
}

fn reference(groups: usize) -> impl Fn(&[Tensor]) -> Result<Tensor> + Sync {
    move |args| composition(&args[0], groups, &args[1], &args[2], 1e-5)
}

fn check_norm(shape: &[usize], groups: usize, seed: u64) {
    let c = [shape[1]];
    check(&kernel(groups), &reference(groups), &[shape, &c, &c], seed);
}

#[test]
fn equals_its_composition() {
    let mut rng = rng(31);
    for seed in 0..8 {
        let mut size = |most| rng.random_range(1..=most);
        let groups = size(4);
        check_norm(&[size(4), groups * size(5), 2 + size(10), 2 + size(10)], groups, seed);
    }
}

#[test]
fn equals_its_composition_at_the_edges() {
    // Of any rank, one group (as ConvNeXt's downsampling has), a channel each, many pieces of work.
    check_norm(&[3, 8], 2, 0);
    check_norm(&[2, 6, 17], 1, 1);
    check_norm(&[2, 6, 17], 6, 2);
    check_norm(&[1, 4, 2, 3, 5], 2, 3);
    check_norm(&[3, 40, 33, 31], 8, 4);
    check_norm(&[60, 64, 3, 3], 32, 5);
}

/// candle-nn's, whose gradients are right.
#[test]
fn composition_is_candles() {
    use candle_core::Module as _;
    let (xs, weight, bias) = (random(&[2, 6, 5, 4], 0), random(&[6], 1), random(&[6], 2));
    let ours = composition(&xs, 3, &weight, &bias, 1e-3).unwrap();
    let candles = candle_nn::GroupNorm::new(weight, bias, 6, 3, 1e-3)
        .unwrap()
        .forward(&xs)
        .unwrap();
    assert!(relative(&ours, &candles) < 1e-14);
}

#[test]
fn does_not_suffer_from_a_large_mean() {
    let inputs = [
        (random(&[3, 4, 30], 0) + 8.0).unwrap(),
        random(&[4], 1),
        random(&[4], 2),
    ];
    check_on(&kernel(2), &reference(2), &inputs, 0);
    let wide = (random(&[4, 2, 50, 50], 0) + 1000.0)
        .unwrap()
        .to_dtype(DType::F32)
        .unwrap();
    let single = |seed| random(&[2], seed).to_dtype(DType::F32).unwrap();
    let ys = group_norm(&wide, 1, &single(1), &single(2), 1e-5).unwrap();
    let exact = composition(
        &wide.to_dtype(DType::F64).unwrap(),
        1,
        &random(&[2], 1),
        &random(&[2], 2),
        1e-5,
    )
    .unwrap();
    let error = relative(&ys, &exact);
    assert!(error < 1e-6, "{error:e}");
}

#[test]
fn composition_has_the_right_derivative() {
    check_derivative(&reference(2), &[&[2, 4, 3, 2], &[4], &[4]], 0);
    check_derivative(&reference(1), &[&[3, 2, 2], &[2], &[2]], 1);
}

#[test]
fn what_is_undefined_stays_in_its_group() {
    let xs = Tensor::new(&[[[f32::NAN, 1.0], [1.0, 2.0]]], &Device::Cpu).unwrap();
    let one = Tensor::ones(2, DType::F32, &Device::Cpu).unwrap();
    let ys = group_norm(&xs, 2, &one, &one, 1e-5)
        .unwrap()
        .flatten_all()
        .unwrap()
        .to_vec1::<f32>()
        .unwrap();
    assert!(ys[0].is_nan() && ys[1].is_nan() && ys[2].is_finite() && ys[3].is_finite());
}

#[test]
fn errors_name_the_argument() {
    let message = |xs: &[usize], groups, weight: &[usize], eps| {
        group_norm(&random(xs, 0), groups, &random(weight, 0), &random(&[4], 0), eps)
            .unwrap_err()
            .to_string()
    };
    let xs = [2, 4, 3];
    assert_eq!(
        message(&xs, 3, &[4], 0.0),
        "num_groups is 3, but must be a divisor of C = 4"
    );
    assert_eq!(
        message(&xs, 0, &[4], 0.0),
        "num_groups is 0, but must be a divisor of C = 4"
    );
    assert_eq!(message(&xs, 2, &[5], 0.0), "weight has shape [5], but must be [4]");
    assert_eq!(
        message(&xs, 2, &[4], -1.0),
        "eps is -1, but must be at least 0 and finite"
    );
    assert_eq!(message(&[4], 2, &[4], 0.0), "xs has shape [4], but must be [B, C, ..]");
    assert_eq!(
        message(&[2, 4, 0], 2, &[4], 0.0),
        "xs has shape [2, 4, 0], but must be [B, C, ..], not empty"
    );
    assert_eq!(message(&[2, 6, 3], 2, &[6], 0.0), "bias has shape [4], but must be [6]");
}
