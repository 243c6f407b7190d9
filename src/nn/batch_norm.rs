//! Batch normalisation whose running statistics wait for the step to be accepted.

use candle_core::{Result, Tensor, Var};
use candle_nn::{BatchNormConfig, Init, ModuleT, VarBuilder};

use crate::check;
use crate::error::Error;
use crate::model::Forward;
use crate::ops::{self, BatchStatistics, RunningStatistics};
use crate::pass::Pass;

/// Batch normalisation of each channel, [B, C, ..] to [B, C, ..]: PyTorch's `torch.nn.BatchNorm2d` (and 1d, 3d).
///
/// In training a channel is normalised by its mean and biased variance over the batch, and the running statistics take
/// up the mean and the *unbiased* variance with weight `momentum`; in evaluation the running ones normalise. Where
/// [`candle_nn::BatchNorm`] writes them during the forward pass, this one hands them to its [`Pass`]: a step that is
/// rejected leaves them as they were.
///
/// As a [`ModuleT`], which has no pass, it updates them at once.
#[derive(Clone, Debug)]
pub struct BatchNorm {
    running_mean: Var,
    running_var: Var,
    weight: Tensor,
    bias: Tensor,
    eps: f64,
    momentum: f64,
}

impl BatchNorm {
    /// The running mean, `[C]`.
    pub fn running_mean(&self) -> &Tensor {
        self.running_mean.as_tensor()
    }

    /// The running variance, `[C]`.
    pub fn running_var(&self) -> &Tensor {
        self.running_var.as_tensor()
    }

    /// Scale and shift, `[C]` each.
    pub fn weight_and_bias(&self) -> (&Tensor, &Tensor) {
        (&self.weight, &self.bias)
    }

    /// The term that is added to the variance.
    pub fn eps(&self) -> f64 {
        self.eps
    }

    /// The share of a batch's statistics in the running ones, each step.
    pub fn momentum(&self) -> f64 {
        self.momentum
    }
}

/// A batch norm of `num_features` channels, with weights named as candle-nn's and PyTorch's: `weight`, `bias`,
/// `running_mean`, `running_var`.
///
/// # Errors
/// [`Error::InvalidArgument`] for an `eps` that is negative or not finite, a `momentum` outside [0, 1], or a
/// configuration without affine parameters or without removal of the mean, which this layer does not offer; those of
/// `vb`.
pub fn batch_norm<C: Into<BatchNormConfig>>(num_features: usize, config: C, vb: VarBuilder) -> Result<BatchNorm> {
    let config = config.into();
    check::non_negative("eps", config.eps)?;
    check::share("momentum", config.momentum)?;
    if !config.affine || !config.remove_mean {
        let value = format!("affine {}, remove_mean {}", config.affine, config.remove_mean);
        return Err(Error::invalid("config", value, "both true").into());
    }
    batch_norm_from(num_features, config, 1.0, vb)
}

/// As [`batch_norm`], of a configuration that was checked, with a weight that is `weight` at first. (A residual branch
/// may start at 0.)
pub(crate) fn batch_norm_from(
    num_features: usize,
    config: BatchNormConfig,
    weight: f64,
    vb: VarBuilder,
) -> Result<BatchNorm> {
    let get = |name: &str, value| vb.get_with_hints(num_features, name, Init::Const(value));
    Ok(BatchNorm {
        // Variables of the builder's map are taken as they are: what training writes is what is saved.
        running_mean: Var::from_tensor(&get("running_mean", 0.0)?)?,
        running_var: Var::from_tensor(&get("running_var", 1.0)?)?,
        weight: get("weight", weight)?,
        bias: get("bias", 0.0)?,
        eps: config.eps,
        momentum: config.momentum,
    })
}

impl BatchNorm {
    /// The statistics that it normalises by in evaluation.
    pub(crate) fn running(&self) -> RunningStatistics<'_> {
        RunningStatistics {
            mean: &self.running_mean,
            var: &self.running_var,
        }
    }

    /// Hands what an operation with this norm in it has seen of a batch to the pass.
    pub(crate) fn note(&self, statistics: &BatchStatistics, pass: &mut Pass) {
        pass.update_running(&self.running_mean, &statistics.mean, self.momentum);
        pass.update_running(&self.running_var, &statistics.unbiased_var, self.momentum);
    }
}

impl Forward for BatchNorm {
    fn forward_pass(&self, xs: &Tensor, pass: &mut Pass) -> Result<Tensor> {
        if pass.is_train() {
            let (ys, statistics) = ops::batch_norm(xs, &self.weight, &self.bias, self.eps)?;
            self.note(&statistics, pass);
            return Ok(ys);
        }
        let RunningStatistics { mean, var } = self.running();
        ops::batch_norm_eval(xs, mean, var, &self.weight, &self.bias, self.eps)
    }
}

impl ModuleT for BatchNorm {
    fn forward_t(&self, xs: &Tensor, train: bool) -> Result<Tensor> {
        let mut pass = Pass::without_key(train);
        let ys = self.forward_pass(xs, &mut pass)?;
        pass.commit()?;
        Ok(ys)
    }
}
