//! The projection that ends a residual branch, on slices.

use std::borrow::Cow;

use candle_core::Result;
use gemm::Parallelism;
use rayon::prelude::*;

use crate::ops::autograd::ParamGrads;
use crate::ops::cpu::buffer::Buffer;
use crate::ops::cpu::elementwise::{dot, scale_into};
use crate::ops::cpu::kernel;
use crate::ops::cpu::matrix::{self, Mat, MatMut};
use crate::ops::cpu::write::Write;
use crate::ops::linear;

/// A linear layer from I to D elements on top of a branch. LayerScale goes into its weight, γ W, and its bias, γ b: so
/// it costs nothing for each token, and neither does its gradient, Σ over inputs of W dW' + b db', with dW' and db'
/// those of the layer as it is scaled.
#[derive(Clone, Copy)]
pub(crate) struct Projection<'a> {
    /// [D, I]
    pub(crate) weight: &'a [f32],
    pub(crate) bias: &'a [f32],
    pub(crate) gamma: Option<&'a [f32]>,
}

/// Where its parameters stand.
const WEIGHT: usize = 0;
const BIAS: usize = 1;
const GAMMA: usize = 2;

/// Rows of a matrix: all of them, or the first of each sample.
#[derive(Clone, Copy)]
pub(crate) struct Rows<'a> {
    pub(crate) data: &'a [f32],
    /// From one row to the next, in rows.
    pub(crate) step: usize,
}

impl<'a> Rows<'a> {
    fn row(self, row: usize, width: usize) -> &'a [f32] {
        &self.data[row * self.step * width..][..width]
    }
}

/// Numbers as they are, or scaled.
pub(crate) enum MaybeScaled<'a> {
    Unscaled(&'a [f32]),
    Scaled(Buffer),
}

impl std::ops::Deref for MaybeScaled<'_> {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        match self {
            Self::Unscaled(numbers) => numbers,
            Self::Scaled(buffer) => buffer,
        }
    }
}

kernel::simd_fn! {
    fn add_into<S>(a: &[f32], b: &[f32], ys: &mut [f32]) -> () {
        for ((y, a), b) in ys.iter_mut().zip(a).zip(b) {
            *y = a + b;
        }
    }
}

kernel::simd_fn! {
    /// y = x + factor * y
    fn add_scaled<S>(xs: &[f32], factor: f32, ys: &mut [f32]) -> () {
        for (y, x) in ys.iter_mut().zip(xs) {
            *y = kernel::fma::<S>(*y, factor, *x);
        }
    }
}

kernel::simd_fn! {
    /// y += factor * x
    fn add_scaled_to<S>(xs: &[f32], factor: f32, ys: &mut [f32]) -> () {
        for (y, x) in ys.iter_mut().zip(xs) {
            *y = kernel::fma::<S>(*x, factor, *y);
        }
    }
}

impl<'a> Projection<'a> {
    fn inputs(self) -> usize {
        self.weight.len() / self.bias.len()
    }

    fn scaled_weight(self) -> MaybeScaled<'a> {
        let Some(gamma) = self.gamma else {
            return MaybeScaled::Unscaled(self.weight);
        };
        let inputs = self.inputs();
        let mut scaled = Buffer::new(self.weight.len());
        kernel::for_rows(&mut scaled, inputs, |first, rows| {
            for (i, row) in (first..).zip(rows.chunks_exact_mut(inputs)) {
                scale_into(&self.weight[i * inputs..][..inputs], gamma[i], row);
            }
        });
        MaybeScaled::Scaled(scaled)
    }

    fn scaled_bias(self) -> Cow<'a, [f32]> {
        match self.gamma {
            None => Cow::Borrowed(self.bias),
            Some(gamma) => gamma.iter().zip(self.bias).map(|(g, b)| g * b).collect(),
        }
    }

    /// x + factor * (inner W'ᵀ + b'), where a sample's rows share the factor.
    pub(crate) fn add_to(self, xs: Rows, inner: &[f32], drop_path: Option<&[f32]>) -> Vec<f32> {
        let (width, inputs) = (self.bias.len(), self.inputs());
        let rows = inner.len() / inputs;
        let bias = self.scaled_bias();
        let mut ys = vec![0f32; rows * width];
        kernel::for_rows(&mut ys, width, |first, ys| {
            for (row, y) in (first..).zip(ys.chunks_exact_mut(width)) {
                match drop_path {
                    None => add_into(xs.row(row, width), &bias, y),
                    Some(_) => y.copy_from_slice(&bias),
                }
            }
        });
        matrix::matmul(
            &mut MatMut::rows(&mut ys, rows, width, width),
            Write::Add,
            1.0,
            Mat::rows(inner, rows, inputs, inputs),
            Mat::rows(&self.scaled_weight(), width, inputs, inputs).t(),
            Parallelism::Rayon(0),
        );
        if let Some(factors) = drop_path {
            let per_sample = rows / factors.len();
            kernel::for_rows(&mut ys, width, |first, ys| {
                for (row, y) in (first..).zip(ys.chunks_exact_mut(width)) {
                    add_scaled(xs.row(row, width), factors[row / per_sample], y);
                }
            });
        }
        ys
    }

    /// Writes the gradient of `inner`, from `grads` that have drop path's factors in them.
    pub(crate) fn backward(self, grads: &[f32], dinner: &mut [f32]) {
        let (width, inputs) = (self.bias.len(), self.inputs());
        let rows = grads.len() / width;
        matrix::matmul(
            &mut MatMut::rows(dinner, rows, inputs, inputs),
            Write::Replace,
            1.0,
            Mat::rows(grads, rows, width, width),
            Mat::rows(&self.scaled_weight(), width, inputs, inputs),
            Parallelism::Rayon(0),
        );
    }

    /// Hands over the gradients of weight, bias and γ, which `param_grads` begins with, where they are asked for.
    /// `grads` are those of the result, with drop path's factors in them. `beside` is computed meanwhile.
    pub(crate) fn param_gradients(
        self,
        param_grads: &mut ParamGrads,
        grads: &[f32],
        inner: &[f32],
        beside: impl FnOnce() + Send,
    ) -> Result<()> {
        // (Behind them there may be a parameter of the branch's middle.)
        let mine = WEIGHT..GAMMA + usize::from(self.gamma.is_some());
        if !mine.into_iter().any(|index| param_grads.wants(index)) {
            beside();
            return Ok(());
        }
        let (width, inputs) = (self.bias.len(), self.inputs());
        let mut bias = linear::sum_rows(grads, width);
        let product = |out: &mut [f32], write| linear::weight_gradient(out, write, grads, width, inner, inputs);
        let Some(gamma) = self.gamma else {
            param_grads.write_beside(WEIGHT, beside, product)?;
            return param_grads.set(BIAS, bias);
        };
        let mut scaled = Buffer::new(self.weight.len());
        rayon::join(|| product(&mut scaled, Write::Replace), beside);
        param_grads.write(WEIGHT, |out, write| {
            kernel::for_rows(out, inputs, |first, out| {
                for (i, out) in (first..).zip(out.chunks_exact_mut(inputs)) {
                    let row = &scaled[i * inputs..][..inputs];
                    match write {
                        Write::Replace => scale_into(row, gamma[i], out),
                        Write::Add => add_scaled_to(row, gamma[i], out),
                    }
                }
            });
        })?;
        let rows = scaled
            .par_chunks_exact(inputs)
            .zip(self.weight.par_chunks_exact(inputs));
        let mut dgamma = vec![0f32; width];
        rows.zip(&mut dgamma)
            .with_min_len(kernel::rows_per_piece(inputs))
            .for_each(|((row, weight), dgamma)| *dgamma = dot(row, weight));
        for (((dgamma, b), dbias), g) in dgamma.iter_mut().zip(self.bias).zip(&mut bias).zip(gamma) {
            *dgamma += b * *dbias;
            *dbias *= g;
        }
        param_grads.set(BIAS, bias)?;
        param_grads.set(GAMMA, dgamma)
    }
}
