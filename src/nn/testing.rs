//! What the tests of the layers share: a layer beside candle-nn's, with the same weights.

use std::collections::{BTreeMap, BTreeSet};

use candle_core::{DType, Device, Module, Result, Tensor, Var};
use candle_nn::VarBuilder;

use crate::key::Seed;
use crate::ops::testing::{random, relative};
use crate::weights::Weights;

/// Standard normal numbers in `f32`.
pub(super) fn single(shape: &[usize], seed: u64) -> Tensor {
    random(shape, seed).to_dtype(DType::F32).unwrap()
}

/// A layer's result, and the gradients of a sum over it, by the names of the parameters; the input's is `xs`.
fn run<L>(
    xs: &Tensor,
    make: impl FnOnce(VarBuilder) -> Result<L>,
    forward: impl FnOnce(&Tensor, &L) -> Result<Tensor>,
) -> BTreeMap<String, Tensor> {
    // Weights depend on the seed and their name alone.
    let weights = Weights::seeded(Seed::new(3));
    let layer = make(weights.var_builder(DType::F32, &Device::Cpu)).unwrap();
    let xs = Var::from_tensor(xs).unwrap();
    let ys = forward(&xs, &layer).unwrap();
    let grads = (&ys * single(ys.dims(), 7))
        .unwrap()
        .sum_all()
        .unwrap()
        .backward()
        .unwrap();
    let vars = weights.varmap().data().lock().unwrap().clone();
    let vars = vars.into_iter().chain([("xs".to_string(), xs)]);
    let grads = vars.map(|(name, var)| {
        (
            name.clone(),
            grads.get(&var).unwrap_or_else(|| panic!("{name}")).clone(),
        )
    });
    grads.chain([("ys".to_string(), ys.detach())]).collect()
}

/// A layer of ours has candle-nn's parameters and result, where candle's gradients are missing or wrong.
pub(super) fn assert_same_result<A: Module, B: Module>(
    xs: &Tensor,
    ours: impl FnOnce(VarBuilder) -> Result<A>,
    candles: impl FnOnce(VarBuilder) -> Result<B>,
) {
    let weights = [Weights::seeded(Seed::new(3)), Weights::seeded(Seed::new(3))];
    let [a, b] = [&weights[0], &weights[1]].map(|weights| weights.var_builder(DType::F32, &Device::Cpu));
    let ours = ours(a).unwrap().forward(xs).unwrap();
    let candles = candles(b).unwrap().forward(xs).unwrap();
    let error = relative(&ours, &candles);
    assert!(error < 2e-6, "the result is off by {error:e}");
    let names = weights.map(|weights| {
        let vars = weights.varmap().data().lock().unwrap().clone();
        vars.into_keys().collect::<BTreeSet<_>>()
    });
    assert_eq!(names[0], names[1]);
}

/// A layer of ours has candle-nn's parameters, result and gradients, each of which is there.
pub(super) fn assert_same_layer<A, B>(
    xs: &Tensor,
    ours: impl FnOnce(VarBuilder) -> Result<A>,
    candles: impl FnOnce(VarBuilder) -> Result<B>,
    forward_ours: impl FnOnce(&Tensor, &A) -> Result<Tensor>,
    forward_candles: impl FnOnce(&Tensor, &B) -> Result<Tensor>,
) {
    let (ours, candles) = (run(xs, ours, forward_ours), run(xs, candles, forward_candles));
    assert_eq!(ours.keys().collect::<Vec<_>>(), candles.keys().collect::<Vec<_>>());
    for (name, ours) in &ours {
        let error = relative(ours, &candles[name]);
        assert!(error < 2e-6, "{name} is off by {error:e}");
    }
}

/// Every one of `vars`, and the input [2, 3, 6], gets a gradient from a norm of a contiguous input, which candle-nn's do not
/// give.
pub(super) fn assert_trains(module: &impl Module, vars: &[&Var]) {
    let xs = Var::from_tensor(&single(&[2, 3, 6], 9)).unwrap();
    let loss = (module.forward(&xs).unwrap() * single(&[2, 3, 6], 10))
        .unwrap()
        .sum_all()
        .unwrap();
    let grads = loss.backward().unwrap();
    for var in vars.iter().chain([&&xs]) {
        let norm = grads.get(var).expect("a gradient").sqr().unwrap().sum_all().unwrap();
        assert!(norm.to_scalar::<f32>().unwrap() > 0.0);
    }
}

/// A norm of ours has candle-nn's result, of its fused kernel in one case, of its composition in the other.
pub(super) fn assert_equal(ours: &impl Module, candles: &impl Module) {
    let xs = single(&[2, 3, 6], 9);
    for xs in [xs.clone(), xs.transpose(0, 1).unwrap()] {
        let (ours, candles) = (ours.forward(&xs).unwrap(), candles.forward(&xs).unwrap());
        let error = relative(&ours, &candles);
        assert!(error < 1e-6, "{error:e}");
    }
}
