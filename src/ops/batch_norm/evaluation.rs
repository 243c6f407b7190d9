//! Batch normalisation by statistics that are given.

use std::sync::{Arc, OnceLock};

use candle_core::{Result, Tensor};

use super::{affine, check, per_channel, BatchNorm, Epilogue};
use crate::ops::cpu::channels::{Dims, Moments};
use crate::ops::route::{in_f32, Route};

/// y = (x - mean) / sqrt(var + eps) * weight + bias in each channel, with statistics that are given.
///
/// As [`batch_norm`](super::batch_norm()), in evaluation, or with frozen statistics in training.
///
/// # Arguments
///
/// - `xs`: [B, C, ..]
/// - `mean`, `var`, `weight`, `bias`: `[C]`
/// - `eps`: added to the variance
///
/// Returns [B, C, ..].
///
/// # Derivative
///
/// With x̂ the normalised input and g the gradient of the result: dx = weight g / sqrt(var + eps); dweight = Σ g x̂ and
/// dbias = Σ g over the batch and all positions. `mean` and `var` are constants: they get no gradient.
///
/// # PyTorch
///
/// `torch.nn.functional.batch_norm(xs, mean, var, weight, bias, training=False, eps=eps)`
///
/// # Errors
///
/// If the shapes do not fit, `eps` is negative or not finite, or the dtypes differ or are no floating-point ones.
///
/// ```
/// use candle_core::{Device, Tensor};
/// let vector = |x: f32| Tensor::new(&[x], &Device::Cpu);
/// let xs = Tensor::new(&[[5f32], [9.0]], &Device::Cpu)?;
/// let ys = masksub::ops::batch_norm_eval(&xs, &vector(5.0)?, &vector(4.0)?, &vector(1.0)?, &vector(0.5)?, 0.0)?;
/// assert_eq!(ys.to_vec2::<f32>()?, [[0.5], [2.5]]);
/// # Ok::<(), candle_core::Error>(())
/// ```
pub fn batch_norm_eval(
    xs: &Tensor,
    mean: &Tensor,
    var: &Tensor,
    weight: &Tensor,
    bias: &Tensor,
    eps: f64,
) -> Result<Tensor> {
    batch_norm_eval_with(Epilogue::Nothing, xs, mean, var, weight, bias, eps)
}

/// [`batch_norm_eval`] and what follows it.
pub(super) fn batch_norm_eval_with(
    epilogue: Epilogue,
    xs: &Tensor,
    mean: &Tensor,
    var: &Tensor,
    weight: &Tensor,
    bias: &Tensor,
    eps: f64,
) -> Result<Tensor> {
    let vectors = [("weight", weight), ("bias", bias), ("mean", mean), ("var", var)];
    let dims = check(xs, &vectors, eps)?;
    routed(dims, epilogue, [xs, mean, var, weight, bias], eps)
}

/// [`batch_norm_eval_with`] of tensors that fit: the input, mean, variance, weight and bias.
pub(crate) fn routed(dims: Dims, epilogue: Epilogue, tensors: [&Tensor; 5], eps: f64) -> Result<Tensor> {
    let [xs, mean, var, weight, bias] = tensors;
    match Route::precise(&tensors) {
        Route::Kernel => {
            let op = BatchNorm {
                dims,
                eps,
                training: false,
                epilogue,
                moments: Arc::new(OnceLock::from(Moments::of(mean, var)?)),
            };
            xs.contiguous()?
                .apply_op3(&weight.contiguous()?, &bias.contiguous()?, op)
        }
        Route::InF32 => in_f32(&tensors, |t| {
            routed(dims, epilogue, [&t[0], &t[1], &t[2], &t[3], &t[4]], eps)
        }),
        Route::Composition => epilogue.composition(composition_eval(xs, mean, var, weight, bias, eps)?),
    }
}

/// [`batch_norm_eval`] of candle's operations.
pub fn composition_eval(
    xs: &Tensor,
    mean: &Tensor,
    var: &Tensor,
    weight: &Tensor,
    bias: &Tensor,
    eps: f64,
) -> Result<Tensor> {
    let (mean, var) = (per_channel(&mean.detach(), xs)?, per_channel(&var.detach(), xs)?);
    affine(&xs.broadcast_sub(&mean)?, &var, weight, bias, eps)
}
