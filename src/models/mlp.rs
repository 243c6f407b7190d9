//! The MLP of a transformer block: a residual branch behind a layer norm, scaled and dropped.

use candle_core::{DType, Module, Result, Tensor};
use candle_nn::{Init, VarBuilder};

use super::init::ZERO;
use super::linear::Linear;
use crate::nn::{layer_norm, LayerNorm};
use crate::ops::{self, Activation, Affine, MlpBranch, Stream};
use crate::pass::Pass;

/// What a branch does in training, and what it multiplies in, beside its arithmetic.
#[derive(Clone, Copy, Debug)]
pub(super) struct Regime {
    /// See `Config::compute_dtype`.
    pub(super) compute_dtype: Option<DType>,
    pub(super) dropout: f64,
    pub(super) drop_path: f64,
    /// See [`Recompute`](super::Recompute).
    pub(super) recompute: bool,
}

/// The layers' names below a block.
pub(super) struct MlpNames<'a> {
    pub(super) norm: &'a str,
    pub(super) fc1: &'a str,
    pub(super) fc2: &'a str,
}

/// x + drop_path(gamma * fc2(activation(fc1(norm(x))))), with dropout after either layer.
#[derive(Clone, Debug)]
pub(super) struct Mlp {
    norm: LayerNorm,
    fc1: Linear,
    activation: Activation,
    fc2: Linear,
    gamma: Option<Tensor>,
    regime: Regime,
}

impl Mlp {
    /// From `dim` to `hidden` elements and back, with initial weights from `init`.
    pub(super) fn new(
        [dim, hidden]: [usize; 2],
        eps: f64,
        activation: Activation,
        init: Init,
        names: MlpNames,
        regime: Regime,
        vb: VarBuilder,
    ) -> Result<Self> {
        Ok(Self {
            norm: layer_norm(dim, eps, vb.pp(names.norm))?,
            fc1: Linear::new(dim, hidden, init, ZERO, vb.pp(names.fc1))?.in_dtype(regime.compute_dtype),
            activation,
            fc2: Linear::new(hidden, dim, init, ZERO, vb.pp(names.fc2))?.in_dtype(regime.compute_dtype),
            gamma: None,
            regime,
        })
    }

    /// With LayerScale.
    pub(super) fn with_gamma(self, gamma: Option<Tensor>) -> Self {
        Self { gamma, ..self }
    }

    /// [B, N, D] to [B, N, D]: in one operation where nothing is dropped between the layers.
    pub(super) fn forward(&self, stream: &mut Stream, pass: &mut Pass) -> Result<()> {
        match self.norm.affine() {
            Some(norm) if pass.skip_dropout(self.regime.dropout, 2)? => self.fused(norm, stream, pass),
            _ => stream.then(|xs| self.composed(xs, pass)),
        }
    }

    fn fused(&self, norm: Affine, stream: &mut Stream, pass: &mut Pass) -> Result<()> {
        let (fc1, fc2) = (self.fc1.rounded()?, self.fc2.rounded()?);
        let branch = MlpBranch {
            norm,
            eps: self.norm.eps(),
            fc1: fc1.affine(),
            activation: self.activation,
            fc2: fc2.affine(),
            gamma: self.gamma.as_ref(),
            recompute: self.regime.recompute,
        };
        let factors = pass.drop_path_factors(stream.start().dim(0)?, self.regime.drop_path)?;
        stream.mlp_branch(&branch, factors.as_deref())
    }

    fn composed(&self, xs: &Tensor, pass: &mut Pass) -> Result<Tensor> {
        let hidden = self.activation.forward(&self.fc1.forward(&self.norm.forward(xs)?)?)?;
        let hidden = pass.dropout(&hidden, self.regime.dropout)?;
        let ys = pass.dropout(&self.fc2.forward(&hidden)?, self.regime.dropout)?;
        let factors = pass.drop_path_factors(xs.dim(0)?, self.regime.drop_path)?;
        ops::add_branch(xs, ys, self.gamma.as_ref(), factors.as_deref())
    }
}
