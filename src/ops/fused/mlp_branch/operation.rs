//! The MLP with all around it as one operation of candle's graph.

use std::marker::PhantomData;

use candle_core::Result;
use gemm::Parallelism;
use pulp::{Simd, WithSimd};

use crate::ops::activation::Activation;
use crate::ops::autograd::{Backward, Operation, ParamGrads};
use crate::ops::cpu::buffer::Buffer;
use crate::ops::cpu::kernel;
use crate::ops::cpu::matrix::{self, Mat, MatMut};
use crate::ops::cpu::write::Write;
use crate::ops::fused::projection::Rows;
use crate::ops::fused::residual::{self, MIDDLE, NORM, PROJECTION};
use crate::ops::gelu::Gelu;
use crate::ops::gelu_tanh::GeluTanh;
use crate::ops::linear;
use crate::ops::pointwise::Pointwise;
use crate::ops::quick_gelu::QuickGelu;

pub(super) struct Op {
    /// B, N and D.
    pub(super) dims: [usize; 3],
    pub(super) hidden: usize,
    pub(super) eps: f32,
    pub(super) activation: Activation,
    pub(super) recompute: bool,
    pub(super) drop_path: Option<Vec<f32>>,
}

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

impl Op {
    fn activate(&self, hidden: &[f32], bias: &[f32]) -> Buffer {
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
        match self.activation {
            Activation::Gelu => run::<Gelu>(hidden, bias, &mut out),
            Activation::QuickGelu => run::<QuickGelu>(hidden, bias, &mut out),
            Activation::GeluTanh => run::<GeluTanh>(hidden, bias, &mut out),
        }
        out
    }

    /// What [`ActivateBackward`] does; returns the gradient of the bias.
    fn activate_backward(&self, hidden: &[f32], bias: &[f32], outs: [&mut [f32]; 2]) -> Vec<f32> {
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
        match self.activation {
            Activation::Gelu => run::<Gelu>(hidden, bias, outs),
            Activation::QuickGelu => run::<QuickGelu>(hidden, bias, outs),
            Activation::GeluTanh => run::<GeluTanh>(hidden, bias, outs),
        }
    }
}

impl Operation for Op {
    const NAME: &'static str = "mlp-branch";

    /// What the first layer gave, without its bias: [B N, H].
    type Kept = Buffer;

    fn result_dims(&self) -> Vec<usize> {
        self.dims.to_vec()
    }

    fn forward(&self, xs: &[f32], params: &[&[f32]], _: bool) -> Result<(Vec<f32>, Buffer)> {
        let (_, [_, bias], fc2) = residual::parts(params, self.eps);
        let hidden = self.recompute(xs, params)?;
        let active = self.activate(&hidden, bias);
        let ys = fc2.add_to(Rows { data: xs, step: 1 }, &active, self.drop_path.as_deref());
        Ok((ys, hidden))
    }

    fn keeps(&self) -> bool {
        !self.recompute
    }

    fn recompute(&self, xs: &[f32], params: &[&[f32]]) -> Result<Buffer> {
        let ([batch, tokens, width], hidden) = (self.dims, self.hidden);
        let rows = batch * tokens;
        let (norm, [fc1, _], _) = residual::parts(params, self.eps);
        let mut h = Buffer::new(rows * hidden);
        matrix::matmul(
            &mut MatMut::rows(&mut h, rows, hidden, hidden),
            Write::Replace,
            1.0,
            Mat::rows(&norm.forward(xs), rows, width, width),
            Mat::rows(fc1, hidden, width, width).t(),
            Parallelism::Rayon(0),
        );
        Ok(h)
    }

    fn backward(&self, of: Backward, kept: Buffer, param_grads: &mut ParamGrads) -> Result<Vec<f32>> {
        let ([batch, tokens, width], hidden) = (self.dims, self.hidden);
        let rows = batch * tokens;
        let Backward { xs, grads, params, .. } = of;
        let (norm, [fc1, bias], fc2) = residual::parts(params, self.eps);
        let dropped = residual::dropped(grads, width, self.drop_path.as_deref());
        let mut dh = fc2.backward(&dropped);
        let mut active = Buffer::new(rows * hidden);
        let dbias = self.activate_backward(&kept, bias, [&mut active, &mut dh]);
        drop(kept);
        fc2.param_gradients(&mut param_grads.part(PROJECTION), &dropped, &active)?;
        drop((active, dropped));

        param_grads.write(MIDDLE, |out, write| {
            linear::weight_gradient(out, write, &dh, hidden, &norm.forward(xs), width);
        })?;
        param_grads.set(MIDDLE + 1, dbias)?;
        let mut dnormed = Buffer::new(rows * width);
        matrix::matmul(
            &mut MatMut::rows(&mut dnormed, rows, width, width),
            Write::Replace,
            1.0,
            Mat::rows(&dh, rows, hidden, hidden),
            Mat::rows(fc1, hidden, width, width),
            Parallelism::Rayon(0),
        );
        drop(dh);
        let mut dxs = grads.to_vec();
        norm.backward(xs, &dnormed, &mut dxs, &mut param_grads.part(NORM))?;
        Ok(dxs)
    }
}
