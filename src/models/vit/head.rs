//! Logits of a ViT's tokens: the final norm, what is pooled, and a head on it or two.

use candle_core::{Module, Result, Tensor, D};
use candle_nn::{Init, VarBuilder};

use super::attention_pool::AttentionPool;
use super::config::{Config, Pool};
use crate::error::Error;
use crate::models::init::{normal, ZERO};
use crate::models::linear::Linear;
use crate::models::pool;
use crate::nn::{layer_norm, LayerNorm};
use crate::ops::Tokens;

/// What follows the blocks.
#[derive(Clone, Debug)]
pub(super) struct Head {
    /// P
    num_prefix_tokens: usize,
    /// The final norm, or `fc_norm` where tokens are averaged; none where the head reads their bare mean.
    norm: Option<LayerNorm>,
    pooling: Pooling,
    class: Linear,
    /// The head of the distillation token.
    distilled: Option<Linear>,
}

/// What is read of tokens, before or after the norm.
#[derive(Clone, Debug)]
enum Pooling {
    Class,
    ClassAndDistillation,
    ClassAndMean,
    Mean,
    NormThenMean,
    Attention(Box<AttentionPool>),
}

impl Head {
    pub(super) fn new(cfg: &Config, vb: VarBuilder) -> Result<Self> {
        let (d, names) = (cfg.embed_dim, cfg.names());
        let (norm, pooling) = match cfg.pool {
            Pool::ClassToken => (Some(names.norm), Pooling::Class),
            Pool::ClassAndDistillation => (Some(names.norm), Pooling::ClassAndDistillation),
            Pool::ClassAndMean => (Some(names.norm), Pooling::ClassAndMean),
            Pool::Mean => (Some(names.fc_norm), Pooling::Mean),
            Pool::MeanOnly => (None, Pooling::Mean),
            Pool::NormThenMean => (Some(names.fc_norm), Pooling::NormThenMean),
            Pool::FinalNormThenMean => (Some(names.norm), Pooling::NormThenMean),
            Pool::Attention => {
                let pool = AttentionPool::new(cfg, vb.pp(names.attn_pool))?;
                (Some(names.norm), Pooling::Attention(Box::new(pool)))
            }
        };
        let norm = norm.map(|name| layer_norm(d, cfg.norm_eps, vb.pp(name)));
        let bias = match cfg.head_bias_bound {
            0.0 => ZERO,
            bound => Init::Uniform { lo: -bound, up: bound },
        };
        let read = match cfg.pool {
            Pool::ClassAndMean => 2 * d,
            _ => d,
        };
        let linear = |name: &str| -> Result<Linear> {
            let head = Linear::new(read, cfg.num_classes, normal(cfg.head_init_std), bias, vb.pp(name))?;
            Ok(head.in_dtype(cfg.compute_dtype))
        };
        let distilled = (cfg.pool == Pool::ClassAndDistillation).then(|| linear(names.head_dist));
        Ok(Self {
            num_prefix_tokens: cfg.num_prefix_tokens(),
            // Before the head: a checkpoint's head is for what its norm is read by.
            norm: norm.transpose()?,
            pooling,
            class: linear(names.head)?,
            distilled: distilled.transpose()?,
        })
    }

    /// The tokens of the last block that are read.
    pub(super) fn reads(&self) -> Tokens {
        match self.pooling {
            Pooling::Class => Tokens::First,
            _ => Tokens::All,
        }
    }

    /// What the head reads of tokens [B, P + K, D]: [B, D], [B, 2 D], or [B, 2, D] of two heads. Those behind the first
    /// are none where it is the only one read.
    pub(super) fn pool(&self, tokens: &Tensor) -> Result<Tensor> {
        let norm = |xs: &Tensor| match &self.norm {
            Some(norm) => norm.forward(&xs.contiguous()?),
            None => Ok(xs.clone()),
        };
        let first = |tokens: &Tensor| tokens.narrow(1, 0, 1)?.squeeze(1);
        let prefix = self.num_prefix_tokens;
        let patches = |tokens: &Tensor| tokens.narrow(1, prefix, tokens.dim(1)? - prefix);
        match &self.pooling {
            Pooling::Class => norm(&first(tokens)?),
            Pooling::ClassAndDistillation => norm(&tokens.narrow(1, 0, 2)?),
            Pooling::ClassAndMean => {
                let tokens = norm(tokens)?;
                Tensor::cat(&[first(&tokens)?, pool::mean(&patches(&tokens)?, 1)?], D::Minus1)
            }
            Pooling::Mean => norm(&pool::mean(&patches(tokens)?, 1)?),
            Pooling::NormThenMean => pool::mean(&norm(&patches(tokens)?)?, 1),
            Pooling::Attention(attention) => attention.forward(&patches(&norm(tokens)?)?.contiguous()?),
        }
    }

    /// Logits [B, classes] of what is pooled; the mean of two heads'.
    pub(super) fn logits(&self, pooled: &Tensor) -> Result<Tensor> {
        if self.distilled.is_none() {
            return of_head(&self.class, pooled);
        }
        let (class, distilled) = self.both(pooled)?;
        (class + distilled)? * 0.5
    }

    /// Logits of both heads, [B, classes] each.
    pub(super) fn both(&self, pooled: &Tensor) -> Result<(Tensor, Tensor)> {
        let Some(distilled) = &self.distilled else {
            return Err(two_heads(&self.pooling).into());
        };
        let token = |at| pooled.narrow(1, at, 1)?.squeeze(1)?.contiguous();
        Ok((of_head(&self.class, &token(0)?)?, of_head(distilled, &token(1)?)?))
    }
}

/// Logits in the dtype of what is pooled: that of losses.
fn of_head(head: &Linear, pooled: &Tensor) -> Result<Tensor> {
    head.forward(pooled)?.to_dtype(pooled.dtype())
}

/// The error of a model without a second head.
pub(super) fn two_heads(pool: &impl std::fmt::Debug) -> Error {
    Error::invalid(
        "pool",
        format!("{pool:?}"),
        "ClassAndDistillation, whose tokens have a head each",
    )
}
