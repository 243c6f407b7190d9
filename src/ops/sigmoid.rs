//! The logistic function, and sigmoid linear units (Elfwing et al. 2017, arXiv 1702.03118).

use candle_core::{Result, Tensor};
use pulp::Simd;

use super::cpu::kernel;
use super::cpu::math;
use super::pointwise::{self, Pointwise};

/// y = σ(x) = 1 / (1 + exp(-x)).
///
/// # Arguments
///
/// - `xs`: of any shape
///
/// Returns a tensor of that shape.
///
/// # Derivative
///
/// dy/dx = y (1 - y).
///
/// # PyTorch
///
/// `torch.sigmoid(xs)`
///
/// # Errors
///
/// If the dtype of `xs` is no floating-point one.
///
/// ```
/// use candle_core::{Device, Tensor};
/// let xs = Tensor::new(&[-100f32, 0.0, 100.0], &Device::Cpu)?;
/// assert_eq!(masksub::ops::sigmoid(&xs)?.to_vec1::<f32>()?, [0.0, 0.5, 1.0]);
/// # Ok::<(), candle_core::Error>(())
/// ```
pub fn sigmoid(xs: &Tensor) -> Result<Tensor> {
    pointwise::apply::<Sigmoid>(xs)
}

/// y = x σ(x), with σ the logistic function: SiLU, or Swish.
///
/// # Arguments
///
/// - `xs`: of any shape
///
/// Returns a tensor of that shape.
///
/// # Derivative
///
/// With s = σ(x): dy/dx = s + x s (1 - s).
///
/// # PyTorch
///
/// `torch.nn.functional.silu(xs)`
///
/// # Errors
///
/// If the dtype of `xs` is no floating-point one.
///
/// ```
/// use candle_core::{Device, Tensor};
/// let xs = Tensor::new(&[-100f32, 0.0, 100.0], &Device::Cpu)?;
/// assert_eq!(masksub::ops::silu(&xs)?.to_vec1::<f32>()?, [0.0, 0.0, 100.0]);
/// # Ok::<(), candle_core::Error>(())
/// ```
pub fn silu(xs: &Tensor) -> Result<Tensor> {
    pointwise::apply::<Silu>(xs)
}

/// [`sigmoid`] of candle's operations.
pub fn composition(xs: &Tensor) -> Result<Tensor> {
    // One operation, whose derivative is y (1 - y): that of 1 / (1 + exp(-x)) is NaN where the exponential overflows, and
    // by way of tanh small values are lost.
    candle_nn::ops::sigmoid(xs)
}

/// [`silu`] of candle's operations.
pub fn composition_silu(xs: &Tensor) -> Result<Tensor> {
    xs * composition(xs)?
}

struct Sigmoid;

impl Pointwise for Sigmoid {
    const NAME: &'static str = "sigmoid";

    #[inline(always)]
    fn value<S: Simd>(x: f32) -> f32 {
        math::sigmoid::<S>(x)
    }

    #[inline(always)]
    fn both<S: Simd>(x: f32) -> (f32, f32) {
        let s = math::sigmoid::<S>(x);
        (s, s * (1.0 - s))
    }

    fn composition(xs: &Tensor) -> Result<Tensor> {
        composition(xs)
    }
}

pub(crate) struct Silu;

impl Pointwise for Silu {
    const NAME: &'static str = "silu";

    #[inline(always)]
    fn value<S: Simd>(x: f32) -> f32 {
        x * math::sigmoid::<S>(x)
    }

    #[inline(always)]
    fn both<S: Simd>(x: f32) -> (f32, f32) {
        let s = math::sigmoid::<S>(x);
        (x * s, kernel::fma::<S>(x * s, 1.0 - s, s))
    }

    fn composition(xs: &Tensor) -> Result<Tensor> {
        composition_silu(xs)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{DType, Device, Var};

    #[test]
    fn equal_their_compositions_and_have_their_derivatives() {
        pointwise::testing::check_pointwise::<Sigmoid>();
        pointwise::testing::check_pointwise::<Silu>();
    }

    // There σ(x) is exp(x), as its derivative, to the last digit.
    #[test]
    fn compositions_keep_small_values() {
        let cases: [(DType, f64, f64); 3] = [
            (DType::F64, -600.0, 1e-12),
            (DType::F64, -40.0, 1e-12),
            (DType::F32, -80.0, 1e-6),
        ];
        for (dtype, at, tolerance) in cases {
            let xs = Var::from_tensor(&Tensor::new(&[at], &Device::Cpu).unwrap().to_dtype(dtype).unwrap()).unwrap();
            let (ys, of_silu) = (composition(&xs).unwrap(), composition_silu(&xs).unwrap());
            let grads = ys.backward().unwrap();
            for (got, want) in [(&ys, 1.0), (grads.get(&xs).unwrap(), 1.0), (&of_silu, at)] {
                let got = got.to_dtype(DType::F64).unwrap().to_vec1::<f64>().unwrap()[0];
                assert!(
                    (got / (want * at.exp()) - 1.0).abs() < tolerance,
                    "{at} {dtype:?}: {got}"
                );
            }
        }
    }
}
