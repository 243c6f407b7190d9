//! A block of the Swin: attention within windows, then an MLP.

use candle_core::{Module, Result, Tensor};
use candle_nn::VarBuilder;

use super::config::Config;
use super::stages::StageShape;
use crate::models::init::{NORMAL, ZERO};
use crate::models::linear::Linear;
use crate::models::mlp::{Mlp, MlpNames, Regime};
use crate::nn::{layer_norm, LayerNorm};
use crate::ops::{self, Activation, Affine, AttentionBranch, Stream, Windows};
use crate::pass::Pass;

/// Attention within windows: a residual branch behind a layer norm.
#[derive(Clone, Debug)]
pub(super) struct Attention {
    pub(super) shape: StageShape,
    pub(super) shift: usize,
    /// Of the windows that a shift puts together from parts of the image that lie apart.
    pub(super) mask: Option<Tensor>,
    norm: LayerNorm,
    qkv: Linear,
    table: Tensor,
    proj: Linear,
    pub(super) regime: Regime,
}

impl Attention {
    fn new(cfg: &Config, shape: StageShape, index: usize, regime: Regime, vb: VarBuilder) -> Result<Self> {
        let (d, side) = (shape.dim, 2 * shape.window - 1);
        let shift = if index % 2 == 1 { shape.shift } else { 0 };
        let mask = || ops::shift_mask(shape.grid, shape.window, shift, vb.device());
        let linear = |out_dim, vb| -> Result<Linear> {
            Ok(Linear::new(d, out_dim, NORMAL, ZERO, vb)?.in_dtype(cfg.compute_dtype))
        };
        let attn = vb.pp("attn");
        Ok(Self {
            shape,
            shift,
            mask: (shift > 0).then(mask).transpose()?,
            norm: layer_norm(d, cfg.norm_eps, vb.pp("norm1"))?,
            qkv: linear(3 * d, attn.pp("qkv"))?,
            table: attn.get_with_hints((side * side, shape.num_heads), "relative_position_bias_table", NORMAL)?,
            proj: linear(d, attn.pp("proj"))?,
            regime,
        })
    }

    /// [B, L, D] to [B, L, D]: in one operation where nothing is dropped between the layers.
    fn forward(&self, stream: &mut Stream, pass: &mut Pass) -> Result<()> {
        match self.norm.affine() {
            Some(norm) if pass.skip_dropout(self.regime.dropout, 1)? => self.fused(norm, stream, pass),
            _ => stream.then(|xs| self.composed(xs, pass)),
        }
    }

    fn fused(&self, norm: Affine, stream: &mut Stream, pass: &mut Pass) -> Result<()> {
        let (qkv, proj) = (self.qkv.rounded()?, self.proj.rounded()?);
        let branch = AttentionBranch {
            norm,
            eps: self.norm.eps(),
            qkv: qkv.affine(),
            num_heads: self.shape.num_heads,
            proj: proj.affine(),
            gamma: None,
            recompute: self.regime.recompute,
        };
        let windows = Windows {
            grid: self.shape.grid,
            window: self.shape.window,
            shift: self.shift,
            table: &self.table,
            mask: self.mask.as_ref(),
        };
        let factors = pass.drop_path_factors(stream.start().dim(0)?, self.regime.drop_path)?;
        stream.window_attention_branch(&branch, &windows, factors.as_deref())
    }

    fn composed(&self, xs: &Tensor, pass: &mut Pass) -> Result<Tensor> {
        let StageShape {
            grid,
            window,
            num_heads,
            ..
        } = self.shape;
        let ys = ops::window_partition(&self.norm.forward(xs)?, grid, window, self.shift)?;
        let bias = ops::relative_position_bias(&self.table, window)?;
        let ys = ops::window_attention(&self.qkv.forward(&ys)?, num_heads, &bias, self.mask.as_ref())?;
        let ys = pass.dropout(&self.proj.forward(&ys)?, self.regime.dropout)?;
        let ys = ops::window_reverse(&ys, grid, window, self.shift)?;
        let factors = pass.drop_path_factors(xs.dim(0)?, self.regime.drop_path)?;
        ops::add_branch(xs, ys, None, factors.as_deref())
    }
}

/// Attention and MLP, each a residual branch.
#[derive(Clone, Debug)]
pub(super) struct Block {
    pub(super) attention: Attention,
    mlp: Mlp,
}

impl Block {
    pub(super) fn new(cfg: &Config, shape: StageShape, index: usize, drop_path: f64, vb: VarBuilder) -> Result<Self> {
        let regime = Regime {
            compute_dtype: cfg.compute_dtype,
            dropout: cfg.dropout,
            drop_path,
            recompute: cfg.recompute.in_block(index),
        };
        let mlp_names = MlpNames {
            norm: "norm2",
            fc1: "mlp.fc1",
            fc2: "mlp.fc2",
        };
        let (dims, eps) = ([shape.dim, cfg.mlp_ratio * shape.dim], cfg.norm_eps);
        Ok(Self {
            attention: Attention::new(cfg, shape, index, regime, vb.clone())?,
            mlp: Mlp::new(dims, eps, Activation::Gelu, NORMAL, mlp_names, regime, vb)?,
        })
    }

    /// [B, L, D] to [B, L, D].
    pub(super) fn forward(&self, stream: &mut Stream, pass: &mut Pass) -> Result<()> {
        self.attention.forward(stream, pass)?;
        self.mlp.forward(stream, pass)
    }
}
