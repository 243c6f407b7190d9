//! Batch normalisation whose running statistics wait for the step to be accepted.

use candle_core::{DType, ModuleT, Result, Tensor, Var, D};
use candle_nn::{Init, VarBuilder};

use crate::check;
use crate::error::Error;
use crate::model::Forward;
use crate::ops::{self, BatchStatistics, RunningStatistics};
use crate::pass::{with_current, Pass};

pub use candle_nn::BatchNormConfig;

/// Batch normalisation of each channel, [B, C, ..] to [B, C, ..]: [`candle_nn::BatchNorm`], faster, and PyTorch's
/// `torch.nn.BatchNorm2d` (and 1d, 3d).
///
/// In training a channel is normalised by its mean and biased variance over the batch, and the running statistics take
/// up the mean and the *unbiased* variance with weight `momentum`; in evaluation the running ones normalise. A source
/// that always calls `forward_t(xs, false)` holds it frozen: scale and shift are trained, the statistics stay as they are.
///
/// Where [`candle_nn::BatchNorm`] writes the running statistics in the forward pass, this one hands them to the [`Pass`]
/// that runs the model on this thread: that of [`MaskSub::wrap`](crate::MaskSub::wrap) or [`Plain`](crate::Plain), or of
/// [`Pass::scope`] elsewhere. They change when the step is accepted, and one that is rejected leaves them as they were.
/// Outside of a pass it updates them at once. In a pass of evaluation `forward_t(xs, true)` normalises by the batch, as it
/// is told, and leaves the running ones as they are.
#[derive(Clone, Debug)]
pub struct BatchNorm {
    running_mean: Var,
    running_var: Var,
    /// Ones where there are no parameters.
    weight: Tensor,
    /// Zeros where there are no parameters.
    bias: Tensor,
    affine: bool,
    remove_mean: bool,
    eps: f64,
    momentum: f64,
}

/// The share of a batch's statistics in the running ones: candle-nn's and PyTorch's.
const MOMENTUM: f64 = 0.1;

impl BatchNorm {
    /// With statistics, scale and shift of shape `[num_features]` each, and a momentum of 0.1.
    ///
    /// # Errors
    /// As [`new_with_momentum`](Self::new_with_momentum).
    pub fn new(
        num_features: usize,
        running_mean: Tensor,
        running_var: Tensor,
        weight: Tensor,
        bias: Tensor,
        eps: f64,
    ) -> Result<Self> {
        Self::new_with_momentum(num_features, running_mean, running_var, weight, bias, eps, MOMENTUM)
    }

    /// Without scale and shift, and a momentum of 0.1.
    ///
    /// # Errors
    /// As [`new_with_momentum`](Self::new_with_momentum).
    pub fn new_no_bias(num_features: usize, running_mean: Tensor, running_var: Tensor, eps: f64) -> Result<Self> {
        Self::new_no_bias_with_momentum(num_features, running_mean, running_var, eps, MOMENTUM)
    }

    /// With statistics, scale and shift of shape `[num_features]` each, and the share of a batch's statistics in the
    /// running ones.
    ///
    /// # Errors
    /// [`Error::Shape`] for a tensor of another shape; [`Error::InvalidArgument`] for an `eps` that is negative or not
    /// finite, or a `momentum` outside [0, 1].
    pub fn new_with_momentum(
        num_features: usize,
        running_mean: Tensor,
        running_var: Tensor,
        weight: Tensor,
        bias: Tensor,
        eps: f64,
        momentum: f64,
    ) -> Result<Self> {
        check::vector("weight", &weight, num_features)?;
        check::vector("bias", &bias, num_features)?;
        let affine = Some((weight, bias));
        Self::checked(num_features, (running_mean, running_var), affine, true, eps, momentum)
    }

    /// As [`new_with_momentum`](Self::new_with_momentum), without scale and shift.
    ///
    /// # Errors
    /// Likewise.
    pub fn new_no_bias_with_momentum(
        num_features: usize,
        running_mean: Tensor,
        running_var: Tensor,
        eps: f64,
        momentum: f64,
    ) -> Result<Self> {
        Self::checked(num_features, (running_mean, running_var), None, true, eps, momentum)
    }

    fn checked(
        num_features: usize,
        (running_mean, running_var): (Tensor, Tensor),
        weight_and_bias: Option<(Tensor, Tensor)>,
        remove_mean: bool,
        eps: f64,
        momentum: f64,
    ) -> Result<Self> {
        check::non_negative("eps", eps)?;
        check::share("momentum", momentum)?;
        check::vector("running_mean", &running_mean, num_features)?;
        check::vector("running_var", &running_var, num_features)?;
        let affine = weight_and_bias.is_some();
        let (weight, bias) = match weight_and_bias {
            Some(both) => both,
            None => (running_mean.ones_like()?, running_mean.zeros_like()?),
        };
        Ok(Self {
            // Variables of the builder's map are taken as they are: what training writes is what is saved.
            running_mean: Var::from_tensor(&running_mean)?,
            running_var: Var::from_tensor(&running_var)?,
            weight,
            bias,
            affine,
            remove_mean,
            eps,
            momentum,
        })
    }

    /// The running mean, `[C]`.
    pub fn running_mean(&self) -> &Tensor {
        self.running_mean.as_tensor()
    }

    /// The running variance, `[C]`.
    pub fn running_var(&self) -> &Tensor {
        self.running_var.as_tensor()
    }

    /// Scale and shift, `[C]` each, if it has them.
    pub fn weight_and_bias(&self) -> Option<(&Tensor, &Tensor)> {
        self.affine.then_some((&self.weight, &self.bias))
    }

    /// The term that is added to the variance.
    pub fn eps(&self) -> f64 {
        self.eps
    }

    /// The share of a batch's statistics in the running ones, each step.
    pub fn momentum(&self) -> f64 {
        self.momentum
    }

    /// Normalises `xs` [B, C, ..] by the statistics of the batch, which the running ones take up: when the pass that it
    /// runs in is accepted, or at once outside of one. In a pass of evaluation they stay as they are.
    ///
    /// # Errors
    /// As [`ops::batch_norm`](crate::ops::batch_norm()).
    pub fn forward_train(&self, xs: &Tensor) -> Result<Tensor> {
        let (ys, statistics) = self.by_the_batch(xs)?;
        if let Some(noted) = with_current(|pass| self.note(&statistics, pass)) {
            noted?;
            return Ok(ys);
        }
        let mut pass = Pass::without_key(true);
        self.note(&statistics, &mut pass)?;
        pass.commit()?;
        Ok(ys)
    }

    fn forward_eval(&self, xs: &Tensor) -> Result<Tensor> {
        let RunningStatistics { mean, var } = self.statistics();
        ops::batch_norm_eval(xs, mean, var, &self.weight, &self.bias, self.eps)
    }

    fn by_the_batch(&self, xs: &Tensor) -> Result<(Tensor, BatchStatistics)> {
        if self.remove_mean {
            ops::batch_norm(xs, &self.weight, &self.bias, self.eps)
        } else {
            self.by_the_mean_square(xs)
        }
    }

    /// Without the removal of the mean: x / sqrt(mean(x²) + eps) * weight + bias, of candle's operations.
    fn by_the_mean_square(&self, xs: &Tensor) -> Result<(Tensor, BatchStatistics)> {
        let channels = self.running_mean.dim(0)?;
        let count = xs.elem_count() / channels.max(1);
        if xs.rank() < 2 || xs.dim(1)? != channels || count < 2 {
            let expected = format!("[B, {channels}, ..] with more than one value per channel in training");
            return Err(Error::shape("xs", xs.dims(), expected).into());
        }
        let wide = if ops::is_half(xs) { DType::F32 } else { xs.dtype() };
        let rows = xs.to_dtype(wide)?.transpose(0, 1)?.flatten_from(1)?;
        let mean_square = rows.sqr()?.mean_keepdim(D::Minus1)?;
        let mut per_channel = vec![1; xs.rank()];
        per_channel[1] = channels;
        let ys = xs
            .to_dtype(wide)?
            .broadcast_div(&(&mean_square + self.eps)?.sqrt()?.reshape(&per_channel[..])?)?
            .to_dtype(xs.dtype())?
            .broadcast_mul(&self.weight.reshape(&per_channel[..])?)?
            .broadcast_add(&self.bias.reshape(&per_channel[..])?)?;
        let unbiased = count as f64 / (count - 1) as f64;
        let statistics = BatchStatistics {
            mean: self.running_mean.as_detached_tensor(),
            unbiased_var: (mean_square.flatten_all()? * unbiased)?.detach(),
        };
        Ok((ys, statistics))
    }

    /// The statistics that it normalises by in evaluation.
    pub(crate) fn statistics(&self) -> RunningStatistics<'_> {
        RunningStatistics {
            mean: &self.running_mean,
            var: &self.running_var,
        }
    }

    /// Scale and shift, ones and zeros where it has none.
    pub(crate) fn affine(&self) -> ops::Affine<'_> {
        ops::Affine {
            weight: &self.weight,
            bias: &self.bias,
        }
    }

    /// Hands what an operation with this norm in it has seen of a batch to the pass.
    pub(crate) fn note(&self, seen: &BatchStatistics, pass: &mut Pass) -> Result<()> {
        let seen = seen.to_dtype(self.running_mean.dtype())?;
        // A mean that is not removed is not kept either.
        if self.remove_mean {
            pass.update_running(&self.running_mean, &seen.mean, self.momentum);
        }
        pass.update_running(&self.running_var, &seen.unbiased_var, self.momentum);
        Ok(())
    }
}

impl Forward for BatchNorm {
    fn forward_pass(&self, xs: &Tensor, pass: &mut Pass) -> Result<Tensor> {
        if !pass.is_train() {
            return self.forward_eval(xs);
        }
        let (ys, statistics) = self.by_the_batch(xs)?;
        self.note(&statistics, pass)?;
        Ok(ys)
    }
}

impl ModuleT for BatchNorm {
    fn forward_t(&self, xs: &Tensor, train: bool) -> Result<Tensor> {
        if train {
            self.forward_train(xs)
        } else {
            self.forward_eval(xs)
        }
    }
}

/// A batch norm of `num_features` channels, with weights named as candle-nn's and PyTorch's: `weight`, `bias`,
/// `running_mean`, `running_var`.
///
/// # Errors
/// [`Error::InvalidArgument`] for an `eps` that is negative or not finite, or a `momentum` outside [0, 1]; those of `vb`.
pub fn batch_norm<C: Into<BatchNormConfig>>(num_features: usize, config: C, vb: VarBuilder) -> Result<BatchNorm> {
    batch_norm_from(num_features, config.into(), 1.0, vb)
}

/// As [`batch_norm`], with a weight that is `weight` at first. (A residual branch may start at 0.)
pub(crate) fn batch_norm_from(
    num_features: usize,
    config: BatchNormConfig,
    weight: f64,
    vb: VarBuilder,
) -> Result<BatchNorm> {
    let get = |name: &str, value| vb.get_with_hints(num_features, name, Init::Const(value));
    let statistics = (get("running_mean", 0.0)?, get("running_var", 1.0)?);
    let affine = if config.affine {
        Some((get("weight", weight)?, get("bias", 0.0)?))
    } else {
        None
    };
    let BatchNormConfig {
        remove_mean,
        eps,
        momentum,
        ..
    } = config;
    BatchNorm::checked(num_features, statistics, affine, remove_mean, eps, momentum)
}

#[cfg(test)]
mod tests;
