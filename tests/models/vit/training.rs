//! Training in every form, and evaluation.

use candle_nn::loss::cross_entropy;
use candle_nn::{AdamW, ModuleT, Optimizer, ParamsAdamW};
use masksub::models::vit::{Config, VisionTransformer};
use masksub::{grad, DropToken, Forward, MaskSub, Pass, RandomMasking};

use super::{half, key};
use crate::common::{bits, images, labels, numbers, tiny, tiny_forms, vit};

#[test]
fn reaches_every_parameter_and_lowers_the_loss_in_every_form() {
    for (name, form) in tiny_forms(5) {
        let cfg = Config {
            dropout: 0.05,
            drop_path: 0.05,
            ..form
        };
        let (vit, params) = vit(&cfg, 1);
        let model = MaskSub::new(vit, DropToken::new(half()), &params);
        let adam = ParamsAdamW {
            lr: 3e-3,
            ..Default::default()
        };
        let mut optimizer = AdamW::new(params.vars(), adam).unwrap();
        let (xs, ys) = (images(10, "training"), labels(10, 5));
        let evaluated = |model: &MaskSub<VisionTransformer, DropToken<RandomMasking>>| {
            numbers(&cross_entropy(&model.forward_t(&xs, false).unwrap(), &ys).unwrap())[0]
        };
        let before = evaluated(&model);
        for t in 0..30 {
            let step = model
                .backward(&xs, key(t), |logits| cross_entropy(logits, &ys))
                .unwrap();
            let audit = grad::audit(&step.grads, &params).unwrap();
            assert!(audit.is_ok() && audit.all_zero.is_empty(), "{name}, step {t}: {audit}");
            optimizer.step(&step.grads).unwrap();
        }
        let after = evaluated(&model);
        assert!(after < 0.2 * before, "{name}: from {before} to {after}");
    }
}

#[test]
fn evaluation_does_not_need_a_key_and_training_repeats_itself() {
    let cfg = Config {
        dropout: 0.2,
        drop_path: 0.2,
        ..tiny(Config::deit3_tiny(5))
    };
    let (vit, _) = vit(&cfg, 1);
    let xs = images(2, "repeat");
    let train = |step| bits(&vit.forward_pass(&xs, &mut Pass::train(key(step))).unwrap());
    assert_eq!(train(1), train(1));
    assert_ne!(train(1), train(2));
    assert_eq!(
        bits(&vit.forward_t(&xs, false).unwrap()),
        bits(&vit.forward_t(&xs, false).unwrap())
    );
}
