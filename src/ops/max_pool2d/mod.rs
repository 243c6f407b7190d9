//! Max pooling, of windows that may overlap.

#[cfg(test)]
mod tests;
mod windows;

use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor, ToUsize2, D};

use super::cpu::kernel::{self, Elements};
use super::cpu::sliding::Sliding;
use super::route::{in_f32, Route};
use crate::check;

pub(crate) use windows::MaxPool2d;

/// y\[b, c, i, j\] = the largest of x\[b, c, i * stride + u - padding, j * stride + v - padding\] for u and v below
/// `kernel` that lie in the image.
///
/// [`Tensor::max_pool2d_with_stride`] has a backward only where windows do not overlap, one whose gradients are divided
/// by the number of a window's elements, and no padding. In the place of `xs.max_pool2d(k)` stands
/// `max_pool2d(&xs, k, k, 0)`.
///
/// # Arguments
///
/// - `xs`: [B, C, H, W]
/// - `kernel`: side of a window, or its height and width
/// - `stride`: at least 1, or one for each direction
/// - `padding`: positions around the image, on each side, that never win, whatever is in it; at most `kernel / 2`
///
/// Returns [B, C, H', W'], where H' = (H + 2 padding - kernel) / stride + 1, rounded down, and W' likewise. An
/// undefined element makes its windows undefined.
///
/// # Derivative
///
/// Each result's gradient goes to the element it is: where there are several, to the first of them, row by row (but to
/// the last undefined one, as in PyTorch). The backward looks for it again: nothing is kept.
///
/// # PyTorch
///
/// `torch.nn.functional.max_pool2d(xs, kernel, stride, padding)`
///
/// # Errors
///
/// If `xs` has another rank, no element or no floating-point dtype; `kernel` or `stride` is 0; `padding` is more than
/// half of `kernel`; or a window is larger than the padded image.
///
/// ```
/// use candle_core::{Device, Tensor};
/// let xs = Tensor::new(&[[[[-1f32, -2.0], [-3.0, -4.0]]]], &Device::Cpu)?;
/// let ys = masksub::ops::max_pool2d(&xs, 2, 1, 1)?;
/// let rows = [[-1.0, -1.0, -2.0], [-1.0, -1.0, -2.0], [-3.0, -3.0, -4.0]];
/// assert_eq!(ys.squeeze(0)?.squeeze(0)?.to_vec2::<f32>()?, rows);
/// # Ok::<(), candle_core::Error>(())
/// ```
pub fn max_pool2d(xs: &Tensor, kernel: impl ToUsize2, stride: impl ToUsize2, padding: usize) -> Result<Tensor> {
    check::float("xs", xs)?;
    routed(xs, MaxPool2d::new(xs.dims(), kernel, stride, padding)?)
}

/// [`max_pool2d`] of arguments that fit.
pub(crate) fn routed(xs: &Tensor, pool: MaxPool2d) -> Result<Tensor> {
    match Route::of(&[xs]) {
        Route::Kernel => xs.contiguous()?.apply_op1(pool),
        Route::InF32 => in_f32(&[xs], |t| routed(&t[0], pool)),
        Route::Composition => compose(xs, pool),
    }
}

/// [`max_pool2d`] of candle's operations.
pub fn composition(xs: &Tensor, kernel: impl ToUsize2, stride: impl ToUsize2, padding: usize) -> Result<Tensor> {
    compose(xs, MaxPool2d::new(xs.dims(), kernel, stride, padding)?)
}

fn compose(xs: &Tensor, pool: MaxPool2d) -> Result<Tensor> {
    let MaxPool2d { rows, columns, .. } = pool;
    let padding = rows.padding;
    let padded = xs.pad_with_zeros(D::Minus1, padding, padding)?;
    let padded = padded.pad_with_zeros(D::Minus2, padding, padding)?.contiguous()?;
    // The window's element `tap` at every place.
    let pick = |xs: &Tensor, dim: D, axis: Sliding, tap: usize| {
        let at: Vec<u32> = (0..axis.out).map(|i| (i * axis.stride + tap) as u32).collect();
        xs.index_select(&Tensor::from_vec(at, axis.out, xs.device())?, dim)
    };
    let places = rows.out * columns.out;
    let on_device = |flags: &[u8], like: &Tensor| {
        let flags = Tensor::from_slice(flags, (1, 1, rows.out, columns.out), like.device())?;
        flags.broadcast_as(like.shape())
    };
    // `maximum` would halve the gradient of equal elements.
    let mut best = pick(&pick(&padded, D::Minus2, rows, 0)?, D::Minus1, columns, 0)?;
    let mut seen = vec![false; places];
    for u in 0..rows.window {
        let row = pick(&padded, D::Minus2, rows, u)?;
        for v in 0..columns.window {
            let candidate = pick(&row, D::Minus1, columns, v)?;
            let inside: Vec<bool> = (0..places)
                .map(|at| {
                    let (i, j) = (at / columns.out, at % columns.out);
                    rows.source(i, u).is_some() && columns.source(j, v).is_some()
                })
                .collect();
            // What is in the image wins over padding, which only the first element can have left in its place.
            let first: Vec<u8> = inside.iter().zip(&seen).map(|(&i, &s)| u8::from(i && !s)).collect();
            let later: Vec<u8> = inside.iter().zip(&seen).map(|(&i, &s)| u8::from(i && s)).collect();
            let wins = (candidate.gt(&best)? + candidate.ne(&candidate)?)?;
            let wins = ((wins * on_device(&later, &best)?)? + on_device(&first, &best)?)?;
            best = wins.where_cond(&candidate, &best)?;
            seen.iter_mut().zip(inside).for_each(|(seen, inside)| *seen |= inside);
        }
    }
    Ok(best)
}

impl CustomOp1 for MaxPool2d {
    fn name(&self) -> &'static str {
        "max-pool2d"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let xs = kernel::elements(storage, layout)?;
        let dims = self.result_dims();
        let mut ys = vec![0f32; dims.iter().product()];
        self.forward(xs, &mut ys);
        Ok((CpuStorage::F32(ys), Shape::from(&dims)))
    }

    fn bwd(&self, xs: &Tensor, ys: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let grad = grad.contiguous()?;
        let (x, y, g) = (Elements::of(xs)?, Elements::of(ys)?, Elements::of(&grad)?);
        let mut dxs = vec![0f32; x.len()];
        self.backward(&x, &y, &g, &mut dxs);
        kernel::tensor(dxs, xs.dims()).map(Some)
    }
}
