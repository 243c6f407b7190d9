//! Group normalisation.

use candle_core::{Module, Result, Tensor};
use candle_nn::{Init, VarBuilder};

use crate::check;
use crate::ops;

/// Normalisation of groups of channels, [B, C, ..] to [B, C, ..]: [`candle_nn::GroupNorm`] in one operation,
/// [`ops::group_norm`](ops::group_norm()). PyTorch's `torch.nn.GroupNorm(num_groups, C, eps)`.
#[derive(Clone, Debug)]
pub struct GroupNorm {
    weight: Tensor,
    bias: Tensor,
    eps: f64,
    num_groups: usize,
}

impl GroupNorm {
    /// With a `weight` and a `bias` of shape `[num_channels]`.
    ///
    /// # Errors
    ///
    /// If these have another shape, or `num_groups` does not divide `num_channels`.
    pub fn new(weight: Tensor, bias: Tensor, num_channels: usize, num_groups: usize, eps: f64) -> Result<Self> {
        check::divisor(
            "num_groups",
            num_groups,
            num_channels,
            format!("{num_channels} channels"),
        )?;
        check::vector("weight", &weight, num_channels)?;
        check::vector("bias", &bias, num_channels)?;
        Ok(Self {
            weight,
            bias,
            eps,
            num_groups,
        })
    }
}

impl Module for GroupNorm {
    fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        ops::group_norm(xs, self.num_groups, &self.weight, &self.bias, self.eps)
    }
}

/// A [`GroupNorm`] whose parameters are `weight` and `bias` of `vb`. New ones are 1 and 0.
///
/// # Errors
///
/// If `vb` lacks a parameter or has it in another shape; those of [`GroupNorm::new`].
pub fn group_norm(num_groups: usize, num_channels: usize, eps: f64, vb: VarBuilder) -> Result<GroupNorm> {
    let weight = vb.get_with_hints(num_channels, "weight", Init::Const(1.0))?;
    let bias = vb.get_with_hints(num_channels, "bias", Init::Const(0.0))?;
    GroupNorm::new(weight, bias, num_channels, num_groups, eps)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nn::testing::{assert_same_layer, single};

    #[test]
    fn equals_candles_and_trains() {
        for shape in [&[2, 6, 5][..], &[2, 6, 5, 4]] {
            assert_same_layer(
                &single(shape, 1),
                |vb| group_norm(3, 6, 1e-3, vb),
                |vb| candle_nn::group_norm(3, 6, 1e-3, vb),
                |xs, layer| layer.forward(xs),
                |xs, layer| layer.forward(xs),
            );
        }
    }

    #[test]
    fn groups_must_divide_the_channels() {
        let error = GroupNorm::new(single(&[6], 0), single(&[6], 1), 6, 4, 1e-5).unwrap_err();
        assert_eq!(
            error.to_string(),
            "num_groups is 4, but must be a divisor of 6 channels"
        );
        let error = GroupNorm::new(single(&[6], 0), single(&[3], 1), 6, 2, 1e-5).unwrap_err();
        assert_eq!(error.to_string(), "bias has shape [3], but must be [6]");
    }
}
