//! Root-mean-square normalisation (Zhang and Sennrich 2019, arXiv 1910.07467).

use candle_core::{CpuStorage, CustomOp2, Layout, Result, Shape, Tensor, D};

use super::cpu::kernel::{self, sum_by, Elements};
use super::route::{in_f32, Route};
use crate::check;
use crate::error::Error;

/// y = x / sqrt(mean(x²) + eps) * weight, over the last dimension.
///
/// The same as [`candle_nn::ops::rms_norm`], which has no backward: gradients stop there.
///
/// # Arguments
///
/// - `xs`: [.., D]
/// - `weight`: `[D]`
/// - `eps`: added to the mean square
///
/// Returns [.., D].
///
/// # Derivative
///
/// With x̂ the normalised input, g the gradient of the result and h = g * weight:
/// dx = (h - x̂ mean(h x̂)) / sqrt(mean(x²) + eps); dweight = Σ g x̂ over all leading dimensions.
///
/// # PyTorch
///
/// `torch.nn.functional.rms_norm(xs, (D,), weight, eps)`
///
/// # Errors
///
/// If the shapes do not fit, `eps` is negative or not finite, or the dtypes differ or are no floating-point ones.
///
/// ```
/// use candle_core::{Device, Tensor};
/// let xs = Tensor::new(&[[1f32, 7.0]], &Device::Cpu)?;
/// let weight = Tensor::new(&[5f32, 10.0], &Device::Cpu)?;
/// let ys = masksub::ops::rms_norm(&xs, &weight, 0.0)?;
/// assert_eq!(ys.to_vec2::<f32>()?, [[1.0, 14.0]]);
/// # Ok::<(), candle_core::Error>(())
/// ```
pub fn rms_norm(xs: &Tensor, weight: &Tensor, eps: f32) -> Result<Tensor> {
    rms_norm_with(xs, weight, f64::from(eps))
}

/// [`rms_norm`] with `eps` in double precision.
pub(crate) fn rms_norm_with(xs: &Tensor, weight: &Tensor, eps: f64) -> Result<Tensor> {
    check(xs, weight, eps)?;
    routed(xs, weight, eps)
}

/// [`rms_norm_with`] of arguments that fit.
fn routed(xs: &Tensor, weight: &Tensor, eps: f64) -> Result<Tensor> {
    match Route::precise(&[xs, weight]) {
        Route::Kernel => xs
            .contiguous()?
            .apply_op2(&weight.contiguous()?, RmsNorm { eps: eps as f32 }),
        Route::InF32 => in_f32(&[xs, weight], |t| routed(&t[0], &t[1], eps)),
        Route::Composition => composition(xs, weight, eps),
    }
}

fn check(xs: &Tensor, weight: &Tensor, eps: f64) -> crate::error::Result<()> {
    check::float("xs", xs)?;
    check::non_negative("eps", eps)?;
    let Some(&width) = xs.dims().last() else {
        return Err(Error::shape("xs", xs.dims(), "[.., D]"));
    };
    check::vector("weight", weight, width)?;
    check::same_dtype("weight", weight, "xs", xs)
}

/// [`rms_norm`] of candle's operations.
pub fn composition(xs: &Tensor, weight: &Tensor, eps: f64) -> Result<Tensor> {
    let mean_square = xs.sqr()?.mean_keepdim(D::Minus1)?;
    xs.broadcast_div(&(mean_square + eps)?.sqrt()?)?.broadcast_mul(weight)
}

struct RmsNorm {
    eps: f32,
}

#[inline(always)]
fn scale(x: &[f32], eps: f32) -> f32 {
    1.0 / (sum_by([x], |[x]| x * x) / x.len() as f32 + eps).sqrt()
}

kernel::simd_fn! {
    fn forward_rows<S>(xs: &[f32], weight: &[f32], eps: f32, ys: &mut [f32]) -> () {
        let width = weight.len();
        for (x, y) in xs.chunks_exact(width).zip(ys.chunks_exact_mut(width)) {
            let scale = scale(x, eps);
            for ((y, &x), &w) in y.iter_mut().zip(x).zip(weight) {
                *y = x * scale * w;
            }
        }
    }
}

kernel::simd_fn! {
    /// Writes `dxs`; adds the rows' share to `dweight`.
    fn backward_rows<S>(
        xs: &[f32],
        weight: &[f32],
        grads: &[f32],
        eps: f32,
        dxs: &mut [f32],
        dweight: &mut [f32],
    ) -> () {
        let width = weight.len();
        let rows = xs.chunks_exact(width).zip(grads.chunks_exact(width)).zip(dxs.chunks_exact_mut(width));
        for ((x, g), dx) in rows {
            let scale = scale(x, eps);
            let mean_hx = sum_by([g, weight, x], |[g, w, x]| g * w * (x * scale)) / width as f32;
            for ((((dx, dw), &x), &g), &w) in dx.iter_mut().zip(dweight.iter_mut()).zip(x).zip(g).zip(weight) {
                let x = x * scale;
                *dx = scale * kernel::fma::<S>(g, w, -(x * mean_hx));
                *dw = kernel::fma::<S>(g, x, *dw);
            }
        }
    }
}

impl CustomOp2 for RmsNorm {
    fn name(&self) -> &'static str {
        "rms-norm"
    }

    fn cpu_fwd(&self, s1: &CpuStorage, l1: &Layout, s2: &CpuStorage, l2: &Layout) -> Result<(CpuStorage, Shape)> {
        let (xs, weight) = (kernel::elements(s1, l1)?, kernel::elements(s2, l2)?);
        let width = weight.len();
        let mut ys = vec![0f32; xs.len()];
        kernel::for_rows(&mut ys, width, |first, ys| {
            forward_rows(&xs[first * width..][..ys.len()], weight, self.eps, ys);
        });
        Ok((CpuStorage::F32(ys), l1.shape().clone()))
    }

    fn bwd(&self, xs: &Tensor, weight: &Tensor, _: &Tensor, grad: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let grad = grad.contiguous()?;
        let (x, w, g) = (Elements::of(xs)?, Elements::of(weight)?, Elements::of(&grad)?);
        let (x, w, g): (&[f32], &[f32], &[f32]) = (&x, &w, &g);
        let width = w.len();
        let mut dxs = vec![0f32; x.len()];
        let dweight = kernel::for_rows_summing(&mut dxs, width, width, |first, dxs, dweight| {
            let rows = first * width..first * width + dxs.len();
            backward_rows(&x[rows.clone()], w, &g[rows], self.eps, dxs, dweight);
        });
        let dxs = kernel::tensor(dxs, xs.dims())?;
        let dweight = kernel::tensor(dweight, &[width])?;
        Ok((xs.track_op().then_some(dxs), weight.track_op().then_some(dweight)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::{check, check_derivative, random, rng};
    use rand::Rng as _;

    fn kernel(eps: f32) -> impl Fn(&[Tensor]) -> Result<Tensor> + Sync {
        move |args| rms_norm(&args[0], &args[1], eps)
    }

    fn reference(eps: f32) -> impl Fn(&[Tensor]) -> Result<Tensor> + Sync {
        move |args| composition(&args[0], &args[1], f64::from(eps))
    }

    #[test]
    fn equals_its_composition() {
        let mut rng = rng(3);
        for seed in 0..8 {
            let mut size = |most| rng.random_range(1..=most);
            let (b, n, d) = (size(4), size(40), 7 + size(70));
            check(&kernel(1e-6), &reference(1e-6), &[&[b, n, d], &[d]], seed);
        }
    }

    #[test]
    fn equals_its_composition_at_the_edges() {
        // With a single element and a small eps the derivative by the input nearly vanishes.
        for width in 1..7 {
            check(&kernel(0.5), &reference(0.5), &[&[1, 3, width], &[width]], width as u64);
        }
        check(&kernel(1e-5), &reference(1e-5), &[&[33], &[33]], 0);
        check(&kernel(1e-5), &reference(1e-5), &[&[3, 197, 96], &[96]], 1);
    }

    #[test]
    fn composition_has_the_right_derivative() {
        check_derivative(&reference(1e-5), &[&[2, 2, 5], &[5]], 0);
    }

    #[test]
    fn errors_name_the_argument() {
        let message = |xs: &[usize], weight: &[usize]| {
            rms_norm(&random(xs, 0), &random(weight, 0), 1e-5)
                .unwrap_err()
                .to_string()
        };
        assert_eq!(message(&[2, 3], &[4]), "weight has shape [4], but must be [3]");
        assert_eq!(message(&[], &[4]), "xs has shape [], but must be [.., D]");
        for eps in [-1e-6, f32::NAN, f32::INFINITY] {
            let error = rms_norm(&random(&[2, 4], 0), &random(&[4], 0), eps).unwrap_err();
            assert!(error.to_string().starts_with("eps is "), "{error}");
        }
    }
}
