//! Root-mean-square normalisation.

use candle_core::{Module, Result, Tensor};
use candle_nn::{LayerNormConfig, VarBuilder};

use super::layer_norm::{layer_norm, LayerNorm};

/// Root-mean-square normalisation over the last dimension, [.., D] to [.., D]: [`candle_nn::RmsNorm`] with a backward.
///
/// See [`rms_norm`](crate::ops::rms_norm()) for the formula. PyTorch's `torch.nn.RMSNorm(D, eps)`.
#[derive(Clone, Debug)]
pub struct RmsNorm(LayerNorm);

impl RmsNorm {
    /// With a `weight` of shape `[D]`.
    pub fn new(weight: Tensor, eps: f64) -> Self {
        Self(LayerNorm::rms_norm(weight, eps))
    }

    /// The same as a [`LayerNorm`] that does not remove the mean.
    pub fn into_inner(self) -> LayerNorm {
        self.0
    }

    /// The weight, `[D]`.
    pub fn weight(&self) -> &Tensor {
        self.0.weight()
    }

    /// The term that is added to the mean square.
    pub fn eps(&self) -> f64 {
        self.0.eps()
    }

    /// The same as `forward`, under the name of candle-nn's method that has a backward.
    ///
    /// # Errors
    ///
    /// If the last dimension of `xs` is not the weight's.
    pub fn forward_diff(&self, xs: &Tensor) -> Result<Tensor> {
        self.0.forward(xs)
    }
}

impl Module for RmsNorm {
    fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        self.0.forward(xs)
    }
}

/// An [`RmsNorm`] whose parameter is `weight` (or `gamma`) of `vb`, of shape `[size]`. A new one is 1.
///
/// # Errors
///
/// If `vb` lacks the weight or has it in another shape.
pub fn rms_norm(size: usize, eps: f64, vb: VarBuilder) -> Result<RmsNorm> {
    let config = LayerNormConfig {
        eps,
        remove_mean: false,
        affine: false,
    };
    layer_norm(size, config, vb).map(RmsNorm)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nn::testing::{assert_equal, assert_trains, single};
    use crate::ops::testing::relative;
    use candle_core::{DType, Device, Var};
    use candle_nn::VarMap;

    #[test]
    fn equals_candles_and_trains() {
        let weight = Var::from_tensor(&single(&[6], 0)).unwrap();
        let ours = RmsNorm::new(weight.as_tensor().clone(), 1e-3);
        assert_trains(&ours, &[&weight]);
        assert_equal(&ours, &candle_nn::RmsNorm::new(weight.as_tensor().clone(), 1e-3));
        assert_equal(&ours.clone().into_inner(), &ours);
        let xs = single(&[2, 6], 3);
        assert_eq!(
            relative(&ours.forward_diff(&xs).unwrap(), &ours.forward(&xs).unwrap()),
            0.0
        );
    }

    #[test]
    fn builder_equals_candles() {
        let vars = VarMap::new();
        let vb = VarBuilder::from_varmap(&vars, DType::F32, &Device::Cpu);
        let ours = rms_norm(6, 1e-4, vb.clone()).unwrap();
        assert_eq!((ours.weight().dims(), ours.eps()), (&[6][..], 1e-4));
        assert_equal(&ours, &candle_nn::rms_norm(6, 1e-4, vb).unwrap());
    }

    #[test]
    fn the_older_name_is_found() {
        let tensors = [("gamma".to_string(), single(&[6], 0))].into();
        let vb = VarBuilder::from_tensors(tensors, DType::F32, &Device::Cpu);
        let norm = rms_norm(6, 1e-5, vb).unwrap();
        assert_eq!(relative(norm.weight(), &single(&[6], 0)), 0.0);
    }
}
