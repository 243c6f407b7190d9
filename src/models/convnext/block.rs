//! A block of the ConvNeXt: a depthwise convolution and an MLP, in one residual branch.

use candle_core::{Result, Tensor};
use candle_nn::{Init, VarBuilder};

use super::config::Config;
use crate::grid::Grid;
use crate::models::init::{NORMAL, ZERO};
use crate::models::linear::Linear;
use crate::ops::{ConvMlpBranch, Stream};
use crate::pass::Pass;

/// Side of the depthwise kernel.
const KERNEL: usize = 7;

/// x + drop_path(gamma * fc2(grn(gelu(fc1(norm(conv(x))))))).
#[derive(Clone, Debug)]
pub(super) struct Block {
    /// Weight [C, 1, 7, 7], and bias.
    conv: Linear,
    /// Of the layer norm, `[C]` both, as those of the response normalisation are `[4 C]`.
    norm: Linear,
    eps: f64,
    fc1: Linear,
    response: Option<Linear>,
    fc2: Linear,
    gamma: Option<Tensor>,
    pub(super) drop_path: f64,
}

impl Block {
    pub(super) fn new(cfg: &Config, dim: usize, drop_path: f64, vb: VarBuilder) -> Result<Self> {
        let (conv, hidden) = (vb.pp("conv_dw"), 4 * dim);
        let gamma = |value| vb.get_with_hints(dim, "gamma", Init::Const(value));
        let vectors = |size: usize, weight, vb: VarBuilder| -> Result<Linear> {
            Ok(Linear::of(
                vb.get_with_hints(size, "weight", weight)?,
                vb.get_with_hints(size, "bias", ZERO)?,
            ))
        };
        let linear = |[from, to]: [usize; 2], vb| -> Result<Linear> {
            Ok(Linear::new(from, to, NORMAL, ZERO, vb)?.in_dtype(cfg.compute_dtype))
        };
        let response = || vectors(hidden, ZERO, vb.pp("mlp.grn"));
        Ok(Self {
            conv: Linear::of(
                conv.get_with_hints((dim, 1, KERNEL, KERNEL), "weight", NORMAL)?,
                conv.get_with_hints(dim, "bias", ZERO)?,
            )
            .in_dtype(cfg.compute_dtype),
            norm: vectors(dim, Init::Const(1.0), vb.pp("norm"))?,
            eps: cfg.norm_eps,
            fc1: linear([dim, hidden], vb.pp("mlp.fc1"))?,
            response: cfg.response_norm.then(response).transpose()?,
            fc2: linear([hidden, dim], vb.pp("mlp.fc2"))?,
            gamma: cfg.layer_scale.map(gamma).transpose()?,
            drop_path,
        })
    }

    /// [B, L, C] of a grid of L positions, and back.
    pub(super) fn forward(&self, stream: &mut Stream, grid: Grid, pass: &mut Pass) -> Result<()> {
        let (conv, fc1, fc2) = (self.conv.rounded()?, self.fc1.rounded()?, self.fc2.rounded()?);
        let branch = ConvMlpBranch {
            conv: conv.affine(),
            norm: self.norm.affine(),
            eps: self.eps,
            fc1: fc1.affine(),
            response: self.response.as_ref().map(Linear::affine),
            fc2: fc2.affine(),
            gamma: self.gamma.as_ref(),
        };
        let factors = pass.drop_path_factors(stream.start().dim(0)?, self.drop_path)?;
        stream.conv_mlp_branch(grid, &branch, factors.as_deref())
    }
}
