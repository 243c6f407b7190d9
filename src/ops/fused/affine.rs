//! The parameters of an affine map: what layers and norms of all fused operations have.

use candle_core::{Result, Tensor};

use crate::check;
use crate::error::{Error, Result as OurResult};
use crate::ops::layer_norm;
use crate::ops::linear;

/// The parameters of an affine map: of a linear layer `weight` [O, I] and `bias` `[O]`, of a norm both `[D]`.
#[derive(Clone, Copy, Debug)]
pub struct Affine<'a> {
    /// The weight.
    pub weight: &'a Tensor,
    /// The bias.
    pub bias: &'a Tensor,
}

impl Affine<'_> {
    /// The linear layer, of an input that fits.
    pub(crate) fn linear(self, xs: &Tensor) -> Result<Tensor> {
        linear::routed(xs, self.weight, Some(self.bias))
    }

    /// An error unless this is a linear layer from `inputs` to `outputs` elements of the dtype of `xs`.
    pub(crate) fn check(self, names: [&'static str; 2], outputs: usize, inputs: usize, xs: &Tensor) -> OurResult<()> {
        check::same_dtype(names[0], self.weight, "xs", xs)?;
        check::same_dtype(names[1], self.bias, "xs", xs)?;
        if self.weight.dims() != [outputs, inputs] {
            return Err(Error::shape(
                names[0],
                self.weight.dims(),
                format!("[{outputs}, {inputs}]"),
            ));
        }
        check::vector(names[1], self.bias, outputs)
    }

    /// The layer norm, of an input that fits.
    pub(crate) fn layer_norm(self, xs: &Tensor, eps: f64) -> Result<Tensor> {
        layer_norm::routed(xs, self.weight, Some(self.bias), eps)
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
