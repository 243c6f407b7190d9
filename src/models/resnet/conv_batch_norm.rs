//! A convolution with the batch norm behind it.

use candle_core::{DType, Result, Tensor};
use candle_nn::init::{FanInOut, NonLinearity, NormalOrUniform};
use candle_nn::{Init, VarBuilder};

use super::config::Config;
use crate::nn::{batch_norm_from, BatchNorm};
use crate::ops;
use crate::pass::Pass;

/// A convolution without bias, and the batch norm behind it.
#[derive(Clone, Debug)]
pub(super) struct ConvBatchNorm {
    weight: Tensor,
    compute_dtype: Option<DType>,
    pub(super) norm: BatchNorm,
    stride: usize,
    padding: usize,
}

/// Side of a kernel, and its stride. Padding keeps the size: half the kernel.
#[derive(Clone, Copy)]
pub(super) struct Geometry {
    pub(super) kernel: usize,
    pub(super) stride: usize,
}

impl ConvBatchNorm {
    /// `scale` is the initial weight of the norm.
    pub(super) fn new(
        cfg: &Config,
        (in_channels, out_channels): (usize, usize),
        at: Geometry,
        scale: f64,
        conv: VarBuilder,
        norm: VarBuilder,
    ) -> Result<Self> {
        // timm and torchvision: He et al., arXiv 1502.01852, by fan out.
        let init = Init::Kaiming {
            dist: NormalOrUniform::Normal,
            fan: FanInOut::FanOut,
            non_linearity: NonLinearity::ReLU,
        };
        let shape = (out_channels, in_channels, at.kernel, at.kernel);
        Ok(Self {
            weight: conv.get_with_hints(shape, "weight", init)?,
            compute_dtype: cfg.compute_dtype,
            norm: batch_norm_from(out_channels, cfg.norm(), scale, norm)?,
            stride: at.stride,
            padding: at.kernel / 2,
        })
    }

    /// With a weight as it multiplies by it: rounded anew in each pass, so that gradients reach that in full precision.
    pub(super) fn rounded(&self) -> Result<Self> {
        let dtype = self.compute_dtype.unwrap_or(self.weight.dtype());
        Ok(Self {
            weight: self.weight.to_dtype(dtype)?,
            ..self.clone()
        })
    }

    pub(super) fn params(&self, pass: &Pass) -> ops::ConvNorm<'_> {
        ops::ConvNorm {
            weight: &self.weight,
            stride: self.stride,
            padding: self.padding,
            norm: self.norm.affine(),
            eps: self.norm.eps(),
            running: (!pass.is_train()).then(|| self.norm.statistics()),
        }
    }
}
