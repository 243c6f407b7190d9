//! Convolutional layers.

use candle_core::{Module, Result, Tensor};
use candle_nn::{init, Init, VarBuilder};
pub use candle_nn::{Conv1dConfig, Conv2dConfig, ConvTranspose1dConfig, ConvTranspose2dConfig};

use super::BatchNorm;
use crate::check;
use crate::ops;

/// The struct of a layer around one operation of [`ops`].
macro_rules! layer {
    ($(#[$attribute:meta])* $name:ident, $config:ident, $operation:ident, $weight:literal) => {
        $(#[$attribute])*
        #[derive(Clone, Debug)]
        pub struct $name {
            weight: Tensor,
            bias: Option<Tensor>,
            config: $config,
        }

        impl $name {
            #[doc = concat!("With a `weight` of shape ", $weight, " and a `bias` of shape `[C']`.")]
            pub fn new(weight: Tensor, bias: Option<Tensor>, config: $config) -> Self {
                Self { weight, bias, config }
            }

            /// Stride, padding and the like.
            pub fn config(&self) -> &$config {
                &self.config
            }

            #[doc = concat!("The weight, ", $weight, ".")]
            pub fn weight(&self) -> &Tensor {
                &self.weight
            }

            /// The bias, `[C']`.
            pub fn bias(&self) -> Option<&Tensor> {
                self.bias.as_ref()
            }
        }

        impl Module for $name {
            fn forward(&self, xs: &Tensor) -> Result<Tensor> {
                ops::$operation(xs, &self.weight, self.bias.as_ref(), self.config)
            }
        }
    };
}

layer!(
    /// A convolution of sequences, [B, C, L] to [B, C', L']: [`candle_nn::Conv1d`], whose gradient by the weight is wrong
    /// on the CPU, by [`ops::conv1d`](ops::conv1d()). PyTorch's `torch.nn.Conv1d`.
    Conv1d,
    Conv1dConfig,
    conv1d,
    "[C', C / groups, k]"
);

layer!(
    /// A convolution of images, [B, C, H, W] to [B, C', H', W']: [`candle_nn::Conv2d`] by
    /// [`ops::conv2d`](ops::conv2d()), whose gradients are right for every stride and padding. PyTorch's
    /// `torch.nn.Conv2d`.
    Conv2d,
    Conv2dConfig,
    conv2d,
    "[C', C / groups, kH, kW]"
);

layer!(
    /// A transposed convolution of sequences, [B, C, L] to [B, C', L']: [`candle_nn::ConvTranspose1d`], which has no
    /// backward and may be wrong for more than one sample, by [`ops::conv_transpose1d`](ops::conv_transpose1d()).
    /// PyTorch's `torch.nn.ConvTranspose1d`.
    ConvTranspose1d,
    ConvTranspose1dConfig,
    conv_transpose1d,
    "[C, C' / groups, k]"
);

layer!(
    /// A transposed convolution of images, [B, C, H, W] to [B, C', H', W']: [`candle_nn::ConvTranspose2d`] by
    /// [`ops::conv_transpose2d`](ops::conv_transpose2d()). PyTorch's `torch.nn.ConvTranspose2d`.
    ConvTranspose2d,
    ConvTranspose2dConfig,
    conv_transpose2d,
    "[C, C', kH, kW]"
);

impl Conv2d {
    /// The convolution with a batch norm behind it, by its running statistics, in one layer: for prediction. Gradients of
    /// what it gives reach the parameters of both, and no statistics.
    ///
    /// # Errors
    ///
    /// If the norm is of another number of channels.
    pub fn absorb_bn(&self, bn: &BatchNorm) -> Result<Self> {
        let ops::Affine {
            weight: scale,
            bias: shift,
        } = bn.affine();
        let [mean, var] = [bn.running_mean(), bn.running_var()].map(Tensor::detach);
        let scale = scale.div(&(var + bn.eps())?.sqrt()?)?;
        let weight = self.weight.broadcast_mul(&scale.reshape(((), 1, 1, 1))?)?;
        let mean = match &self.bias {
            None => mean,
            Some(bias) => (mean - bias)?,
        };
        Ok(Self {
            weight,
            bias: Some((shift - scale.mul(&mean)?)?),
            config: self.config,
        })
    }
}

/// New parameters, uniform within 1 / sqrt(f), f the product of `fan`.
fn uniform(fan: &[usize]) -> Init {
    let bound = fan.iter().map(|&size| size as f64).product::<f64>().sqrt().recip();
    Init::Uniform { lo: -bound, up: bound }
}

/// A [`Conv1d`] whose parameters are `weight`, [C', C / groups, k], and `bias`, `[C']`, of `vb`, where C is
/// `in_channels`, C' `out_channels` and k `kernel_size`. New ones are drawn as candle-nn draws them: a normal
/// weight of variance 2 / (C / groups * k), a bias uniform within 1 / sqrt(C).
///
/// # Errors
///
/// If `vb` lacks a parameter or has it in another shape, or the groups do not divide C.
pub fn conv1d(
    in_channels: usize,
    out_channels: usize,
    kernel_size: usize,
    cfg: Conv1dConfig,
    vb: VarBuilder,
) -> Result<Conv1d> {
    let mut layer = conv1d_no_bias(in_channels, out_channels, kernel_size, cfg, vb.clone())?;
    layer.bias = Some(vb.get_with_hints(out_channels, "bias", uniform(&[in_channels]))?);
    Ok(layer)
}

/// As [`conv1d`], without a bias.
///
/// # Errors
///
/// As [`conv1d`].
pub fn conv1d_no_bias(
    in_channels: usize,
    out_channels: usize,
    kernel_size: usize,
    cfg: Conv1dConfig,
    vb: VarBuilder,
) -> Result<Conv1d> {
    let shape = (out_channels, of_group(in_channels, cfg.groups)?, kernel_size);
    let weight = vb.get_with_hints(shape, "weight", init::DEFAULT_KAIMING_NORMAL)?;
    Ok(Conv1d::new(weight, None, cfg))
}

/// A [`Conv2d`] whose parameters are `weight`, [C', C / groups, k, k], and `bias`, `[C']`, of `vb`, where C is
/// `in_channels`, C' `out_channels` and k `kernel_size`. New ones are drawn as candle-nn draws them: a normal
/// weight of variance 2 / (C / groups * k * k), a bias uniform within 1 / sqrt(C).
///
/// # Errors
///
/// If `vb` lacks a parameter or has it in another shape, or the groups do not divide C.
pub fn conv2d(
    in_channels: usize,
    out_channels: usize,
    kernel_size: usize,
    cfg: Conv2dConfig,
    vb: VarBuilder,
) -> Result<Conv2d> {
    let mut layer = conv2d_no_bias(in_channels, out_channels, kernel_size, cfg, vb.clone())?;
    layer.bias = Some(vb.get_with_hints(out_channels, "bias", uniform(&[in_channels]))?);
    Ok(layer)
}

/// As [`conv2d`](conv2d()), without a bias.
///
/// # Errors
///
/// As [`conv2d`](conv2d()).
pub fn conv2d_no_bias(
    in_channels: usize,
    out_channels: usize,
    kernel_size: usize,
    cfg: Conv2dConfig,
    vb: VarBuilder,
) -> Result<Conv2d> {
    let shape = (
        out_channels,
        of_group(in_channels, cfg.groups)?,
        kernel_size,
        kernel_size,
    );
    let weight = vb.get_with_hints(shape, "weight", init::DEFAULT_KAIMING_NORMAL)?;
    Ok(Conv2d::new(weight, None, cfg))
}

/// A [`ConvTranspose1d`] whose parameters are `weight`, [C, C' / groups, k], and `bias`, `[C']`, of `vb`, where C is
/// `in_channels`, C' `out_channels` and k `kernel_size`. New ones are drawn as candle-nn draws them: uniform
/// within 1 / sqrt(C' k).
///
/// # Errors
///
/// If `vb` lacks a parameter or has it in another shape, or the groups do not divide C'.
pub fn conv_transpose1d(
    in_channels: usize,
    out_channels: usize,
    kernel_size: usize,
    cfg: ConvTranspose1dConfig,
    vb: VarBuilder,
) -> Result<ConvTranspose1d> {
    let mut layer = conv_transpose1d_no_bias(in_channels, out_channels, kernel_size, cfg, vb.clone())?;
    layer.bias = Some(vb.get_with_hints(out_channels, "bias", uniform(&[out_channels, kernel_size]))?);
    Ok(layer)
}

/// As [`conv_transpose1d`], without a bias.
///
/// # Errors
///
/// As [`conv_transpose1d`].
pub fn conv_transpose1d_no_bias(
    in_channels: usize,
    out_channels: usize,
    kernel_size: usize,
    cfg: ConvTranspose1dConfig,
    vb: VarBuilder,
) -> Result<ConvTranspose1d> {
    let shape = (in_channels, of_group(out_channels, cfg.groups)?, kernel_size);
    let weight = vb.get_with_hints(shape, "weight", uniform(&[out_channels, kernel_size]))?;
    Ok(ConvTranspose1d::new(weight, None, cfg))
}

/// A [`ConvTranspose2d`] whose parameters are `weight`, [C, C', k, k], and `bias`, `[C']`, of `vb`, where C is
/// `in_channels`, C' `out_channels` and k `kernel_size`. New ones are drawn as candle-nn draws them: uniform
/// within 1 / sqrt(C' k * k).
///
/// # Errors
///
/// If `vb` lacks a parameter or has it in another shape.
pub fn conv_transpose2d(
    in_channels: usize,
    out_channels: usize,
    kernel_size: usize,
    cfg: ConvTranspose2dConfig,
    vb: VarBuilder,
) -> Result<ConvTranspose2d> {
    let mut layer = conv_transpose2d_no_bias(in_channels, out_channels, kernel_size, cfg, vb.clone())?;
    layer.bias = Some(vb.get_with_hints(out_channels, "bias", uniform(&[out_channels, kernel_size, kernel_size]))?);
    Ok(layer)
}

/// As [`conv_transpose2d`], without a bias.
///
/// # Errors
///
/// As [`conv_transpose2d`].
pub fn conv_transpose2d_no_bias(
    in_channels: usize,
    out_channels: usize,
    kernel_size: usize,
    cfg: ConvTranspose2dConfig,
    vb: VarBuilder,
) -> Result<ConvTranspose2d> {
    let shape = (in_channels, out_channels, kernel_size, kernel_size);
    let weight = vb.get_with_hints(shape, "weight", uniform(&[out_channels, kernel_size, kernel_size]))?;
    Ok(ConvTranspose2d::new(weight, None, cfg))
}

/// The channels of one of `groups` groups.
fn of_group(channels: usize, groups: usize) -> Result<usize> {
    check::divisor("groups", groups, channels, format!("{channels} channels"))?;
    Ok(channels / groups)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nn::testing::{assert_same_layer, assert_same_result, single};
    use crate::nn::{batch_norm, BatchNormConfig};
    use crate::ops::testing::relative;
    use crate::{Seed, Weights};
    use candle_core::{DType, Device, ModuleT};

    /// Configurations for which candle's gradients are right, too: no remainders.
    #[test]
    fn convolutions_equal_candles_and_train() {
        for (padding, stride, dilation, groups) in [(0, 1, 1, 1), (1, 1, 1, 2), (2, 1, 2, 4), (0, 2, 1, 1)] {
            let cfg = Conv2dConfig {
                padding,
                stride,
                dilation,
                groups,
                cudnn_fwd_algo: None,
            };
            let xs = single(&[2, 4, 9, 9], 1);
            let forward = (Conv2d::forward, candle_nn::Conv2d::forward);
            assert_same_layer(
                &xs,
                |vb| conv2d(4, 8, 3, cfg, vb),
                |vb| candle_nn::conv2d(4, 8, 3, cfg, vb),
                |xs, layer| forward.0(layer, xs),
                |xs, layer| forward.1(layer, xs),
            );
            assert_same_layer(
                &xs,
                |vb| conv2d_no_bias(4, 8, 3, cfg, vb),
                |vb| candle_nn::conv2d_no_bias(4, 8, 3, cfg, vb),
                |xs, layer| forward.0(layer, xs),
                |xs, layer| forward.1(layer, xs),
            );
            let cfg = Conv1dConfig {
                padding,
                stride,
                dilation,
                groups,
                cudnn_fwd_algo: None,
            };
            // candle's gradient by the weight is wrong.
            let xs = single(&[2, 4, 9], 1);
            assert_same_result(
                &xs,
                |vb| conv1d(4, 8, 3, cfg, vb),
                |vb| candle_nn::conv1d(4, 8, 3, cfg, vb),
            );
            assert_same_result(
                &xs,
                |vb| conv1d_no_bias(4, 8, 3, cfg, vb),
                |vb| candle_nn::conv1d_no_bias(4, 8, 3, cfg, vb),
            );
        }
    }

    #[test]
    fn transposed_convolutions_equal_candles() {
        for (padding, output_padding, stride, dilation) in [(0, 0, 1, 1), (1, 1, 2, 1), (1, 0, 3, 2)] {
            let cfg = ConvTranspose2dConfig {
                padding,
                output_padding,
                stride,
                dilation,
            };
            let xs = single(&[2, 4, 5, 6], 1);
            let forward = (ConvTranspose2d::forward, candle_nn::ConvTranspose2d::forward);
            assert_same_layer(
                &xs,
                |vb| conv_transpose2d(4, 8, 3, cfg, vb),
                |vb| candle_nn::conv_transpose2d(4, 8, 3, cfg, vb),
                |xs, layer| forward.0(layer, xs),
                |xs, layer| forward.1(layer, xs),
            );
            assert_same_layer(
                &xs,
                |vb| conv_transpose2d_no_bias(4, 8, 3, cfg, vb),
                |vb| candle_nn::conv_transpose2d_no_bias(4, 8, 3, cfg, vb),
                |xs, layer| forward.0(layer, xs),
                |xs, layer| forward.1(layer, xs),
            );
            for groups in [1, 2] {
                let cfg = ConvTranspose1dConfig {
                    padding,
                    output_padding,
                    stride,
                    dilation,
                    groups,
                };
                // candle's own has no backward, and of more than one sample it may be wrong.
                let xs = single(&[1, 4, 7], 2);
                assert_same_result(
                    &xs,
                    |vb| conv_transpose1d(4, 6, 3, cfg, vb),
                    |vb| candle_nn::conv_transpose1d(4, 6, 3, cfg, vb),
                );
                assert_same_result(
                    &xs,
                    |vb| conv_transpose1d_no_bias(4, 6, 3, cfg, vb),
                    |vb| candle_nn::conv_transpose1d_no_bias(4, 6, 3, cfg, vb),
                );
            }
        }
    }

    #[test]
    fn a_batch_norm_is_absorbed() {
        let weights = Weights::seeded(Seed::new(0));
        let vb = weights.var_builder(DType::F32, &Device::Cpu);
        let norm = batch_norm(6, BatchNormConfig::default(), vb.pp("norm")).unwrap();
        // Statistics, scale and shift that are no ones and zeros.
        let ones = |seed| (single(&[6], seed).abs().unwrap() + 0.5).unwrap();
        for (seed, var) in weights.varmap().all_vars().into_iter().enumerate() {
            var.set(&ones(seed as u64)).unwrap();
        }
        let xs = single(&[2, 4, 7, 8], 1);
        for conv in [
            conv2d(4, 6, 3, Conv2dConfig::default(), vb.pp("a")).unwrap(),
            conv2d_no_bias(4, 6, 3, Conv2dConfig::default(), vb.pp("b")).unwrap(),
        ] {
            let expected = norm.forward_t(&conv.forward(&xs).unwrap(), false).unwrap();
            let absorbed = conv.absorb_bn(&norm).unwrap().forward(&xs).unwrap();
            assert!(relative(&absorbed, &expected) < 1e-6);
            // Statistics are no parameters.
            let grads = absorbed.sum_all().unwrap().backward().unwrap();
            assert!(grads.get(norm.running_mean()).is_none() && grads.get(norm.running_var()).is_none());
            let (weight, bias) = norm.weight_and_bias().unwrap();
            assert!([weight, bias, conv.weight()].iter().all(|var| grads.get(var).is_some()));
        }
    }

    #[test]
    fn groups_must_divide_the_channels() {
        let weights = Weights::seeded(Seed::new(0));
        let cfg = Conv2dConfig {
            groups: 3,
            ..Default::default()
        };
        let error = conv2d(4, 6, 3, cfg, weights.var_builder(DType::F32, &Device::Cpu)).unwrap_err();
        assert_eq!(error.to_string(), "groups is 3, but must be a divisor of 4 channels");
    }
}
