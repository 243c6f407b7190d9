//! The ViT's token sequence: patches projected, a class token before them, positions added.

use candle_core::{Module, Result, Tensor};
use candle_nn::VarBuilder;

use super::config::{Config, WeightNames};
use crate::check::{self, WEIGHTS};
use crate::models::init::{pytorch_default, NORMAL, ZERO};
use crate::nn::{layer_norm, LayerNorm};
use crate::ops::{self, PatchEmbed};

/// Images to tokens.
#[derive(Clone, Debug)]
pub(super) struct Embedding {
    /// [D, C, p, p], as a convolution has it.
    patch_weight: Tensor,
    patch_bias: Option<Tensor>,
    /// [1, 1, D]
    cls_token: Tensor,
    /// [1, L, D], or [1, 1 + L, D] where the class token has a position, too.
    pos_embed: Tensor,
    pre_norm: Option<LayerNorm>,
}

impl Embedding {
    pub(super) fn new(cfg: &Config, vb: VarBuilder) -> Result<Self> {
        let (d, c, p, names) = (cfg.embed_dim, cfg.in_channels, cfg.patch_size, cfg.names());
        // timm leaves the patch convolution at PyTorch's default.
        let uniform = pytorch_default(c * p * p);
        let (weight_init, bias_init) = match cfg.weight_names {
            WeightNames::Timm => (uniform, uniform),
            WeightNames::HuggingFace | WeightNames::Clip => (NORMAL, ZERO),
        };
        let patch = vb.pp(names.patch_embed);
        let bias = || patch.get_with_hints(d, "bias", bias_init);
        let positions = cfg.grid().len() + usize::from(cfg.class_token_position);
        let (cls_shape, pos_shape) = if names.batched_embeddings {
            (vec![1, 1, d], vec![1, positions, d])
        } else {
            (vec![d], vec![positions, d])
        };
        let cls_token = vb.get_with_hints(cls_shape, names.cls_token, NORMAL)?;
        let pos_embed = vb.get_with_hints(pos_shape, names.pos_embed, NORMAL)?;
        let pre_norm = || layer_norm(d, cfg.norm_eps, vb.pp(names.pre_norm));
        Ok(Self {
            patch_weight: patch.get_with_hints((d, c, p, p), "weight", weight_init)?,
            patch_bias: cfg.patch_bias.then(bias).transpose()?,
            cls_token: cls_token.reshape((1, 1, d))?,
            pos_embed: pos_embed.reshape((1, positions, d))?,
            pre_norm: cfg.pre_norm.then(pre_norm).transpose()?,
        })
    }

    /// [B, C, H, W] to [B, 1 + L, D], or to [B, 1 + K, D] of the positions that `keep` lists, K for each sample.
    pub(super) fn forward(&self, xs: &Tensor, keep: Option<&[u32]>) -> Result<Tensor> {
        check::same_dtype("images", xs, WEIGHTS, &self.patch_weight)?;
        let embed = PatchEmbed {
            weight: &self.patch_weight,
            bias: self.patch_bias.as_ref(),
            prefix: Some(&self.cls_token),
            positions: &self.pos_embed,
        };
        let tokens = ops::patch_embed(xs, &embed, keep)?;
        match &self.pre_norm {
            Some(norm) => norm.forward(&tokens),
            None => Ok(tokens),
        }
    }
}
