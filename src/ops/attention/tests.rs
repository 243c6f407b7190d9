//! Attention beside its composition, and that beside the definition.

use super::dims::QUERIES;
use super::*;
use crate::ops::testing::{check, check_derivative, check_on, random, rng};
use rand::Rng as _;

fn kernel(heads: usize) -> impl Fn(&[Tensor]) -> Result<Tensor> + Sync {
    move |args| attention(&args[0], heads)
}

fn reference(heads: usize) -> impl Fn(&[Tensor]) -> Result<Tensor> + Sync {
    move |args| composition(&args[0], heads)
}

#[test]
fn equals_its_composition() {
    let mut rng = rng(6);
    for seed in 0..8 {
        let mut size = |most| rng.random_range(1..=most);
        let (b, n, h, d) = (size(4), 1 + size(50), size(4), size(40));
        check(&kernel(h), &reference(h), &[&[b, n, 3 * h * d]], seed);
    }
}

#[test]
fn equals_its_composition_at_the_edges() {
    check(&kernel(1), &reference(1), &[&[1, 1, 3]], 0);
    check(&kernel(2), &reference(2), &[&[1, 1, 30]], 1);
    check(&kernel(3), &reference(3), &[&[2, 197, 72]], 2);
    // More queries than a block holds, in blocks that are not equal.
    check(&kernel(2), &reference(2), &[&[1, 2 * QUERIES + 3, 18]], 3);
    // Sharp: a query attends to few keys.
    check_on(
        &kernel(2),
        &reference(2),
        &[(random(&[2, 20, 48], 4) * 3.0).unwrap()],
        4,
    );
}

/// Attention as its definition reads, one number at a time.
#[test]
fn composition_is_attention() {
    let (b, n, h, d) = (2, 3, 2, 4);
    let qkv = random(&[b, n, 3 * h * d], 0);
    let at = |s: usize, t: usize, part: usize, head: usize, i: usize| {
        let i = (part * h + head) * d + i;
        qkv.get(s)
            .unwrap()
            .get(t)
            .unwrap()
            .get(i)
            .unwrap()
            .to_scalar::<f64>()
            .unwrap()
    };
    let ys = composition(&qkv, h).unwrap().to_vec3::<f64>().unwrap();
    for (s, head, query) in (0..b * h * n).map(|i| (i / (h * n), i / n % h, i % n)) {
        let score = |key| {
            (0..d)
                .map(|i| at(s, query, 0, head, i) * at(s, key, 1, head, i))
                .sum::<f64>()
        };
        let weight: Vec<f64> = (0..n).map(|key| (score(key) / (d as f64).sqrt()).exp()).collect();
        for i in 0..d {
            let y = (0..n).map(|key| weight[key] * at(s, key, 2, head, i)).sum::<f64>() / weight.iter().sum::<f64>();
            assert!((ys[s][query][head * d + i] - y).abs() < 1e-12);
        }
    }
}

#[test]
fn composition_has_the_right_derivative() {
    check_derivative(&reference(2), &[&[2, 3, 12]], 0);
    check_derivative(&reference(1), &[&[1, 4, 9]], 1);
}

#[test]
fn errors_name_the_argument() {
    let message = |qkv: &[usize], heads| attention(&random(qkv, 0), heads).unwrap_err().to_string();
    let expected = "[B, N, 3 D] with D a multiple of num_heads = 2";
    assert_eq!(
        message(&[2, 3, 15], 2),
        format!("qkv has shape [2, 3, 15], but must be {expected}")
    );
    // Three times as many heads would be 2 after an overflow.
    let heads = usize::MAX / 3 + 1;
    assert_eq!(
        message(&[2, 3, 4], heads),
        format!("qkv has shape [2, 3, 4], but must be [B, N, 3 D] with D a multiple of num_heads = {heads}")
    );
    assert_eq!(message(&[3, 15], 1), "qkv has shape [3, 15], but must be [B, N, 3 D]");
    assert_eq!(message(&[2, 3, 15], 0), "num_heads is 0, but must be at least 1");
}

#[test]
fn of_nothing_is_nothing() {
    for shape in [[0, 3, 12], [2, 0, 12], [2, 3, 0]] {
        let qkv = Tensor::zeros(&shape, candle_core::DType::F32, &candle_core::Device::Cpu).unwrap();
        assert_eq!(attention(&qkv, 2).unwrap().dims(), [shape[0], shape[1], shape[2] / 3]);
    }
}
