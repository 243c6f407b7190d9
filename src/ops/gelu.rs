//! Gaussian error linear units (Hendrycks and Gimpel 2016, arXiv 1606.08415).

use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor};

use super::kernel::{self, Elements};
use super::math;

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
    kernel::check_float("xs", xs)?;
    if kernel::is_half(xs) {
        return kernel::in_f32(&[xs], |t| gelu(&t[0]));
    }
    if !kernel::on_cpu_f32(&[xs]) {
        return composition(xs);
    }
    xs.contiguous()?.apply_op1(Gelu)
}

/// [`gelu`] of candle's operations.
pub fn composition(xs: &Tensor) -> Result<Tensor> {
    let cdf = (((xs * std::f64::consts::FRAC_1_SQRT_2)?.erf()? + 1.0)? * 0.5)?;
    xs * cdf
}

struct Gelu;

kernel::simd_fn! {
    fn forward<S>(xs: &[f32], ys: &mut [f32]) -> () {
        for (y, &x) in ys.iter_mut().zip(xs) {
            *y = x * math::normal::<S>(x).0;
        }
    }
}

kernel::simd_fn! {
    fn backward<S>(xs: &[f32], grads: &[f32], dxs: &mut [f32]) -> () {
        for ((dx, &x), &g) in dxs.iter_mut().zip(xs).zip(grads) {
            let (cdf, pdf) = math::normal::<S>(x);
            *dx = g * kernel::fma::<S>(x, pdf, cdf);
        }
    }
}

impl CustomOp1 for Gelu {
    fn name(&self) -> &'static str {
        "gelu"
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
        gelu(&args[0])
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
        let error = gelu(&xs).unwrap_err().to_string();
        assert_eq!(error, "xs has dtype U32, but must be f32, f64, f16 or bf16");
    }
}
