//! The activation in the middle of an MLP, with the bias of the layer before it, on slices.

use std::marker::PhantomData;

use pulp::{Simd, WithSimd};

use crate::ops::activation::Activation;
use crate::ops::cpu::buffer::Buffer;
use crate::ops::cpu::kernel;
use crate::ops::gelu::Gelu;
use crate::ops::gelu_tanh::GeluTanh;
use crate::ops::pointwise::Pointwise;
use crate::ops::quick_gelu::QuickGelu;

/// activation(h + b) of rows of `bias.len()`.
struct Activate<'a, A> {
    bias: &'a [f32],
    hidden: &'a [f32],
    out: &'a mut [f32],
    by: PhantomData<A>,
}

impl<A: Pointwise> WithSimd for Activate<'_, A> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        let width = self.bias.len();
        for (h, out) in self.hidden.chunks_exact(width).zip(self.out.chunks_exact_mut(width)) {
            for ((out, &h), &b) in out.iter_mut().zip(h).zip(self.bias) {
                *out = A::value::<S>(h + b);
            }
        }
    }
}

/// Writes activation(h + b) to `active`; turns the gradients of that, in `grads`, into those of h; adds them to
/// `dbias`.
struct ActivateBackward<'a, A> {
    bias: &'a [f32],
    hidden: &'a [f32],
    active: &'a mut [f32],
    grads: &'a mut [f32],
    dbias: &'a mut [f32],
    by: PhantomData<A>,
}

impl<A: Pointwise> WithSimd for ActivateBackward<'_, A> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        let width = self.bias.len();
        let rows = self.hidden.chunks_exact(width).zip(self.active.chunks_exact_mut(width));
        for ((h, active), grads) in rows.zip(self.grads.chunks_exact_mut(width)) {
            let terms = h
                .iter()
                .zip(self.bias)
                .zip(active)
                .zip(grads)
                .zip(self.dbias.iter_mut());
            for ((((&h, &b), active), grad), dbias) in terms {
                let (value, derivative) = A::both::<S>(h + b);
                *active = value;
                *grad *= derivative;
                *dbias += *grad;
            }
        }
    }
}

/// activation(h + b) of rows of `bias.len()`.
pub(crate) fn forward(activation: Activation, hidden: &[f32], bias: &[f32]) -> Buffer {
    fn run<A: Pointwise>(hidden: &[f32], bias: &[f32], out: &mut [f32]) {
        kernel::for_rows(out, bias.len(), |first, out| {
            kernel::dispatch(Activate::<A> {
                bias,
                hidden: &hidden[first * bias.len()..][..out.len()],
                out,
                by: PhantomData,
            });
        });
    }
    let mut out = Buffer::new(hidden.len());
    match activation {
        Activation::Gelu => run::<Gelu>(hidden, bias, &mut out),
        Activation::QuickGelu => run::<QuickGelu>(hidden, bias, &mut out),
        Activation::GeluTanh => run::<GeluTanh>(hidden, bias, &mut out),
    }
    out
}

/// Writes activation(h + b) to the first of `outs`, and turns the gradients of that, in the second, into those of h;
/// returns the gradient of the bias.
pub(crate) fn backward(activation: Activation, hidden: &[f32], bias: &[f32], outs: [&mut [f32]; 2]) -> Vec<f32> {
    fn run<A: Pointwise>(hidden: &[f32], bias: &[f32], outs: [&mut [f32]; 2]) -> Vec<f32> {
        let width = bias.len();
        kernel::for_two_rows_summing(outs, width, width, |first, [active, grads], dbias| {
            kernel::dispatch(ActivateBackward::<A> {
                bias,
                hidden: &hidden[first * width..][..active.len()],
                active,
                grads,
                dbias,
                by: PhantomData,
            });
        })
    }
    match activation {
        Activation::Gelu => run::<Gelu>(hidden, bias, outs),
        Activation::QuickGelu => run::<QuickGelu>(hidden, bias, outs),
        Activation::GeluTanh => run::<GeluTanh>(hidden, bias, outs),
    }
}
