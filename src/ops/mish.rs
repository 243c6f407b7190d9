//! Mish (Misra 2019, arXiv 1908.08681).

use candle_core::{Result, Tensor};
use pulp::Simd;

use super::cpu::kernel;
use super::cpu::math;
use super::pointwise::{self, Pointwise};

/// y = x tanh(ln(1 + exp(x))).
///
/// ([`candle_nn::ops::mish`] has an undefined gradient from x = 89 on, where its exponential overflows.)
///
/// # Arguments
///
/// - `xs`: of any shape
///
/// Returns a tensor of that shape.
///
/// # Derivative
///
/// With t the value of tanh and σ the logistic function: dy/dx = t + x (1 - t²) σ(x).
///
/// # PyTorch
///
/// `torch.nn.functional.mish(xs)`
///
/// # Errors
///
/// If the dtype of `xs` is no floating-point one.
///
/// ```
/// use candle_core::{Device, Tensor};
/// let xs = Tensor::new(&[-100f32, 0.0, 100.0], &Device::Cpu)?;
/// assert_eq!(masksub::ops::mish(&xs)?.to_vec1::<f32>()?, [0.0, 0.0, 100.0]);
/// # Ok::<(), candle_core::Error>(())
/// ```
pub fn mish(xs: &Tensor) -> Result<Tensor> {
    pointwise::apply::<Mish>(xs)
}

/// [`mish`] of candle's operations.
pub fn composition(xs: &Tensor) -> Result<Tensor> {
    // ln(1 + exp(x)), of an exponential that does not overflow.
    let softplus = (xs.relu()? + (xs.abs()?.neg()?.exp()? + 1.0)?.log()?)?;
    xs * softplus.tanh()?
}

struct Mish;

/// From here on tanh(ln(1 + exp(x))) is 1 in `f32`.
const STRAIGHT: f32 = 20.0;

impl Pointwise for Mish {
    const NAME: &'static str = "mish";

    #[inline(always)]
    fn value<S: Simd>(x: f32) -> f32 {
        Self::both::<S>(x).0
    }

    #[inline(always)]
    fn both<S: Simd>(x: f32) -> (f32, f32) {
        // With e = exp(x) and n = e² + 2e, so that (1 + e)² = n + 1: tanh(ln(1 + e)) = n / (n + 2).
        let e = math::exp::<S>(if x > STRAIGHT { STRAIGHT } else { x });
        let n = e * (e + 2.0);
        let inverse = 1.0 / (n + 2.0);
        let t = n * inverse;
        // (1 - t²) σ(x) = 4 (n + 1) / (n + 2)² · e / (1 + e)
        let slope = 4.0 * e * (1.0 + e) * inverse * inverse;
        let derivative = kernel::fma::<S>(x, slope, t);
        if x > STRAIGHT {
            (x, 1.0)
        } else {
            (x * t, derivative)
        }
    }

    fn composition(xs: &Tensor) -> Result<Tensor> {
        composition(xs)
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn equals_its_composition_and_has_its_derivative() {
        crate::ops::pointwise::testing::check_pointwise::<super::Mish>();
    }
}
