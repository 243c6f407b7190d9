//! The sigmoid approximation of GELU, as in CLIP.

use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor};

use super::kernel::{self, Elements};
use super::math;

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
    kernel::check_float("xs", xs)?;
    if kernel::is_half(xs) {
        return kernel::in_f32(&[xs], |t| quick_gelu(&t[0]));
    }
    if !kernel::on_cpu_f32(&[xs]) {
        return composition(xs);
    }
    xs.contiguous()?.apply_op1(QuickGelu)
}

/// [`quick_gelu`] of candle's operations.
pub fn composition(xs: &Tensor) -> Result<Tensor> {
    // σ by way of tanh: 1 / (1 + exp(-x)) has no derivative where the exponential overflows.
    let sigmoid = (((xs * (0.5 * SLOPE))?.tanh()? + 1.0)? * 0.5)?;
    xs * sigmoid
}

struct QuickGelu;

kernel::simd_fn! {
    fn forward<S>(xs: &[f32], ys: &mut [f32]) -> () {
        for (y, &x) in ys.iter_mut().zip(xs) {
            *y = x * math::sigmoid::<S>(SLOPE as f32 * x);
        }
    }
}

kernel::simd_fn! {
    fn backward<S>(xs: &[f32], grads: &[f32], dxs: &mut [f32]) -> () {
        for ((dx, &x), &g) in dxs.iter_mut().zip(xs).zip(grads) {
            let x = SLOPE as f32 * x;
            let s = math::sigmoid::<S>(x);
            *dx = g * kernel::fma::<S>(x * s, 1.0 - s, s);
        }
    }
}

impl CustomOp1 for QuickGelu {
    fn name(&self) -> &'static str {
        "quick-gelu"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let xs = kernel::elements(storage, layout)?;
        let mut ys = vec![0f32; xs.len()];
        kernel::for_rows(&mut ys, 1, |first, ys| forward(&xs[first..], ys));
        Ok((CpuStorage::F32(ys), layout.shape().clone()))
    }

    fn bwd(&self, xs: &Tensor, _: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let grad = grad.contiguous()?;
        let (x, g) = (Elements::of(xs)?, Elements::of(&grad)?);
        let (x, g): (&[f32], &[f32]) = (&x, &g);
        let mut dxs = vec![0f32; x.len()];
        kernel::for_rows(&mut dxs, 1, |first, dxs| backward(&x[first..], &g[first..], dxs));
        kernel::tensor(dxs, xs.dims()).map(Some)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::{check, check_derivative, check_on, random, rng};
    use rand::Rng as _;

    fn kernel(args: &[Tensor]) -> Result<Tensor> {
        quick_gelu(&args[0])
    }

    fn reference(args: &[Tensor]) -> Result<Tensor> {
        composition(&args[0])
    }

    #[test]
    fn equals_its_composition() {
        let mut rng = rng(5);
        for seed in 0..8 {
            let mut size = |most| rng.random_range(1..=most);
            let shape = [size(4), size(40), size(90)];
            check(&kernel, &reference, &[&shape], seed);
        }
    }

    #[test]
    fn equals_its_composition_at_the_edges() {
        check(&kernel, &reference, &[&[1]], 0);
        check(&kernel, &reference, &[&[3, 197, 96]], 1);
        // Far out on both sides.
        check_on(&kernel, &reference, &[(random(&[400], 2) * 20.0).unwrap()], 2);
    }

    #[test]
    fn composition_has_the_right_derivative() {
        check_derivative(&reference, &[&[3, 7]], 0);
    }

    #[test]
    fn integers_have_no_derivative() {
        let xs = Tensor::new(&[1u32], &candle_core::Device::Cpu).unwrap();
        let error = quick_gelu(&xs).unwrap_err().to_string();
        assert_eq!(error, "xs has dtype U32, but must be f32, f64, f16 or bf16");
    }
}
