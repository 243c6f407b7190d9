//! Rectified linear units.

use candle_core::{Result, Tensor};
use pulp::Simd;

use super::pointwise::{self, Pointwise};

/// y = max(x, 0).
///
/// # Arguments
///
/// - `xs`: of any shape
///
/// Returns a tensor of that shape. What is undefined stays so.
///
/// # Derivative
///
/// dy/dx = 1 above 0, and 0 elsewhere. (candle's own [`Tensor::relu`] has 1 at 0, where PyTorch has 0.)
///
/// # PyTorch
///
/// `torch.nn.functional.relu(xs)`
///
/// # Errors
///
/// If the dtype of `xs` is no floating-point one.
///
/// ```
/// use candle_core::{Device, Tensor};
/// let xs = Tensor::new(&[-2f32, 0.0, 3.0], &Device::Cpu)?;
/// assert_eq!(masksub::ops::relu(&xs)?.to_vec1::<f32>()?, [0.0, 0.0, 3.0]);
/// # Ok::<(), candle_core::Error>(())
/// ```
pub fn relu(xs: &Tensor) -> Result<Tensor> {
    pointwise::apply::<Relu>(xs)
}

/// [`relu`] of candle's operations.
pub fn composition(xs: &Tensor) -> Result<Tensor> {
    xs.le(0f64)?.where_cond(&xs.zeros_like()?, xs)
}

struct Relu;

impl Pointwise for Relu {
    const NAME: &'static str = "relu";

    #[inline(always)]
    fn value<S: Simd>(x: f32) -> f32 {
        // Not `f32::max`, which would turn what is undefined to 0.
        if x <= 0.0 {
            0.0
        } else {
            x
        }
    }

    #[inline(always)]
    fn both<S: Simd>(x: f32) -> (f32, f32) {
        (Self::value::<S>(x), if x <= 0.0 { 0.0 } else { 1.0 })
    }

    fn composition(xs: &Tensor) -> Result<Tensor> {
        composition(xs)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{DType, Device, Var};

    #[test]
    fn equals_its_composition_and_has_its_derivative() {
        pointwise::testing::check_pointwise::<Relu>();
    }

    #[test]
    fn the_derivative_at_0_is_0_and_what_is_undefined_stays_so() {
        for dtype in [DType::F32, DType::F64] {
            let xs = Tensor::new(&[0f32, -0.0, f32::NAN], &Device::Cpu).unwrap();
            let xs = Var::from_tensor(&xs.to_dtype(dtype).unwrap()).unwrap();
            let ys = relu(&xs).unwrap();
            let grads = ys.sum_all().unwrap().backward().unwrap();
            let values = |t: &Tensor| t.to_dtype(DType::F32).unwrap().to_vec1::<f32>().unwrap();
            assert_eq!(values(grads.get(&xs).unwrap()), [0.0, 0.0, 1.0]);
            assert!(values(&ys)[2].is_nan());
        }
    }
}
