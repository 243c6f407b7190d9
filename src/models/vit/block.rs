//! A block of the ViT: attention, then an MLP.

use candle_core::{DType, Error, Module, Result, Tensor};
use candle_nn::{Init, VarBuilder};

use super::config::{Config, QkvBias};
use super::names::Qkv;
use super::positions::{relative_table, Positions};
use super::swiglu::SwiGlu;
use crate::models::init::{NORMAL, ZERO};
use crate::models::linear::Linear;
use crate::models::mlp::{Mlp, MlpNames, Regime};
use crate::nn::{layer_norm, LayerNorm};
use crate::ops::{self, Affine, AttentionBranch, Stream, Tokens};
use crate::pass::Pass;
use crate::weights::{self, PositionRows};

/// The projection to queries, keys and values, packed or in three parts.
#[derive(Clone, Debug)]
struct QkvProjection {
    weights: Vec<Tensor>,
    biases: Vec<Tensor>,
    compute_dtype: Option<DType>,
}

impl QkvProjection {
    fn new(cfg: &Config, vb: &VarBuilder) -> Result<Self> {
        let (d, names) = (cfg.embed_dim, cfg.names());
        let parts = match names.qkv {
            Qkv::Packed(name) => vec![(3 * d, name)],
            Qkv::Apart(names) => names.map(|name| (d, name)).to_vec(),
        };
        let weight = |&(rows, name): &(usize, &str)| vb.pp(name).get_with_hints((rows, d), "weight", NORMAL);
        let bias = |&(rows, name): &(usize, &str)| vb.pp(name).get_with_hints(rows, "bias", ZERO);
        let none = |rows: usize| Tensor::zeros(rows, vb.dtype(), vb.device());
        let biases = match (cfg.qkv_bias, &parts[..]) {
            (QkvBias::All, parts) => parts.iter().map(bias).collect::<Result<_>>()?,
            (QkvBias::QueryAndValue, [q, _, v]) => vec![bias(q)?, none(d)?, bias(v)?],
            (QkvBias::QueryAndValue, _) => {
                let [q, v] = names.qv_bias.map(|name| vb.get_with_hints(d, name, ZERO));
                vec![q?, none(d)?, v?]
            }
            (QkvBias::Absent, _) => vec![none(3 * d)?],
        };
        Ok(Self {
            weights: parts.iter().map(weight).collect::<Result<_>>()?,
            biases,
            compute_dtype: cfg.compute_dtype,
        })
    }

    /// Small beside the product: the weights are put together, not the tokens.
    fn packed(&self) -> Result<Linear> {
        let packed = |parts: &[Tensor]| match parts {
            [packed] => Ok(packed.clone()),
            parts => Tensor::cat(parts, 0),
        };
        Ok(Linear::of(packed(&self.weights)?, packed(&self.biases)?).in_dtype(self.compute_dtype))
    }
}

/// Self-attention: a residual branch behind a layer norm, scaled and dropped.
#[derive(Clone, Debug)]
struct Attention {
    norm: LayerNorm,
    qkv: QkvProjection,
    num_heads: usize,
    /// Biases of relative positions, where there are any.
    position_table: Option<Tensor>,
    proj: Linear,
    gamma: Option<Tensor>,
    regime: Regime,
}

impl Attention {
    fn new(cfg: &Config, gamma: Option<Tensor>, regime: Regime, vb: VarBuilder) -> Result<Self> {
        let (d, names) = (cfg.embed_dim, cfg.names());
        let table = || {
            let (prefix, grid) = (0, cfg.grid());
            weights::tell_positions(&vb, names.position_table, PositionRows { prefix, grid });
            vb.get_with_hints((relative_table(cfg.grid()), cfg.num_heads), names.position_table, ZERO)
        };
        Ok(Self {
            norm: layer_norm(d, cfg.norm_eps, vb.pp(names.norm1))?,
            qkv: QkvProjection::new(cfg, &vb)?,
            position_table: cfg.relative_positions.then(table).transpose()?,
            num_heads: cfg.num_heads,
            proj: Linear::new(d, d, NORMAL, ZERO, vb.pp(names.proj))?.in_dtype(cfg.compute_dtype),
            gamma,
            regime,
        })
    }

    /// [B, N, D] to [B, N, D], or to [B, 1, D]: in one operation where nothing is dropped between the layers.
    fn forward(
        &self,
        stream: &mut Stream,
        tokens: Tokens,
        positions: Option<&Positions>,
        pass: &mut Pass,
    ) -> Result<()> {
        let qkv = self.qkv.packed()?;
        let positions = positions.map(|positions| positions.of_block(self.position_table.as_ref()));
        let positions = positions.unwrap_or_default();
        match self.norm.affine() {
            Some(norm) if pass.skip_dropout(self.regime.dropout, 1)? => {
                self.fused(norm, &qkv, stream, tokens, &positions, pass)
            }
            _ => stream.then(|xs| self.composed(&qkv, xs, tokens, &positions, pass)),
        }
    }

    fn fused(
        &self,
        norm: Affine,
        qkv: &Linear,
        stream: &mut Stream,
        tokens: Tokens,
        positions: &ops::Positions,
        pass: &mut Pass,
    ) -> Result<()> {
        let (qkv, proj) = (qkv.rounded()?, self.proj.rounded()?);
        let branch = AttentionBranch {
            norm,
            eps: self.norm.eps(),
            qkv: qkv.affine(),
            num_heads: self.num_heads,
            proj: proj.affine(),
            gamma: self.gamma.as_ref(),
            recompute: self.regime.recompute,
        };
        let factors = pass.drop_path_factors(stream.start().dim(0)?, self.regime.drop_path)?;
        stream.attention_branch(&branch, tokens, positions, factors.as_deref())
    }

    fn composed(
        &self,
        qkv: &Linear,
        xs: &Tensor,
        tokens: Tokens,
        positions: &ops::Positions,
        pass: &mut Pass,
    ) -> Result<Tensor> {
        let qkv = qkv.forward(&self.norm.forward(xs)?)?;
        let heads = positions.attend(&qkv, self.num_heads)?;
        // Dropout draws token by token: the same for the first, whether others follow or not.
        let (xs, heads) = match tokens {
            Tokens::All => (xs.clone(), heads),
            Tokens::First => (xs.narrow(1, 0, 1)?, heads.narrow(1, 0, 1)?.contiguous()?),
        };
        let ys = pass.dropout(&self.proj.forward(&heads)?, self.regime.dropout)?;
        let factors = pass.drop_path_factors(xs.dim(0)?, self.regime.drop_path)?;
        ops::add_branch(&xs, ys, self.gamma.as_ref(), factors.as_deref())
    }
}

/// Attention and MLP, each a residual branch.
#[derive(Clone, Debug)]
pub(super) struct Block {
    attention: Attention,
    mlp: BlockMlp,
}

#[derive(Clone, Debug)]
enum BlockMlp {
    Plain(Mlp),
    Gated(SwiGlu),
}

impl Block {
    pub(super) fn new(cfg: &Config, index: usize, vb: VarBuilder) -> Result<Self> {
        let (d, names) = (cfg.embed_dim, cfg.names());
        let gamma = |name: &str| {
            let init = cfg.layer_scale.map(Init::Const);
            init.map(|init| vb.get_with_hints(d, name, init)).transpose()
        };
        let regime = Regime {
            compute_dtype: cfg.compute_dtype,
            dropout: cfg.dropout,
            drop_path: cfg.drop_path_at(index),
            recompute: cfg.recompute.in_block(index),
        };
        let mlp_names = MlpNames {
            norm: names.norm2,
            fc1: names.fc1,
            fc2: names.fc2,
        };
        let plain = || {
            let dims = [d, cfg.mlp_dim];
            let mlp = Mlp::new(
                dims,
                cfg.norm_eps,
                cfg.activation,
                NORMAL,
                mlp_names,
                regime,
                vb.clone(),
            )?;
            Ok::<_, Error>(mlp.with_gamma(gamma(names.gamma2)?))
        };
        Ok(Self {
            mlp: match cfg.gate {
                None => BlockMlp::Plain(plain()?),
                Some(gate) => BlockMlp::Gated(SwiGlu::new(cfg, gate, gamma(names.gamma2)?, regime, vb.clone())?),
            },
            attention: Attention::new(cfg, gamma(names.gamma1)?, regime, vb.clone())?,
        })
    }

    /// [B, N, D] to [B, N, D], or to [B, 1, D]; with the tokens' positions, where they have a part in blocks.
    pub(super) fn forward(
        &self,
        stream: &mut Stream,
        tokens: Tokens,
        positions: Option<&Positions>,
        pass: &mut Pass,
    ) -> Result<()> {
        self.attention.forward(stream, tokens, positions, pass)?;
        match &self.mlp {
            BlockMlp::Plain(mlp) => mlp.forward(stream, pass),
            BlockMlp::Gated(mlp) => mlp.forward(stream, pass),
        }
    }
}
