//! The MLP beside its composition.

use super::*;
use crate::ops::testing::{check, check_derivative, random, rng};
use rand::Rng as _;

fn branch<'a>(args: &'a [Tensor], activation: Activation) -> MlpBranch<'a> {
    let [norm, fc1, fc2] = affines(&args[1..]);
    MlpBranch {
        norm,
        eps: 0.1,
        fc1,
        activation,
        fc2,
        gamma: args.get(7),
        // Of every other size of batch.
        recompute: args[0].dims()[0].is_multiple_of(2),
    }
}

type Factors<'a> = Option<&'a [f32]>;

fn kernel(activation: Activation, drop_path: Factors<'_>) -> impl Fn(&[Tensor]) -> Result<Tensor> + Sync + '_ {
    move |args| mlp_branch(&args[0], &branch(args, activation), drop_path)
}

fn reference(activation: Activation, drop_path: Factors<'_>) -> impl Fn(&[Tensor]) -> Result<Tensor> + Sync + '_ {
    move |args| composition(&args[0], &branch(args, activation), drop_path)
}

fn shapes(b: usize, n: usize, d: usize, h: usize) -> Vec<Vec<usize>> {
    let shapes = [
        vec![b, n, d],
        vec![d],
        vec![d],
        vec![h, d],
        vec![h],
        vec![d, h],
        vec![d],
        vec![d],
    ];
    shapes.into()
}

fn check_one(b: usize, n: usize, d: usize, h: usize, seed: u64) {
    let shapes = shapes(b, n, d, h);
    let shapes: Vec<&[usize]> = shapes.iter().map(Vec::as_slice).collect();
    let factors: Vec<f32> = (0..b).map(|i| [1.25, 0.0, 2.0][i % 3]).collect();
    let (gelu, quick) = (Activation::Gelu, Activation::QuickGelu);
    check(&kernel(gelu, None), &reference(gelu, None), &shapes, seed);
    let some = Some(factors.as_slice());
    check(&kernel(quick, some), &reference(quick, some), &shapes[..7], seed);
    let tanh = Activation::GeluTanh;
    check(&kernel(tanh, None), &reference(tanh, None), &shapes[..7], seed);
}

#[test]
fn equals_its_composition() {
    let mut rng = rng(8);
    for seed in 0..4 {
        let mut size = |most| rng.random_range(1..=most);
        check_one(size(4), size(20), 4 + size(30), size(60), seed);
    }
}

#[test]
fn equals_its_composition_at_the_edges() {
    check_one(1, 1, 5, 1, 0);
    // Many pieces of work.
    check_one(3, 197, 48, 192, 1);
}

#[test]
fn composition_has_the_right_derivative() {
    let shapes = shapes(2, 2, 3, 4);
    let shapes: Vec<&[usize]> = shapes.iter().map(Vec::as_slice).collect();
    check_derivative(&reference(Activation::Gelu, Some(&[0.5, 2.0])), &shapes, 0);
    check_derivative(&reference(Activation::QuickGelu, None), &shapes[..7], 1);
}

#[test]
fn frozen_and_trained_parameters_give_the_same() {
    let args: Vec<_> = shapes(2, 5, 8, 16).iter().map(|shape| random(shape, 3)).collect();
    let args: Vec<_> = args
        .iter()
        .map(|t| t.to_dtype(candle_core::DType::F32).unwrap())
        .collect();
    let var = candle_core::Var::from_tensor(&args[3]).unwrap();
    let mut trained = args.clone();
    trained[3] = var.as_tensor().clone();
    let values = |args: &[Tensor]| {
        let ys = kernel(Activation::Gelu, None)(args).unwrap();
        ys.flatten_all().unwrap().to_vec1::<f32>().unwrap()
    };
    assert_eq!(values(&args), values(&trained));
}

#[test]
fn errors_name_the_argument() {
    let message = |change: &dyn Fn(&mut Vec<Vec<usize>>), drop_path: Factors| {
        let mut shapes = shapes(2, 3, 4, 8);
        change(&mut shapes);
        let args: Vec<_> = shapes.iter().map(|shape| random(shape, 0)).collect();
        kernel(Activation::Gelu, drop_path)(&args).unwrap_err().to_string()
    };
    assert_eq!(
        message(&|s| s[0] = vec![2, 4], None),
        "xs has shape [2, 4], but must be [B, N, D]"
    );
    assert_eq!(
        message(&|s| s[1] = vec![3], None),
        "norm.weight has shape [3], but must be [4]"
    );
    assert_eq!(
        message(&|s| s[3] = vec![8, 5], None),
        "fc1.weight has shape [8, 5], but must be [8, 4]"
    );
    assert_eq!(
        message(&|s| s[6] = vec![5], None),
        "fc2.bias has shape [5], but must be [4]"
    );
    assert_eq!(
        message(&|s| s[7] = vec![5], None),
        "gamma has shape [5], but must be [4]"
    );
    assert_eq!(
        message(&|_| {}, Some(&[1.0])),
        "drop_path is 1 factors, but must be 2, one for each sample"
    );
}

#[test]
fn of_nothing_is_nothing() {
    let args: Vec<_> = shapes(0, 3, 4, 8).iter().map(|shape| random(shape, 0)).collect();
    assert_eq!(kernel(Activation::Gelu, None)(&args).unwrap().dims(), [0, 3, 4]);
}
