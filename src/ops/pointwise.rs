//! Functions of one element, on the CPU in one pass forward and one backward.

use std::marker::PhantomData;

#[cfg(feature = "cuda")]
use candle_core::CudaStorage;
use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor};
use pulp::{Simd, WithSimd};

use super::cpu::kernel::{self, Elements};
#[cfg(feature = "cuda")]
use super::cuda;
use super::route::{in_f32, Route};
use crate::check;

/// A function of one element.
///
/// The functions must be `#[inline(always)]`, so that they are compiled for the instruction set of their caller.
pub(crate) trait Pointwise: Send + Sync + 'static {
    /// Its name, and with `_` for `-` that of its kernel for CUDA.
    const NAME: &'static str;

    fn value<S: Simd>(x: f32) -> f32;

    /// The value and the derivative.
    fn both<S: Simd>(x: f32) -> (f32, f32);

    /// The same function of candle's operations.
    fn composition(xs: &Tensor) -> Result<Tensor>;
}

/// The function applied to every element of `xs`.
pub(crate) fn apply<A: Pointwise>(xs: &Tensor) -> Result<Tensor> {
    check::float("xs", xs)?;
    routed::<A>(xs)
}

/// [`apply`] to elements of a floating-point dtype.
pub(crate) fn routed<A: Pointwise>(xs: &Tensor) -> Result<Tensor> {
    match Route::precise_with_cuda(&[xs]) {
        Route::Kernel => xs.contiguous()?.apply_op1(Op::<A>(PhantomData)),
        Route::InF32 => in_f32(&[xs], |t| routed::<A>(&t[0])),
        Route::Composition => A::composition(xs),
    }
}

struct Op<A>(PhantomData<A>);

struct Values<'a, A> {
    xs: &'a [f32],
    ys: &'a mut [f32],
    of: PhantomData<A>,
}

impl<A: Pointwise> WithSimd for Values<'_, A> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        for (y, &x) in self.ys.iter_mut().zip(self.xs) {
            *y = A::value::<S>(x);
        }
    }
}

/// Gradients times derivatives.
struct Gradients<'a, A> {
    xs: &'a [f32],
    grads: &'a [f32],
    dxs: &'a mut [f32],
    of: PhantomData<A>,
}

impl<A: Pointwise> WithSimd for Gradients<'_, A> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        for ((dx, &x), &g) in self.dxs.iter_mut().zip(self.xs).zip(self.grads) {
            *dx = g * A::both::<S>(x).1;
        }
    }
}

impl<A: Pointwise> CustomOp1 for Op<A> {
    fn name(&self) -> &'static str {
        A::NAME
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let xs = kernel::elements(storage, layout)?;
        let mut ys = vec![0f32; xs.len()];
        kernel::for_rows(&mut ys, 1, |first, ys| {
            kernel::dispatch(Values::<A> {
                xs: &xs[first..],
                ys,
                of: PhantomData,
            });
        });
        Ok((CpuStorage::F32(ys), layout.shape().clone()))
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(&self, storage: &CudaStorage, layout: &Layout) -> Result<(CudaStorage, Shape)> {
        cuda::activation::on_device::forward(A::NAME, (storage, layout), None)
    }

    fn bwd(&self, xs: &Tensor, _: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        #[cfg(feature = "cuda")]
        if xs.device().is_cuda() {
            return cuda::activation::on_device::backward(A::NAME, xs, None, grad).map(Some);
        }
        let grad = grad.contiguous()?;
        let (x, g) = (Elements::of(xs)?, Elements::of(&grad)?);
        let (x, g): (&[f32], &[f32]) = (&x, &g);
        let mut dxs = vec![0f32; x.len()];
        kernel::for_rows(&mut dxs, 1, |first, dxs| {
            kernel::dispatch(Gradients::<A> {
                xs: &x[first..],
                grads: &g[first..],
                dxs,
                of: PhantomData,
            });
        });
        kernel::tensor(dxs, xs.dims()).map(Some)
    }
}

#[cfg(test)]
pub(crate) mod testing {
    use super::*;
    use crate::ops::testing::{check, check_derivative, check_on, random, rng};
    use rand::Rng as _;

    /// Puts a function through everything it must withstand.
    pub(crate) fn check_pointwise<A: Pointwise>() {
        let kernel = |args: &[Tensor]| apply::<A>(&args[0]);
        let reference = |args: &[Tensor]| A::composition(&args[0]);
        let mut rng = rng(5);
        for seed in 0..8 {
            let mut size = |most| rng.random_range(1..=most);
            let shape = [size(4), size(40), size(90)];
            check(&kernel, &reference, &[&shape], seed);
        }
        check(&kernel, &reference, &[&[1]], 0);
        check(&kernel, &reference, &[&[3, 197, 96]], 1);
        // Far out on both sides.
        check_on(&kernel, &reference, &[(random(&[400], 2) * 20.0).unwrap()], 2);
        check_derivative(&reference, &[&[3, 7]], 0);

        let xs = Tensor::new(&[1u32], &candle_core::Device::Cpu).unwrap();
        let error = apply::<A>(&xs).unwrap_err().to_string();
        assert_eq!(error, "xs has dtype U32, but must be f32, f64, f16 or bf16");
    }
}
