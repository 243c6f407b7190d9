//! candle's optimizers on a step's gradients.

use candle_nn::loss::cross_entropy;
use candle_nn::{Optimizer, SGD};
use masksub::models::vit::{Config, VisionTransformer};
use masksub::{MaskSub, Params, Seed};

use super::{adam, drop_token};
use crate::common::{bits, images, labels, tiny, vit};

fn train<O: Optimizer>(mut optimizer: O, params: &Params, vit: &VisionTransformer) {
    let (xs, ys) = (images(8, "optimizer"), labels(8, 5));
    let model = MaskSub::new(vit, drop_token(), params);
    let before: Vec<_> = params.vars().iter().map(|var| bits(var)).collect();
    let mut losses = vec![];
    for t in 0..30 {
        let step = model
            .backward(&xs, Seed::new(1).at(t), |logits| cross_entropy(logits, &ys))
            .unwrap();
        optimizer.step(&step.grads).unwrap();
        losses.push(step.main_loss);
    }
    assert!(losses[29] < 0.5 * losses[0], "{losses:?}");
    for (name, (var, before)) in params.names().zip(params.vars().iter().zip(before)) {
        assert_ne!(bits(var), before, "{name} did not move");
    }
}

#[test]
fn of_candle_step_on_the_gradients() {
    let (sgd_vit, params) = vit(&tiny(Config::mae_base(5)), 4);
    train(SGD::new(params.vars(), 0.1).unwrap(), &params, &sgd_vit);
    let (adam_vit, params) = vit(&tiny(Config::mae_base(5)), 4);
    train(adam(&params, 3e-3), &params, &adam_vit);
}
