//! Layer norm.

use super::super::emulator::{assert_close, launch, Buffer};
use super::super::launch::{Element, Rows, Sums};
use super::super::layer_norm as plan;
use super::{exact, in_every_order, inputs, ELEMENTS};
use crate::ops::layer_norm::composition;

/// Result, and gradients of input, weight and bias.
fn run(
    element: Element,
    inputs: &[candle_core::Tensor],
    grads: &candle_core::Tensor,
    eps: f32,
    order: u32,
) -> Vec<Vec<f64>> {
    let len = grads.elem_count();
    let width = inputs[1].elem_count();
    let rows = Rows::new(len / width, width).unwrap();
    let mut tensors: Vec<_> = inputs.iter().map(|tensor| Buffer::of(element, tensor)).collect();
    let mut addresses: Vec<_> = tensors.iter_mut().map(Buffer::address).collect();
    addresses.resize(3, 0);
    let (mut ys, mut dxs) = (Buffer::new(element, len), Buffer::new(element, len));
    let mut grads = Buffer::of(element, grads);
    let mut stats = Buffer::new(Element::F32, 2 * len / width);
    let mut sums = Buffer::new(Element::F32, Sums::new(rows, 2).scratch());
    let mut dparams = Buffer::new(element, 2 * width);
    let [x, w, b] = addresses[..] else { unreachable!() };
    let forward = plan::forward(element, rows, [x, w, b, ys.address()], eps);
    let (g, stats_at) = (grads.address(), stats.address());
    let backward = plan::backward(element, rows, [x, w, g, dxs.address(), stats_at], eps);
    let params = plan::params_backward(element, rows, [x, g, stats_at], [sums.address(), dparams.address()]);
    launch(order, [&forward, &backward].into_iter().chain(&params));
    stats.values();
    sums.values();
    let dparams = dparams.values();
    let (dweight, dbias) = dparams.split_at(width);
    let mut results = vec![ys.values(), dxs.values(), dweight.to_vec()];
    if inputs.len() > 2 {
        results.push(dbias.to_vec());
    }
    results
}

#[test]
fn equals_its_composition() {
    let shapes = [
        // rows, width: less than a warp, no multiple of one, of several blocks, of several chunks, one element.
        (1, 1, 0.5),
        (3, 2, 0.5),
        (5, 31, 1e-5),
        (9, 33, 1e-6),
        (17, 384, 1e-6),
        (70, 100, 1e-5),
        (2, 5000, 1e-5),
        (9000, 3, 0.5),
    ];
    for element in ELEMENTS {
        for (seed, (rows, width, eps)) in (0..).zip(shapes) {
            for params in 1..3 {
                let shapes = [&[rows, width][..], &[width], &[width]];
                let args = inputs(element, &shapes[..=params], seed);
                let grads = &inputs(element, &[&[rows, width]], seed + 50)[0];
                let Some(results) = in_every_order(|order| run(element, &args, grads, eps, order)) else {
                    return;
                };
                let exact = exact(&args, grads, |t| composition(&t[0], &t[1], t.get(2), f64::from(eps)));
                for ((what, result), exact) in ["ys", "dxs", "dweight", "dbias"].iter().zip(&results).zip(&exact) {
                    let what = format!("{what} of [{rows}, {width}]");
                    assert_close(element, &what, result, exact, 1e-5);
                }
            }
        }
    }
}
