//! The sub-branch's weight: 0 is plain training, 1 the sub-branch alone.

use std::cell::Cell;

use candle_core::{Result, Tensor};
use candle_nn::loss::cross_entropy;
use masksub::models::vit::Config;
use masksub::{Forward, Grid, Mask, MaskSub, Params, Pass, Step, SubModelLoss, TokenModel};

use super::{drop_token, dropping, key};
use crate::common::{bits, by_name, gradient_distance, images, labels, numbers, vit};

/// Counts the passes of the model inside, and remembers whether they trained.
struct Counting<M> {
    model: M,
    passes: Cell<usize>,
}

impl<M> Counting<M> {
    fn new(model: M) -> Self {
        let passes = Cell::new(0);
        Self { model, passes }
    }
}

impl<M: TokenModel> TokenModel for Counting<M> {
    fn grid(&self, xs: &Tensor) -> Result<Grid> {
        self.model.grid(xs)
    }
    fn num_prefix_tokens(&self) -> usize {
        self.model.num_prefix_tokens()
    }
    fn embed(&self, xs: &Tensor, keep: Option<&Mask>, pass: &mut Pass) -> Result<Tensor> {
        self.passes.set(self.passes.get() + 1);
        self.model.embed(xs, keep, pass)
    }
    fn classify(&self, tokens: &Tensor, keep: Option<&Mask>, pass: &mut Pass) -> Result<Tensor> {
        self.model.classify(tokens, keep, pass)
    }
}

fn step(weight: f64) -> (Step, usize, Params) {
    let (vit, params) = vit(&dropping(Config::deit3_tiny(5)), 4);
    let model = MaskSub::new(Counting::new(vit), drop_token(), &params);
    let model = model.with_weight(weight).unwrap();
    let step = model
        .backward(&images(4, "w"), key(), |logits| cross_entropy(logits, &labels(4, 5)))
        .unwrap();
    (step, model.model().passes.get(), params)
}

#[test]
fn of_0_is_plain_training_bit_for_bit() {
    let (step, passes, params) = step(0.0);
    assert_eq!(passes, 1);
    assert!(step.sub_loss.is_none() && step.mask.is_none());
    let (vit, plain_params) = vit(&dropping(Config::deit3_tiny(5)), 4);
    let logits = vit.forward_pass(&images(4, "w"), &mut Pass::train(key())).unwrap();
    let loss = cross_entropy(&logits, &labels(4, 5)).unwrap();
    let plain = by_name(&loss.backward().unwrap(), &plain_params);
    let ours = by_name(&step.grads, &params);
    assert_eq!(ours.len(), plain.len());
    for (name, grad) in &ours {
        assert_eq!(bits(grad), bits(&plain[name]), "{name}");
    }
    assert_eq!(step.main_loss, numbers(&loss)[0]);
    assert_eq!(bits(&step.main_logits), bits(&logits));
}

#[test]
fn of_1_trains_on_the_sub_branch_alone() {
    let (step, passes, params) = step(1.0);
    assert_eq!(passes, 2);
    let (vit, other_params) = vit(&dropping(Config::deit3_tiny(5)), 4);
    let pair = MaskSub::unchecked(vit, drop_token())
        .forward_pair(&images(4, "w"), key())
        .unwrap();
    let loss = SubModelLoss::default().forward(&pair.sub, &pair.main).unwrap();
    let expected = by_name(&loss.backward().unwrap(), &other_params);
    assert!(gradient_distance(&by_name(&step.grads, &params), &expected) < 1e-6);
}

#[test]
fn in_between_runs_two_passes() {
    assert_eq!(step(0.5).1, 2);
}
