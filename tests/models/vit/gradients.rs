//! Gradients against finite differences.

use candle_core::{DType, Tensor};
use candle_nn::loss::cross_entropy;
use masksub::models::vit::VisionTransformer;
use masksub::{grad, Forward, Grid, Mask, Pass, TokenModel};

use super::{from_values, random_values};
use crate::common::{by_name, gradient_distance, images, labels, numbers, tiny_forms, CPU};

/// The loss of both branches, the sub-branch on a given mask.
fn loss(vit: &VisionTransformer, xs: &Tensor) -> Tensor {
    let mask = Mask::from_keep_indices(Grid::new(4, 4), &[[1, 2, 7, 12], [15, 0, 3, 9]]).unwrap();
    let mut pass = Pass::eval();
    let main = vit.forward_pass(xs, &mut pass).unwrap();
    let sub = vit
        .classify(&vit.embed(xs, Some(&mask), &mut pass).unwrap(), Some(&mask), &mut pass)
        .unwrap();
    let ys = labels(2, 5);
    (cross_entropy(&main, &ys).unwrap() + cross_entropy(&sub, &ys).unwrap()).unwrap()
}

/// In f64, for two elements of every parameter.
#[test]
fn are_the_finite_differences_of_the_loss() {
    for (name, cfg) in tiny_forms(5) {
        let values = random_values(&cfg);
        let (vit, params) = from_values(&cfg, &values, DType::F64);
        let xs = images(2, "differences").to_dtype(DType::F64).unwrap();
        let grads = grad::backward(&loss(&vit, &xs), &params).unwrap();
        for (parameter, var) in params.iter() {
            let grad = numbers(grads.get(var).unwrap());
            let original = numbers(var);
            for at in [0, original.len() / 2] {
                let moved = |by: f64| {
                    let mut values = original.clone();
                    values[at] += by;
                    var.set(&Tensor::from_vec(values, var.shape(), &CPU).unwrap()).unwrap();
                    numbers(&loss(&vit, &xs))[0]
                };
                let step = 1e-5;
                let difference = (moved(step) - moved(-step)) / (2.0 * step);
                moved(0.0);
                let tolerance = 1e-8 + 1e-7 * difference.abs();
                let error = (grad[at] - difference).abs();
                assert!(
                    error < tolerance,
                    "{name}, {parameter}[{at}]: {} instead of {difference}",
                    grad[at]
                );
            }
        }
    }
}

/// The fast kernels against the compositions.
#[test]
fn are_the_same_in_f32_and_f64() {
    for (name, cfg) in tiny_forms(5) {
        let values = random_values(&cfg);
        let grads = |dtype| {
            let (vit, params) = from_values(&cfg, &values, dtype);
            let xs = images(2, "differences").to_dtype(dtype).unwrap();
            let loss = loss(&vit, &xs);
            let grads = by_name(&grad::backward(&loss, &params).unwrap(), &params);
            let wide = |(name, grad): (String, Tensor)| (name, grad.to_dtype(DType::F64).unwrap());
            (numbers(&loss)[0], grads.into_iter().map(wide).collect())
        };
        let ((narrow, narrow_grads), (wide, wide_grads)) = (grads(DType::F32), grads(DType::F64));
        assert!((narrow - wide).abs() < 1e-5, "{name}: {narrow} and {wide}");
        let error = gradient_distance(&narrow_grads, &wide_grads);
        assert!(error < 1e-4, "{name}: {error:.1e}");
    }
}
