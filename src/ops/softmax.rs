//! Softmax.

use candle_core::shape::Dim;
#[cfg(feature = "cuda")]
use candle_core::CudaStorage;
use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor, D};

use super::cpu::kernel::{self, sum_by, Elements};
use super::cpu::math;
#[cfg(feature = "cuda")]
use super::cuda;
use super::route::{self, in_f32, Route};
use crate::check;
use crate::error::Error;

/// y = exp(x) / Σ exp(x) over the last dimension.
///
/// The same as [`candle_nn::ops::softmax_last_dim`], which has no backward: gradients stop there.
///
/// # Arguments
///
/// - `xs`: [.., C]
///
/// Returns [.., C]. A row in which every element is -inf has no softmax: it is NaN, as in PyTorch.
///
/// # Derivative
///
/// dx = y (g - Σ g y), with g the gradient of the result.
///
/// # PyTorch
///
/// `torch.nn.functional.softmax(xs, dim=-1)`
///
/// # Errors
///
/// If `xs` is a scalar or its dtype no floating-point one.
///
/// ```
/// use candle_core::{Device, Tensor};
/// let xs = Tensor::new(&[[0f32, 0.0, f32::NEG_INFINITY]], &Device::Cpu)?;
/// let ys = masksub::ops::softmax_last_dim(&xs)?;
/// assert_eq!(ys.to_vec2::<f32>()?, [[0.5, 0.5, 0.0]]);
/// # Ok::<(), candle_core::Error>(())
/// ```
pub fn softmax_last_dim(xs: &Tensor) -> Result<Tensor> {
    check::float("xs", xs)?;
    if xs.rank() == 0 {
        return Err(Error::shape("xs", xs.dims(), "[.., C]").into());
    }
    routed(xs)
}

/// [`softmax_last_dim`] of an argument that fits.
fn routed(xs: &Tensor) -> Result<Tensor> {
    match Route::precise_with_cuda(&[xs]) {
        Route::Kernel => xs.contiguous()?.apply_op1(SoftmaxLastDim {
            #[cfg(feature = "cuda")]
            scale: 1.0,
        }),
        Route::InF32 => in_f32(&[xs], |t| routed(&t[0])),
        Route::Composition => composition(xs, D::Minus1),
    }
}

/// The softmax of `scale` times each element, `scale` above 0, of a tensor on CUDA that a kernel takes.
#[cfg(feature = "cuda")]
pub(crate) fn scaled(xs: &Tensor, scale: f32) -> Result<Tensor> {
    xs.contiguous()?.apply_op1(SoftmaxLastDim { scale })
}

/// y = exp(x) / Σ exp(x) over the dimension `dim`.
///
/// As [`softmax_last_dim`], for any dimension; the last one is the fast one.
///
/// # PyTorch
///
/// `torch.nn.functional.softmax(xs, dim)`
///
/// # Errors
///
/// If `xs` has no such dimension or its dtype is no floating-point one.
///
/// ```
/// use candle_core::{Device, Tensor};
/// let xs = Tensor::new(&[[0f32, 1.0], [0.0, 1.0]], &Device::Cpu)?;
/// assert_eq!(masksub::ops::softmax(&xs, 0)?.to_vec2::<f32>()?, [[0.5, 0.5], [0.5, 0.5]]);
/// # Ok::<(), candle_core::Error>(())
/// ```
pub fn softmax<I: Dim>(xs: &Tensor, dim: I) -> Result<Tensor> {
    let dim = dim.to_index(xs.shape(), "softmax")?;
    if dim + 1 == xs.rank() {
        return softmax_last_dim(xs);
    }
    check::float("xs", xs)?;
    if route::is_half(xs) {
        return in_f32(&[xs], |t| composition(&t[0], dim));
    }
    composition(xs, dim)
}

/// [`softmax`] of candle's operations.
pub fn composition<I: Dim>(xs: &Tensor, dim: I) -> Result<Tensor> {
    let dim = dim.to_index(xs.shape(), "softmax")?;
    if xs.elem_count() == 0 {
        return Ok(xs.clone());
    }
    // Softmax does not change when its input is shifted: the shift needs no gradient.
    let shift = xs.max_keepdim(dim)?.detach();
    let exp = xs.broadcast_sub(&shift)?.exp()?;
    exp.broadcast_div(&exp.sum_keepdim(dim)?)
}

struct SoftmaxLastDim {
    /// What the input is multiplied by first; on the CPU it is 1.
    #[cfg(feature = "cuda")]
    scale: f32,
}

kernel::simd_fn! {
    fn forward_rows<S>(xs: &[f32], ys: &mut [f32], width: usize) -> () {
        for (x, y) in xs.chunks_exact(width).zip(ys.chunks_exact_mut(width)) {
            let max = kernel::max(x);
            for (y, &x) in y.iter_mut().zip(x) {
                *y = math::exp::<S>(x - max);
            }
            let scale = 1.0 / sum_by([y], |[y]| y);
            for y in y {
                *y *= scale;
            }
        }
    }
}

kernel::simd_fn! {
    fn backward_rows<S>(ys: &[f32], grads: &[f32], dxs: &mut [f32], width: usize) -> () {
        let rows = ys.chunks_exact(width).zip(grads.chunks_exact(width)).zip(dxs.chunks_exact_mut(width));
        for ((y, g), dx) in rows {
            let mean = sum_by([y, g], |[y, g]| y * g);
            for ((dx, &y), &g) in dx.iter_mut().zip(y).zip(g) {
                *dx = y * (g - mean);
            }
        }
    }
}

impl CustomOp1 for SoftmaxLastDim {
    fn name(&self) -> &'static str {
        "softmax-last-dim"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let xs = kernel::elements(storage, layout)?;
        let width = layout.shape().dims().last().copied().unwrap_or(1);
        let mut ys = vec![0f32; xs.len()];
        kernel::for_rows(&mut ys, width, |first, ys| {
            forward_rows(&xs[first * width..][..ys.len()], ys, width);
        });
        Ok((CpuStorage::F32(ys), layout.shape().clone()))
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(&self, storage: &CudaStorage, layout: &Layout) -> Result<(CudaStorage, Shape)> {
        cuda::softmax::on_device::forward((storage, layout), self.scale)
    }

    fn bwd(&self, _: &Tensor, ys: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        #[cfg(feature = "cuda")]
        if ys.device().is_cuda() {
            return cuda::softmax::on_device::backward(ys, grad, self.scale).map(Some);
        }
        let grad = grad.contiguous()?;
        let (y, g) = (Elements::of(ys)?, Elements::of(&grad)?);
        let (y, g): (&[f32], &[f32]) = (&y, &g);
        let width = ys.dim(D::Minus1)?;
        let mut dxs = vec![0f32; y.len()];
        kernel::for_rows(&mut dxs, width, |first, dxs| {
            let rows = first * width..first * width + dxs.len();
            backward_rows(&y[rows.clone()], &g[rows], dxs, width);
        });
        kernel::tensor(dxs, ys.dims()).map(Some)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::{check, check_derivative, check_on, random, rng};
    use rand::Rng as _;

    fn kernel(args: &[Tensor]) -> Result<Tensor> {
        softmax_last_dim(&args[0])
    }

    fn reference(args: &[Tensor]) -> Result<Tensor> {
        composition(&args[0], D::Minus1)
    }

    #[test]
    fn equals_its_composition() {
        let mut rng = rng(4);
        for seed in 0..8 {
            let mut size = |most| rng.random_range(1..=most);
            let (b, h, n) = (size(4), size(6), 1 + size(90));
            check(&kernel, &reference, &[&[b, h, n, n]], seed);
        }
    }

    #[test]
    fn equals_its_composition_at_the_edges() {
        check(&kernel, &reference, &[&[1]], 0);
        check(&kernel, &reference, &[&[5, 1]], 1);
        check(&kernel, &reference, &[&[3, 2]], 2);
        check(&kernel, &reference, &[&[2, 3, 99, 99]], 3);
        // Sharp: nearly all the mass on one element, and exponentials that vanish.
        check_on(&kernel, &reference, &[(random(&[4, 33], 4) * 20.0).unwrap()], 4);
    }

    #[test]
    fn over_another_dimension() {
        for dim in 0..3 {
            let kernel = move |args: &[Tensor]| softmax(&args[0], dim);
            let reference = move |args: &[Tensor]| composition(&args[0], dim);
            check(&kernel, &reference, &[&[3, 4, 5]], dim as u64);
            check_derivative(&reference, &[&[2, 3, 4]], dim as u64);
        }
        assert!(softmax(&random(&[2, 3], 0), 2).is_err());
    }

    #[test]
    fn masked_elements_get_nothing() {
        let xs = Tensor::new(
            &[f32::NEG_INFINITY, 1.0, f32::NEG_INFINITY, 1.0],
            &candle_core::Device::Cpu,
        )
        .unwrap();
        let xs = candle_core::Var::from_tensor(&xs).unwrap();
        let ys = softmax_last_dim(&xs).unwrap();
        assert_eq!(ys.to_vec1::<f32>().unwrap(), [0.0, 0.5, 0.0, 0.5]);
        let grads = ys.get(1).unwrap().backward().unwrap();
        assert_eq!(
            grads.get(&xs).unwrap().to_vec1::<f32>().unwrap(),
            [0.0, 0.25, 0.0, -0.25]
        );
    }

    #[test]
    fn does_not_overflow() {
        let xs = Tensor::new(&[1000f32, 1000.0, 800.0, -1000.0], &candle_core::Device::Cpu).unwrap();
        assert_eq!(
            softmax_last_dim(&xs).unwrap().to_vec1::<f32>().unwrap(),
            [0.5, 0.5, 0.0, 0.0]
        );
    }

    #[test]
    fn an_undefined_element_makes_its_row_undefined() {
        let xs = Tensor::new(&[[f32::NAN, 1.0], [0.0, 0.0]], &candle_core::Device::Cpu).unwrap();
        let ys = softmax_last_dim(&xs).unwrap().to_vec2::<f32>().unwrap();
        assert!(ys[0].iter().all(|y| y.is_nan()));
        assert_eq!(ys[1], [0.5, 0.5]);
    }

    #[test]
    fn a_scalar_has_no_last_dimension() {
        let error = softmax_last_dim(&random(&[], 0)).unwrap_err().to_string();
        assert_eq!(error, "xs has shape [], but must be [.., C]");
    }
}
