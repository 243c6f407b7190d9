//! The affine layer of all models.

use candle_core::{DType, Result, Tensor};
use candle_nn::{Init, VarBuilder};

use crate::ops;

/// An affine map of the last dimension, [.., I] to [.., O], or what else has a weight and a bias.
#[derive(Clone, Debug)]
pub(super) struct Linear {
    /// [O, I]
    pub(super) weight: Tensor,
    /// `[O]`
    pub(super) bias: Tensor,
    /// What it multiplies in, where that is not the dtype of its weights.
    compute_dtype: Option<DType>,
}

impl Linear {
    pub(super) fn new(in_dim: usize, out_dim: usize, weight: Init, bias: Init, vb: VarBuilder) -> Result<Self> {
        Ok(Self::of(
            vb.get_with_hints((out_dim, in_dim), "weight", weight)?,
            vb.get_with_hints(out_dim, "bias", bias)?,
        ))
    }

    pub(super) fn of(weight: Tensor, bias: Tensor) -> Self {
        Self {
            weight,
            bias,
            compute_dtype: None,
        }
    }

    pub(super) fn in_dtype(self, compute_dtype: Option<DType>) -> Self {
        Self { compute_dtype, ..self }
    }

    /// With weights as it multiplies by them: rounded anew in each pass, so that gradients reach those in full precision.
    pub(super) fn rounded(&self) -> Result<Self> {
        match self.compute_dtype {
            Some(dtype) => Ok(Self::of(self.weight.to_dtype(dtype)?, self.bias.to_dtype(dtype)?)),
            None => Ok(self.clone()),
        }
    }

    /// The result has the dtype that it multiplies in.
    pub(super) fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        let xs = match self.compute_dtype {
            Some(dtype) => &xs.to_dtype(dtype)?,
            None => xs,
        };
        let Self { weight, bias, .. } = self.rounded()?;
        ops::linear(xs, &weight, Some(&bias))
    }

    pub(super) fn affine(&self) -> ops::Affine<'_> {
        ops::Affine {
            weight: &self.weight,
            bias: &self.bias,
        }
    }
}
