//! Blocks that compute again in the backward what they could have kept.

use candle_core::{DType, Tensor};
use candle_nn::loss::cross_entropy;
use masksub::models::swin::{self, SwinTransformer};
use masksub::models::vit::{Config, VisionTransformer};
use masksub::models::Recompute;
use masksub::{DropToken, Error, Forward, MaskSub, MaskToken, Params, Seed, SubBranch, Weights};

use super::random;
use crate::common::{bits, by_name, images, labels, randn, small_swin, tiny_forms, vit, CPU};

const ALL: [Recompute; 3] = [Recompute::Never, Recompute::EveryBlock, Recompute::EveryOther];

/// All numbers of a MaskSub step, bit by bit.
fn step<M: Forward, S: SubBranch<M>>(model: M, branch: S, params: &Params, images: &Tensor) -> Vec<Vec<u32>> {
    let labels = labels(images.dim(0).unwrap(), 5);
    let masksub = MaskSub::new(model, branch, params.clone());
    let step = masksub
        .backward(images, Seed::new(3).at(0), |logits| cross_entropy(logits, &labels))
        .unwrap();
    let grads = by_name(&step.grads, params);
    assert_eq!(grads.len(), params.iter().count());
    grads.values().chain([&step.main_logits]).map(bits).collect()
}

#[test]
fn changes_no_bit_of_a_vit() {
    for (name, form) in tiny_forms(5) {
        if form.gate.is_some() {
            continue;
        }
        let of = |recompute| {
            let cfg = Config {
                drop_path: 0.4,
                recompute,
                ..form.clone()
            };
            let (vit, params) = vit(&cfg, 0);
            step(vit, DropToken::new(random(0.5)), &params, &images(4, "recompute"))
        };
        let [never, every_block, every_other] = ALL.map(of);
        assert_eq!(never, every_block, "{name}");
        assert_eq!(never, every_other, "{name}");
    }
}

#[test]
fn changes_no_bit_of_a_swin() {
    let of = |recompute| {
        let cfg = swin::Config {
            drop_path: 0.4,
            recompute,
            ..small_swin()
        };
        let weights = Weights::seeded(Seed::new(0));
        let swin = SwinTransformer::new(&cfg, weights.var_builder(DType::F32, &CPU)).unwrap();
        let params = Params::from_varmap(weights.varmap());
        let images = randn((4, 3, 32, 64), "recompute");
        step(swin, MaskToken::new(random(0.5), 8).unwrap(), &params, &images)
    };
    let [never, every_block, every_other] = ALL.map(of);
    assert_eq!(never, every_block);
    assert_eq!(never, every_other);
}

#[test]
fn is_refused_where_all_would_be_kept() {
    let message = |cfg: &Config| {
        let weights = Weights::seeded(Seed::new(0));
        let error = VisionTransformer::new(cfg, weights.var_builder(DType::F32, &CPU)).unwrap_err();
        Error::from(error).to_string()
    };
    let recompute = Recompute::EveryBlock;
    let dropout = Config {
        recompute,
        dropout: 0.1,
        ..Config::mae_base(5)
    };
    assert_eq!(
        message(&dropout),
        "recompute is EveryBlock with dropout, but must be Never"
    );
    let gated = Config {
        recompute,
        ..Config::eva02_tiny(5)
    };
    assert_eq!(
        message(&gated),
        "recompute is EveryBlock with a gated MLP, but must be Never"
    );
}
