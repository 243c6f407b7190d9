//! The grid and the windows of each stage, or why an image size does not fit them.

use super::config::{Config, WeightNames};
use crate::check;
use crate::error::Result;
use crate::grid::Grid;

/// Sizes that all blocks of a stage share.
#[derive(Clone, Copy, Debug)]
pub(super) struct StageShape {
    pub(super) grid: Grid,
    /// Side of a window, in tokens: `window_size`, or the shorter side of the grid where that is less.
    pub(super) window: usize,
    /// Of every second block.
    pub(super) shift: usize,
    /// D
    pub(super) dim: usize,
    pub(super) num_heads: usize,
}

impl Config {
    /// The shape of each stage.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`](crate::Error::InvalidArgument) when the configuration does not hold together, or the
    /// image does not fit its windows.
    pub(super) fn stages(&self) -> Result<Vec<StageShape>> {
        self.check()?;
        let (height, width) = self.image_size;
        let mut grid = Grid::new(height / self.patch_size, width / self.patch_size);
        let mut stages = Vec::with_capacity(self.depths.len());
        for (index, &num_heads) in self.num_heads.iter().enumerate() {
            stages.push(self.stage(index, num_heads, grid)?);
            if index + 1 < self.depths.len() {
                grid = self.merged(index, grid)?;
            }
        }
        Ok(stages)
    }

    fn stage(&self, index: usize, num_heads: usize, grid: Grid) -> Result<StageShape> {
        let dim = self.embed_dim << index;
        let width = format_args!("the width, {dim}, in stage {index}");
        check::divisor("num_heads", num_heads, dim, width)?;
        // As in the authors' code, the shorter side decides for both.
        let (window, shift) = self.window_along(grid.height.min(grid.width));
        let (longer, pixels) = (grid.height.max(grid.width), self.pixels(index));
        if self.weight_names == WeightNames::Timm && self.window_along(longer) != (window, shift) {
            return Err(self.misfit(format!(
                "square, or of more than {} pixels on each side: in stage {index}, of {grid} tokens of {pixels} pixels, \
                 timm's windows would be no squares of {window} tokens (or take WeightNames::Microsoft)",
                self.window_size * pixels
            )));
        }
        if !grid.height.is_multiple_of(window) || !grid.width.is_multiple_of(window) {
            return Err(self.misfit(format!(
                "multiples of {} pixels: stage {index} has windows of {window} x {window} tokens of {pixels} pixels \
                 (multiples of {} fit every stage)",
                window * pixels,
                self.fits_every_stage()
            )));
        }
        Ok(StageShape {
            grid,
            window,
            shift,
            dim,
            num_heads,
        })
    }

    /// The window along a side of so many tokens, and its shift.
    fn window_along(&self, side: usize) -> (usize, usize) {
        if side <= self.window_size {
            (side, 0)
        } else {
            (self.window_size, self.window_size / 2)
        }
    }

    /// The grid behind stage `index`, of 2 x 2 tokens each.
    fn merged(&self, index: usize, grid: Grid) -> Result<Grid> {
        if !grid.height.is_multiple_of(2) || !grid.width.is_multiple_of(2) {
            let pixels = self.pixels(index);
            return Err(self.misfit(format!(
                "multiples of {} pixels: 2 x 2 tokens of {pixels} pixels are merged behind stage {index} \
                 (multiples of {} fit every stage)",
                2 * pixels,
                self.fits_every_stage()
            )));
        }
        Ok(Grid::new(grid.height / 2, grid.width / 2))
    }

    /// Side of a token of stage `index`, in pixels.
    fn pixels(&self, index: usize) -> usize {
        self.patch_size << index
    }

    /// Pixels whose multiples are sides that fit every stage.
    fn fits_every_stage(&self) -> usize {
        (self.patch_size * self.window_size) << (self.depths.len() - 1)
    }
}
