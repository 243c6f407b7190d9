//! Softmax.

use super::super::emulator::{assert_close, launch, Buffer};
use super::super::launch::{Element, Rows};
use super::super::softmax as plan;
use super::{exact, in_every_order, inputs, ELEMENTS};
use crate::ops::softmax::composition;
use candle_core::{Tensor, D};

/// Result, and gradient of the input.
fn run(element: Element, xs: &Tensor, grads: &Tensor, scale: f32, order: u32) -> Vec<Vec<f64>> {
    let rows = Rows::of(xs.dims()).unwrap();
    let [mut xs, mut grads] = [xs, grads].map(|tensor| Buffer::of(element, tensor));
    let mut results = [(); 2].map(|()| Buffer::new(element, xs.len()));
    let [ys, dxs] = results.each_mut().map(Buffer::address);
    let forward = plan::forward(element, rows, [xs.address(), ys], scale);
    let backward = plan::backward(element, rows, [ys, grads.address(), dxs], scale);
    launch(order, [&forward, &backward]);
    results.each_mut().map(Buffer::values).into()
}

#[test]
fn equals_its_composition() {
    for element in ELEMENTS {
        for (seed, shape) in (0..).zip([[1, 1], [9, 2], [5, 31], [17, 99], [3, 197], [2, 2000]]) {
            for scale in [1.0, 0.125] {
                let xs = &inputs(element, &[&shape], seed)[0];
                let grads = &inputs(element, &[&shape], seed + 50)[0];
                let Some(results) = in_every_order(|order| run(element, xs, grads, scale, order)) else {
                    return;
                };
                let composed = |t: &[Tensor]| composition(&(&t[0] * f64::from(scale))?, D::Minus1);
                let exact = exact(std::slice::from_ref(xs), grads, composed);
                assert_close(element, &format!("ys of {shape:?}"), &results[0], &exact[0], 1e-6);
                // The backward starts from the result as it was rounded.
                let tolerance = if element == Element::F32 { 1e-6 } else { 1e-2 };
                assert_close(element, &format!("dxs of {shape:?}"), &results[1], &exact[1], tolerance);
            }
        }
    }
}

#[test]
fn of_extreme_rows() {
    let rows = [
        [f32::NEG_INFINITY, 1.0, 1.0],
        [f32::NEG_INFINITY; 3],
        [1000.0, -1000.0, 0.0],
    ];
    let xs = Tensor::new(&rows, &candle_core::Device::Cpu).unwrap();
    let Some(results) = in_every_order(|order| run(Element::F32, &xs, &xs.zeros_like().unwrap(), 1.0, order)) else {
        return;
    };
    assert_eq!(results[0][..3], [0.0, 0.5, 0.5]);
    assert!(results[0][3..6].iter().all(|y| y.is_nan()));
    assert_eq!(results[0][6..], [1.0, 0.0, 0.0]);
}
