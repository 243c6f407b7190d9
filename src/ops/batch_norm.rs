//! Batch normalisation over a mini-batch.

use candle_core::{DType, Result, Tensor};

use crate::Error;

/// What a batch norm saw of a mini-batch, detached.
#[derive(Clone, Debug)]
pub struct BatchStatistics {
    /// Mean of each channel, [C].
    pub mean: Tensor,
    /// Unbiased variance of each channel, [C]: what a running average takes up. (The biased one normalises.)
    pub unbiased_var: Tensor,
}

/// Normalises each channel of `xs` [B, C, ...] by its mean and biased variance over the batch and all positions, then
/// scales by `weight` [C] and shifts by `bias` [C]: `torch.nn.functional.batch_norm` with `training=True`.
pub fn batch_norm(xs: &Tensor, weight: &Tensor, bias: &Tensor, eps: f64) -> Result<(Tensor, BatchStatistics)> {
    let channels = weight.elem_count();
    if xs.rank() < 2 || xs.dims()[1] != channels || xs.elem_count() == 0 {
        return Err(Error::shape("xs", xs.dims(), format!("[B, {channels}, ...], not empty")).into());
    }
    let count = xs.elem_count() / channels;
    let internal = match xs.dtype() {
        DType::F16 | DType::BF16 => DType::F32,
        dtype => dtype,
    };
    // [B, C, P]
    let flat = xs.to_dtype(internal)?.reshape((xs.dims()[0], channels, ()))?;
    let mean = flat.mean_keepdim((0, 2))?;
    let centred = flat.broadcast_sub(&mean)?;
    let var = centred.sqr()?.mean_keepdim((0, 2))?;
    let normalised = centred.broadcast_div(&(&var + eps)?.sqrt()?)?;
    let per_channel = |t: &Tensor| t.to_dtype(internal)?.reshape((1, channels, 1));
    let ys = normalised
        .broadcast_mul(&per_channel(weight)?)?
        .broadcast_add(&per_channel(bias)?)?;
    let unbiased = count as f64 / (count.max(2) - 1) as f64;
    let statistics = BatchStatistics {
        mean: mean.flatten_all()?.detach(),
        unbiased_var: (var.flatten_all()? * unbiased)?.detach(),
    };
    Ok((ys.reshape(xs.shape())?.to_dtype(xs.dtype())?, statistics))
}

/// Normalises each channel of `xs` [B, C, ...] by given statistics `mean` and `var` [C], then scales by `weight` [C] and
/// shifts by `bias` [C]: `torch.nn.functional.batch_norm` with `training=False`.
///
/// # Errors
/// [`Error::Shape`] when `xs` is not [B, C, ...].
pub fn batch_norm_eval(
    xs: &Tensor,
    mean: &Tensor,
    var: &Tensor,
    weight: &Tensor,
    bias: &Tensor,
    eps: f64,
) -> Result<Tensor> {
    let channels = weight.elem_count();
    if xs.rank() < 2 || xs.dims()[1] != channels {
        return Err(Error::shape("xs", xs.dims(), format!("[B, {channels}, ...]")).into());
    }
    let scale = (weight / (var + eps)?.sqrt()?)?;
    let shift = (bias - (mean * &scale)?)?;
    let mut shape = vec![1; xs.rank()];
    shape[1] = channels;
    xs.broadcast_mul(&scale.reshape(shape.clone())?)?
        .broadcast_add(&shift.reshape(shape)?)
}
