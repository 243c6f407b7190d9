//! The losses of the two branches.

mod criterion;
mod rows;
mod sub_loss;
mod sub_model;

pub use criterion::Criterion;
pub use sub_loss::SubLoss;
pub use sub_model::SubModelLoss;

use candle_core::{DType, Tensor, D};

use crate::check;
use crate::error::{Error, Result};
use crate::ops;

/// Attaches an analytic gradient to a value: a tensor that equals `value`, and whose gradient with respect to `logits`
/// is `gradient`.
///
/// Both losses know their gradients in closed form, and those stay finite where a composition's do not (an infinite
/// exponential times zero) and exact where its subgradients add up wrongly (BCE at a logit of 0).
fn with_gradient(value: Tensor, logits: &Tensor, gradient: &Tensor) -> Result<Tensor> {
    // Zero, exactly, but with the slope of `gradient`. The difference comes first: a product could overflow.
    let zero = (logits - logits.detach())?.to_dtype(gradient.dtype())?;
    Ok((value.detach() + (zero * gradient.detach())?.sum_all()?)?)
}

/// The largest number of a dtype that losses are computed in.
fn largest(dtype: DType) -> f64 {
    match dtype {
        DType::F64 => f64::MAX,
        _ => f32::MAX as f64,
    }
}

/// `xs * factor` for a positive factor, with the largest number of the dtype in the place of infinity: temperatures may
/// be tiny and huge, and so may logits.
fn scale(xs: &Tensor, factor: f64) -> Result<Tensor> {
    let largest = largest(xs.dtype());
    // An infinite factor would make 0 undefined.
    Ok((xs * factor.min(largest))?.clamp(-largest, largest)?)
}

/// The sum of all `xs`, each scaled; not infinite either.
fn scaled_sum(xs: &Tensor, factor: f64) -> Result<Tensor> {
    let largest = largest(xs.dtype());
    // The factor goes in before the sum, which could overflow without need.
    Ok(scale(xs, factor)?.sum_all()?.clamp(-largest, largest)?)
}

/// Logits in the dtype that losses are computed in: f32 for the half-width floats.
fn upcast(argument: &'static str, logits: &Tensor) -> Result<Tensor> {
    check::float(argument, logits)?;
    if ops::is_half(logits) {
        return Ok(logits.to_dtype(DType::F32)?);
    }
    Ok(logits.clone())
}

/// Refuses logits with a single class, which should be `shape`: a softmax over one is 1, whatever the logit, and so trains
/// nothing.
fn check_classes(argument: &'static str, dims: &[usize], classes: usize, shape: &str, instead: &str) -> Result<()> {
    if classes == 1 {
        let expected = format!("{shape} with C > 1 for a softmax: for a single logit, take {instead}");
        return Err(Error::shape(argument, dims, expected));
    }
    Ok(())
}

/// log(softmax(logits / temperature)), finite for all finite logits.
fn log_softmax(logits: &Tensor, temperature: f64) -> Result<Tensor> {
    // The largest difference of two floats is infinite. A quarter of the largest float leaves room for the sums of a
    // loss, and nobody tells it from minus infinity.
    let floor = -largest(logits.dtype()) / 4.0;
    let below_max = logits.broadcast_sub(&logits.max_keepdim(D::Minus1)?)?.maximum(floor)?;
    let scaled = scale(&below_max, temperature.recip())?.maximum(floor)?;
    let log_sum = scaled.exp()?.sum_keepdim(D::Minus1)?.log()?;
    Ok(scaled.broadcast_sub(&log_sum)?)
}

/// T² / `count` times the sum of target * (offset - log(softmax(logits / T))), with `logits`, `target` and `offset`
/// `[R, C]`: the cross-entropy where there is no offset, the KL divergence where it is log(target). A row of `target` may
/// sum to a weight instead of 1.
fn soft_cross_entropy(
    logits: &Tensor,
    target: &Tensor,
    offset: Option<&Tensor>,
    temperature: f64,
    count: f64,
) -> Result<Tensor> {
    let log_probs = log_softmax(&logits.detach(), temperature)?;
    let surprise = match offset {
        Some(offset) => (offset - &log_probs)?,
        None => log_probs.neg()?,
    };
    let value = scaled_sum(&(target * surprise)?, temperature * temperature / count)?;
    let mass = target.sum_keepdim(D::Minus1)?;
    let gradient = scale(&(log_probs.exp()?.broadcast_mul(&mass)? - target)?, temperature / count)?;
    with_gradient(value, logits, &gradient)
}

/// `xs` `[R, C]`, its rows multiplied by `weights` `[R, 1]`, if there are any.
fn weighted(xs: Tensor, weights: Option<&Tensor>) -> Result<Tensor> {
    match weights {
        Some(weights) => Ok(xs.broadcast_mul(weights)?),
        None => Ok(xs),
    }
}

/// T² / `count` times the sum of the binary cross-entropies between `target` `[R, C]` and sigmoid(logits / T), each row
/// weighted where there are `weights` `[R, 1]`.
fn binary_cross_entropy(
    logits: &Tensor,
    target: &Tensor,
    weights: Option<&Tensor>,
    temperature: f64,
    count: f64,
) -> Result<Tensor> {
    let scaled = scale(&logits.detach(), temperature.recip())?;
    // max(x, 0) - x t + log(1 + exp(-|x|)): no exponential of a positive number.
    let tail = (scaled.abs()?.neg()?.exp()? + 1.0)?.log()?;
    let value = weighted(((scaled.relu()? - (&scaled * target)?)? + tail)?, weights)?;
    let value = scaled_sum(&value, temperature * temperature / count)?;
    let gradient = scale(&weighted((sigmoid(&scaled)? - target)?, weights)?, temperature / count)?;
    with_gradient(value, logits, &gradient)
}

/// T² / `count` times the sum of the weighted rows of (KL(target || p) + KL(p || target)) / 2 with p = softmax(logits / T)
/// and `log_target` `[R, C]`, the gradient through both terms.
fn symmetric_kl(
    logits: &Tensor,
    log_target: &Tensor,
    weights: Option<&Tensor>,
    temperature: f64,
    count: f64,
) -> Result<Tensor> {
    let log_probs = log_softmax(&logits.detach(), temperature)?;
    let (target, probs) = (log_target.exp()?, log_probs.exp()?);
    // Of like sign where probabilities differ, so no term of the sum is below 0.
    let surprise = (&log_probs - log_target)?;
    let half = 0.5 * temperature;
    let value = weighted(((&probs - &target)? * &surprise)?, weights)?;
    let value = scaled_sum(&value, half * temperature / count)?;
    let reverse = (&probs * &surprise)?.sum_keepdim(D::Minus1)?;
    let through_probs = (&probs * surprise.broadcast_sub(&reverse)?)?;
    let gradient = scale(
        &weighted(((&probs - &target)? + through_probs)?, weights)?,
        half / count,
    )?;
    with_gradient(value, logits, &gradient)
}

/// 1 / (1 + exp(-x)), without an infinite exponential and to the full precision of small probabilities.
fn sigmoid(xs: &Tensor) -> Result<Tensor> {
    let small = xs.abs()?.neg()?.exp()?;
    let below = (&small / (&small + 1.0)?)?;
    Ok(xs.lt(0.0)?.where_cond(&below, &(1.0 - &below)?)?)
}
