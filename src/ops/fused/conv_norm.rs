//! A convolution and the batch norm behind it: what a ResNet is made of.

use candle_core::{DType, Result, Tensor};
use candle_nn::Conv2dConfig;

use super::affine::Affine;
use crate::check;
use crate::error::{Error, Result as OurResult};
use crate::ops::autograd::ParamGrads;
use crate::ops::batch_norm::{evaluation, training, BatchStatistics, Epilogue};
use crate::ops::conv2d::{self, Conv2d};
use crate::ops::cpu::buffer::Buffer;
use crate::ops::cpu::channels::{ChannelNorm, Dims, Moments, Upstream};
use crate::ops::route;

/// A convolution and the batch norm behind it.
#[derive(Clone, Copy, Debug)]
pub struct ConvNorm<'a> {
    /// [C', C, k, k]; of bf16 or f16 where all else is f32, the convolution's factors and its result are rounded to that
    /// (see [`Affine`]).
    pub weight: &'a Tensor,
    /// The step from one position to the next, at least 1.
    pub stride: usize,
    /// Zeros around the image, on each side.
    pub padding: usize,
    /// The batch norm, `[C']`.
    pub norm: Affine<'a>,
    /// Number that the norm adds to the variance.
    pub eps: f64,
    /// Statistics that the norm normalises by, in evaluation or where it is frozen; `None`: the batch's own moments, as
    /// in training.
    pub running: Option<RunningStatistics<'a>>,
}

/// Statistics by which a batch norm normalises in evaluation: `[C']` each, of any floating-point dtype. No gradient
/// flows to them.
#[derive(Clone, Copy, Debug)]
pub struct RunningStatistics<'a> {
    /// The mean of a channel.
    pub mean: &'a Tensor,
    /// Its variance.
    pub var: &'a Tensor,
}

impl ConvNorm<'_> {
    /// The operations one by one, and what comes behind the norm; and what the norm saw, if that is what it normalises
    /// by.
    pub(crate) fn compose(
        &self,
        layer: &Layer,
        epilogue: Epilogue,
        xs: &Tensor,
    ) -> Result<(Tensor, Option<BatchStatistics>)> {
        let ys = conv2d::routed(&xs.to_dtype(self.weight.dtype())?, self.weight, None, layer.conv)?;
        let ys = ys.to_dtype(xs.dtype())?;
        let Affine { weight, bias } = self.norm;
        let Some(RunningStatistics { mean, var }) = self.running else {
            let (ys, seen) = training::routed(layer.dims(), epilogue, [&ys, weight, bias], self.eps)?;
            return Ok((ys, Some(seen)));
        };
        // In half precision in f32, as the batch norm does it, but with statistics that may be of f32 already.
        let dtype = if route::is_half(&ys) { DType::F32 } else { ys.dtype() };
        let [wide, mean, var, weight, bias] = [&ys, mean, var, weight, bias].map(|t| t.to_dtype(dtype));
        let tensors = [&wide?, &mean?, &var?, &weight?, &bias?];
        let normed = evaluation::routed(layer.dims(), epilogue, tensors, self.eps)?;
        Ok((normed.to_dtype(ys.dtype())?, None))
    }
}

/// What a layer's input, its parameters and what it normalises by are called in errors.
pub(crate) struct Names {
    pub(crate) input: &'static str,
    pub(crate) weight: &'static str,
    /// Weight and bias.
    pub(crate) norm: [&'static str; 2],
    /// Mean and variance.
    pub(crate) running: [&'static str; 2],
}

/// A convolution and its norm, without the parameters.
pub(crate) struct Layer {
    pub(crate) conv: Conv2d,
    eps: f64,
    /// Mean and variance by which the norm normalises.
    running: Option<[Tensor; 2]>,
}

impl Layer {
    /// Once all fits, of an input of shape `xs`, and of the dtype and on the device of `like`.
    pub(crate) fn new(names: &Names, layer: &ConvNorm, xs: &[usize], like: &Tensor) -> OurResult<Self> {
        let &Names {
            input,
            weight,
            norm,
            running,
        } = names;
        if let (&[_, channels, ..], &[_, in_channels, ..]) = (xs, layer.weight.dims()) {
            if channels != in_channels {
                let expected = format!("[C', {channels}, k, k]");
                return Err(Error::shape(weight, layer.weight.dims(), expected));
            }
        }
        let config = Conv2dConfig {
            stride: layer.stride,
            padding: layer.padding,
            ..Default::default()
        };
        let conv = Conv2d::new([input, weight], xs, layer.weight.dims(), config)?;
        check::factor_dtype(weight, layer.weight, "xs", like)?;
        for (name, tensor) in norm.into_iter().zip([layer.norm.weight, layer.norm.bias]) {
            check::vector(name, tensor, conv.result_dims()[1])?;
            check::same_dtype(name, tensor, "xs", like)?;
        }
        check::non_negative("eps", layer.eps)?;
        if let Some(RunningStatistics { mean, var }) = layer.running {
            for (name, tensor) in running.into_iter().zip([mean, var]) {
                check::vector(name, tensor, conv.result_dims()[1])?;
                check::float(name, tensor)?;
            }
        }
        let layer = Self {
            conv,
            eps: layer.eps,
            running: layer
                .running
                .map(|RunningStatistics { mean, var }| [mean, var].map(Tensor::clone)),
        };
        match layer.dims().count() {
            0 | 1 if layer.running.is_none() => {
                let expected = "so large that each norm has more than one value per channel";
                Err(Error::shape("xs", like.dims(), expected))
            }
            _ => Ok(layer),
        }
    }

    /// Of the convolution's result.
    pub(crate) fn dims(&self) -> Dims {
        let [batch, channels, height, width] = self.conv.result_dims();
        Dims {
            batch,
            channels,
            positions: height * width,
        }
    }

    /// How many values of a channel its norm sees, if they are what it normalises by.
    pub(crate) fn count_seen(&self) -> Option<usize> {
        self.running.is_none().then(|| self.dims().count())
    }

    /// With the elements of its three parameters.
    pub(crate) fn with_params<'a>(&'a self, params: &[&'a [f32]]) -> Result<LayerWithParams<'a>> {
        let moments = |[mean, var]: &[Tensor; 2]| Moments::of(mean, var);
        Ok(LayerWithParams {
            conv: &self.conv,
            weight: params[0],
            norm: ChannelNorm {
                dims: self.dims(),
                eps: self.eps,
                weight: params[1],
                bias: params[2],
            },
            running: self.running.as_ref().map(moments).transpose()?,
        })
    }
}

/// A layer and the elements of its parameters.
pub(crate) struct LayerWithParams<'a> {
    pub(crate) conv: &'a Conv2d,
    pub(crate) weight: &'a [f32],
    pub(crate) norm: ChannelNorm<'a>,
    running: Option<Vec<Moments>>,
}

impl LayerWithParams<'_> {
    /// What the norm normalises by, if not the moments of what it is handed: those of an earlier forward that are
    /// `given`, or else the running statistics.
    pub(crate) fn moments<'s>(&'s self, given: Option<&'s [Moments]>) -> Option<&'s [Moments]> {
        given.or(self.running.as_deref())
    }

    /// What the convolution gives.
    pub(crate) fn convolve(&self, xs: &[f32]) -> Buffer {
        let mut ys = Buffer::new(self.conv.result_len());
        self.conv.forward(xs, self.weight, None, &mut ys);
        ys
    }

    /// The norm of what the convolution gave, and its ReLU; and the moments by which it is normalised.
    pub(crate) fn activate(&self, ys: &[f32], given: Option<&[Moments]>) -> (Buffer, Vec<Moments>) {
        let mut active = Buffer::new(ys.len());
        let moments = self.norm.forward(ys, self.moments(given), 0.0, &mut active);
        (active, moments)
    }

    /// Turns the gradients of the norm's result, see [`Upstream`], into those of `result`, which the convolution of
    /// `xs` gave, in the same place; and hands over those of the layer's three parameters.
    pub(crate) fn backward(
        &self,
        [xs, result]: [&[f32]; 2],
        moments: &[Moments],
        upstream: Upstream,
        grads: &mut [f32],
        param_grads: &mut ParamGrads,
    ) -> Result<()> {
        let its_own = self.running.is_none();
        let of_norm = self.norm.backward(result, moments, its_own, upstream, grads);
        param_grads.write(0, |out, write| {
            self.conv.backward_weight(xs, grads, out, write);
        })?;
        let mut of_norm = (1..).zip(of_norm);
        of_norm.try_for_each(|(index, gradient)| param_grads.set(index, gradient))
    }
}
