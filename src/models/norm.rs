//! The layer norm in front of a residual branch.

use candle_core::{Result, Tensor};
use candle_nn::{Init, VarBuilder};

use crate::ops;

/// Layer norm of the last dimension, D.
#[derive(Clone, Debug)]
pub(super) struct Norm {
    weight: Tensor,
    bias: Tensor,
    pub(super) eps: f64,
}

impl Norm {
    pub(super) fn new(dim: usize, eps: f64, vb: VarBuilder) -> Result<Self> {
        Ok(Self {
            weight: vb.get_with_hints(dim, "weight", Init::Const(1.))?,
            bias: vb.get_with_hints(dim, "bias", Init::Const(0.))?,
            eps,
        })
    }

    pub(super) fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        ops::layer_norm_with(xs, &self.weight, Some(&self.bias), self.eps)
    }

    pub(super) fn affine(&self) -> ops::Affine<'_> {
        ops::Affine {
            weight: &self.weight,
            bias: &self.bias,
        }
    }
}
