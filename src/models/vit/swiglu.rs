//! The gated MLP of DINOv2's giant and of EVA-02 (SwiGLU, arXiv 2002.05202): a residual branch behind a layer norm.

use candle_core::{Module, Result, Tensor};
use candle_nn::VarBuilder;

use super::config::{Config, Gate};
use crate::models::init::{NORMAL, ZERO};
use crate::models::linear::Linear;
use crate::models::mlp::Regime;
use crate::nn::ops::swiglu;
use crate::nn::{layer_norm, LayerNorm};
use crate::ops::{self, Affine, Gated, GatedMlpBranch, Stream};
use crate::pass::Pass;

/// x + drop_path(gamma * fc2(norm'(silu(g) * v))) with gate and value (g, v) of norm(x), and dropout before
/// norm' and behind fc2, as timm's `SwiGLU` has it.
#[derive(Clone, Debug)]
pub(super) struct SwiGlu {
    norm: LayerNorm,
    fc1: Projections,
    inner_norm: Option<LayerNorm>,
    fc2: Linear,
    gamma: Option<Tensor>,
    regime: Regime,
}

/// The projections to gate and value.
#[derive(Clone, Debug)]
enum Projections {
    Packed(Linear),
    Apart([Linear; 2]),
}

impl Projections {
    fn gated(&self) -> Gated<'_> {
        match self {
            Self::Packed(both) => Gated::Packed(both.affine()),
            Self::Apart(layers) => Gated::Apart(layers.each_ref().map(Linear::affine)),
        }
    }

    /// See [`Linear::rounded`].
    fn rounded(&self) -> Result<Self> {
        Ok(match self {
            Self::Packed(both) => Self::Packed(both.rounded()?),
            Self::Apart([gate, value]) => Self::Apart([gate.rounded()?, value.rounded()?]),
        })
    }
}

impl SwiGlu {
    pub(super) fn new(cfg: &Config, gate: Gate, gamma: Option<Tensor>, regime: Regime, vb: VarBuilder) -> Result<Self> {
        let (d, hidden, names) = (cfg.embed_dim, cfg.mlp_dim, cfg.names());
        let linear = |[from, to]: [usize; 2], name: &str| -> Result<Linear> {
            Ok(Linear::new(from, to, NORMAL, ZERO, vb.pp(name))?.in_dtype(cfg.compute_dtype))
        };
        let (fc1, inner_norm) = match gate {
            Gate::Packed => (Projections::Packed(linear([d, 2 * hidden], names.fc1)?), None),
            Gate::Normed => {
                let norm = layer_norm(hidden, cfg.norm_eps, vb.pp(names.mlp_norm))?;
                let [gate, value] = names.fc1_apart;
                let apart = [linear([d, hidden], gate)?, linear([d, hidden], value)?];
                (Projections::Apart(apart), Some(norm))
            }
        };
        Ok(Self {
            norm: layer_norm(d, cfg.norm_eps, vb.pp(names.norm2))?,
            fc1,
            inner_norm,
            fc2: linear([hidden, d], names.fc2)?,
            gamma,
            regime,
        })
    }

    /// [B, N, D] to [B, N, D]: in one operation where nothing is dropped between the layers.
    pub(super) fn forward(&self, stream: &mut Stream, pass: &mut Pass) -> Result<()> {
        let inner_norm = self.inner_norm.as_ref().map(LayerNorm::affine);
        match (self.norm.affine(), inner_norm) {
            (Some(norm), None | Some(Some(_))) if pass.skip_dropout(self.regime.dropout, 2)? => {
                self.fused(norm, inner_norm.flatten(), stream, pass)
            }
            _ => stream.then(|xs| self.composed(xs, pass)),
        }
    }

    fn fused(&self, norm: Affine, inner_norm: Option<Affine>, stream: &mut Stream, pass: &mut Pass) -> Result<()> {
        let (fc1, fc2) = (self.fc1.rounded()?, self.fc2.rounded()?);
        let branch = GatedMlpBranch {
            norm,
            eps: self.norm.eps(),
            gated: fc1.gated(),
            inner_norm,
            fc2: fc2.affine(),
            gamma: self.gamma.as_ref(),
        };
        let factors = pass.drop_path_factors(stream.start().dim(0)?, self.regime.drop_path)?;
        stream.gated_mlp_branch(&branch, factors.as_deref())
    }

    fn composed(&self, xs: &Tensor, pass: &mut Pass) -> Result<Tensor> {
        let normed = self.norm.forward(xs)?;
        let hidden = match &self.fc1 {
            Projections::Packed(both) => swiglu(&both.forward(&normed)?)?,
            Projections::Apart([gate, value]) => (ops::silu(&gate.forward(&normed)?)? * value.forward(&normed)?)?,
        };
        let hidden = pass.dropout(&hidden, self.regime.dropout)?;
        let hidden = match &self.inner_norm {
            Some(norm) => norm.forward(&hidden.to_dtype(xs.dtype())?)?,
            None => hidden,
        };
        let ys = pass.dropout(&self.fc2.forward(&hidden)?, self.regime.dropout)?;
        let factors = pass.drop_path_factors(xs.dim(0)?, self.regime.drop_path)?;
        ops::add_branch(xs, ys, self.gamma.as_ref(), factors.as_deref())
    }
}
