//! The kernels, run by the emulator, against the compositions in `f64`.

mod activation;
mod layer_norm;
mod optimizer;
mod residual;
mod rows;
mod softmax;

use candle_core::{Tensor, Var};

use super::emulator::{self, rounded, ORDERS};
use super::launch::Element;
use crate::ops::testing::random;

const ELEMENTS: [Element; 2] = [Element::F32, Element::BF16];

/// Random tensors that the dtype holds.
fn inputs(element: Element, shapes: &[&[usize]], seed: u64) -> Vec<Tensor> {
    let tensors = shapes.iter().zip(seed * 100..).map(|(shape, seed)| random(shape, seed));
    tensors.map(|tensor| rounded(element, &tensor)).collect()
}

/// What a composition gives in `f64`: its result, and the gradients of its inputs for `upstream`, the result's.
fn exact(
    inputs: &[Tensor],
    upstream: &Tensor,
    composition: impl Fn(&[Tensor]) -> candle_core::Result<Tensor>,
) -> Vec<Tensor> {
    let vars: Vec<_> = inputs.iter().map(|input| Var::from_tensor(input).unwrap()).collect();
    let args: Vec<_> = vars.iter().map(|var| var.as_tensor().clone()).collect();
    let ys = composition(&args).unwrap();
    let grads = (&ys * upstream).unwrap().sum_all().unwrap().backward().unwrap();
    let mut results = vec![ys.detach()];
    results.extend(vars.iter().map(|var| grads.get(var).unwrap().clone()));
    results
}

/// What kernels give, which is the same to the bit in whatever order their threads run. Nothing where they cannot be run.
fn in_every_order(kernels: impl Fn(u32) -> Vec<Vec<f64>>) -> Option<Vec<Vec<f64>>> {
    if !emulator::is_here() {
        return None;
    }
    let bits = |results: &[Vec<f64>]| -> Vec<u64> { results.iter().flatten().map(|x| x.to_bits()).collect() };
    let [first, others @ ..] = ORDERS.map(kernels);
    for other in &others {
        assert!(bits(&first) == bits(other), "the order of threads matters");
    }
    Some(first)
}
