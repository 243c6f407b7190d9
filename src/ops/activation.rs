//! The choice of an activation.

use candle_core::{Result, Tensor};

use super::gelu::Gelu;
use super::gelu_tanh::GeluTanh;
use super::pointwise;
#[cfg(feature = "cuda")]
use super::pointwise::Pointwise as _;
use super::quick_gelu::QuickGelu;
use crate::check;

/// The activation of an MLP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// [`gelu`](super::gelu()): x Φ(x).
    Gelu,
    /// [`quick_gelu`](super::quick_gelu()): x σ(1.702 x), of OpenAI's CLIP.
    QuickGelu,
    /// [`gelu_tanh`](super::gelu_tanh()): x Φ(x) by a tanh, of SigLIP.
    GeluTanh,
}

impl Activation {
    /// The activation of every element of `xs`, of any shape.
    ///
    /// # Errors
    /// If the dtype of `xs` is no floating-point one.
    pub fn forward(self, xs: &Tensor) -> Result<Tensor> {
        check::float("xs", xs)?;
        self.routed(xs)
    }

    /// The operation's name.
    #[cfg(feature = "cuda")]
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Gelu => Gelu::NAME,
            Self::QuickGelu => QuickGelu::NAME,
            Self::GeluTanh => GeluTanh::NAME,
        }
    }

    /// [`forward`](Self::forward) of a tensor that fits.
    pub(crate) fn routed(self, xs: &Tensor) -> Result<Tensor> {
        match self {
            Self::Gelu => pointwise::routed::<Gelu>(xs),
            Self::QuickGelu => pointwise::routed::<QuickGelu>(xs),
            Self::GeluTanh => pointwise::routed::<GeluTanh>(xs),
        }
    }
}
