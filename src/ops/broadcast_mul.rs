//! A product with a factor that is broadcast: layer scale, squeeze and excitation.

use std::ops::Range;

use candle_core::{CpuStorage, CustomOp2, Layout, Result, Shape, Tensor};
use rayon::prelude::*;

use super::cpu::elementwise::{dot, scale_into};
use super::cpu::kernel::{self, with_elements};
use super::route::{in_f32, Route};
use crate::check;
use crate::error::Error;

/// y = x * factor, the factor repeated along the dimensions that it lacks or has once: a layer scale, a gate of
/// channels.
///
/// [`Tensor::broadcast_mul`] computes the same. In its backward the gradient of the factor is summed one number after
/// the other, on one thread.
///
/// # Arguments
///
/// - `xs`: of any shape
/// - `factor`: of no more dimensions than `xs`, which from the last on are each as large as that of `xs`, or 1
///
/// Returns a tensor of the shape of `xs`.
///
/// # Derivative
///
/// With g the gradient of the result: dx = g * factor; dfactor = the sum of g x over the dimensions that it is repeated
/// along. The CPU kernel is for factors that are repeated along the first dimensions, the last ones, or both; others
/// take candle's operations.
///
/// # PyTorch
///
/// `xs * factor`
///
/// # Errors
///
/// If the shapes do not fit, or the dtypes differ or are no floating-point ones.
///
/// ```
/// use candle_core::{Device, Tensor};
/// let xs = Tensor::new(&[[1f32, 2.0], [3.0, 4.0]], &Device::Cpu)?;
/// let factor = Tensor::new(&[[10f32], [1.0]], &Device::Cpu)?;
/// assert_eq!(masksub::ops::broadcast_mul(&xs, &factor)?.to_vec2::<f32>()?, [[10.0, 20.0], [3.0, 4.0]]);
/// # Ok::<(), candle_core::Error>(())
/// ```
pub fn broadcast_mul(xs: &Tensor, factor: &Tensor) -> Result<Tensor> {
    check(xs, factor)?;
    routed(xs, factor)
}

/// [`broadcast_mul`] of arguments that fit.
fn routed(xs: &Tensor, factor: &Tensor) -> Result<Tensor> {
    match (Route::of(&[xs, factor]), Repeated::of(xs.dims(), factor.dims())) {
        (Route::Kernel, Some(repeated)) => {
            let (xs, mut factor) = (xs.contiguous()?, factor.contiguous()?);
            // candle locks the two one after the other, and none may be taken twice (see `with_elements`).
            if kernel::same_storage(&xs, &factor) {
                factor = factor.force_contiguous()?;
            }
            xs.apply_op2(&factor, BroadcastMul(repeated))
        }
        (Route::InF32, _) => in_f32(&[xs, factor], |t| routed(&t[0], &t[1])),
        _ => composition(xs, factor),
    }
}

fn check(xs: &Tensor, factor: &Tensor) -> crate::error::Result<()> {
    check::float("xs", xs)?;
    check::same_dtype("factor", factor, "xs", xs)?;
    let mut sizes = factor.dims().iter().rev().zip(xs.dims().iter().rev());
    if factor.rank() <= xs.rank() && sizes.all(|(&size, &whole)| size == 1 || size == whole) {
        return Ok(());
    }
    let expected = format!("one that is broadcast to {:?}", xs.dims());
    Err(Error::shape("factor", factor.dims(), expected))
}

/// [`broadcast_mul`] of candle's operations.
pub fn composition(xs: &Tensor, factor: &Tensor) -> Result<Tensor> {
    xs.broadcast_mul(factor)
}

/// A factor [K] of `xs` as [.., K, I]: repeated in each of the leading parts, and along the last dimension.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Repeated {
    /// K.
    len: usize,
    /// I.
    inner: usize,
}

impl Repeated {
    /// None where dimensions that the factor has and those that it lacks take turns.
    fn of(xs: &[usize], factor: &[usize]) -> Option<Self> {
        let lacking = xs.len() - factor.len();
        let has = |dim: usize| dim >= lacking && factor[dim - lacking] != 1;
        let lacks = |dim: usize| xs[dim] != 1 && !has(dim);
        let first = (0..xs.len()).find(|&dim| has(dim))?;
        let last = (0..xs.len()).rfind(|&dim| has(dim))?;
        let kept: Range<usize> = first..last + 1;
        (!kept.clone().any(lacks)).then(|| Self {
            len: xs[kept.clone()].iter().product(),
            inner: xs[kept.end..].iter().product(),
        })
    }

    /// x * factor, or g * factor.
    fn scaled(self, xs: &[f32], factor: &[f32]) -> Vec<f32> {
        let mut ys = vec![0f32; xs.len()];
        let width = if self.inner == 1 { self.len } else { self.inner };
        kernel::for_rows(&mut ys, width, |first, ys| {
            let xs = &xs[first * width..][..ys.len()];
            if self.inner == 1 {
                scale_rows(xs, factor, ys);
            } else {
                let rows = xs.chunks_exact(width).zip(ys.chunks_exact_mut(width));
                for (row, (xs, ys)) in (first..).zip(rows) {
                    scale_into(xs, factor[row % self.len], ys);
                }
            }
        });
        ys
    }

    /// The sums of g x for each number of the factor.
    fn sums(self, xs: &[f32], grads: &[f32]) -> Vec<f32> {
        /// Elements of one piece of parallel work, at least.
        const PIECE: usize = 16 * 1024;
        let Self { len, inner } = self;
        if inner == 1 {
            return kernel::sum_over_rows(xs.len() / len, len, len, |first, rows, sums| {
                let range = first * len..(first + rows) * len;
                add_products(&xs[range.clone()], &grads[range], sums);
            });
        }
        let part = len * inner;
        let sum = |at: usize| -> f32 {
            let starts = (at * inner..xs.len()).step_by(part);
            let dots = starts.map(|start| dot(&xs[start..start + inner], &grads[start..start + inner]));
            dots.map(f64::from).sum::<f64>() as f32
        };
        let at_least = PIECE.div_ceil(xs.len() / len);
        (0..len).into_par_iter().with_min_len(at_least).map(sum).collect()
    }
}

kernel::simd_fn! {
    fn scale_rows<S>(xs: &[f32], factor: &[f32], ys: &mut [f32]) -> () {
        for (xs, ys) in xs.chunks_exact(factor.len()).zip(ys.chunks_exact_mut(factor.len())) {
            for ((y, x), factor) in ys.iter_mut().zip(xs).zip(factor) {
                *y = x * factor;
            }
        }
    }
}

kernel::simd_fn! {
    fn add_products<S>(xs: &[f32], grads: &[f32], sums: &mut [f32]) -> () {
        for (xs, grads) in xs.chunks_exact(sums.len()).zip(grads.chunks_exact(sums.len())) {
            for ((sum, &x), &g) in sums.iter_mut().zip(xs).zip(grads) {
                *sum = kernel::fma::<S>(x, g, *sum);
            }
        }
    }
}

struct BroadcastMul(Repeated);

impl CustomOp2 for BroadcastMul {
    fn name(&self) -> &'static str {
        "broadcast-mul"
    }

    fn cpu_fwd(&self, s1: &CpuStorage, l1: &Layout, s2: &CpuStorage, l2: &Layout) -> Result<(CpuStorage, Shape)> {
        let (xs, factor) = (kernel::elements(s1, l1)?, kernel::elements(s2, l2)?);
        Ok((CpuStorage::F32(self.0.scaled(xs, factor)), l1.shape().clone()))
    }

    fn bwd(&self, xs: &Tensor, factor: &Tensor, _: &Tensor, grad: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let grad = grad.contiguous()?;
        let (dxs, dfactor) = with_elements(&[xs, factor, &grad], |slices| {
            let &[x, f, g] = slices else {
                candle_core::bail!("the backward of masksub's broadcast_mul was called without its tensors");
            };
            let dxs = xs.track_op().then(|| self.0.scaled(g, f));
            Ok((dxs, factor.track_op().then(|| self.0.sums(x, g))))
        })?;
        let tensor =
            |data: Option<Vec<f32>>, like: &Tensor| data.map(|data| kernel::tensor(data, like.dims())).transpose();
        Ok((tensor(dxs, xs)?, tensor(dfactor, factor)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::{check, check_derivative, random};
    use candle_core::{DType, Device};

    fn kernel(args: &[Tensor]) -> Result<Tensor> {
        broadcast_mul(&args[0], &args[1])
    }

    fn reference(args: &[Tensor]) -> Result<Tensor> {
        composition(&args[0], &args[1])
    }

    /// Layer scale of both orders, a gate of channels, the same shape, and what the kernel leaves to candle.
    const SHAPES: [[&[usize]; 2]; 9] = [
        [&[3, 5, 4, 6], &[1, 5, 1, 1]],
        [&[3, 5, 4, 6], &[3, 5, 1, 1]],
        [&[3, 4, 6, 5], &[5]],
        [&[2, 3, 70], &[3, 70]],
        [&[4, 3], &[4, 3]],
        [&[4, 1, 3], &[4, 1, 1]],
        [&[7], &[1]],
        [&[3, 5, 4], &[3, 1, 4]],
        [&[2, 3], &[1, 1]],
    ];

    #[test]
    fn equals_its_composition() {
        for (seed, shapes) in (0..).zip(SHAPES) {
            check(&kernel, &reference, &shapes, seed);
        }
        // Many pieces of work.
        check(&kernel, &reference, &[&[2, 70, 33, 31], &[2, 70, 1, 1]], 20);
        check(&kernel, &reference, &[&[2, 70, 33, 31], &[70, 1, 1]], 21);
        check(&kernel, &reference, &[&[40, 33, 96], &[96]], 22);
    }

    #[test]
    fn composition_has_the_right_derivative() {
        for (seed, shapes) in (0..).zip(SHAPES) {
            check_derivative(&reference, &shapes, seed);
        }
    }

    #[test]
    fn the_kernel_takes_what_is_repeated_before_and_behind() {
        let of = |[xs, factor]: [&[usize]; 2]| Repeated::of(xs, factor).map(|repeated| (repeated.len, repeated.inner));
        let of_shapes: Vec<_> = SHAPES.into_iter().map(of).collect();
        let expected = [(5, 24), (15, 24), (5, 1), (210, 1), (12, 1), (4, 3)].map(Some);
        assert_eq!(of_shapes[..6], expected);
        assert_eq!(of_shapes[6..], [None; 3]);
    }

    #[test]
    fn errors_name_the_argument() {
        let message = |xs: &[usize], factor: &[usize]| {
            let error = broadcast_mul(&random(xs, 0), &random(factor, 0)).unwrap_err();
            error.to_string()
        };
        let expected = "factor has shape [3, 1], but must be one that is broadcast to [2, 3]";
        assert_eq!(message(&[2, 3], &[3, 1]), expected);
        let expected = "factor has shape [1, 2, 3], but must be one that is broadcast to [2, 3]";
        assert_eq!(message(&[2, 3], &[1, 2, 3]), expected);
        let single = random(&[2], 0).to_dtype(DType::F32).unwrap();
        let error = broadcast_mul(&random(&[2], 0), &single).unwrap_err().to_string();
        assert_eq!(error, "factor has dtype F32, but must be F64 like xs");
    }

    #[test]
    fn a_scalar_is_a_factor() {
        let [xs, factor] = [random(&[2, 3], 0), random(&[], 1)];
        let ys = broadcast_mul(&xs, &factor).unwrap();
        let expected = (&xs * factor.to_scalar::<f64>().unwrap()).unwrap();
        assert_eq!(ys.to_vec2::<f64>().unwrap(), expected.to_vec2::<f64>().unwrap());
    }

    #[test]
    fn of_nothing_is_nothing_and_a_tensor_may_be_its_own_factor() {
        let empty = Tensor::zeros((0, 4), DType::F32, &Device::Cpu).unwrap();
        let ones = Tensor::ones((1, 4), DType::F32, &Device::Cpu).unwrap();
        assert_eq!(broadcast_mul(&empty, &ones).unwrap().dims(), [0, 4]);
        let var = candle_core::Var::new(&[2f32, -3.0], &Device::Cpu).unwrap();
        let ys = broadcast_mul(&var, &var).unwrap();
        let grads = ys.sum_all().unwrap().backward().unwrap();
        assert_eq!(ys.to_vec1::<f32>().unwrap(), [4.0, 9.0]);
        assert_eq!(grads.get(&var).unwrap().to_vec1::<f32>().unwrap(), [4.0, -6.0]);
    }
}
