//! Targets and logits that do not fit.

use candle_core::{DType, Tensor};
use masksub::{Criterion, Error, Grid, Mask, RandomMasking, Sequences, SubLoss, SubModelLoss};

use super::{assert_invalid, assert_misshapen, error_of, key};
use crate::common::{labels, randn, sub_losses, CPU};

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
        for loss in sub_losses() {
            let empty = logits.rank() == 0 || logits.elem_count() == 0;
            let like_main = if empty { "[B, .., C]" } else { "[2, 3] like" };
            assert_misshapen(
                loss.forward(&logits, &randn((2, 3), "main")),
                "sub_logits",
                &shape,
                like_main,
            );
            let result = loss.forward(&randn((2, 3), "sub"), &logits);
            if empty {
                assert_misshapen(result, "main_logits", &shape, "[B, .., C]");
            } else {
                assert_misshapen(result, "sub_logits", &[2, 3], &format!("{shape:?} like"));
            }
        }
    }
}

#[test]
fn on_classes_where_there_are_none() {
    assert_invalid(SubModelLoss::kl().with_class_dim(0), "class_dim", "0", "at least 1");
    let loss = SubModelLoss::kl().with_class_dim(3).unwrap();
    let logits = randn((2, 3, 4), "logits");
    assert_misshapen(loss.forward(&logits, &logits), "sub_logits", &[2, 3, 4], "dimension 3");
    // Of equal size, but not the same thing.
    let (sub, main) = (randn((2, 3, 4), "sub"), randn((2, 2, 6), "main"));
    assert_misshapen(
        SubModelLoss::kl().forward(&sub, &main),
        "sub_logits",
        &[2, 3, 4],
        "[2, 2, 6]",
    );
    let (sub, main) = (randn((2, 3, 4), "sub"), randn((3, 2, 4), "main"));
    assert_misshapen(
        SubModelLoss::kl().forward(&sub, &main),
        "sub_logits",
        &[2, 3, 4],
        "[3, 2, 4]",
    );
}

#[test]
fn on_masks_that_do_not_fit() {
    let mask = Mask::from_keep_indices(Grid::new(2, 2), &[[0, 3], [1, 2]]).unwrap();
    let kept = SubModelLoss::kl().where_kept();
    let (whole, part) = (randn((2, 4, 3), "whole"), randn((2, 2, 3), "part"));
    assert!(kept.compare(&part, &whole, Some(&mask)).is_ok());
    assert_invalid(kept.forward(&whole, &whole), "mask", "none", "masks");
    for wrong in [vec![2, 3, 3], vec![1, 4, 3], vec![2, 3], vec![2]] {
        let result = kept.compare(&randn(wrong.clone(), "wrong"), &whole, Some(&mask));
        assert_misshapen(
            result,
            "sub_logits",
            &wrong,
            "[2, .., C] with .. being the 2 x 2 positions",
        );
    }
    let pixels = randn((2, 3, 4, 5), "pixels");
    let kept = kept.with_class_dim(1).unwrap();
    let result = kept.compare(&pixels, &pixels, Some(&mask));
    assert_misshapen(result, "sub_logits", &[2, 3, 4, 5], "2 x 2 positions");
    // Whoever has not asked for kept positions is told.
    let result = SubModelLoss::kl().compare(&part, &whole, Some(&mask));
    assert_misshapen(result, "sub_logits", &[2, 2, 3], "where_kept");
}

/// As many pixels or positions, but other ones.
#[test]
fn on_images_that_are_transposed() {
    let mask = Mask::from_keep_indices(Grid::new(2, 4), &[[0, 3, 5, 6]]).unwrap();
    let kept = SubModelLoss::kl().where_kept().with_class_dim(1).unwrap();
    let on = |dims: &[usize]| {
        let logits = randn(dims, "logits");
        kept.compare(&logits, &logits, Some(&mask))
    };
    for fits in [vec![1, 3, 2, 4], vec![1, 3, 8], vec![1, 3, 4], vec![1, 3, 4, 8]] {
        assert!(on(&fits).is_ok(), "{fits:?}");
    }
    for wrong in [
        vec![1, 3, 4, 2],
        vec![1, 3, 2, 2],
        vec![1, 3, 8, 4],
        vec![1, 3, 2, 2, 2],
    ] {
        assert_misshapen(on(&wrong), "sub_logits", &wrong, "the 2 x 4 positions");
    }
}

/// Logits of all positions or of the kept ones: nobody can know where there are as many.
#[test]
fn on_masks_that_keep_all_but_not_in_order() {
    let kept = SubModelLoss::kl().where_kept();
    let compare = |mask: &Mask, dims: &[usize]| kept.compare(&randn(dims, "sub"), &randn(dims, "main"), Some(mask));
    let permuted = Mask::from_keep_indices(Grid::new(1, 3), &[[0, 1, 2], [0, 2, 1]]).unwrap();
    assert_invalid(
        compare(&permuted, &[2, 3, 5]),
        "mask",
        "all 3 positions",
        "by their shape",
    );
    assert!(compare(&permuted, &[2, 1, 3, 5]).is_ok(), "a grid is of all positions");
    let in_order = Mask::from_keep_indices(Grid::new(1, 3), &[[0, 1, 2], [0, 1, 2]]).unwrap();
    assert!(compare(&in_order, &[2, 3, 5]).is_ok());

    // One sample keeps all of its tokens, the other one two of them.
    let sequences = Sequences::new(&Tensor::ones((2, 4), DType::U8, &CPU).unwrap()).unwrap();
    let stays = Tensor::new(&[[1u8; 4], [0; 4]], &CPU).unwrap();
    let ragged = sequences.clone().keeping(&stays).unwrap();
    let ragged = ragged.draw(&RandomMasking::new(0.5).unwrap(), key()).unwrap();
    assert_eq!((ragged.num_keep(), ragged.is_ragged()), (4, true));
    assert_invalid(
        compare(&ragged, &[2, 4, 5]),
        "mask",
        "all 4 positions",
        "by their shape",
    );
    let everything = sequences.draw(&RandomMasking::new(0.0).unwrap(), key()).unwrap();
    assert!(compare(&everything, &[2, 4, 5]).is_ok());
}

#[test]
fn on_weights_of_samples() {
    let (sub, main) = (randn((2, 3), "sub"), randn((2, 3), "main"));
    let with = |weights: &Tensor| SubModelLoss::kl().forward_with(&sub, &main, None, Some(weights));
    let weights = |values: &[f32]| Tensor::new(values, &CPU).unwrap();
    assert!(with(&weights(&[0.0, 2.0])).is_ok());
    assert_misshapen(with(&weights(&[1.0; 3])), "sample_weights", &[3], "[2]");
    assert_misshapen(with(&randn((2, 1), "w")), "sample_weights", &[2, 1], "[2]");
    assert_invalid(with(&weights(&[1.0, -1.0])), "sample_weights", "-1", "at least 0");
    assert_invalid(with(&weights(&[f32::NAN, 1.0])), "sample_weights", "NaN", "finite");
    let error = error_of(with(&Tensor::new(&[1u32, 2], &CPU).unwrap()));
    assert!(error.to_string().contains("sample_weights has dtype U32"), "{error}");
    for confidence in [-0.1, 1.1, f64::NAN] {
        assert_invalid(
            SubModelLoss::kl().with_confidence(confidence),
            "confidence",
            &confidence.to_string(),
            "[0, 1]",
        );
    }
}

#[test]
fn on_heads_that_disagree() {
    let head = |shape: (usize, usize)| randn(shape, "head");
    let (two, one) = (vec![head((2, 3)), head((2, 5))], vec![head((2, 3))]);
    let loss = SubModelLoss::kl();
    assert!(loss.compare(&two, &two, None).is_ok());
    assert_invalid(loss.compare(&one, &two, None), "sub", "1 tensors", "2");
    assert_invalid(
        loss.compare(&Vec::<Tensor>::new(), &vec![], None),
        "sub",
        "0 tensors",
        "at least 1",
    );
}

#[test]
fn on_branches_that_disagree() {
    for loss in sub_losses() {
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
    for loss in &sub_losses()[..3] {
        let error = error_of(loss.forward(&logits, &logits)).to_string();
        assert!(
            error.contains("main_logits has shape [3, 1]") && error.contains("SubModelLoss::bce()"),
            "{error}"
        );
    }
    let error = error_of(Criterion::cross_entropy().forward(&logits, &targets)).to_string();
    assert!(
        error.starts_with("logits has shape [3, 1], but must be [B, C] with C > 1") && error.contains("Criterion::bce"),
        "{error}"
    );
    assert!(SubModelLoss::bce().forward(&logits, &logits).is_ok());
    assert!(Criterion::bce_with_logits().forward(&logits, &targets).is_ok());
}
