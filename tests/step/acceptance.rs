//! Running statistics, which count once a step is accepted.

use candle_core::{DType, Result, Tensor, Var};
use candle_nn::loss::cross_entropy;
use candle_nn::ModuleT;
use masksub::{Error, Fill, Forward, Mask, MaskSub, Params, Pass, PatchDrop, RandomMasking, SubLoss};

use super::{half, key};
use crate::common::{bits, labels, numbers, randn, CPU};

/// A linear model with a batch norm of the crate's kind: it stages its statistics in the pass.
struct Staging {
    weight: Var,
    running: Var,
}

impl Staging {
    fn new() -> Self {
        Self {
            weight: Var::from_tensor(&randn((4, 3), "staging")).unwrap(),
            running: Var::zeros(4, DType::F32, &CPU).unwrap(),
        }
    }

    fn params(&self) -> Params {
        Params::new([("weight".to_string(), self.weight.clone())])
    }

    fn state(&self) -> (Vec<u32>, Vec<u32>) {
        (bits(&self.weight), bits(&self.running))
    }
}

impl Forward for Staging {
    fn forward_pass(&self, xs: &Tensor, pass: &mut Pass) -> Result<Tensor> {
        pass.update_running(&self.running, &xs.mean((0, 2, 3))?, 0.5);
        xs.mean((2, 3))?.matmul(&self.weight)
    }
}

fn patch_drop() -> PatchDrop<RandomMasking> {
    PatchDrop::new(half(), 2).unwrap()
}

fn xs() -> Tensor {
    (randn((3, 4, 4, 4), "acceptance") + 1.0).unwrap()
}

/// What the running average becomes: half of itself and half of the mean, main then sub.
fn expected(mask: &Mask) -> Vec<f64> {
    let hidden = mask.fill(&xs(), &Fill::Zero, key()).unwrap();
    let mean = |xs: &Tensor| numbers(&xs.mean((0, 2, 3)).unwrap());
    let after_main = mean(&xs()).into_iter().map(|mean| 0.5 * mean);
    after_main
        .zip(mean(&hidden))
        .map(|(running, mean)| 0.5 * running + 0.5 * mean)
        .collect()
}

#[test]
fn commits_main_then_sub() {
    let model = Staging::new();
    let masked = MaskSub::new(&model, patch_drop(), model.params());
    let step = masked
        .backward(&xs(), key(), |logits| cross_entropy(logits, &labels(3, 3)))
        .unwrap();
    let expected = expected(&step.mask.unwrap());
    assert!(numbers(&model.running)
        .iter()
        .zip(&expected)
        .all(|(a, b)| (a - b).abs() < 1e-6));
}

#[test]
fn of_a_pair_is_for_the_caller_to_give() {
    let model = Staging::new();
    let masked = MaskSub::unchecked(&model, patch_drop());
    let before = model.state();
    drop(masked.forward_pair(&xs(), key()).unwrap());
    assert_eq!(model.state(), before);
    let pair = masked.forward_pair(&xs(), key()).unwrap();
    assert_eq!(model.state(), before);
    let expected = expected(pair.mask.as_ref().unwrap());
    pair.accept().unwrap();
    assert!(numbers(&model.running)
        .iter()
        .zip(&expected)
        .all(|(a, b)| (a - b).abs() < 1e-6));
}

#[test]
fn is_refused_to_a_loss_that_is_not_finite() {
    for value in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
        let model = Staging::new();
        let before = model.state();
        let masked = MaskSub::new(&model, patch_drop(), model.params());
        let error = masked
            .backward(&xs(), key(), |logits| logits.sum_all()? * value)
            .unwrap_err();
        assert!(
            matches!(error, Error::NonFiniteLoss { branch: "main", value: v } if v.to_bits() == value.to_bits() || v.is_nan()),
            "{error}"
        );
        assert_eq!(model.state(), before);
    }
    // Undefined in the sub-branch alone: there the fill is not 0 but NaN.
    let model = Staging::new();
    let before = model.state();
    let branch = patch_drop().with_fill(Fill::Value(vec![f32::NAN; 4]));
    let masked = MaskSub::new(&model, branch, model.params());
    let error = masked
        .backward(&xs(), key(), |logits| cross_entropy(logits, &labels(3, 3)))
        .unwrap_err();
    assert!(matches!(error, Error::NonFiniteLoss { branch: "sub", .. }), "{error}");
    assert_eq!(model.state(), before);
}

/// Losses are read when both halves are computed; what a sub half refuses then is a consequence.
#[test]
fn a_main_loss_that_is_not_finite_comes_before_what_the_sub_half_refuses() {
    struct Refuses;
    impl SubLoss for Refuses {
        fn compare(&self, _: &Tensor, _: &Tensor, _: Option<&Mask>) -> Result<Tensor> {
            candle_core::bail!("an undefined target")
        }
    }
    let model = Staging::new();
    let before = model.state();
    let masked = MaskSub::new(&model, patch_drop(), model.params());
    let step = |value: f64| masked.backward_with(&xs(), key(), |logits| logits.sum_all()? * value, &Refuses);
    let error = step(f64::NAN).unwrap_err();
    assert!(matches!(error, Error::NonFiniteLoss { branch: "main", .. }), "{error}");
    let error = step(1.0).unwrap_err();
    assert!(error.to_string().contains("an undefined target"), "{error}");
    assert_eq!(model.state(), before);
}

#[test]
fn is_refused_to_a_step_that_fails_otherwise() {
    let model = Staging::new();
    let before = model.state();
    let unused = Var::zeros(2, DType::F32, &CPU).unwrap();
    let vars = [
        ("weight".to_string(), model.weight.clone()),
        ("unused".to_string(), unused),
    ];
    let masked = MaskSub::new(&model, patch_drop(), Params::new(vars));
    let error = masked
        .backward(&xs(), key(), |logits| cross_entropy(logits, &labels(3, 3)))
        .unwrap_err();
    assert!(matches!(error, Error::MissingGradients { .. }), "{error}");
    let masked = MaskSub::unchecked(&model, patch_drop());
    masked
        .backward(&xs(), key(), |_| candle_core::bail!("no loss today"))
        .unwrap_err();
    assert_eq!(model.state(), before);
}

#[test]
fn is_not_asked_in_evaluation() {
    let model = Staging::new();
    let before = model.state();
    let masked = MaskSub::unchecked(&model, patch_drop());
    masked.forward_t(&xs(), false).unwrap();
    assert_eq!(model.state(), before);
    // In training mode a candle module updates at once, and so does this one.
    masked.forward_t(&xs(), true).unwrap();
    assert_ne!(model.state(), before);
}

#[test]
fn at_weight_0_commits_the_main_pass() {
    let model = Staging::new();
    let masked = MaskSub::unchecked(&model, patch_drop()).with_weight(0.0).unwrap();
    masked
        .backward(&xs(), key(), |logits| cross_entropy(logits, &labels(3, 3)))
        .unwrap();
    let mean = numbers(&xs().mean((0, 2, 3)).unwrap());
    assert!(numbers(&model.running)
        .iter()
        .zip(&mean)
        .all(|(a, b)| (a - 0.5 * b).abs() < 1e-6));
}
