//! Models for evaluation, on the weights of one that is trained.

use std::collections::BTreeSet;

use candle_core::{DType, Result, Tensor};
use candle_nn::{Module, ModuleT, Optimizer, VarBuilder, SGD};
use masksub::models::resnet::{BlockKind, ResNet};
use masksub::models::swin::SwinTransformer;
use masksub::models::vit::VisionTransformer;
use masksub::train::ema::Ema;
use masksub::train::optim::{AdamW, AdamWConfig};
use masksub::{Params, Seed, Weights};

use crate::common::{bits, images, randn, small_resnet, small_swin, tiny_forms, CPU};

/// Predictions of a model of `build` follow the training of another one, to the bit, and have no graph.
fn check<M: ModuleT>(name: &str, xs: &Tensor, build: impl Fn(VarBuilder) -> Result<M>) {
    let weights = Weights::seeded(Seed::new(0));
    // In this order, as a teacher is made, or the other.
    let evaluated = build(weights.no_grad_builder(DType::F32, &CPU)).unwrap();
    let trained = build(weights.var_builder(DType::F32, &CPU)).unwrap();
    let params = Params::from_varmap(weights.varmap());
    // Which write to the variables in ways of their own.
    let mut candle = SGD::new(params.vars(), 0.1).unwrap();
    let cfg = AdamWConfig {
        lr: 0.1,
        ..Default::default()
    };
    let mut ours = AdamW::new(&params, cfg).unwrap();
    let mut ema = Ema::of(weights.varmap(), 0.5).unwrap();
    let predictions = || {
        let [graph, none] = [&trained, &evaluated].map(|model: &M| model.forward_t(xs, false).unwrap());
        assert!(graph.track_op() && !none.track_op(), "{name}");
        assert_eq!(bits(&none), bits(&graph), "{name}");
        bits(&none)
    };
    let loss = || trained.forward_t(xs, true).unwrap().sqr().unwrap().mean_all().unwrap();
    let mut seen = BTreeSet::from([predictions()]);
    candle.backward_step(&loss()).unwrap();
    seen.insert(predictions());
    ours.backward_step(&loss()).unwrap();
    seen.insert(predictions());
    ema.update().unwrap();
    seen.insert(ema.averaged(predictions).unwrap());
    assert_eq!(seen.len(), 4, "{name}");
}

#[test]
fn predict_what_the_trained_model_does() {
    for (name, cfg) in tiny_forms(5) {
        check(name, &images(2, "evaluated"), |vb| VisionTransformer::new(&cfg, vb));
    }
    let xs = randn((2, 3, 64, 64), "evaluated");
    for block in [BlockKind::Basic, BlockKind::Bottleneck] {
        check("ResNet", &xs, |vb| ResNet::new(&small_resnet(block), vb));
    }
    check("Swin", &randn((2, 3, 32, 64), "evaluated"), |vb| {
        SwinTransformer::new(&small_swin(), vb)
    });
    check("candle's convolution and batch norm", &xs, |vb| {
        let conv = candle_nn::conv2d(3, 4, 3, Default::default(), vb.pp("conv"))?;
        let norm = candle_nn::batch_norm(4, 1e-5, vb.pp("norm"))?;
        Ok(candle_nn::func_t(move |xs, train| {
            norm.forward_t(&conv.forward(xs)?, train)
        }))
    });
}
