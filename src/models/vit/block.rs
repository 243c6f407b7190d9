//! A block of the ViT: attention, then an MLP.

use candle_core::{Module, Result, Tensor};
use candle_nn::{Init, VarBuilder};

use super::config::Config;
use super::names::Qkv;
use crate::models::init::{NORMAL, ZERO};
use crate::models::linear::Linear;
use crate::models::mlp::{Mlp, MlpNames, Rates};
use crate::nn::{layer_norm, LayerNorm};
use crate::ops::{self, Affine, AttentionBranch, Tokens};
use crate::pass::Pass;

/// The projection to queries, keys and values.
#[derive(Clone, Debug)]
enum QkvProjection {
    Packed(Linear),
    Apart([Linear; 3]),
}

impl QkvProjection {
    fn packed(&self) -> Result<Linear> {
        match self {
            Self::Packed(packed) => Ok(packed.clone()),
            // Small beside the product: the weights are put together, not the tokens.
            Self::Apart([q, k, v]) => Ok(Linear {
                weight: Tensor::cat(&[&q.weight, &k.weight, &v.weight], 0)?,
                bias: Tensor::cat(&[&q.bias, &k.bias, &v.bias], 0)?,
            }),
        }
    }
}

/// Self-attention: a residual branch behind a layer norm, scaled and dropped.
#[derive(Clone, Debug)]
struct Attention {
    norm: LayerNorm,
    qkv: QkvProjection,
    num_heads: usize,
    proj: Linear,
    gamma: Option<Tensor>,
    rates: Rates,
}

impl Attention {
    fn new(cfg: &Config, gamma: Option<Tensor>, rates: Rates, vb: VarBuilder) -> Result<Self> {
        let (d, names) = (cfg.embed_dim, cfg.names());
        let linear = |out_dim, name: &str| Linear::new(d, out_dim, NORMAL, ZERO, vb.pp(name));
        let qkv = match names.qkv {
            Qkv::Packed(name) => QkvProjection::Packed(linear(3 * d, name)?),
            Qkv::Apart([q, k, v]) => QkvProjection::Apart([linear(d, q)?, linear(d, k)?, linear(d, v)?]),
        };
        Ok(Self {
            norm: layer_norm(d, cfg.norm_eps, vb.pp(names.norm1))?,
            qkv,
            num_heads: cfg.num_heads,
            proj: linear(d, names.proj)?,
            gamma,
            rates,
        })
    }

    /// [B, N, D] to [B, N, D], or to [B, 1, D]: in one operation where nothing is dropped between the layers.
    fn forward(&self, xs: &Tensor, tokens: Tokens, pass: &mut Pass) -> Result<Tensor> {
        let qkv = self.qkv.packed()?;
        match self.norm.affine() {
            Some(norm) if pass.skip_dropout(self.rates.dropout, 1)? => self.fused(norm, &qkv, xs, tokens, pass),
            _ => self.composed(&qkv, xs, tokens, pass),
        }
    }

    fn fused(&self, norm: Affine, qkv: &Linear, xs: &Tensor, tokens: Tokens, pass: &mut Pass) -> Result<Tensor> {
        let branch = AttentionBranch {
            norm,
            eps: self.norm.eps(),
            qkv: qkv.affine(),
            num_heads: self.num_heads,
            proj: self.proj.affine(),
            gamma: self.gamma.as_ref(),
        };
        let factors = pass.drop_path_factors(xs.dim(0)?, self.rates.drop_path)?;
        ops::attention_branch(xs, &branch, tokens, factors.as_deref())
    }

    fn composed(&self, qkv: &Linear, xs: &Tensor, tokens: Tokens, pass: &mut Pass) -> Result<Tensor> {
        let heads = ops::attention(&qkv.forward(&self.norm.forward(xs)?)?, self.num_heads)?;
        // Dropout draws token by token: the same for the first, whether others follow or not.
        let (xs, heads) = match tokens {
            Tokens::All => (xs.clone(), heads),
            Tokens::First => (xs.narrow(1, 0, 1)?, heads.narrow(1, 0, 1)?.contiguous()?),
        };
        let ys = pass.dropout(&self.proj.forward(&heads)?, self.rates.dropout)?;
        let factors = pass.drop_path_factors(xs.dim(0)?, self.rates.drop_path)?;
        ops::add_branch(&xs, ys, self.gamma.as_ref(), factors.as_deref())
    }
}

/// Attention and MLP, each a residual branch.
#[derive(Clone, Debug)]
pub(super) struct Block {
    attention: Attention,
    mlp: Mlp,
}

impl Block {
    pub(super) fn new(cfg: &Config, index: usize, vb: VarBuilder) -> Result<Self> {
        let (d, names) = (cfg.embed_dim, cfg.names());
        let gamma = |name: &str| {
            let init = cfg.layer_scale.map(Init::Const);
            init.map(|init| vb.get_with_hints(d, name, init)).transpose()
        };
        let rates = Rates {
            dropout: cfg.dropout,
            drop_path: cfg.drop_path_at(index),
        };
        let mlp_names = MlpNames {
            norm: names.norm2,
            fc1: names.fc1,
            fc2: names.fc2,
        };
        let dims = [d, cfg.mlp_dim];
        let mlp = Mlp::new(dims, cfg.norm_eps, cfg.activation, NORMAL, mlp_names, rates, vb.clone())?;
        Ok(Self {
            attention: Attention::new(cfg, gamma(names.gamma1)?, rates, vb.clone())?,
            mlp: mlp.with_gamma(gamma(names.gamma2)?),
        })
    }

    /// [B, N, D] to [B, N, D], or to [B, 1, D].
    pub(super) fn forward(&self, xs: &Tensor, tokens: Tokens, pass: &mut Pass) -> Result<Tensor> {
        let xs = self.attention.forward(xs, tokens, pass)?;
        self.mlp.forward(&xs, pass)
    }
}
