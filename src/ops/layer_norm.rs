//! Layer normalisation (Ba et al. 2016, arXiv 1607.06450).

#[cfg(feature = "cuda")]
use candle_core::CudaStorage;
use candle_core::{CpuStorage, CustomOp2, CustomOp3, Layout, Result, Shape, Tensor, D};

use super::cpu::kernel::{self, sum_by, Elements};
#[cfg(feature = "cuda")]
use super::cuda;
use super::route::{in_f32, Route};
use crate::check;
use crate::error::Error;

/// y = (x - mean(x)) / sqrt(var(x) + eps) * weight + bias, over the last dimension.
///
/// The same as [`candle_nn::ops::layer_norm`], which has no backward: gradients stop there.
///
/// # Arguments
///
/// - `xs`: [.., D]
/// - `weight`, `bias`: `[D]` (without a bias: [`nn::LayerNorm::new_no_bias`](crate::nn::LayerNorm::new_no_bias))
/// - `eps`: added to the variance (the biased one)
///
/// Returns [.., D].
///
/// # Derivative
///
/// With x̂ the normalised input, g the gradient of the result and h = g * weight: dx = (h - mean(h) - x̂ mean(h x̂)) /
/// sqrt(var(x) + eps); dweight = Σ g x̂ and dbias = Σ g over all leading dimensions.
///
/// # PyTorch
///
/// `torch.nn.functional.layer_norm(xs, (D,), weight, bias, eps)`
///
/// # Errors
///
/// If the shapes do not fit, `eps` is negative or not finite, or the dtypes differ or are no floating-point ones.
///
/// ```
/// use candle_core::{Device, Tensor};
/// let xs = Tensor::new(&[[1f32, 3.0]], &Device::Cpu)?;
/// let (weight, bias) = (Tensor::new(&[1f32, 1.0], &Device::Cpu)?, Tensor::new(&[0f32, 10.0], &Device::Cpu)?);
/// let ys = masksub::ops::layer_norm(&xs, &weight, &bias, 0.0)?;
/// assert_eq!(ys.to_vec2::<f32>()?, [[-1.0, 11.0]]);
/// # Ok::<(), candle_core::Error>(())
/// ```
pub fn layer_norm(xs: &Tensor, weight: &Tensor, bias: &Tensor, eps: f32) -> Result<Tensor> {
    layer_norm_with(xs, weight, Some(bias), f64::from(eps))
}

/// [`layer_norm`] with or without a bias.
pub(crate) fn layer_norm_with(xs: &Tensor, weight: &Tensor, bias: Option<&Tensor>, eps: f64) -> Result<Tensor> {
    check(xs, weight, bias, eps)?;
    routed(xs, weight, bias, eps)
}

/// [`layer_norm_with`] of arguments that fit.
pub(crate) fn routed(xs: &Tensor, weight: &Tensor, bias: Option<&Tensor>, eps: f64) -> Result<Tensor> {
    let tensors: Vec<_> = [xs, weight].into_iter().chain(bias).collect();
    match Route::precise_with_cuda(&tensors) {
        Route::Kernel => {
            let (xs, weight) = (xs.contiguous()?, weight.contiguous()?);
            let op = LayerNorm { eps: eps as f32 };
            match bias {
                Some(bias) => xs.apply_op3(&weight, &bias.contiguous()?, op),
                None => xs.apply_op2(&weight, op),
            }
        }
        Route::InF32 => in_f32(&tensors, |t| routed(&t[0], &t[1], t.get(2), eps)),
        Route::Composition => composition(xs, weight, bias, eps),
    }
}

fn check(xs: &Tensor, weight: &Tensor, bias: Option<&Tensor>, eps: f64) -> crate::error::Result<()> {
    check::float("xs", xs)?;
    check::non_negative("eps", eps)?;
    let Some(&width) = xs.dims().last() else {
        return Err(Error::shape("xs", xs.dims(), "[.., D]"));
    };
    for (argument, tensor) in [("weight", Some(weight)), ("bias", bias)] {
        if let Some(tensor) = tensor {
            check::vector(argument, tensor, width)?;
            check::same_dtype(argument, tensor, "xs", xs)?;
        }
    }
    Ok(())
}

/// [`layer_norm`] of candle's operations.
pub fn composition(xs: &Tensor, weight: &Tensor, bias: Option<&Tensor>, eps: f64) -> Result<Tensor> {
    let centred = xs.broadcast_sub(&xs.mean_keepdim(D::Minus1)?)?;
    let variance = centred.sqr()?.mean_keepdim(D::Minus1)?;
    let normed = centred.broadcast_div(&(variance + eps)?.sqrt()?)?;
    let ys = normed.broadcast_mul(weight)?;
    match bias {
        Some(bias) => ys.broadcast_add(bias),
        None => Ok(ys),
    }
}

struct LayerNorm {
    eps: f32,
}

/// Mean and reciprocal standard deviation. Two passes over a row that is in cache: no cancellation.
#[inline(always)]
fn moments(x: &[f32], eps: f32) -> (f32, f32) {
    let n = x.len() as f32;
    let mean = sum_by([x], |[x]| x) / n;
    let variance = sum_by([x], |[x]| (x - mean) * (x - mean)) / n;
    (mean, 1.0 / (variance + eps).sqrt())
}

kernel::simd_fn! {
    pub(crate) fn forward_rows<S>(xs: &[f32], weight: &[f32], bias: Option<&[f32]>, eps: f32, ys: &mut [f32]) -> () {
        let width = weight.len();
        for (x, y) in xs.chunks_exact(width).zip(ys.chunks_exact_mut(width)) {
            let (mean, scale) = moments(x, eps);
            match bias {
                Some(bias) => {
                    for (((y, &x), &w), &b) in y.iter_mut().zip(x).zip(weight).zip(bias) {
                        *y = kernel::fma::<S>((x - mean) * scale, w, b);
                    }
                }
                None => {
                    for ((y, &x), &w) in y.iter_mut().zip(x).zip(weight) {
                        *y = (x - mean) * scale * w;
                    }
                }
            }
        }
    }
}

kernel::simd_fn! {
    /// Adds to `dxs`, and the rows' share to `sums`, which holds the gradient of the weight and then that of the bias.
    pub(crate) fn backward_rows<S>(
        xs: &[f32],
        weight: &[f32],
        grads: &[f32],
        eps: f32,
        dxs: &mut [f32],
        sums: &mut [f32],
    ) -> () {
        let width = weight.len();
        let (dweight, dbias) = sums.split_at_mut(width);
        let rows = xs.chunks_exact(width).zip(grads.chunks_exact(width)).zip(dxs.chunks_exact_mut(width));
        for ((x, g), dx) in rows {
            let (mean, scale) = moments(x, eps);
            let mean_h = sum_by([g, weight], |[g, w]| g * w) / width as f32;
            let mean_hx = sum_by([g, weight, x], |[g, w, x]| g * w * ((x - mean) * scale)) / width as f32;
            let terms = dx.iter_mut().zip(dweight.iter_mut()).zip(dbias.iter_mut()).zip(x).zip(g).zip(weight);
            for (((((dx, dw), db), &x), &g), &w) in terms {
                let x = (x - mean) * scale;
                // Not fused: where the mean is a single element it must cancel exactly.
                *dx += scale * (g * w - mean_h - x * mean_hx);
                *dw = kernel::fma::<S>(g, x, *dw);
                *db += g;
            }
        }
    }
}

impl LayerNorm {
    fn forward(&self, xs: &[f32], weight: &[f32], bias: Option<&[f32]>, shape: &Shape) -> (CpuStorage, Shape) {
        let width = weight.len();
        let mut ys = vec![0f32; xs.len()];
        kernel::for_rows(&mut ys, width, |first, ys| {
            forward_rows(&xs[first * width..][..ys.len()], weight, bias, self.eps, ys);
        });
        (CpuStorage::F32(ys), shape.clone())
    }

    fn backward(&self, xs: &Tensor, weight: &Tensor, grad: &Tensor) -> Result<[Tensor; 3]> {
        #[cfg(feature = "cuda")]
        if xs.device().is_cuda() {
            return cuda::layer_norm::on_device::backward(xs, weight, grad, self.eps);
        }
        let grad = grad.contiguous()?;
        let (x, w, g) = (Elements::of(xs)?, Elements::of(weight)?, Elements::of(&grad)?);
        let (x, w, g): (&[f32], &[f32], &[f32]) = (&x, &w, &g);
        let width = w.len();
        let mut dxs = vec![0f32; x.len()];
        let sums = kernel::for_rows_summing(&mut dxs, width, 2 * width, |first, dxs, sums| {
            let rows = first * width..first * width + dxs.len();
            backward_rows(&x[rows.clone()], w, &g[rows], self.eps, dxs, sums);
        });
        let (dweight, dbias) = sums.split_at(width);
        Ok([
            kernel::tensor(dxs, xs.dims())?,
            kernel::tensor(dweight.to_vec(), &[width])?,
            kernel::tensor(dbias.to_vec(), &[width])?,
        ])
    }
}

impl CustomOp2 for LayerNorm {
    fn name(&self) -> &'static str {
        "layer-norm"
    }

    fn cpu_fwd(&self, s1: &CpuStorage, l1: &Layout, s2: &CpuStorage, l2: &Layout) -> Result<(CpuStorage, Shape)> {
        Ok(self.forward(kernel::elements(s1, l1)?, kernel::elements(s2, l2)?, None, l1.shape()))
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(&self, s1: &CudaStorage, l1: &Layout, s2: &CudaStorage, l2: &Layout) -> Result<(CudaStorage, Shape)> {
        cuda::layer_norm::on_device::forward((s1, l1), (s2, l2), None, self.eps)
    }

    fn bwd(&self, xs: &Tensor, weight: &Tensor, _: &Tensor, grad: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let [dxs, dweight, _] = self.backward(xs, weight, grad)?;
        Ok((xs.track_op().then_some(dxs), weight.track_op().then_some(dweight)))
    }
}

impl CustomOp3 for LayerNorm {
    fn name(&self) -> &'static str {
        "layer-norm"
    }

    fn cpu_fwd(
        &self,
        s1: &CpuStorage,
        l1: &Layout,
        s2: &CpuStorage,
        l2: &Layout,
        s3: &CpuStorage,
        l3: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let bias = kernel::elements(s3, l3)?;
        Ok(self.forward(
            kernel::elements(s1, l1)?,
            kernel::elements(s2, l2)?,
            Some(bias),
            l1.shape(),
        ))
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        s1: &CudaStorage,
        l1: &Layout,
        s2: &CudaStorage,
        l2: &Layout,
        s3: &CudaStorage,
        l3: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        cuda::layer_norm::on_device::forward((s1, l1), (s2, l2), Some((s3, l3)), self.eps)
    }

    fn bwd(
        &self,
        xs: &Tensor,
        weight: &Tensor,
        bias: &Tensor,
        _: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let [dxs, dweight, dbias] = self.backward(xs, weight, grad)?;
        Ok((
            xs.track_op().then_some(dxs),
            weight.track_op().then_some(dweight),
            bias.track_op().then_some(dbias),
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::{check, check_derivative, random, rng};
    use rand::Rng as _;

    // With fewer than a handful of elements the derivative by the input nearly vanishes, unless eps is large: rounding
    // would be all that is compared.
    fn kernel(eps: f32) -> impl Fn(&[Tensor]) -> Result<Tensor> + Sync {
        move |args| layer_norm_with(&args[0], &args[1], args.get(2), f64::from(eps))
    }

    fn reference(eps: f32) -> impl Fn(&[Tensor]) -> Result<Tensor> + Sync {
        move |args| composition(&args[0], &args[1], args.get(2), f64::from(eps))
    }

    #[test]
    fn equals_its_composition() {
        let mut rng = rng(2);
        for seed in 0..8 {
            let mut size = |most| rng.random_range(1..=most);
            let (b, n, d) = (size(4), size(40), 7 + size(70));
            check(&kernel(1e-6), &reference(1e-6), &[&[b, n, d], &[d], &[d]], seed);
            check(&kernel(1e-5), &reference(1e-5), &[&[b * n, d], &[d]], seed);
        }
    }

    #[test]
    fn equals_its_composition_at_the_edges() {
        for width in 1..7 {
            check(
                &kernel(0.5),
                &reference(0.5),
                &[&[1, 3, width], &[width], &[width]],
                width as u64,
            );
        }
        check(&kernel(1e-5), &reference(1e-5), &[&[33], &[33], &[33]], 0);
        // Many pieces of work, and more of them than there are partial sums.
        check(&kernel(1e-5), &reference(1e-5), &[&[3, 197, 96], &[96], &[96]], 1);
        check(
            &kernel(1e-5),
            &reference(1e-5),
            &[&[67, 17_000], &[17_000], &[17_000]],
            2,
        );
    }

    #[test]
    fn does_not_suffer_from_a_large_mean() {
        let xs = (random(&[4, 64], 0) + 1000.0).unwrap();
        let single = xs.to_dtype(candle_core::DType::F32).unwrap();
        let one = Tensor::ones(64, candle_core::DType::F32, &candle_core::Device::Cpu).unwrap();
        let zero = one.zeros_like().unwrap();
        let ys = layer_norm(&single, &one, &zero, 1e-6).unwrap();
        // What the f32 input has lost of the deviations from its mean is not the kernel's fault.
        let wide = |t: &Tensor| t.to_dtype(candle_core::DType::F64).unwrap();
        let exact = composition(&wide(&single), &wide(&one), None, 1e-6).unwrap();
        let error = crate::ops::testing::relative(&ys, &exact);
        assert!(error < 1e-4, "{error:e}");
    }

    #[test]
    fn composition_has_the_right_derivative() {
        check_derivative(&reference(1e-5), &[&[2, 2, 5], &[5], &[5]], 0);
        check_derivative(&reference(1e-5), &[&[3, 4], &[4]], 1);
    }

    #[test]
    fn errors_name_the_argument() {
        let message = |xs: &[usize], weight: &[usize], bias: &[usize]| {
            layer_norm(&random(xs, 0), &random(weight, 0), &random(bias, 0), 1e-5)
                .unwrap_err()
                .to_string()
        };
        assert_eq!(message(&[2, 3], &[4], &[3]), "weight has shape [4], but must be [3]");
        assert_eq!(
            message(&[2, 3], &[3], &[1, 3]),
            "bias has shape [1, 3], but must be [3]"
        );
        assert_eq!(message(&[], &[3], &[3]), "xs has shape [], but must be [.., D]");
        for eps in [-0.5, f32::NAN, f32::INFINITY] {
            let [xs, weight] = [random(&[2, 4], 0), random(&[4], 0)];
            let error = layer_norm(&xs, &weight, &weight, eps).unwrap_err();
            assert_eq!(
                error.to_string(),
                format!("eps is {eps}, but must be at least 0 and finite")
            );
        }
    }
}
