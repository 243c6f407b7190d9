//! The affine layer.

use candle_core::{Module, Result, Tensor};
use candle_nn::{init, Init, VarBuilder};

use crate::ops;

/// The affine map of the last dimension, [.., I] to [.., O]: [`candle_nn::Linear`] in one operation,
/// [`ops::linear`](ops::linear()). PyTorch's `torch.nn.Linear(I, O)`.
///
/// candle-nn's gives a wrong result for a batch [B, L, I] that is a transposed [B, I, L], on the CPU.
///
/// ```
/// use candle_core::{Device, Module, Tensor};
/// let weight = Tensor::new(&[[1f32, 2.0], [3.0, 4.0], [5.0, 6.0]], &Device::Cpu)?;
/// let layer = masksub::nn::Linear::new(weight, None);
/// let ys = layer.forward(&Tensor::new(&[[10f32, 100.0]], &Device::Cpu)?)?;
/// assert_eq!(ys.to_vec2::<f32>()?, [[210.0, 430.0, 650.0]]);
/// # Ok::<(), candle_core::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Linear {
    weight: Tensor,
    bias: Option<Tensor>,
}

impl Linear {
    /// With a `weight` of shape [O, I] and a `bias` of shape `[O]`.
    pub fn new(weight: Tensor, bias: Option<Tensor>) -> Self {
        Self { weight, bias }
    }

    /// The weight, [O, I].
    pub fn weight(&self) -> &Tensor {
        &self.weight
    }

    /// The bias, `[O]`.
    pub fn bias(&self) -> Option<&Tensor> {
        self.bias.as_ref()
    }
}

impl Module for Linear {
    fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        ops::linear(xs, &self.weight, self.bias.as_ref())
    }
}

/// A [`Linear`] whose parameters are `weight` and `bias` of `vb`. New ones are drawn as candle-nn draws them: a normal
/// weight of variance 2 / I, a bias uniform within 1 / sqrt(I).
///
/// # Errors
///
/// If `vb` lacks a parameter or has it in another shape.
pub fn linear(in_dim: usize, out_dim: usize, vb: VarBuilder) -> Result<Linear> {
    let weight = vb.get_with_hints((out_dim, in_dim), "weight", init::DEFAULT_KAIMING_NORMAL)?;
    let bound = 1.0 / (in_dim as f64).sqrt();
    let bias = vb.get_with_hints(out_dim, "bias", Init::Uniform { lo: -bound, up: bound })?;
    Ok(Linear::new(weight, Some(bias)))
}

/// As [`linear`], without a bias.
///
/// # Errors
///
/// If `vb` lacks the weight or has it in another shape.
pub fn linear_no_bias(in_dim: usize, out_dim: usize, vb: VarBuilder) -> Result<Linear> {
    let weight = vb.get_with_hints((out_dim, in_dim), "weight", init::DEFAULT_KAIMING_NORMAL)?;
    Ok(Linear::new(weight, None))
}

/// As [`linear`], with a bias or without one.
///
/// # Errors
///
/// As [`linear`].
pub fn linear_b(in_dim: usize, out_dim: usize, bias: bool, vb: VarBuilder) -> Result<Linear> {
    if bias {
        linear(in_dim, out_dim, vb)
    } else {
        linear_no_bias(in_dim, out_dim, vb)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nn::testing::{assert_same_layer, single};
    use crate::ops::testing::relative;

    #[test]
    fn equals_candles_and_trains() {
        for shape in [&[5][..], &[4, 5], &[2, 3, 5], &[2, 2, 3, 5]] {
            let xs = single(shape, 1);
            // candle's takes no vector.
            let candles = |xs: &Tensor, layer: &candle_nn::Linear| match xs.rank() {
                1 => layer.forward(&xs.unsqueeze(0)?)?.squeeze(0),
                _ => layer.forward(xs),
            };
            assert_same_layer(
                &xs,
                |vb| linear(5, 7, vb),
                |vb| candle_nn::linear(5, 7, vb),
                |xs, layer| layer.forward(xs),
                candles,
            );
            assert_same_layer(
                &xs,
                |vb| linear_b(5, 7, false, vb),
                |vb| candle_nn::linear_no_bias(5, 7, vb),
                |xs, layer| layer.forward(xs),
                candles,
            );
        }
    }

    /// Of a transposed batch candle's own product is wrong; where it no longer is, the documentation says too much.
    #[test]
    fn of_a_transposed_batch_is_that_of_its_copy() {
        let layer = Linear::new(single(&[3, 4], 0), None);
        let xs = single(&[2, 4, 5], 1).transpose(1, 2).unwrap();
        let expected = layer.forward(&xs.contiguous().unwrap()).unwrap();
        assert_eq!(relative(&layer.forward(&xs).unwrap(), &expected), 0.0);
        let candles = candle_nn::Linear::new(layer.weight.clone(), None);
        assert!(relative(&candles.forward(&xs).unwrap(), &expected) > 0.1);
    }

    #[test]
    fn hands_out_its_parameters() {
        let (weight, bias) = (single(&[3, 2], 0), single(&[3], 1));
        let layer = Linear::new(weight.clone(), Some(bias.clone()));
        assert_eq!(layer.weight().id(), weight.id());
        assert_eq!(layer.bias().map(Tensor::id), Some(bias.id()));
        assert!(Linear::new(weight, None).bias().is_none());
    }
}
