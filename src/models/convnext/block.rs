//! A block of the ConvNeXt: a depthwise convolution and an MLP, in one residual branch.

use candle_core::{Module, Result, Tensor, D};
use candle_nn::{Conv2dConfig, Init, VarBuilder};

use super::config::Config;
use crate::grid::Grid;
use crate::models::init::{NORMAL, ZERO};
use crate::models::linear::Linear;
use crate::nn::{layer_norm, LayerNorm};
use crate::ops;
use crate::pass::Pass;

/// Side of the depthwise kernel.
const KERNEL: usize = 7;

/// x + drop_path(gamma * fc2(grn(gelu(fc1(norm(conv(x))))))).
#[derive(Clone, Debug)]
pub(super) struct Block {
    /// Weight [C, 1, 7, 7], and bias.
    conv: Linear,
    norm: LayerNorm,
    fc1: Linear,
    response: Option<ResponseNorm>,
    fc2: Linear,
    gamma: Option<Tensor>,
    pub(super) drop_path: f64,
}

impl Block {
    pub(super) fn new(cfg: &Config, dim: usize, drop_path: f64, vb: VarBuilder) -> Result<Self> {
        let (conv, hidden) = (vb.pp("conv_dw"), 4 * dim);
        let gamma = |value| vb.get_with_hints(dim, "gamma", Init::Const(value));
        let response = || ResponseNorm::new(hidden, vb.pp("mlp.grn"));
        Ok(Self {
            conv: Linear {
                weight: conv.get_with_hints((dim, 1, KERNEL, KERNEL), "weight", NORMAL)?,
                bias: conv.get_with_hints(dim, "bias", ZERO)?,
            },
            norm: layer_norm(dim, cfg.norm_eps, vb.pp("norm"))?,
            fc1: Linear::new(dim, hidden, NORMAL, ZERO, vb.pp("mlp.fc1"))?,
            response: cfg.response_norm.then(response).transpose()?,
            fc2: Linear::new(hidden, dim, NORMAL, ZERO, vb.pp("mlp.fc2"))?,
            gamma: cfg.layer_scale.map(gamma).transpose()?,
            drop_path,
        })
    }

    /// [B, L, C] of a grid of L positions, and back.
    pub(super) fn forward(&self, xs: &Tensor, grid: Grid, pass: &mut Pass) -> Result<Tensor> {
        let (batch, _, dim) = xs.dims3()?;
        let config = Conv2dConfig {
            padding: KERNEL / 2,
            groups: dim,
            ..Default::default()
        };
        let maps = xs.transpose(1, 2)?.reshape((batch, dim, grid.height, grid.width))?;
        let ys = ops::conv2d(&maps, &self.conv.weight, Some(&self.conv.bias), config)?;
        let ys = ys.flatten_from(2)?.transpose(1, 2)?.contiguous()?;
        let hidden = ops::gelu(&self.fc1.forward(&self.norm.forward(&ys)?)?)?;
        let hidden = match &self.response {
            Some(response) => response.forward(&hidden)?,
            None => hidden,
        };
        let ys = self.fc2.forward(&hidden)?;
        let factors = pass.drop_path_factors(batch, self.drop_path)?;
        ops::add_branch(xs, ys, self.gamma.as_ref(), factors.as_deref())
    }
}

/// Global response normalisation (arXiv 2301.00808): x + weight x n + bias, where n is a channel's norm over all positions
/// as a share of the channels' mean.
#[derive(Clone, Debug)]
struct ResponseNorm {
    weight: Tensor,
    bias: Tensor,
}

impl ResponseNorm {
    fn new(dim: usize, vb: VarBuilder) -> Result<Self> {
        Ok(Self {
            weight: vb.get_with_hints(dim, "weight", ZERO)?,
            bias: vb.get_with_hints(dim, "bias", ZERO)?,
        })
    }

    /// [B, L, C]
    fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        if ops::is_half(xs) {
            return ops::in_f32(&[xs, &self.weight, &self.bias], |t| response(&t[0], &t[1], &t[2]));
        }
        response(xs, &self.weight, &self.bias)
    }
}

fn response(xs: &Tensor, weight: &Tensor, bias: &Tensor) -> Result<Tensor> {
    // Of a channel without any response the root has no derivative: far below what a number's square is.
    let norm = (xs.sqr()?.sum_keepdim(1)? + 1e-30)?.sqrt()?;
    let share = norm.broadcast_div(&(norm.mean_keepdim(D::Minus1)? + 1e-6)?)?;
    let scale = (share.broadcast_mul(weight)? + 1.0)?;
    xs.broadcast_mul(&scale)?.broadcast_add(bias)
}
