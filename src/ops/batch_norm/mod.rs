//! Batch normalisation (Ioffe and Szegedy 2015, arXiv 1502.03167).

pub(crate) mod evaluation;
mod statistics;
#[cfg(test)]
mod tests;
pub(crate) mod training;

use std::sync::{Arc, OnceLock};

use candle_core::{CpuStorage, CustomOp3, Layout, Result, Shape, Tensor};

use super::cpu::channels::{ChannelNorm, Dims, Moments, Upstream};
use super::cpu::kernel::{self, Elements};
use crate::check;
use crate::error::Error;

pub use evaluation::{batch_norm_eval, composition_eval};
pub use statistics::BatchStatistics;
pub use training::{batch_norm, composition};

/// The function that follows a batch norm in the same operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Epilogue {
    Nothing,
    /// max(y, 0). What it lets through is seen from its result: its input is not kept.
    Relu,
}

impl Epilogue {
    /// It of candle's operations.
    fn composition(self, ys: Tensor) -> Result<Tensor> {
        match self {
            Self::Nothing => Ok(ys),
            Self::Relu => ys.relu(),
        }
    }

    /// The least value.
    fn floor(self) -> f32 {
        match self {
            Self::Nothing => f32::NEG_INFINITY,
            Self::Relu => 0.0,
        }
    }
}

/// B, C and the number of positions, once all fits.
fn check(xs: &Tensor, vectors: &[(&'static str, &Tensor)], eps: f64) -> crate::error::Result<Dims> {
    check::float("xs", xs)?;
    let [batch, channels, positions @ ..] = xs.dims() else {
        return Err(Error::shape("xs", xs.dims(), "[B, C, ..]"));
    };
    if xs.elem_count() == 0 {
        return Err(Error::shape("xs", xs.dims(), "[B, C, ..], not empty"));
    }
    for &(argument, tensor) in vectors {
        check::vector(argument, tensor, *channels)?;
        check::same_dtype(argument, tensor, "xs", xs)?;
    }
    check::non_negative("eps", eps)?;
    Ok(Dims {
        batch: *batch,
        channels: *channels,
        positions: positions.iter().product(),
    })
}

/// `vector` `[C]` in the shape that is broadcast to that of `xs` [B, C, ..].
fn per_channel(vector: &Tensor, xs: &Tensor) -> Result<Tensor> {
    let mut shape = vec![1; xs.rank()];
    shape[1] = vector.elem_count();
    vector.reshape(shape)
}

/// `centred` / sqrt(`var` + `eps`) * `weight` + `bias`.
fn affine(centred: &Tensor, var: &Tensor, weight: &Tensor, bias: &Tensor, eps: f64) -> Result<Tensor> {
    centred
        .broadcast_div(&(var + eps)?.sqrt()?)?
        .broadcast_mul(&per_channel(weight, centred)?)?
        .broadcast_add(&per_channel(bias, centred)?)
}

/// The kernel in candle's graph.
struct BatchNorm {
    dims: Dims,
    eps: f64,
    /// True if the moments are those of the input, and depend on it.
    training: bool,
    epilogue: Epilogue,
    moments: Arc<OnceLock<Vec<Moments>>>,
}

impl BatchNorm {
    fn norm<'a>(&self, weight: &'a [f32], bias: &'a [f32]) -> ChannelNorm<'a> {
        ChannelNorm {
            dims: self.dims,
            eps: self.eps,
            weight,
            bias,
        }
    }
}

impl CustomOp3 for BatchNorm {
    fn name(&self) -> &'static str {
        "batch-norm"
    }

    fn cpu_fwd(
        &self,
        s1: &CpuStorage,
        l1: &Layout,
        s2: &CpuStorage,
        l2: &Layout,
        s3: &CpuStorage,
        l3: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let xs = kernel::elements(s1, l1)?;
        let norm = self.norm(kernel::elements(s2, l2)?, kernel::elements(s3, l3)?);
        let mut ys = vec![0f32; xs.len()];
        let given = self.moments.get().map(Vec::as_slice);
        let moments = norm.forward(xs, given, self.epilogue.floor(), &mut ys);
        self.moments.get_or_init(|| moments);
        Ok((CpuStorage::F32(ys), l1.shape().clone()))
    }

    fn bwd(
        &self,
        xs: &Tensor,
        weight: &Tensor,
        bias: &Tensor,
        ys: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let Some(moments) = self.moments.get() else {
            candle_core::bail!("the backward of masksub's batch norm was called before its forward");
        };
        let grad = grad.contiguous()?;
        let (x, y, g) = (Elements::of(xs)?, Elements::of(ys)?, Elements::of(&grad)?);
        let (w, b) = (Elements::of(weight)?, Elements::of(bias)?);
        let upstream = Upstream {
            grads: Some(&g),
            relu: (self.epilogue == Epilogue::Relu).then_some(&*y),
            factors: None,
        };
        let mut dxs = vec![0f32; x.len()];
        let [dweight, dbias] = self
            .norm(&w, &b)
            .backward(&x, moments, self.training, upstream, &mut dxs);
        let wanted = |like: &Tensor, gradient| -> Result<Option<Tensor>> {
            if like.track_op() {
                Ok(Some(kernel::tensor(gradient, like.dims())?))
            } else {
                Ok(None)
            }
        };
        Ok((wanted(xs, dxs)?, wanted(weight, dweight)?, wanted(bias, dbias)?))
    }
}
