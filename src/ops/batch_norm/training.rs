//! Batch normalisation by the statistics of the batch itself.

use std::sync::{Arc, OnceLock};

use candle_core::{Result, Tensor};

use super::{affine, check, BatchNorm, BatchStatistics, Epilogue};
use crate::error::Error;
use crate::ops::cpu::channels::Dims;
use crate::ops::route::{to_f32, Route};

/// y = (x - mean(x)) / sqrt(var(x) + eps) * weight + bias in each channel, with the mean and the biased variance over
/// the batch and all positions; and those statistics.
///
/// [`crate::nn::BatchNorm`] is the layer, which keeps running averages of them.
///
/// # Arguments
///
/// - `xs`: [B, C, ..]
/// - `weight`, `bias`: `[C]`
/// - `eps`: added to the variance
///
/// Returns [B, C, ..], and the statistics, through which no gradient flows.
///
/// # Derivative
///
/// With x̂ the normalised input, g the gradient of the result, and means and sums over the batch and all positions:
/// dx = weight (g - mean(g) - x̂ mean(g x̂)) / sqrt(var(x) + eps); dweight = Σ g x̂, dbias = Σ g.
///
/// # PyTorch
///
/// `torch.nn.functional.batch_norm(xs, running_mean, running_var, weight, bias, training=True, eps=eps)`, where the
/// running ones are the caller's.
///
/// # Errors
///
/// If the shapes do not fit, `eps` is negative or not finite, the dtypes differ or are no floating-point ones, or there
/// is only one value per channel: its variance would be 0, whatever the value. (PyTorch refuses it, too.)
///
/// ```
/// use candle_core::{Device, Tensor};
/// let xs = Tensor::new(&[[1f32, 10.0], [3.0, 10.0]], &Device::Cpu)?;
/// let (weight, bias) = (Tensor::new(&[1f32, 1.0], &Device::Cpu)?, Tensor::new(&[0f32, 5.0], &Device::Cpu)?);
/// let (ys, statistics) = masksub::ops::batch_norm(&xs, &weight, &bias, 1e-12)?;
/// assert_eq!(ys.to_vec2::<f32>()?, [[-1.0, 5.0], [1.0, 5.0]]);
/// assert_eq!(statistics.unbiased_var.to_vec1::<f32>()?, [2.0, 0.0]);
/// # Ok::<(), candle_core::Error>(())
/// ```
pub fn batch_norm(xs: &Tensor, weight: &Tensor, bias: &Tensor, eps: f64) -> Result<(Tensor, BatchStatistics)> {
    batch_norm_with(Epilogue::Nothing, xs, weight, bias, eps)
}

/// [`batch_norm`](batch_norm()) and what follows it.
pub(super) fn batch_norm_with(
    epilogue: Epilogue,
    xs: &Tensor,
    weight: &Tensor,
    bias: &Tensor,
    eps: f64,
) -> Result<(Tensor, BatchStatistics)> {
    let dims = check(xs, &[("weight", weight), ("bias", bias)], eps)?;
    if dims.count() < 2 {
        let expected = "[B, C, ..] with more than one value per channel in training";
        return Err(Error::shape("xs", xs.dims(), expected).into());
    }
    routed(dims, epilogue, [xs, weight, bias], eps)
}

/// [`batch_norm_with`] of tensors that fit: the input, weight and bias.
pub(crate) fn routed(
    dims: Dims,
    epilogue: Epilogue,
    tensors: [&Tensor; 3],
    eps: f64,
) -> Result<(Tensor, BatchStatistics)> {
    let [xs, weight, bias] = tensors;
    match Route::precise(&tensors) {
        Route::Kernel => {
            let moments = Arc::new(OnceLock::new());
            let op = BatchNorm {
                dims,
                eps,
                training: true,
                epilogue,
                moments: moments.clone(),
            };
            let ys = xs
                .contiguous()?
                .apply_op3(&weight.contiguous()?, &bias.contiguous()?, op)?;
            let statistics = BatchStatistics::of(moments.get().map_or(&[][..], Vec::as_slice), dims.count())?;
            Ok((ys, statistics))
        }
        Route::InF32 => {
            // The statistics of f32 are rounded as the result is.
            let wide = to_f32(&tensors)?;
            let (ys, seen) = routed(dims, epilogue, [&wide[0], &wide[1], &wide[2]], eps)?;
            Ok((ys.to_dtype(xs.dtype())?, seen.to_dtype(xs.dtype())?))
        }
        Route::Composition => {
            let (ys, seen) = composition(xs, weight, bias, eps)?;
            Ok((epilogue.composition(ys)?, seen))
        }
    }
}

/// [`batch_norm`](batch_norm()) of candle's operations.
pub fn composition(xs: &Tensor, weight: &Tensor, bias: &Tensor, eps: f64) -> Result<(Tensor, BatchStatistics)> {
    let channels = xs.dim(1)?;
    let count = xs.elem_count() / channels;
    // One dimension at a time: candle adds one number after another, and of long sums in f32 too little would be right.
    let mean_of = |xs: &Tensor| -> Result<Tensor> {
        let mut dims = (0..xs.rank()).rev().filter(|&dim| dim != 1);
        let sum = dims.try_fold(xs.clone(), |sum, dim| sum.sum_keepdim(dim))?;
        sum / count as f64
    };
    let mean = mean_of(xs)?;
    let centred = xs.broadcast_sub(&mean)?;
    let var = mean_of(&centred.sqr()?)?;
    let ys = affine(&centred, &var, weight, bias, eps)?;
    let statistics = BatchStatistics {
        mean: mean.flatten_all()?.detach(),
        unbiased_var: (var.flatten_all()? * (count as f64 / (count - 1) as f64))?.detach(),
    };
    Ok((ys, statistics))
}
