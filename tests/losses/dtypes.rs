//! Half precision, f64, and tensors that are not contiguous.

use candle_core::{DType, Tensor, Var};
use masksub::{Criterion, SubModelLoss};

use super::{oracle, rows, tensor, value_and_gradient};
use crate::common::{bits, numbers, randn, sub_losses, CPU};

type Loss = Box<dyn Fn(&Tensor, &Tensor) -> candle_core::Result<Tensor>>;

/// Every loss, of logits and of main logits where it takes them.
fn cases() -> Vec<(String, Loss)> {
    let mut cases: Vec<(String, Loss)> = vec![];
    for loss in sub_losses() {
        for loss in [loss, loss.with_temperature(3.0).unwrap()] {
            cases.push((format!("{loss:?}"), Box::new(move |x, main| loss.forward(x, main))));
        }
    }
    for criterion in [Criterion::cross_entropy(), Criterion::bce_with_logits()] {
        let indices = Tensor::new(&[0u32, 10, 20, 30, 40, 49], &CPU).unwrap();
        cases.push((
            format!("{criterion:?}"),
            Box::new(move |x, _| criterion.forward(x, &indices)),
        ));
    }
    cases
}

#[test]
fn half_precision_is_computed_in_f32() {
    let sub = oracle::map(&rows(&randn((6, 50), "half sub")), |x| 5.0 * x);
    let main = oracle::map(&rows(&randn((6, 50), "half main")), |x| 5.0 * x);
    for (half, precision) in [(DType::BF16, 1.0 / 256.0), (DType::F16, 1.0 / 2048.0)] {
        // The same numbers in both precisions.
        let (sub, main) = (rows(&tensor(&sub, half)), tensor(&main, half));
        let main_in_f32 = main.to_dtype(DType::F32).unwrap();
        for (what, loss) in cases() {
            let (value, gradient) = value_and_gradient(&sub, half, |x| loss(x, &main));
            let (expected, expected_gradient) = value_and_gradient(&sub, DType::F32, |x| loss(x, &main_in_f32));
            assert!(
                (value - expected).abs() <= 1e-6 * expected.abs(),
                "{what} {half:?}: {value}, {expected}"
            );
            for (got, expected) in gradient.iter().zip(expected_gradient) {
                // Only the gradient itself is rounded.
                assert!(
                    (got - expected).abs() <= precision * expected.abs() + 1e-7,
                    "{what} {half:?}"
                );
            }
        }
    }
}

#[test]
fn f64_keeps_its_digits() {
    let logits = rows(&randn((2, 4), "f64"));
    let var = Var::from_tensor(&tensor(&logits, DType::F64)).unwrap();
    let loss = SubModelLoss::kl()
        .forward(&var, &(var.as_tensor() * 1.5).unwrap())
        .unwrap();
    assert_eq!(loss.dtype(), DType::F64);
}

#[test]
fn main_and_sub_may_differ_in_dtype() {
    let (sub, main) = (randn((3, 4), "sub"), randn((3, 4), "main"));
    let expected = numbers(&SubModelLoss::kl().forward(&sub, &main).unwrap())[0];
    for (sub_dtype, main_dtype) in [(DType::F32, DType::F64), (DType::F64, DType::F32)] {
        let (sub, main) = (sub.to_dtype(sub_dtype).unwrap(), main.to_dtype(main_dtype).unwrap());
        let loss = numbers(&SubModelLoss::kl().forward(&sub, &main).unwrap())[0];
        assert!((loss - expected).abs() < 1e-6);
    }
}

#[test]
fn logits_that_are_not_contiguous_are_read_right() {
    let main = randn((4, 3), "main").t().unwrap();
    let sub = randn((4, 3), "sub").t().unwrap();
    for loss in sub_losses() {
        let strided = loss.forward(&sub, &main).unwrap();
        let plain = loss
            .forward(&sub.contiguous().unwrap(), &main.contiguous().unwrap())
            .unwrap();
        assert_eq!(bits(&strided), bits(&plain));
    }
}
