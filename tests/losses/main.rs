//! The losses against loops in f64 that follow the formulas, and their gradients against finite differences of those.

#[path = "../common/mod.rs"]
mod common;
mod criterion;
mod dtypes;
mod extremes;
mod kept;
mod sub_model;

use candle_core::{DType, Tensor, Var};
use common::oracle::{self, Rows};
use common::{numbers, randn, CPU};

fn tensor(rows: &Rows, dtype: DType) -> Tensor {
    Tensor::new(rows.clone(), &CPU).unwrap().to_dtype(dtype).unwrap()
}

fn rows(tensor: &Tensor) -> Rows {
    tensor.to_dtype(DType::F64).unwrap().to_vec2().unwrap()
}

/// A loss of logits in some dtype, and its gradient with respect to them.
fn value_and_gradient(
    logits: &Rows,
    dtype: DType,
    loss: impl Fn(&Tensor) -> candle_core::Result<Tensor>,
) -> (f64, Vec<f64>) {
    let var = Var::from_tensor(&tensor(logits, dtype)).unwrap();
    let loss = loss(&var).unwrap();
    assert_eq!(loss.rank(), 0, "the loss is a scalar");
    let grads = loss.backward().unwrap();
    let grad = grads.get(&var).expect("the gradient arrives");
    assert_eq!((grad.dims(), grad.dtype()), (var.dims(), dtype));
    (loss.to_dtype(DType::F64).unwrap().to_scalar().unwrap(), numbers(grad))
}

/// Compares a loss with its formula in f64 and in f32.
#[track_caller]
fn compare(
    what: &str,
    logits: &Rows,
    ours: impl Fn(&Tensor) -> candle_core::Result<Tensor>,
    formula: impl Fn(&Rows) -> f64,
) {
    for (dtype, tolerance) in [(DType::F64, 1e-8), (DType::F32, 3e-6)] {
        // What remains of the logits in this dtype.
        let logits = rows(&tensor(logits, dtype));
        let (value, gradient) = value_and_gradient(&logits, dtype, &ours);
        let expected = formula(&logits);
        let close = |a: f64, b: f64| (a - b).abs() <= tolerance * (1.0 + b.abs());
        assert!(
            close(value, expected),
            "{what}, {dtype:?}: {value} instead of {expected}"
        );
        for (at, (&got, expected)) in gradient.iter().zip(oracle::gradient(&logits, &formula)).enumerate() {
            assert!(
                close(got, expected),
                "{what}, {dtype:?}, gradient {at}: {got} instead of {expected}"
            );
        }
    }
}

/// Random logits of several shapes and sizes.
fn logits(name: &str) -> Vec<Rows> {
    [(1, 2, 1.0), (3, 5, 1.0), (4, 7, 4.0), (2, 3, 9.0)]
        .map(|(batch, classes, scale)| rows(&randn((batch, classes), &format!("{name} {scale}"))))
        .into_iter()
        .zip([1.0, 1.0, 4.0, 9.0])
        .map(|(rows, scale)| oracle::map(&rows, |x| scale * x))
        .collect()
}

/// Probabilities that sum to 1 in every row.
fn probabilities(like: &Rows) -> Rows {
    let (batch, classes) = (like.len(), like[0].len());
    let logits = rows(&randn((batch, classes), "probabilities"));
    logits.iter().map(|row| oracle::softmax(row)).collect()
}

fn classes(like: &Rows) -> Vec<usize> {
    (0..like.len()).map(|b| (3 * b + 1) % like[0].len()).collect()
}
