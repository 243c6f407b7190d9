//! The affine layer of all models.

use candle_core::{Result, Tensor};
use candle_nn::{Init, VarBuilder};

use crate::ops;

/// An affine map of the last dimension: [.., I] to [.., O].
#[derive(Clone, Debug)]
pub(super) struct Linear {
    /// [O, I]
    pub(super) weight: Tensor,
    /// `[O]`
    pub(super) bias: Tensor,
}

impl Linear {
    pub(super) fn new(in_dim: usize, out_dim: usize, weight: Init, bias: Init, vb: VarBuilder) -> Result<Self> {
        Ok(Self {
            weight: vb.get_with_hints((out_dim, in_dim), "weight", weight)?,
            bias: vb.get_with_hints(out_dim, "bias", bias)?,
        })
    }

    pub(super) fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        ops::linear(xs, &self.weight, Some(&self.bias))
    }

    pub(super) fn affine(&self) -> ops::Affine<'_> {
        ops::Affine {
            weight: &self.weight,
            bias: &self.bias,
        }
    }
}

/// Uniform within 1 / √(fan in): what PyTorch's linear layers and convolutions start from.
pub(super) fn pytorch_default(fan_in: usize) -> Init {
    let bound = 1. / (fan_in as f64).sqrt();
    Init::Uniform { lo: -bound, up: bound }
}

/// A normal distribution around 0. (timm's truncated one cuts at -2 and 2: at these deviations, that is the same.)
pub(super) const fn normal(stdev: f64) -> Init {
    Init::Randn { mean: 0., stdev }
}
