//! Activations, with and without a bias.

use super::super::activation::{self as plan, Elements};
use super::super::emulator::{assert_close, launch, rounded, Buffer};
use super::super::launch::{Element, Rows, Sums};
use super::super::sums::sum_rows;
use super::{exact, in_every_order, inputs, ELEMENTS};
use crate::ops::reference;
use candle_core::{Result, Tensor};

type Composition = fn(&Tensor) -> Result<Tensor>;

const FUNCTIONS: [(&str, Composition); 8] = [
    ("identity", |xs| xs.affine(1.0, 0.0)),
    ("gelu", reference::gelu),
    ("gelu_tanh", reference::gelu_tanh),
    ("quick_gelu", reference::quick_gelu),
    ("silu", reference::silu),
    ("sigmoid", reference::sigmoid),
    ("relu", reference::relu),
    ("mish", reference::mish),
];

/// Result, and gradients of input and bias.
fn run(element: Element, function: &str, inputs: &[Tensor], grads: &Tensor, order: u32) -> Vec<Vec<f64>> {
    let len = grads.elem_count();
    let width = inputs.get(1).map(Tensor::elem_count);
    let of = Elements::new(len, width).unwrap();
    let mut tensors: Vec<_> = inputs.iter().map(|tensor| Buffer::of(element, tensor)).collect();
    let mut grads = Buffer::of(element, grads);
    let (x, b) = (tensors[0].address(), tensors.get_mut(1).map_or(0, Buffer::address));
    let mut results = [(); 2].map(|()| Buffer::new(element, len));
    let [ys, dxs] = results.each_mut().map(Buffer::address);
    let forward = plan::forward(element, function, of, [x, b, ys]);
    let backward = plan::backward(element, function, of, [x, b, grads.address(), dxs]);
    launch(order, [&forward, &backward]);
    let mut values: Vec<_> = results.each_mut().map(Buffer::values).into();
    if let Some(width) = width {
        let rows = Rows::new(len / width, width).unwrap();
        let mut scratch = Buffer::new(Element::F32, Sums::new(rows, 1).scratch());
        let mut dbias = Buffer::new(element, width);
        launch(
            order,
            &sum_rows(element, rows, [dxs, scratch.address(), dbias.address()]),
        );
        scratch.values();
        values.push(dbias.values());
    }
    values
}

#[test]
fn equal_their_compositions() {
    for element in ELEMENTS {
        for (seed, (rows, width)) in (0..).zip([(1, 1), (3, 31), (40, 33), (2, 1500), (600, 3)]) {
            for (function, composition) in FUNCTIONS {
                for biases in 0..2 {
                    // Far out, too.
                    let mut args = inputs(element, &[&[rows, width][..], &[width]][..=biases], seed);
                    args[0] = (&args[0] * 4.0).unwrap();
                    let grads = &inputs(element, &[&[rows, width]], seed + 50)[0];
                    let results = in_every_order(|order| run(element, function, &args, grads, order));
                    let Some(results) = results else { return };
                    let composed = |t: &[Tensor]| match t.get(1) {
                        Some(bias) => composition(&t[0].broadcast_add(bias)?),
                        None => composition(&t[0]),
                    };
                    let exact = exact(&args, grads, composed);
                    for ((what, result), exact) in ["ys", "dxs", "dbias"].iter().zip(&results).zip(&exact) {
                        let what = format!("{what} of {function} of [{rows}, {width}]");
                        // A bias's gradient is the sum of others as they were rounded.
                        let rounded = biases > 0 && what.starts_with("dbias") && element == Element::BF16;
                        assert_close(element, &what, result, exact, if rounded { 2e-2 } else { 2e-6 });
                    }
                }
            }
        }
    }
}

#[test]
fn what_is_undefined_stays_so() {
    let xs = Tensor::new(&[f32::NAN, 1.0], &candle_core::Device::Cpu).unwrap();
    for element in ELEMENTS {
        for (function, _) in FUNCTIONS {
            let args = std::slice::from_ref(&xs);
            let Some(results) = in_every_order(|order| run(element, function, args, &xs, order)) else {
                return;
            };
            assert!(results[0][0].is_nan() && results[0][1].is_finite(), "{function}");
            assert!(results[1][0].is_nan() && results[1][1].is_finite(), "{function}");
        }
    }
}

#[test]
fn ties_are_rounded_to_even() {
    // 8 bits hold every second number from 256 on.
    let xs = Tensor::new(&[256f32, 258.0, -258.0], &candle_core::Device::Cpu).unwrap();
    let bias = Tensor::new(&[1f32, 1.0, -1.0], &candle_core::Device::Cpu).unwrap();
    let Some(results) = in_every_order(|order| run(Element::BF16, "identity", &[xs.clone(), bias.clone()], &xs, order))
    else {
        return;
    };
    let exact = (rounded(Element::BF16, &xs) + rounded(Element::BF16, &bias)).unwrap();
    let exact = super::super::emulator::values(&rounded(Element::BF16, &exact));
    assert_eq!(exact, [256.0, 260.0, -260.0]);
    assert_eq!(results[0], exact);
}
