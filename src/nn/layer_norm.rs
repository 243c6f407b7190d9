//! Layer normalisation, with or without the mean's removal.

use candle_core::{Module, Result, Tensor};
use candle_nn::{Init, VarBuilder};

use crate::ops;

pub use super::rms_norm::{rms_norm, RmsNorm};
pub use candle_nn::LayerNormConfig;

/// Layer normalisation over the last dimension, [.., D] to [.., D]: [`candle_nn::LayerNorm`] with a backward.
///
/// See [`layer_norm`](ops::layer_norm()) for the formula, and [`rms_norm`](ops::rms_norm()) for the one without the
/// mean's removal. PyTorch's `torch.nn.LayerNorm(D, eps)`, `torch.nn.RMSNorm(D, eps)`.
#[derive(Clone, Debug)]
pub struct LayerNorm {
    weight: Tensor,
    bias: Option<Tensor>,
    remove_mean: bool,
    eps: f64,
}

impl LayerNorm {
    /// With a `weight` and a `bias` of shape `[D]`.
    pub fn new(weight: Tensor, bias: Tensor, eps: f64) -> Self {
        Self {
            weight,
            bias: Some(bias),
            remove_mean: true,
            eps,
        }
    }

    /// With a `weight` of shape `[D]` and no bias.
    pub fn new_no_bias(weight: Tensor, eps: f64) -> Self {
        Self {
            weight,
            bias: None,
            remove_mean: true,
            eps,
        }
    }

    /// Without removal of the mean, with a `weight` of shape `[D]`.
    pub fn rms_norm(weight: Tensor, eps: f64) -> Self {
        Self {
            weight,
            bias: None,
            remove_mean: false,
            eps,
        }
    }

    /// The weight, `[D]`.
    pub fn weight(&self) -> &Tensor {
        &self.weight
    }

    /// The bias, `[D]`.
    pub fn bias(&self) -> Option<&Tensor> {
        self.bias.as_ref()
    }

    /// The term that is added to the variance.
    pub fn eps(&self) -> f64 {
        self.eps
    }

    /// Tells whether the mean is removed.
    pub fn remove_mean(&self) -> bool {
        self.remove_mean
    }

    /// The parameters of one that removes the mean and has a bias: what operations that begin with a norm take.
    pub(crate) fn affine(&self) -> Option<ops::Affine<'_>> {
        let bias = self.bias.as_ref().filter(|_| self.remove_mean)?;
        Some(ops::Affine {
            weight: &self.weight,
            bias,
        })
    }
}

impl Module for LayerNorm {
    fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        if self.remove_mean {
            return ops::layer_norm_with(xs, &self.weight, self.bias.as_ref(), self.eps);
        }
        let ys = ops::rms_norm_with(xs, &self.weight, self.eps)?;
        match &self.bias {
            Some(bias) => ys.broadcast_add(bias),
            None => Ok(ys),
        }
    }
}

/// A [`LayerNorm`] whose parameters are `weight` (or `gamma`) and, if the configuration is affine, `bias` (or `beta`)
/// of `vb`, each of shape `[size]`. New ones are 1 and 0.
///
/// # Errors
///
/// If `vb` lacks a parameter or has it in another shape.
pub fn layer_norm<C: Into<LayerNormConfig>>(size: usize, config: C, vb: VarBuilder) -> Result<LayerNorm> {
    let config = config.into();
    // As candle-nn does: the names of PyTorch, or the older ones of TensorFlow's checkpoints where `vb` has those.
    let name = |names: [&'static str; 2]| {
        names
            .into_iter()
            .find(|name| vb.contains_tensor(name))
            .unwrap_or(names[0])
    };
    let weight = vb.get_with_hints(size, name(["weight", "gamma"]), Init::Const(1.0))?;
    let bias = || vb.get_with_hints(size, name(["bias", "beta"]), Init::Const(0.0));
    let bias = config.affine.then(bias).transpose()?;
    Ok(LayerNorm {
        weight,
        bias,
        remove_mean: config.remove_mean,
        eps: config.eps,
    })
}

/// As [`layer_norm`], without a bias.
///
/// # Errors
///
/// If `vb` lacks the weight or has it in another shape.
pub fn layer_norm_no_bias(size: usize, eps: f64, vb: VarBuilder) -> Result<LayerNorm> {
    let config = LayerNormConfig {
        eps,
        remove_mean: true,
        affine: false,
    };
    layer_norm(size, config, vb)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nn::testing::{assert_equal, assert_trains, single};
    use crate::ops::testing::relative;
    use candle_core::{DType, Device, Var};
    use candle_nn::VarMap;

    #[test]
    fn layer_norms_equal_candles_and_train() {
        let (weight, bias) = (
            Var::from_tensor(&single(&[6], 0)).unwrap(),
            Var::from_tensor(&single(&[6], 1)).unwrap(),
        );
        let (w, b) = (|| weight.as_tensor().clone(), || bias.as_tensor().clone());
        let ours = LayerNorm::new(w(), b(), 1e-3);
        assert_trains(&ours, &[&weight, &bias]);
        assert_equal(&ours, &candle_nn::LayerNorm::new(w(), b(), 1e-3));
        let ours = LayerNorm::new_no_bias(w(), 1e-3);
        assert_trains(&ours, &[&weight]);
        assert_equal(&ours, &candle_nn::LayerNorm::new_no_bias(w(), 1e-3));
        let ours = LayerNorm::rms_norm(w(), 1e-3);
        assert_trains(&ours, &[&weight]);
        assert_equal(&ours, &candle_nn::LayerNorm::rms_norm(w(), 1e-3));
    }

    /// Operations that begin with a norm take no other: without these they would compute something else.
    #[test]
    fn parameters_are_handed_out_together_or_not_at_all() {
        let tensors = || (single(&[6], 0), single(&[6], 1));
        let norm = LayerNorm::new(tensors().0, tensors().1, 1e-3);
        let affine = norm.affine().expect("it has both");
        assert_eq!(relative(affine.weight, &tensors().0), 0.0);
        assert_eq!(relative(affine.bias, &tensors().1), 0.0);
        let vb = VarBuilder::from_varmap(&VarMap::new(), DType::F32, &Device::Cpu);
        let config = LayerNormConfig {
            remove_mean: false,
            ..Default::default()
        };
        for other in [
            LayerNorm::new_no_bias(tensors().0, 1e-3),
            LayerNorm::rms_norm(tensors().0, 1e-3),
            layer_norm(6, config, vb).unwrap(),
        ] {
            assert!(other.affine().is_none());
        }
    }

    #[test]
    fn builders_equal_candles() {
        let vars = VarMap::new();
        let vb = VarBuilder::from_varmap(&vars, DType::F32, &Device::Cpu);
        for (config, names) in [
            (LayerNormConfig::default(), vec!["bias", "weight"]),
            (
                LayerNormConfig {
                    affine: false,
                    ..Default::default()
                },
                vec!["weight"],
            ),
            (
                LayerNormConfig {
                    remove_mean: false,
                    ..Default::default()
                },
                vec!["bias", "weight"],
            ),
        ] {
            let key = format!("{config:?}");
            let ours = layer_norm(6, config, vb.pp(&key)).unwrap();
            let mut made: Vec<String> = vars.data().lock().unwrap().keys().cloned().collect();
            made.retain(|name| name.starts_with(&key));
            made.sort();
            assert_eq!(
                made,
                names.iter().map(|name| format!("{key}.{name}")).collect::<Vec<_>>()
            );
            assert_eq!(ours.weight().to_vec1::<f32>().unwrap(), [1.0; 6]);
            assert!(ours
                .bias()
                .is_none_or(|bias| bias.to_vec1::<f32>().unwrap() == [0.0; 6]));
            assert_eq!((ours.eps(), ours.remove_mean()), (config.eps, config.remove_mean));
            assert_equal(&ours, &candle_nn::layer_norm(6, config, vb.pp(&key)).unwrap());
        }
        let ours = layer_norm_no_bias(6, 1e-4, vb.pp("no_bias")).unwrap();
        assert!(ours.bias().is_none() && ours.remove_mean() && ours.eps() == 1e-4);
    }

    #[test]
    fn older_names_are_found() {
        let tensors = [("gamma", single(&[6], 0)), ("beta", single(&[6], 1))].map(|(k, v)| (k.to_string(), v));
        let vb = VarBuilder::from_tensors(tensors.into(), DType::F32, &Device::Cpu);
        let norm = layer_norm(6, 1e-5, vb).unwrap();
        assert_eq!(relative(norm.weight(), &single(&[6], 0)), 0.0);
        assert_eq!(relative(norm.bias().unwrap(), &single(&[6], 1)), 0.0);
    }
}
