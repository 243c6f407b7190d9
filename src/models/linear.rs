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
