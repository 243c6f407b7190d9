//! 2-d convolution for training.

use candle_core::{Result, Tensor};

/// `xs` [B, C, H, W] convolved with `weight` [C', C, k, k], without bias.
pub fn conv2d(xs: &Tensor, weight: &Tensor, stride: usize, padding: usize) -> Result<Tensor> {
    xs.conv2d(weight, padding, stride, 1, 1)
}
