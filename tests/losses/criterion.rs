//! Losses of the main branch.

use candle_core::{DType, Tensor, Var};
use masksub::Criterion;

use super::{classes, compare, logits, oracle, probabilities, rows, tensor, Rows};
use crate::common::{numbers, CPU};

fn smooth(targets: &Rows, s: f64) -> Rows {
    let classes = targets[0].len() as f64;
    oracle::map(targets, |t| (1.0 - s) * t + s / classes)
}

#[test]
fn cross_entropy() {
    for logits in logits("ce") {
        let soft = probabilities(&logits);
        let hard = oracle::one_hot(&classes(&logits), logits[0].len());
        let indices = Tensor::from_iter(classes(&logits).into_iter().map(|c| c as u32), &CPU).unwrap();
        for smoothing in [0.0, 0.1, 1.0] {
            let ce = Criterion::cross_entropy().with_label_smoothing(smoothing).unwrap();
            let formula = |targets: &Rows| {
                let targets = smooth(targets, smoothing);
                move |x: &Rows| oracle::cross_entropy(x, &targets)
            };
            compare("classes", &logits, |x| ce.forward(x, &indices), formula(&hard));
            compare(
                "soft",
                &logits,
                |x| ce.forward(x, &tensor(&soft, DType::F64)),
                formula(&soft),
            );
        }
    }
}

#[test]
fn bce() {
    for logits in logits("bce") {
        let soft = probabilities(&logits);
        let hard = oracle::one_hot(&classes(&logits), logits[0].len());
        let indices = Tensor::from_iter(classes(&logits).into_iter().map(|c| c as u32), &CPU).unwrap();
        for smoothing in [0.0, 0.2] {
            let bce = Criterion::bce_with_logits().with_label_smoothing(smoothing).unwrap();
            let formula = |targets: &Rows| {
                let targets = smooth(targets, smoothing);
                move |x: &Rows| oracle::bce(x, &targets)
            };
            compare("classes", &logits, |x| bce.forward(x, &indices), formula(&hard));
            compare(
                "soft",
                &logits,
                |x| bce.forward(x, &tensor(&soft, DType::F64)),
                formula(&soft),
            );
        }
    }
}

#[test]
fn a_threshold_makes_mixed_labels_full_ones() {
    let logits = vec![vec![0.3, -1.0, 2.0, 0.0], vec![1.0, 1.0, -2.0, 0.5]];
    // Two classes mixed, as mixup and CutMix do.
    let mixed = vec![vec![0.7, 0.0, 0.3, 0.0], vec![0.0, 1.0, 0.0, 0.0]];
    for (threshold, full) in [
        (0.0, vec![vec![1.0, 0.0, 1.0, 0.0], vec![0.0, 1.0, 0.0, 0.0]]),
        (0.5, vec![vec![1.0, 0.0, 0.0, 0.0], vec![0.0, 1.0, 0.0, 0.0]]),
        // Above the threshold, not at it. 0.75 and 0.25 are exact in every dtype.
        (0.25, vec![vec![1.0, 0.0, 1.0, 0.0], vec![0.0, 1.0, 0.0, 0.0]]),
    ] {
        let bce = Criterion::bce_with_logits().with_target_threshold(threshold).unwrap();
        let targets = tensor(&mixed, DType::F32);
        compare(
            "threshold",
            &logits,
            |x| bce.forward(x, &targets),
            |x| oracle::bce(x, &full),
        );
    }
    let at = Criterion::bce_with_logits().with_target_threshold(0.25).unwrap();
    let exact = tensor(&vec![vec![0.75, 0.0, 0.25, 0.0]], DType::F32);
    let logits = vec![logits[0].clone()];
    let full = vec![vec![1.0, 0.0, 0.0, 0.0]];
    compare(
        "at the threshold",
        &logits,
        |x| at.forward(x, &exact),
        |x| oracle::bce(x, &full),
    );
}

/// Cross-entropy is a sum over classes, so full labels of two classes count twice.
#[test]
fn targets_need_not_sum_to_1() {
    let logits = vec![vec![0.3, -1.0, 2.0, 0.0], vec![1.0, 1.0, -2.0, 0.5]];
    let targets = vec![vec![1.0, 0.0, 1.0, 0.0], vec![0.2, 0.0, 0.0, 0.0]];
    let ce = Criterion::cross_entropy();
    let ours = |x: &Tensor| ce.forward(x, &tensor(&targets, DType::F64));
    compare("two classes", &logits, ours, |x| oracle::cross_entropy(x, &targets));
}

#[test]
fn class_indices_have_any_integer_dtype() {
    let logits = tensor(&logits("integers")[1], DType::F32);
    let loss = |criterion: Criterion, targets: &Tensor| numbers(&criterion.forward(&logits, targets).unwrap())[0];
    let indices = Tensor::new(&[4i64, 0, 2], &CPU).unwrap();
    for criterion in [Criterion::cross_entropy(), Criterion::bce_with_logits()] {
        let expected = loss(criterion, &indices);
        for dtype in [DType::U8, DType::U32, DType::I16, DType::I32, DType::I64] {
            assert_eq!(
                loss(criterion, &indices.to_dtype(dtype).unwrap()),
                expected,
                "{dtype:?}"
            );
        }
    }
}

#[test]
fn probabilities_have_any_float_dtype() {
    let logits = &logits("floats")[1];
    // Exact in all of them.
    let soft = vec![vec![0.5, 0.25, 0.25, 0.0, 0.0]; 3];
    let expected = oracle::cross_entropy(&rows(&tensor(logits, DType::F32)), &soft);
    for dtype in [DType::F16, DType::BF16, DType::F32, DType::F64] {
        let loss = Criterion::cross_entropy()
            .forward(&tensor(logits, DType::F32), &tensor(&soft, dtype))
            .unwrap();
        assert!((numbers(&loss)[0] - expected).abs() < 1e-6, "{dtype:?}");
    }
}

#[test]
fn agrees_with_candles_own() {
    let logits = tensor(&logits("candle")[2], DType::F32);
    let indices = Tensor::new(&[1u32, 0, 6, 3], &CPU).unwrap();
    let ours = Criterion::cross_entropy().forward(&logits, &indices).unwrap();
    let theirs = candle_nn::loss::cross_entropy(&logits, &indices).unwrap();
    assert!((numbers(&ours)[0] - numbers(&theirs)[0]).abs() < 1e-5);
}

#[test]
fn targets_are_not_trained() {
    let logits = Var::from_tensor(&tensor(&logits("targets")[1], DType::F32)).unwrap();
    let targets = Var::from_tensor(&tensor(&probabilities(&rows(&logits)), DType::F32)).unwrap();
    for criterion in [Criterion::cross_entropy(), Criterion::bce_with_logits()] {
        let grads = criterion.forward(&logits, &targets).unwrap().backward().unwrap();
        assert!(grads.get(&logits).is_some());
        assert!(grads.get(&targets).is_none());
    }
}
