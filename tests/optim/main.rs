//! Optimizers. (Against PyTorch and timm: `examples/parity/tests.rs`.)

#[path = "../common/mod.rs"]
mod common;
mod groups;
mod refused;
mod state;
mod steps;

use std::collections::BTreeMap;

use candle_core::backprop::GradStore;
use candle_core::{DType, Tensor, Var};
use common::randn;
use masksub::train::optim::{AdamWConfig, GroupOptimizer, LambConfig, ParamGroups, Rule, SgdConfig};
use masksub::Params;

/// Shapes that are one piece of work, several for three threads, several for one of them, a single number, and none.
const SHAPES: [(&str, &[usize]); 7] = [
    ("a.weight", &[7, 5]),
    ("b.weight", &[1100, 701]),
    ("b2.weight", &[400, 701]),
    ("b3.weight", &[401, 700]),
    ("c.bias", &[9]),
    ("d.scale", &[]),
    ("e.weight", &[0, 3]),
];

fn params(dtype: DType) -> Params {
    let var = |(name, shape): (&str, &[usize])| {
        let tensor = randn(shape, name).to_dtype(dtype).unwrap();
        (name.to_string(), Var::from_tensor(&tensor).unwrap())
    };
    Params::new(SHAPES.map(var))
}

fn grads(params: &Params, step: usize) -> GradStore {
    let mut grads = GradStore::default();
    for (name, var) in params.iter() {
        let grad = randn(var.dims(), &format!("{name} {step}"));
        grads.insert(var, grad.to_dtype(var.dtype()).unwrap());
    }
    grads
}

fn every_rule() -> [Box<dyn Rule>; 3] {
    [
        Box::<AdamWConfig>::default(),
        Box::<LambConfig>::default(),
        Box::<SgdConfig>::default(),
    ]
}

fn rules() -> Vec<Box<dyn Rule>> {
    let lamb = |max_grad_norm| LambConfig {
        weight_decay: 0.1,
        max_grad_norm,
        ..LambConfig::default()
    };
    vec![
        Box::new(AdamWConfig {
            weight_decay: 0.1,
            ..AdamWConfig::default()
        }),
        Box::new(lamb(Some(1.0))),
        Box::new(lamb(None)),
        Box::new(SgdConfig {
            weight_decay: 0.1,
            ..SgdConfig::default()
        }),
        Box::new(SgdConfig {
            nesterov: false,
            momentum: 0.0,
            ..SgdConfig::default()
        }),
    ]
}

/// Five steps from the same start, in that dtype.
fn train(rule: Box<dyn Rule>, dtype: DType) -> (Params, GroupOptimizer<Box<dyn Rule>>) {
    let params = params(dtype);
    let groups = ParamGroups::new(&params).without_decay(ParamGroups::usually_without_decay);
    let groups = groups
        .with_lr_scale(|name| if name == "a.weight" { 0.5 } else { 1.0 })
        .unwrap();
    let mut opt = GroupOptimizer::new(groups, rule).unwrap();
    for step in 0..5 {
        opt.step(&grads(&params, step)).unwrap();
    }
    (params, opt)
}

fn values(params: &Params) -> BTreeMap<String, Tensor> {
    let value = |(name, var): (&str, &Var)| (name.to_string(), var.as_tensor().copy().unwrap());
    params.iter().map(value).collect()
}
