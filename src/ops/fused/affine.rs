//! The parameters of an affine map: what layers and norms of all fused operations have.

use candle_core::{Result, Tensor};

use crate::check;
use crate::error::{Error, Result as OurResult};
use crate::ops::activation::Activation;
#[cfg(feature = "cuda")]
use crate::ops::cuda;
use crate::ops::layer_norm;
use crate::ops::linear;
#[cfg(feature = "cuda")]
use crate::ops::route;

/// The parameters of an affine map: of a linear layer `weight` [O, I] and `bias` `[O]`, of a norm both `[D]`.
///
/// Those of a linear layer or a convolution may be bf16 or f16 where a branch's input and its other parameters are f32:
/// mixed precision. The layer's input is then rounded to their dtype, and so is its result, as under PyTorch's autocast;
/// norms, softmax, scales and the residual sum stay f32. Gradients are rounded where they pass the layer, and reach the
/// input in f32. Such a branch is composed of the operations one by one.
#[derive(Clone, Copy, Debug)]
pub struct Affine<'a> {
    /// The weight.
    pub weight: &'a Tensor,
    /// The bias.
    pub bias: &'a Tensor,
}

impl Affine<'_> {
    /// The linear layer, of an input that fits; its result is of the dtype of the layer.
    pub(crate) fn linear(self, xs: &Tensor) -> Result<Tensor> {
        linear::routed(&xs.to_dtype(self.weight.dtype())?, self.weight, Some(self.bias))
    }

    /// The activation of the linear layer's result, of an input that fits.
    pub(crate) fn activated(self, xs: &Tensor, activation: Activation) -> Result<Tensor> {
        #[cfg(feature = "cuda")]
        if route::on_cuda(&[xs]) && route::on_cuda(&[self.weight, self.bias]) {
            let hidden = linear::composition(&xs.to_dtype(self.weight.dtype())?, self.weight, None)?;
            return cuda::activation::on_device::biased(activation.name(), &hidden, self.bias);
        }
        activation.routed(&self.linear(xs)?)
    }

    /// An error unless this is a linear layer from `inputs` to `outputs` elements, of a dtype that goes with `xs`.
    pub(crate) fn check(self, names: [&'static str; 2], outputs: usize, inputs: usize, xs: &Tensor) -> OurResult<()> {
        self.check_factors(names, xs)?;
        if self.weight.dims() != [outputs, inputs] {
            return Err(Error::shape(
                names[0],
                self.weight.dims(),
                format!("[{outputs}, {inputs}]"),
            ));
        }
        check::vector(names[1], self.bias, outputs)
    }

    /// An error unless weight and bias are of one dtype that goes with `xs`, see [`check::factor_dtype`].
    pub(crate) fn check_factors(self, names: [&'static str; 2], xs: &Tensor) -> OurResult<()> {
        check::factor_dtype(names[0], self.weight, "xs", xs)?;
        check::same_dtype(names[1], self.bias, names[0], self.weight)
    }

    /// The layer norm, of an input that fits; its result is of the dtype of the norm.
    pub(crate) fn layer_norm(self, xs: &Tensor, eps: f64) -> Result<Tensor> {
        layer_norm::routed(&xs.to_dtype(self.weight.dtype())?, self.weight, Some(self.bias), eps)
    }

    /// An error unless this and `eps` make a norm of rows of `width` elements of the dtype of `xs`.
    pub(crate) fn check_norm(self, width: usize, eps: f64, xs: &Tensor) -> OurResult<()> {
        for (name, tensor) in [("norm.weight", self.weight), ("norm.bias", self.bias)] {
            check::same_dtype(name, tensor, "xs", xs)?;
            check::vector(name, tensor, width)?;
        }
        check::non_negative("eps", eps).map(drop)
    }
}

/// The first three pairs of weight and bias.
pub(crate) fn affines(params: &[Tensor]) -> [Affine<'_>; 3] {
    [0, 2, 4].map(|i| Affine {
        weight: &params[i],
        bias: &params[i + 1],
    })
}
