//! Targets and logits that do not fit.

use candle_core::{DType, Tensor};
use masksub::{Criterion, Error, SubModelLoss};

use super::{assert_invalid, assert_misshapen, error_of};
use crate::common::{labels, randn, CPU};

fn criteria() -> [Criterion; 2] {
    [Criterion::cross_entropy(), Criterion::bce_with_logits()]
}

#[test]
fn on_class_indices_out_of_range() {
    let logits = randn((2, 3), "logits");
    for criterion in criteria() {
        for (class, value) in [
            (3i64, "class 3"),
            (-1, "class -1"),
            (i64::MAX, "class 9223372036854775807"),
        ] {
            let targets = Tensor::new(&[0, class], &CPU).unwrap();
            assert_invalid(criterion.forward(&logits, &targets), "targets", value, "0..3");
        }
        let targets = Tensor::new(&[u32::MAX, 0], &CPU).unwrap();
        assert_invalid(
            criterion.forward(&logits, &targets),
            "targets",
            "class 4294967295",
            "0..3",
        );
        let targets = Tensor::new(&[255u8, 0], &CPU).unwrap();
        assert_invalid(criterion.forward(&logits, &targets), "targets", "class 255", "0..3");
    }
}

#[test]
fn on_targets_that_disagree() {
    let logits = randn((2, 3), "logits");
    for criterion in criteria() {
        for shape in [
            vec![2, 4],
            vec![3, 3],
            vec![2],
            vec![3],
            vec![2, 3, 1],
            vec![],
            vec![0, 3],
        ] {
            let soft = randn(shape.clone(), "targets");
            assert_misshapen(criterion.forward(&logits, &soft), "targets", &shape, "[2, 3]");
            if shape != [2] {
                let classes = Tensor::zeros(shape.clone(), DType::U32, &CPU).unwrap();
                assert_misshapen(criterion.forward(&logits, &classes), "targets", &shape, "[2]");
            }
        }
        // Multi-hot labels as integers are neither indices nor probabilities.
        let multi_hot = Tensor::ones((2, 3), DType::U8, &CPU).unwrap();
        assert_misshapen(
            criterion.forward(&logits, &multi_hot),
            "targets",
            &[2, 3],
            "class indices",
        );
    }
}

#[test]
fn on_logits_that_are_none() {
    for shape in [
        vec![],
        vec![3],
        vec![0, 3],
        vec![2, 0],
        vec![2, 3, 1],
        vec![1, 2, 3, 4, 5],
    ] {
        let logits = randn(shape.clone(), "logits");
        for criterion in criteria() {
            let targets = Tensor::zeros(2, DType::U32, &CPU).unwrap();
            assert_misshapen(criterion.forward(&logits, &targets), "logits", &shape, "[B, C]");
        }
        for loss in [
            SubModelLoss::soft_cross_entropy(),
            SubModelLoss::kl(),
            SubModelLoss::bce(),
        ] {
            assert_misshapen(
                loss.forward(&logits, &randn((2, 3), "main")),
                "sub_logits",
                &shape,
                "[B, C]",
            );
            assert_misshapen(
                loss.forward(&randn((2, 3), "sub"), &logits),
                "main_logits",
                &shape,
                "[B, C]",
            );
        }
    }
}

#[test]
fn on_branches_that_disagree() {
    for loss in [
        SubModelLoss::soft_cross_entropy(),
        SubModelLoss::kl(),
        SubModelLoss::bce(),
    ] {
        for shape in [(2, 4), (3, 3), (1, 3)] {
            let result = loss.forward(&randn((2, 3), "sub"), &randn(shape, "main"));
            assert_misshapen(result, "sub_logits", &[2, 3], &format!("[{}, {}]", shape.0, shape.1));
        }
    }
}

#[test]
fn on_integers() {
    for dtype in [DType::U8, DType::U32, DType::I64] {
        let integers = Tensor::zeros((2, 3), dtype, &CPU).unwrap();
        let error = error_of(Criterion::cross_entropy().forward(&integers, &labels(2, 3)));
        assert!(
            matches!(error, Error::DType { argument: "logits", got, .. } if got == dtype),
            "{error}"
        );
        assert!(error.to_string().contains("f32"), "{error}");
        let error = error_of(SubModelLoss::kl().forward(&integers, &randn((2, 3), "main")));
        assert!(
            matches!(
                error,
                Error::DType {
                    argument: "sub_logits",
                    ..
                }
            ),
            "{error}"
        );
        let error = error_of(SubModelLoss::kl().forward(&randn((2, 3), "sub"), &integers));
        assert!(
            matches!(
                error,
                Error::DType {
                    argument: "main_logits",
                    ..
                }
            ),
            "{error}"
        );
    }
}

/// A softmax over one class is 1 whatever the logit: the loss would be 0 and train nothing.
#[test]
fn on_a_single_class() {
    let (logits, targets) = (randn((3, 1), "logits"), Tensor::new(&[0u32, 0, 0], &CPU).unwrap());
    for loss in [SubModelLoss::soft_cross_entropy(), SubModelLoss::kl()] {
        let error = error_of(loss.forward(&logits, &logits)).to_string();
        assert!(
            error.contains("main_logits has shape [3, 1]") && error.contains("SubModelLoss::bce()"),
            "{error}"
        );
    }
    let error = error_of(Criterion::cross_entropy().forward(&logits, &targets)).to_string();
    assert!(
        error.contains("logits has shape [3, 1]") && error.contains("Criterion::bce_with_logits()"),
        "{error}"
    );
    assert!(SubModelLoss::bce().forward(&logits, &logits).is_ok());
    assert!(Criterion::bce_with_logits().forward(&logits, &targets).is_ok());
}
