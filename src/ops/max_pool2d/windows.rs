//! Pooling of windows that slide over images, channel by channel.

use candle_core::ToUsize2;
use rayon::prelude::*;

use crate::check;
use crate::error::Error;
use crate::ops::cpu::kernel;
use crate::ops::cpu::sliding::{check_padding, zip_strided, Sliding};

/// Max pooling of images of one shape.
#[derive(Clone, Copy)]
pub(crate) struct MaxPool2d {
    batch: usize,
    channels: usize,
    pub(super) rows: Sliding,
    pub(super) columns: Sliding,
}

impl MaxPool2d {
    /// Of images of these dimensions.
    pub(crate) fn new(
        xs: &[usize],
        kernel: impl ToUsize2,
        stride: impl ToUsize2,
        padding: usize,
    ) -> crate::error::Result<Self> {
        let (kernel, stride) = (kernel.to_usize2(), stride.to_usize2());
        for (argument, (rows, columns)) in [("kernel", kernel), ("stride", stride)] {
            check::at_least_one(argument, rows.min(columns))?;
        }
        let half = kernel.0.min(kernel.1) / 2;
        if padding > half {
            let allowed = format!("at most half of the kernel, {half}");
            return Err(Error::invalid("padding", padding, allowed));
        }
        let unfit = || {
            let least = |kernel: usize| kernel.saturating_sub(2 * padding).max(1);
            let (sides, windows) = ([kernel.0, kernel.1].map(least), [kernel.0, kernel.1]);
            let [sides, windows] = [sides, windows].map(|sides| check::sides(&sides));
            let sides = format!("with sides of at least {sides} for windows of {windows} and a padding of {padding}");
            Error::shape("xs", xs, format!("[B, C, H, W], not empty, {sides}"))
        };
        let [batch, channels, height, width] = *xs else {
            return Err(unfit());
        };
        if xs.contains(&0) {
            return Err(unfit());
        }
        check_padding(batch.saturating_mul(channels), &[height, width], padding)?;
        let axis = |side, kernel, stride| Sliding::new(side, kernel, stride, padding).ok_or_else(unfit);
        Ok(Self {
            batch,
            channels,
            rows: axis(height, kernel.0, stride.0)?,
            columns: axis(width, kernel.1, stride.1)?,
        })
    }

    pub(crate) fn result_dims(&self) -> [usize; 4] {
        [self.batch, self.channels, self.rows.out, self.columns.out]
    }

    /// Writes the result to `ys`.
    pub(crate) fn forward(&self, xs: &[f32], ys: &mut [f32]) {
        let (area, out_area) = self.areas();
        ys.par_chunks_mut(out_area)
            .zip(xs.par_chunks(area))
            .for_each(|(ys, xs)| forward(*self, xs, ys));
    }

    /// Writes the gradients of the input to `dxs`.
    pub(crate) fn backward(&self, xs: &[f32], ys: &[f32], grads: &[f32], dxs: &mut [f32]) {
        let (area, out_area) = self.areas();
        let results = ys.par_chunks(out_area).zip(grads.par_chunks(out_area));
        dxs.par_chunks_mut(area)
            .zip(xs.par_chunks(area))
            .zip(results)
            .for_each(|((dxs, xs), (ys, grads))| {
                // The memory may have been used before.
                dxs.fill(0.0);
                backward(*self, xs, ys, grads, dxs);
            });
    }

    /// Elements of a channel of the input, and of the result.
    fn areas(&self) -> (usize, usize) {
        (self.rows.side * self.columns.side, self.rows.out * self.columns.out)
    }
}

kernel::simd_fn! {
    /// Pools one channel.
    fn forward<S>(pool: MaxPool2d, xs: &[f32], ys: &mut [f32]) -> () {
        let width = pool.columns.side;
        for (i, ys) in ys.chunks_exact_mut(pool.columns.out).enumerate() {
            ys.fill(f32::NEG_INFINITY);
            for row in (0..pool.rows.window).filter_map(|u| pool.rows.source(i, u)) {
                let row = &xs[row * width..][..width];
                for v in 0..pool.columns.window {
                    let (inside, first) = pool.columns.inside(v);
                    if !inside.is_empty() {
                        let ys = &mut ys[inside];
                        zip_strided(ys, &row[first..], pool.columns.stride, |y, x| {
                            // An undefined x is not at most y.
                            *y = if x <= *y || y.is_nan() { *y } else { x };
                        });
                    }
                }
            }
        }
    }
}

/// Adds the gradient of one channel's result to that of the elements it is.
fn backward(pool: MaxPool2d, xs: &[f32], ys: &[f32], grads: &[f32], dxs: &mut [f32]) {
    let (rows, columns) = (pool.rows, pool.columns);
    for (at, (&y, g)) in ys.iter().zip(grads).enumerate() {
        let (i, j) = (at / columns.out, at % columns.out);
        let mut window = (0..rows.window).filter_map(|u| rows.source(i, u)).flat_map(|row| {
            let columns = (0..columns.window).filter_map(|v| columns.source(j, v));
            columns.map(move |column| row * pool.columns.side + column)
        });
        let winner = if y.is_nan() {
            window.rev().find(|&at| xs[at].is_nan())
        } else {
            window.find(|&at| xs[at] == y)
        };
        if let Some(winner) = winner {
            dxs[winner] += g;
        }
    }
}
