//! A convolution and the batch norm behind it: what a ResNet is made of.

use candle_core::{Result, Tensor};

use super::buffer::Buffer;
use super::channels::{ChannelNorm, Dims, Moments, Upstream};
use super::conv2d::Conv2d;
use super::deliver::Deliveries;
use super::kernel::{self, Elements};
use super::residual::Affine;
use crate::error::{Error, Result as OurResult};

/// A convolution and the batch norm behind it.
#[derive(Clone, Copy, Debug)]
pub struct ConvNorm<'a> {
    /// [C', C, k, k]
    pub weight: &'a Tensor,
    /// The step from one position to the next, at least 1.
    pub stride: usize,
    /// Zeros around the image, on each side.
    pub padding: usize,
    /// The batch norm, `[C']`.
    pub norm: Affine<'a>,
    /// What the norm adds to the variance.
    pub eps: f64,
}

/// A convolution and its norm, without the parameters.
pub(super) struct Layer {
    pub(super) conv: Conv2d,
    eps: f64,
}

impl Layer {
    /// With errors that call by `names` the input, the weight, and weight and bias of the norm.
    pub(super) fn new(names: [&'static str; 4], layer: &ConvNorm, xs: &[usize], like: &Tensor) -> OurResult<Self> {
        let [input, weight, norm_weight, norm_bias] = names;
        if let (&[_, channels, ..], &[_, in_channels, ..]) = (xs, layer.weight.dims()) {
            if channels != in_channels {
                let expected = format!("[C', {channels}, k, k]");
                return Err(Error::shape(weight, layer.weight.dims(), expected));
            }
        }
        let conv = Conv2d::new([input, weight], xs, layer.weight.dims(), layer.stride, layer.padding)?;
        kernel::check_same_dtype(weight, layer.weight, like)?;
        for (name, tensor) in [(norm_weight, layer.norm.weight), (norm_bias, layer.norm.bias)] {
            kernel::check_vector(name, tensor, conv.result_dims()[1])?;
            kernel::check_same_dtype(name, tensor, like)?;
        }
        kernel::check_eps("eps", layer.eps)?;
        let layer = Self { conv, eps: layer.eps };
        match layer.dims().count() {
            0 | 1 => {
                let expected = "so large that each norm has more than one value per channel";
                Err(Error::shape("xs", like.dims(), expected))
            }
            _ => Ok(layer),
        }
    }

    /// Of the convolution's result.
    pub(super) fn dims(&self) -> Dims {
        let [batch, channels, height, width] = self.conv.result_dims();
        Dims {
            batch,
            channels,
            positions: height * width,
        }
    }

    /// With the elements of its three parameters.
    pub(super) fn bind<'a>(&'a self, params: &'a [Elements]) -> Bound<'a> {
        Bound {
            conv: &self.conv,
            weight: &params[0],
            norm: ChannelNorm {
                dims: self.dims(),
                eps: self.eps,
                weight: &params[1],
                bias: &params[2],
            },
        }
    }
}

/// A layer and the elements of its parameters.
pub(super) struct Bound<'a> {
    pub(super) conv: &'a Conv2d,
    pub(super) weight: &'a [f32],
    pub(super) norm: ChannelNorm<'a>,
}

impl Bound<'_> {
    /// What the convolution gives.
    pub(super) fn convolve(&self, xs: &[f32]) -> Buffer {
        let mut ys = Buffer::new(self.conv.result_len());
        self.conv.forward(xs, self.weight, &mut ys);
        ys
    }

    /// The norm of what the convolution gave, and its ReLU; and the moments by which it is normalised.
    pub(super) fn activate(&self, ys: &[f32], given: Option<&[Moments]>) -> (Buffer, Vec<Moments>) {
        let mut active = Buffer::new(ys.len());
        let moments = self.norm.forward(ys, given, 0.0, &mut active);
        (active, moments)
    }
}

/// Where gradients of parameters go, in the backward through `node`.
pub(super) struct Sink<'a> {
    params: &'a Deliveries,
    node: &'a Tensor,
    pub(super) gradients: Vec<Option<Tensor>>,
}

impl<'a> Sink<'a> {
    pub(super) fn new(params: &'a Deliveries, node: &'a Tensor) -> Self {
        let gradients = vec![None; params.params().len()];
        Self {
            params,
            node,
            gradients,
        }
    }

    /// Turns the gradients of a layer's norm, whose input was `result` and the convolution's `xs`, into those of `result`,
    /// in the same place, and of its parameters, from the `first` on.
    pub(super) fn layer(
        &mut self,
        first: usize,
        layer: &Bound,
        [xs, result]: [&[f32]; 2],
        moments: &[Moments],
        upstream: Upstream,
        grads: &mut [f32],
    ) -> Result<()> {
        let of_norm = layer.norm.backward(result, moments, true, upstream, grads);
        self.gradients[first] = self.params.gradient(first, self.node, |out, write| {
            layer.conv.backward_weight(xs, grads, out, write);
        })?;
        for (gradient, data) in self.gradients[first + 1..].iter_mut().zip(of_norm) {
            let channels = data.len();
            *gradient = Some(kernel::tensor(data, &[channels])?);
        }
        Ok(())
    }
}
