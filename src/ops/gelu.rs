//! Gaussian error linear units (Hendrycks and Gimpel 2016, arXiv 1606.08415).

use candle_core::{Result, Tensor};
use pulp::Simd;

use super::cpu::kernel;
use super::cpu::math;
use super::pointwise::{self, Pointwise};

/// y = x Φ(x), with Φ(x) = (1 + erf(x/√2)) / 2 the standard normal distribution: the exact GELU.
///
/// (candle's own `gelu_erf` has constants of six digits in its backward.)
///
/// # Arguments
///
/// - `xs`: of any shape
///
/// Returns a tensor of that shape.
///
/// # Derivative
///
/// dy/dx = Φ(x) + x φ(x), with φ the normal density.
///
/// # PyTorch
///
/// `torch.nn.functional.gelu(xs)`
///
/// # Errors
///
/// If the dtype of `xs` is no floating-point one.
///
/// ```
/// use candle_core::{Device, Tensor};
/// let xs = Tensor::new(&[-20f32, 0.0, 20.0], &Device::Cpu)?;
/// assert_eq!(masksub::ops::gelu(&xs)?.to_vec1::<f32>()?, [0.0, 0.0, 20.0]);
/// # Ok::<(), candle_core::Error>(())
/// ```
pub fn gelu(xs: &Tensor) -> Result<Tensor> {
    pointwise::apply::<Gelu>(xs)
}

/// [`gelu`] of candle's operations.
pub fn composition(xs: &Tensor) -> Result<Tensor> {
    let cdf = (((xs * std::f64::consts::FRAC_1_SQRT_2)?.erf()? + 1.0)? * 0.5)?;
    xs * cdf
}

pub(crate) struct Gelu;

impl Pointwise for Gelu {
    const NAME: &'static str = "gelu";

    #[inline(always)]
    fn value<S: Simd>(x: f32) -> f32 {
        x * math::normal::<S>(x).0
    }

    #[inline(always)]
    fn both<S: Simd>(x: f32) -> (f32, f32) {
        let (cdf, pdf) = math::normal::<S>(x);
        (x * cdf, kernel::fma::<S>(x, pdf, cdf))
    }

    fn composition(xs: &Tensor) -> Result<Tensor> {
        composition(xs)
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn equals_its_composition_and_has_its_derivative() {
        crate::ops::pointwise::testing::check_pointwise::<super::Gelu>();
    }
}
