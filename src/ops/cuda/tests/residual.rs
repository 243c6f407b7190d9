//! The sum of a residual branch.

use super::super::emulator::{assert_close, launch, Buffer};
use super::super::launch::{Element, Rows, Sums};
use super::super::residual as plan;
use super::{exact, in_every_order, inputs, ELEMENTS};
use crate::ops::add_branch;
use candle_core::{DType, Device, Tensor};

/// Result, and gradients of the branch and of gamma.
fn run(element: Element, inputs: &[Tensor], factors: Option<&[f32]>, grads: &Tensor, order: u32) -> Vec<Vec<f64>> {
    let (_, tokens, width) = grads.dims3().unwrap();
    let (rows, len, tokens) = (Rows::of(grads.dims()).unwrap(), grads.elem_count(), tokens as u32);
    let mut tensors: Vec<_> = inputs.iter().map(|tensor| Buffer::of(element, tensor)).collect();
    let (x, branch) = (tensors[0].address(), tensors[1].address());
    let gamma = tensors.get_mut(2).map_or(0, Buffer::address);
    let factors = factors.map(|factors| Tensor::new(factors, &Device::Cpu).unwrap());
    let mut factors = factors.map(|factors| Buffer::of(Element::F32, &factors));
    let factors = factors.as_mut().map_or(0, Buffer::address);
    let mut grads = Buffer::of(element, grads);
    let g = grads.address();
    let mut results = [(); 2].map(|()| Buffer::new(element, len));
    let [ys, dbranch] = results.each_mut().map(Buffer::address);
    let forward = plan::forward(element, rows, tokens, [x, branch, gamma, factors, ys]);
    let backward = plan::backward(element, rows, tokens, [g, gamma, factors, dbranch]);
    let mut scratch = Buffer::new(Element::F32, Sums::new(rows, 1).scratch());
    let mut dgamma = Buffer::new(element, width);
    let outputs = [scratch.address(), dgamma.address()];
    let of_gamma = plan::gamma_backward(element, rows, tokens, [g, branch, factors], outputs);
    launch(order, [&forward, &backward].into_iter().chain(&of_gamma));
    scratch.values();
    let mut values: Vec<_> = results.each_mut().map(Buffer::values).into();
    if gamma != 0 {
        values.push(dgamma.values());
    }
    values
}

#[test]
fn equals_its_composition() {
    for element in ELEMENTS {
        for (seed, shape) in (0..).zip([[1, 1, 1], [3, 7, 33], [2, 5, 1100], [4, 300, 5]]) {
            let [batch, _, width] = shape;
            for scales in 0..4 {
                let shapes = [&shape[..], &shape, &[width]];
                let args = inputs(element, &shapes[..2 + scales % 2], seed);
                // Exact in bf16: 0 among them.
                let factors: Vec<f32> = (0..batch).map(|sample| [1.25, 0.0, 1.0][sample % 3]).collect();
                let factors = (scales > 1).then_some(&factors[..]);
                let grads = &inputs(element, &[&shape], seed + 50)[0];
                let Some(results) = in_every_order(|order| run(element, &args, factors, grads, order)) else {
                    return;
                };
                let exact = exact(&args, grads, |t| {
                    assert_eq!(t[0].dtype(), DType::F64);
                    add_branch(&t[0], t[1].clone(), t.get(2), factors)
                });
                let exact = [&exact[0]].into_iter().chain(&exact[2..]);
                for ((what, result), exact) in ["ys", "dbranch", "dgamma"].iter().zip(&results).zip(exact) {
                    let what = format!("{what} of {shape:?}");
                    assert_close(element, &what, result, exact, 2e-6);
                }
            }
        }
    }
}
