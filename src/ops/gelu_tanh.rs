//! The approximation of GELU by tanh (Hendrycks and Gimpel 2016, arXiv 1606.08415, section 2).

use candle_core::{Result, Tensor};
use pulp::Simd;

use super::cpu::kernel;
use super::cpu::math;
use super::pointwise::{self, Pointwise};
use super::sigmoid;

/// Twice sqrt(2 / π).
const SLOPE: f64 = 1.595_769_121_605_730_7;
const CUBIC: f64 = 0.044715;

/// y = x (1 + tanh(sqrt(2/π) (x + 0.044715 x³))) / 2, which is x σ(2 sqrt(2/π) (x + 0.044715 x³)).
///
/// The GELU of GPT-2 and SigLIP, and candle's [`Tensor::gelu`], whose backward has constants of six digits.
///
/// # Arguments
///
/// - `xs`: of any shape
///
/// Returns a tensor of that shape.
///
/// # Derivative
///
/// With s the value of σ: dy/dx = s + x s (1 - s) 2 sqrt(2/π) (1 + 3 · 0.044715 x²).
///
/// # PyTorch
///
/// `torch.nn.functional.gelu(xs, approximate="tanh")`
///
/// # Errors
///
/// If the dtype of `xs` is no floating-point one.
///
/// ```
/// use candle_core::{Device, Tensor};
/// let xs = Tensor::new(&[-20f32, 0.0, 20.0], &Device::Cpu)?;
/// assert_eq!(masksub::ops::gelu_tanh(&xs)?.to_vec1::<f32>()?, [0.0, 0.0, 20.0]);
/// # Ok::<(), candle_core::Error>(())
/// ```
pub fn gelu_tanh(xs: &Tensor) -> Result<Tensor> {
    pointwise::apply::<GeluTanh>(xs)
}

/// [`gelu_tanh`] of candle's operations.
pub fn composition(xs: &Tensor) -> Result<Tensor> {
    let inner = (xs * ((xs.sqr()? * CUBIC)? + 1.0)?)?;
    xs * sigmoid::composition(&(inner * SLOPE)?)?
}

pub(crate) struct GeluTanh;

impl Pointwise for GeluTanh {
    const NAME: &'static str = "gelu-tanh";

    #[inline(always)]
    fn value<S: Simd>(x: f32) -> f32 {
        let inner = x * kernel::fma::<S>(x * x, CUBIC as f32, 1.0);
        x * math::sigmoid::<S>(SLOPE as f32 * inner)
    }

    #[inline(always)]
    fn both<S: Simd>(x: f32) -> (f32, f32) {
        let square = x * x;
        let inner = x * kernel::fma::<S>(square, CUBIC as f32, 1.0);
        let s = math::sigmoid::<S>(SLOPE as f32 * inner);
        let curvature = s * (1.0 - s);
        let slope = SLOPE as f32 * kernel::fma::<S>(square, 3.0 * CUBIC as f32, 1.0);
        // Far out, where the square may be infinite, the function is straight.
        let slope = if curvature == 0.0 { 0.0 } else { slope };
        (x * s, kernel::fma::<S>(x * curvature, slope, s))
    }

    fn composition(xs: &Tensor) -> Result<Tensor> {
        composition(xs)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{Device, Var};

    #[test]
    fn equals_its_composition_and_has_its_derivative() {
        pointwise::testing::check_pointwise::<GeluTanh>();
    }

    #[test]
    fn is_straight_far_out() {
        let xs = Var::new(&[-1e30f32, -1e15, 1e15, 1e30], &Device::Cpu).unwrap();
        let ys = gelu_tanh(&xs).unwrap();
        let grads = ys.sum_all().unwrap().backward().unwrap();
        assert_eq!(ys.to_vec1::<f32>().unwrap(), [0.0, 0.0, 1e15, 1e30]);
        assert_eq!(grads.get(&xs).unwrap().to_vec1::<f32>().unwrap(), [0.0, 0.0, 1.0, 1.0]);
    }
}
