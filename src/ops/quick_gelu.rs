//! The sigmoid approximation of GELU, as in CLIP.

use candle_core::{Result, Tensor};
use pulp::Simd;

use super::cpu::kernel;
use super::cpu::math;
use super::pointwise::{self, Pointwise};
use super::sigmoid;

/// The slope at which x σ(slope x) comes closest to GELU (Hendrycks and Gimpel 2016, arXiv 1606.08415, section 2).
const SLOPE: f64 = 1.702;

/// y = x σ(1.702 x), with σ the logistic function.
///
/// What OpenAI's CLIP (arXiv 2103.00020) was trained with in place of [`gelu`](super::gelu()).
///
/// # Arguments
///
/// - `xs`: of any shape
///
/// Returns a tensor of that shape.
///
/// # Derivative
///
/// With s = σ(1.702 x): dy/dx = s + 1.702 x s (1 - s).
///
/// # PyTorch
///
/// `xs * torch.sigmoid(1.702 * xs)`
///
/// # Errors
///
/// If the dtype of `xs` is no floating-point one.
///
/// ```
/// use candle_core::{Device, Tensor};
/// let xs = Tensor::new(&[-80f32, 0.0, 80.0], &Device::Cpu)?;
/// assert_eq!(masksub::ops::quick_gelu(&xs)?.to_vec1::<f32>()?, [0.0, 0.0, 80.0]);
/// # Ok::<(), candle_core::Error>(())
/// ```
pub fn quick_gelu(xs: &Tensor) -> Result<Tensor> {
    pointwise::apply::<QuickGelu>(xs)
}

/// [`quick_gelu`] of candle's operations.
pub fn composition(xs: &Tensor) -> Result<Tensor> {
    xs * sigmoid::composition(&(xs * SLOPE)?)?
}

pub(crate) struct QuickGelu;

impl Pointwise for QuickGelu {
    const NAME: &'static str = "quick-gelu";

    #[inline(always)]
    fn value<S: Simd>(x: f32) -> f32 {
        x * math::sigmoid::<S>(SLOPE as f32 * x)
    }

    #[inline(always)]
    fn both<S: Simd>(x: f32) -> (f32, f32) {
        let scaled = SLOPE as f32 * x;
        let s = math::sigmoid::<S>(scaled);
        (x * s, kernel::fma::<S>(scaled * s, 1.0 - s, s))
    }

    fn composition(xs: &Tensor) -> Result<Tensor> {
        composition(xs)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    #[test]
    fn equals_its_composition_and_has_its_derivative() {
        crate::ops::pointwise::testing::check_pointwise::<QuickGelu>();
    }

    #[test]
    fn composition_keeps_small_values() {
        let ys = composition(&Tensor::new(&[-40f64], &Device::Cpu).unwrap()).unwrap();
        let expected = -40.0 * (-40.0 * SLOPE).exp();
        assert!((ys.to_vec1::<f64>().unwrap()[0] / expected - 1.0).abs() < 1e-12);
    }
}
