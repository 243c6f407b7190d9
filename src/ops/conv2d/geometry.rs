//! The sizes of a convolution.

use crate::check;
use crate::error::Error;
use crate::ops::cpu::sliding::{check_padding, Sliding};

/// A convolution, without its weight.
#[derive(Clone, Copy)]
pub(crate) struct Conv2d {
    pub(super) batch: usize,
    pub(super) in_channels: usize,
    pub(super) out_channels: usize,
    pub(super) rows: Sliding,
    pub(super) columns: Sliding,
}

impl Conv2d {
    /// A convolution of images with a weight, which an error calls by `names`.
    pub(crate) fn new(
        [input, name]: [&'static str; 2],
        xs: &[usize],
        weight: &[usize],
        stride: usize,
        padding: usize,
    ) -> crate::error::Result<Self> {
        let [out_channels, in_channels, kernel, columns] = *weight else {
            return Err(Error::shape(name, weight, "[C', C, k, k]"));
        };
        if weight.contains(&0) || kernel != columns {
            return Err(Error::shape(name, weight, "[C', C, k, k], not empty"));
        }
        check::at_least_one("stride", stride)?;
        let unfit = || {
            let sides = match kernel.saturating_sub(padding.saturating_mul(2)) {
                0 | 1 => "not empty".to_string(),
                least => format!("with sides of at least {least} for a kernel of {kernel} and a padding of {padding}"),
            };
            Error::shape(input, xs, format!("[B, {in_channels}, H, W], {sides}"))
        };
        let [batch, channels, height, width] = *xs else {
            return Err(unfit());
        };
        if channels != in_channels || xs.contains(&0) {
            return Err(unfit());
        }
        check_padding(batch.saturating_mul(channels), [height, width], padding)?;
        let axis = |side| Sliding::new(side, kernel, stride, padding).ok_or_else(unfit);
        let (rows, columns) = (axis(height)?, axis(width)?);
        let out = [out_channels, rows.out, columns.out];
        let count = out.iter().try_fold(batch, |count, &dim| count.checked_mul(dim));
        check::fits_memory("padding", padding, count, size_of::<f32>())?;
        Ok(Self {
            batch,
            in_channels,
            out_channels,
            rows,
            columns,
        })
    }

    /// Positions of a sample's result.
    pub(super) fn positions(&self) -> usize {
        self.rows.out * self.columns.out
    }

    /// Elements of a channel of a sample.
    pub(super) fn area(&self) -> usize {
        self.rows.side * self.columns.side
    }

    /// Elements of the kernel in each channel.
    pub(super) fn taps(&self) -> usize {
        self.rows.window * self.columns.window
    }

    /// True if the matrix of what the kernel sees is the image itself.
    pub(super) fn is_direct(&self) -> bool {
        self.rows.window == 1 && self.rows.stride == 1 && self.rows.padding == 0
    }

    /// Elements of the result.
    pub(crate) fn result_len(&self) -> usize {
        self.batch * self.out_channels * self.positions()
    }

    /// Shape of the result.
    pub(crate) fn result_dims(&self) -> [usize; 4] {
        [self.batch, self.out_channels, self.rows.out, self.columns.out]
    }
}
