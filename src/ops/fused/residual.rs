//! The residual branch of a transformer, x + s γ projection(f(norm(x))), whatever f is in the middle.

use candle_core::{Result, Tensor};
use gemm::Parallelism;

use super::norm::Norm;
use super::projection::{MaybeScaled, Projection};
use crate::check;
use crate::error::{Error, Result as OurResult};
use crate::ops::autograd::ParamGrads;
use crate::ops::cpu::buffer::Buffer;
use crate::ops::cpu::elementwise::scale_into;
use crate::ops::cpu::kernel;
use crate::ops::cpu::matrix::{self, Mat, MatMut};
use crate::ops::cpu::write::Write;
#[cfg(feature = "cuda")]
use crate::ops::cuda;
use crate::ops::linear;
#[cfg(feature = "cuda")]
use crate::ops::route;

/// Where a branch's parameters stand: weight and bias of the norm, of the layer in the middle, and of the projection;
/// and γ.
pub(crate) const NORM: usize = 0;
pub(crate) const MIDDLE: usize = 2;
pub(crate) const PROJECTION: usize = 4;
const GAMMA: usize = 6;

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

/// `xs + drop_path * gamma * branch`, on CUDA by a kernel, else of candle's operations, in the dtype of `xs`.
pub(crate) fn add(xs: &Tensor, branch: Tensor, gamma: Option<&Tensor>, drop_path: Option<&[f32]>) -> Result<Tensor> {
    let branch = branch.to_dtype(xs.dtype())?;
    #[cfg(feature = "cuda")]
    if route::on_cuda(&[xs, &branch].into_iter().chain(gamma).collect::<Vec<_>>()) {
        return cuda::residual::on_device::add(xs, &branch, gamma, drop_path);
    }
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

/// The gradient of what the layer in the middle read, [R, D], from that of its result, `dh` [R, H], with those of its
/// `weight` [H, D] and bias put in place. `normed` makes once more what it read.
pub(crate) fn middle_backward(
    dh: &[f32],
    dbias: Vec<f32>,
    weight: &[f32],
    normed: impl FnOnce() -> Buffer + Send,
    param_grads: &mut ParamGrads,
) -> Result<Buffer> {
    let hidden = dbias.len();
    let (rows, width) = (dh.len() / hidden, weight.len() / hidden);
    let mut dnormed = Buffer::new(rows * width);
    let input_gradient = || {
        matrix::matmul(
            &mut MatMut::rows(&mut dnormed, rows, width, width),
            Write::Replace,
            1.0,
            Mat::rows(dh, rows, hidden, hidden),
            Mat::rows(weight, hidden, width, width),
            Parallelism::Rayon(0),
        );
    };
    param_grads.write_beside(MIDDLE, input_gradient, |out, write| {
        linear::weight_gradient(out, write, dh, hidden, &normed(), width);
    })?;
    param_grads.set(MIDDLE + 1, dbias)?;
    Ok(dnormed)
}

/// Gradients with drop path's factors in them.
pub(crate) fn dropped<'a>(grads: &'a [f32], width: usize, drop_path: Option<&[f32]>) -> MaybeScaled<'a> {
    let Some(factors) = drop_path else {
        return MaybeScaled::Unscaled(grads);
    };
    let per_sample = grads.len() / width / factors.len();
    let mut scaled = Buffer::new(grads.len());
    kernel::for_rows(&mut scaled, width, |first, rows| {
        for (row, y) in (first..).zip(rows.chunks_exact_mut(width)) {
            scale_into(&grads[row * width..][..width], factors[row / per_sample], y);
        }
    });
    MaybeScaled::Scaled(scaled)
}

/// The parts of a branch, of its parameters and what its norm adds to the variance: the norm, weight and bias of the
/// layer in the middle, and the projection.
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
