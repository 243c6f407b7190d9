//! What the residual branches of a transformer share: a layer norm in front; behind, a projection that is scaled, dropped
//! and added to the branch's input.

use std::borrow::Cow;

use candle_core::{Result, Tensor};
use gemm::Parallelism;
use rayon::prelude::*;

use crate::check;
use crate::error::{Error, Result as OurResult};
use crate::ops::autograd::ParamGrads;
use crate::ops::cpu::buffer::Buffer;
use crate::ops::cpu::elementwise::{dot, scale_into};
use crate::ops::cpu::kernel;
use crate::ops::cpu::matrix::{self, Mat, MatMut};
use crate::ops::cpu::write::Write;
use crate::ops::layer_norm;
use crate::ops::linear;

/// The parameters of an affine map: of a linear layer `weight` [O, I] and `bias` `[O]`, of a norm both `[D]`.
#[derive(Clone, Copy, Debug)]
pub struct Affine<'a> {
    /// The weight.
    pub weight: &'a Tensor,
    /// The bias.
    pub bias: &'a Tensor,
}

impl Affine<'_> {
    /// The linear layer, of an input that fits.
    pub(crate) fn linear(self, xs: &Tensor) -> Result<Tensor> {
        linear::routed(xs, self.weight, Some(self.bias))
    }

    /// An error unless this is a linear layer from `inputs` to `outputs` elements of the dtype of `xs`.
    pub(crate) fn check(self, names: [&'static str; 2], outputs: usize, inputs: usize, xs: &Tensor) -> OurResult<()> {
        check::same_dtype(names[0], self.weight, "xs", xs)?;
        check::same_dtype(names[1], self.bias, "xs", xs)?;
        if self.weight.dims() != [outputs, inputs] {
            return Err(Error::shape(
                names[0],
                self.weight.dims(),
                format!("[{outputs}, {inputs}]"),
            ));
        }
        check::vector(names[1], self.bias, outputs)
    }

    /// The layer norm, of an input that fits.
    pub(crate) fn layer_norm(self, xs: &Tensor, eps: f64) -> Result<Tensor> {
        layer_norm::routed(xs, self.weight, Some(self.bias), eps)
    }

    /// An error unless this and `eps` make a norm of rows of `width` elements of the dtype of `xs`.
    pub(crate) fn check_norm(self, width: usize, eps: f64, xs: &Tensor) -> OurResult<()> {
        for (name, tensor) in [("norm.weight", self.weight), ("norm.bias", self.bias)] {
            check::same_dtype(name, tensor, "xs", xs)?;
            check::vector(name, tensor, width)?;
        }
        check::non_negative("eps", eps).map(drop)
    }
}

/// The first three pairs of weight and bias.
pub(crate) fn affines(params: &[Tensor]) -> [Affine<'_>; 3] {
    [0, 2, 4].map(|i| Affine {
        weight: &params[i],
        bias: &params[i + 1],
    })
}

/// B, N and D of `xs`, once it and the scales and factors on top of a branch fit.
pub(crate) fn check(xs: &Tensor, gamma: Option<&Tensor>, drop_path: Option<&[f32]>) -> OurResult<[usize; 3]> {
    check::float("xs", xs)?;
    let &[batch, tokens, width] = xs.dims() else {
        return Err(Error::shape("xs", xs.dims(), "[B, N, D]"));
    };
    if let Some(gamma) = gamma {
        check::same_dtype("gamma", gamma, "xs", xs)?;
        check::vector("gamma", gamma, width)?;
    }
    check::drop_path(drop_path, batch)?;
    Ok([batch, tokens, width])
}

/// `xs + drop_path * gamma * branch` of candle's operations.
pub(crate) fn add(xs: &Tensor, branch: Tensor, gamma: Option<&Tensor>, drop_path: Option<&[f32]>) -> Result<Tensor> {
    let scaled = match gamma {
        Some(gamma) => branch.broadcast_mul(gamma)?,
        None => branch,
    };
    let dropped = match drop_path {
        Some(factors) => {
            let factors = Tensor::from_slice(factors, (factors.len(), 1, 1), xs.device())?;
            scaled.broadcast_mul(&factors.to_dtype(xs.dtype())?)?
        }
        None => scaled,
    };
    xs + dropped
}

/// A layer norm of rows `width` long, which backwards is computed again from its input instead of kept.
#[derive(Clone, Copy)]
pub(crate) struct Norm<'a> {
    pub(crate) weight: &'a [f32],
    pub(crate) bias: &'a [f32],
    pub(crate) eps: f32,
}

impl Norm<'_> {
    pub(crate) fn forward(self, xs: &[f32]) -> Buffer {
        let width = self.weight.len();
        let mut ys = Buffer::new(xs.len());
        kernel::for_rows(&mut ys, width, |first, ys| {
            let xs = &xs[first * width..][..ys.len()];
            layer_norm::forward_rows(xs, self.weight, Some(self.bias), self.eps, ys);
        });
        ys
    }

    /// Adds the gradient of `xs` to `dxs`, and hands over those of weight and bias.
    pub(crate) fn backward(
        self,
        xs: &[f32],
        grads: &[f32],
        dxs: &mut [f32],
        param_grads: &mut ParamGrads,
    ) -> Result<()> {
        let width = self.weight.len();
        let mut dweight = kernel::for_rows_summing(dxs, width, 2 * width, |first, dxs, sums| {
            let rows = first * width..first * width + dxs.len();
            layer_norm::backward_rows(&xs[rows.clone()], self.weight, &grads[rows], self.eps, dxs, sums);
        });
        let dbias = dweight.split_off(width);
        param_grads.set(NORM, dweight)?;
        param_grads.set(NORM + 1, dbias)
    }
}

/// A linear layer from I to D elements on top of a branch. LayerScale goes into its weight, γ W, and its bias, γ b: so it
/// costs nothing for each token, and neither does its gradient, Σ over inputs of W dW' + b db', with dW' and db' those of
/// the layer as it is scaled.
#[derive(Clone, Copy)]
pub(crate) struct Projection<'a> {
    /// [D, I]
    pub(crate) weight: &'a [f32],
    pub(crate) bias: &'a [f32],
    pub(crate) gamma: Option<&'a [f32]>,
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

/// Numbers as they are, or scaled.
pub(crate) enum Scaled<'a> {
    As(&'a [f32]),
    By(Buffer),
}

impl std::ops::Deref for Scaled<'_> {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        match self {
            Self::As(whole) => whole,
            Self::By(buffer) => buffer,
        }
    }
}

impl<'a> Projection<'a> {
    fn inputs(self) -> usize {
        self.weight.len() / self.bias.len()
    }

    fn scaled_weight(self) -> Scaled<'a> {
        let Some(gamma) = self.gamma else {
            return Scaled::As(self.weight);
        };
        let inputs = self.inputs();
        let mut scaled = Buffer::new(self.weight.len());
        kernel::for_rows(&mut scaled, inputs, |first, rows| {
            for (i, row) in (first..).zip(rows.chunks_exact_mut(inputs)) {
                scale_into(&self.weight[i * inputs..][..inputs], gamma[i], row);
            }
        });
        Scaled::By(scaled)
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
            1.,
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

    /// The gradient of `inner`, from `grads` that have drop path's factors in them.
    pub(crate) fn backward(self, grads: &[f32]) -> Buffer {
        let (width, inputs) = (self.bias.len(), self.inputs());
        let rows = grads.len() / width;
        let mut dinner = Buffer::new(rows * inputs);
        matrix::matmul(
            &mut MatMut::rows(&mut dinner, rows, inputs, inputs),
            Write::Replace,
            1.,
            Mat::rows(grads, rows, width, width),
            Mat::rows(&self.scaled_weight(), width, inputs, inputs),
            Parallelism::Rayon(0),
        );
        dinner
    }

    /// Hands over the gradients of weight, bias and γ, where they are asked for. `grads` are those of the result, with drop
    /// path's factors in them.
    pub(crate) fn param_gradients(self, param_grads: &mut ParamGrads, grads: &[f32], inner: &[f32]) -> Result<()> {
        // (Behind them there may be a parameter of the branch's middle.)
        let mine = PROJECTION..GAMMA + usize::from(self.gamma.is_some());
        if !mine.into_iter().any(|index| param_grads.wants(index)) {
            return Ok(());
        }
        let (width, inputs) = (self.bias.len(), self.inputs());
        let mut bias = linear::sum_rows(grads, width);
        let product = |out: &mut [f32], write| linear::weight_gradient(out, write, grads, width, inner, inputs);
        let Some(gamma) = self.gamma else {
            param_grads.write(PROJECTION, product)?;
            return param_grads.set(PROJECTION + 1, bias);
        };
        let mut scaled = Buffer::new(self.weight.len());
        product(&mut scaled, Write::Replace);
        param_grads.write(PROJECTION, |out, write| {
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
        param_grads.set(PROJECTION + 1, bias)?;
        param_grads.set(GAMMA, dgamma)
    }
}

/// Where a branch's parameters stand: weight and bias of the norm, of the layer in the middle, and of the projection; and γ.
const NORM: usize = 0;
pub(crate) const MIDDLE: usize = 2;
const PROJECTION: usize = 4;
const GAMMA: usize = 6;

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

/// Gradients with drop path's factors in them.
pub(crate) fn dropped<'a>(grads: &'a [f32], width: usize, drop_path: Option<&[f32]>) -> Scaled<'a> {
    let Some(factors) = drop_path else {
        return Scaled::As(grads);
    };
    let per_sample = grads.len() / width / factors.len();
    let mut scaled = Buffer::new(grads.len());
    kernel::for_rows(&mut scaled, width, |first, rows| {
        for (row, y) in (first..).zip(rows.chunks_exact_mut(width)) {
            scale_into(&grads[row * width..][..width], factors[row / per_sample], y);
        }
    });
    Scaled::By(scaled)
}

/// The parts of a branch, of its parameters and what its norm adds to the variance: the norm, weight and bias of the layer in
/// the middle, and the projection.
pub(crate) fn parts<'a>(params: &[&'a [f32]], eps: f32) -> (Norm<'a>, [&'a [f32]; 2], Projection<'a>) {
    let norm = Norm {
        weight: params[NORM],
        bias: params[NORM + 1],
        eps,
    };
    let projection = Projection {
        weight: params[PROJECTION],
        bias: params[PROJECTION + 1],
        gamma: params.get(GAMMA).copied(),
    };
    (norm, [params[MIDDLE], params[MIDDLE + 1]], projection)
}
