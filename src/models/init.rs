//! Distributions that models draw their initial weights from.

use candle_nn::Init;

/// Biases, and the scales of norms that start as the identity of their block.
pub(super) const ZERO: Init = Init::Const(0.0);
/// Projections of transformers.
pub(super) const NORMAL: Init = normal(0.02);

/// Uniform within 1 / √(fan in): what PyTorch's linear layers and convolutions start from.
pub(super) fn pytorch_default(fan_in: usize) -> Init {
    let bound = 1.0 / (fan_in as f64).sqrt();
    Init::Uniform { lo: -bound, up: bound }
}

/// A normal distribution around 0. (timm's truncated one cuts at -2 and 2: at these deviations, that is the same.)
pub(super) const fn normal(stdev: f64) -> Init {
    Init::Randn { mean: 0.0, stdev }
}
