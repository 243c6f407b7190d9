//! Maps of images that weigh rows and columns apart: what average pooling and interpolation have in common.

mod avg_pool2d;
mod axis;
#[cfg(test)]
mod tests;
mod upsample;

use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor};
use rayon::prelude::*;

use super::cpu::kernel::{self, rows_per_piece, Elements};
use super::route::{in_f32, Route};
use crate::check;
use crate::error::Error;
use axis::Axis;

pub use avg_pool2d::{avg_pool2d, composition as composition_avg_pool2d};
pub use upsample::{
    composition_bilinear2d, composition_nearest2d, upsample_bilinear2d, upsample_bilinear2d_with_scale,
    upsample_nearest1d, upsample_nearest2d,
};

/// y\[b, c, i, j\] = Σ rows\[i, k\] columns\[j, l\] x\[b, c, k, l\]
struct Resample {
    rows: Axis,
    columns: Axis,
    /// Of the result.
    dims: [usize; 4],
}

/// The dimensions of images that are not empty.
fn images(xs: &Tensor) -> crate::error::Result<[usize; 4]> {
    check::float("xs", xs)?;
    match <[usize; 4]>::try_from(xs.dims()) {
        Ok(dims) if !dims.contains(&0) => Ok(dims),
        _ => Err(Error::shape("xs", xs.dims(), "[B, C, H, W], not empty")),
    }
}

impl Resample {
    /// Of images of these dimensions.
    fn new(dims: [usize; 4], [rows, columns]: [Axis; 2]) -> Self {
        let [batch, channels, _, _] = dims;
        let dims = [batch, channels, rows.out(), columns.out()];
        Self { rows, columns, dims }
    }

    fn routed(self, xs: &Tensor) -> Result<Tensor> {
        match Route::precise(&[xs]) {
            Route::Kernel => xs.contiguous()?.apply_op1(self),
            Route::InF32 => in_f32(&[xs], |t| self.routed(&t[0])),
            Route::Composition => self.compose(xs),
        }
    }

    /// One axis after the other.
    fn compose(&self, xs: &Tensor) -> Result<Tensor> {
        let (batch, channels, height, width) = xs.dims4()?;
        let planes = batch * channels;
        let ys = self.columns.compose(&xs.reshape((planes * height, width, 1))?)?;
        let ys = self.rows.compose(&ys.reshape((planes, height, ()))?)?;
        ys.reshape(&self.dims)
    }

    /// Elements of a channel of the input, and of the result.
    fn areas(&self) -> (usize, usize) {
        (
            self.rows.side() * self.columns.side(),
            self.rows.out() * self.columns.out(),
        )
    }

    /// Channels of one piece of parallel work.
    fn planes_per_piece(&self) -> usize {
        let (area, out_area) = self.areas();
        rows_per_piece(area.max(out_area))
    }
}

kernel::simd_fn! {
    /// Resamples one channel.
    fn forward<S>(rows: &Axis, columns: &Axis, xs: &[f32], row: &mut [f32], ys: &mut [f32]) -> () {
        let width = columns.side();
        for ((first, weights), ys) in rows.places().zip(ys.chunks_exact_mut(columns.out())) {
            row.fill(0.0);
            for (xs, &weight) in xs[first * width..].chunks_exact(width).zip(weights) {
                for (row, &x) in row.iter_mut().zip(xs) {
                    *row = kernel::fma::<S>(weight, x, *row);
                }
            }
            for ((first, weights), y) in columns.places().zip(ys) {
                *y = 0.0;
                for (&x, &weight) in row[first..].iter().zip(weights) {
                    *y = kernel::fma::<S>(weight, x, *y);
                }
            }
        }
    }
}

kernel::simd_fn! {
    /// Adds the gradients of one channel to `dxs`.
    fn backward<S>(rows: &Axis, columns: &Axis, grads: &[f32], row: &mut [f32], dxs: &mut [f32]) -> () {
        let width = columns.side();
        for ((first, weights), grads) in rows.places().zip(grads.chunks_exact(columns.out())) {
            row.fill(0.0);
            for ((first, weights), &g) in columns.places().zip(grads) {
                for (row, &weight) in row[first..].iter_mut().zip(weights) {
                    *row = kernel::fma::<S>(weight, g, *row);
                }
            }
            for (dxs, &weight) in dxs[first * width..].chunks_exact_mut(width).zip(weights) {
                for (dx, &row) in dxs.iter_mut().zip(&*row) {
                    *dx = kernel::fma::<S>(weight, row, *dx);
                }
            }
        }
    }
}

impl CustomOp1 for Resample {
    fn name(&self) -> &'static str {
        "resample"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let xs = kernel::elements(storage, layout)?;
        let (area, out_area) = self.areas();
        let mut ys = vec![0f32; self.dims.iter().product()];
        let planes = ys.par_chunks_mut(out_area).zip(xs.par_chunks(area));
        planes.with_min_len(self.planes_per_piece()).for_each(|(ys, xs)| {
            kernel::with_scratch(self.columns.side(), |row| {
                forward(&self.rows, &self.columns, xs, row, ys)
            });
        });
        Ok((CpuStorage::F32(ys), Shape::from(&self.dims)))
    }

    fn bwd(&self, xs: &Tensor, _: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let grad = grad.contiguous()?;
        let g = Elements::of(&grad)?;
        let (area, out_area) = self.areas();
        let mut dxs = vec![0f32; xs.elem_count()];
        let planes = dxs.par_chunks_mut(area).zip(g.par_chunks(out_area));
        planes.with_min_len(self.planes_per_piece()).for_each(|(dxs, grads)| {
            kernel::with_scratch(self.columns.side(), |row| {
                backward(&self.rows, &self.columns, grads, row, dxs)
            });
        });
        kernel::tensor(dxs, xs.dims()).map(Some)
    }
}
