//! Closures, sequentials and modules with batch norm, wrapped as they are.

use candle_core::{DType, Result, Tensor, Var};
use candle_nn::loss::cross_entropy;
use candle_nn::{Module, ModuleT, Optimizer};
use masksub::{grad, Fill, MaskSub, Params, PatchDrop, Plain, RandomMasking, Seed, Weights};

use super::{adam, half, key, separable};
use crate::common::{bits, images, numbers, randn, CPU};

/// Trains a wrapped module for some steps; returns its first and last losses.
fn train(module: impl ModuleT, weights: &Weights, fill: Fill) -> [(f64, f64); 2] {
    let params = Params::from_varmap(weights.varmap());
    let branch = PatchDrop::new(half(), 4).unwrap().with_fill(fill);
    let model = MaskSub::wrap(module, branch, &params);
    let mut optimizer = adam(&params, 1e-2);
    let mut losses = vec![];
    for t in 0..60 {
        let (xs, ys) = separable(24, &format!("step {t}"));
        let step = model
            .backward(&xs, Seed::new(9).at(t), |logits| cross_entropy(logits, &ys))
            .unwrap();
        let audit = grad::audit(&step.grads, &params).unwrap();
        assert!(audit.is_ok() && audit.all_zero.is_empty(), "{audit}");
        optimizer.step(&step.grads).unwrap();
        losses.push((step.main_loss, step.sub_loss.unwrap()));
    }
    [losses[0], losses[59]]
}

fn assert_learned([first, last]: [(f64, f64); 2]) {
    assert!(last.0 < 0.3 * first.0, "main loss from {} to {}", first.0, last.0);
    assert!(last.1 < first.1, "sub loss from {} to {}", first.1, last.1);
}

fn weights() -> (Weights, candle_nn::VarBuilder<'static>) {
    let weights = Weights::seeded(Seed::new(0));
    let vb = weights.var_builder(DType::F32, &CPU);
    (weights, vb)
}

#[test]
fn a_closure_trains() {
    for fill in [Fill::Zero, Fill::Mean, Fill::Noise, Fill::Value(vec![0.5])] {
        let (weights, vb) = weights();
        let hidden = candle_nn::linear(64, 16, vb.pp("hidden")).unwrap();
        let head = candle_nn::linear(16, 3, vb.pp("head")).unwrap();
        let net = move |xs: &Tensor| head.forward(&hidden.forward(&xs.flatten_from(1)?)?.relu()?);
        assert_learned(train(net, &weights, fill));
    }
}

#[test]
fn a_sequential_trains() {
    let (weights, vb) = weights();
    let conv = candle_nn::Conv2dConfig {
        padding: 1,
        ..Default::default()
    };
    let net = candle_nn::seq()
        .add(candle_nn::conv2d(1, 6, 3, conv, vb.pp("conv")).unwrap())
        .add(candle_nn::Activation::Relu)
        .add_fn(|xs| xs.max_pool2d(2))
        .add_fn(|xs| xs.flatten_from(1))
        .add(candle_nn::linear(6 * 16, 3, vb.pp("head")).unwrap());
    assert_learned(train(net, &weights, Fill::Zero));
}

#[test]
fn a_closure_may_ask_whether_it_trains() {
    let weight = Var::from_tensor(&randn((64, 3), "flag")).unwrap();
    let net = candle_nn::func_t(move |xs, train| {
        let logits = xs.flatten_from(1)?.matmul(&weight)?;
        logits.affine(1.0, if train { 1.0 } else { 0.0 })
    });
    let model = MaskSub::unchecked(Plain(net), PatchDrop::new(RandomMasking::new(0.0).unwrap(), 4).unwrap());
    let xs = separable(4, "flag").0;
    let pair = model.forward_pair(&xs, key()).unwrap();
    let evaluated = numbers(&model.forward_t(&xs, false).unwrap());
    for trained in [pair.main, pair.sub, model.forward_t(&xs, true).unwrap()] {
        assert!(numbers(&trained)
            .iter()
            .zip(&evaluated)
            .all(|(a, b)| (a - b - 1.0).abs() < 1e-5));
    }
}

/// candle's own batch norm between two convolutions.
struct ConvNet {
    conv: candle_nn::Conv2d,
    norm: candle_nn::BatchNorm,
    head: candle_nn::Linear,
}

impl ModuleT for ConvNet {
    fn forward_t(&self, xs: &Tensor, train: bool) -> Result<Tensor> {
        let hidden = self.norm.forward_t(&self.conv.forward(xs)?, train)?.relu()?;
        self.head.forward(&hidden.avg_pool2d(2)?.flatten_from(1)?)
    }
}

fn conv_net(vb: candle_nn::VarBuilder) -> ConvNet {
    let conv = candle_nn::Conv2dConfig {
        padding: 1,
        ..Default::default()
    };
    ConvNet {
        // No bias: the batch norm would take its gradient to zero.
        conv: candle_nn::conv2d_no_bias(1, 6, 3, conv, vb.pp("conv")).unwrap(),
        norm: candle_nn::batch_norm(6, 1e-5, vb.pp("norm")).unwrap(),
        head: candle_nn::linear(6 * 16, 3, vb.pp("head")).unwrap(),
    }
}

#[test]
fn a_module_with_batch_norm_trains() {
    let (weights, vb) = weights();
    let net = conv_net(vb);
    let statistics = net.norm.running_mean().clone();
    let before = bits(&statistics);
    let params = Params::from_varmap(weights.varmap());
    assert_eq!(
        params.names().collect::<Vec<_>>(),
        ["conv.weight", "head.bias", "head.weight", "norm.bias", "norm.weight"]
    );
    assert_learned(train(net, &weights, Fill::Zero));
    // The flag arrived: the statistics moved.
    let data = weights.varmap().data().lock().unwrap();
    assert_ne!(bits(&data["norm.running_mean"]), before);
}

#[test]
fn the_stand_ins_batch_norm_waits_for_the_step() {
    let (weights, vb) = weights();
    let norm = masksub::nn::batch_norm(1, 1e-5, vb.pp("norm")).unwrap();
    let head = masksub::nn::linear(64, 3, vb.pp("head")).unwrap();
    let net = candle_nn::func_t(move |xs, train| norm.forward_t(xs, train)?.flatten_from(1)?.apply(&head));
    let statistics = || bits(&weights.varmap().data().lock().unwrap()["norm.running_mean"]);
    let before = statistics();
    let model = MaskSub::wrap(
        net,
        PatchDrop::new(half(), 4).unwrap(),
        Params::from_varmap(weights.varmap()),
    );
    let xs = separable(4, "waits").0;
    // Candle's own would have written them in the forward pass.
    assert!(model
        .backward(&xs, key(), |logits| (logits * f64::NAN)?.mean_all())
        .is_err());
    assert_eq!(statistics(), before);
    model.backward(&xs, key(), |logits| logits.sqr()?.mean_all()).unwrap();
    assert_ne!(statistics(), before);
}

#[test]
fn evaluation_is_the_bare_module_bit_for_bit() {
    let xs = separable(5, "evaluation").0;
    let (_weights, vb) = weights();
    let net = conv_net(vb.clone());
    let bare = conv_net(vb);
    let wrapped = MaskSub::unchecked(Plain(net), PatchDrop::new(half(), 4).unwrap().with_fill(Fill::Noise));
    let logits = bare.forward_t(&xs, false).unwrap();
    assert_eq!(bits(&wrapped.forward_t(&xs, false).unwrap()), bits(&logits));
    // And is not what training gives: batch norm heeds the flag.
    assert_ne!(bits(&wrapped.forward_t(&xs, true).unwrap()), bits(&logits));
}

#[test]
fn plain_is_public() {
    // `MaskSub::wrap` is `MaskSub::new` around `Plain`.
    let net = candle_nn::func(|xs| xs.flatten_from(1));
    let model: MaskSub<Plain<_>, _> = MaskSub::unchecked(Plain(net), PatchDrop::new(half(), 4).unwrap());
    assert_eq!(model.model().0.forward(&images(1, "plain")).unwrap().dims(), [1, 768]);
    assert_eq!(
        model.into_model().0.forward(&images(1, "plain")).unwrap().dims(),
        [1, 768]
    );
}
