//! Block masking: random masking of square blocks of positions.

use super::random::name_block;
use super::{Mask, MaskGenerator, MaskRatio, RandomMasking};
use crate::check;
use crate::error::Result;
use crate::grid::Grid;
use crate::key::StepKey;

/// Keeps or drops blocks of `block` x `block` positions as a whole, each set of blocks as likely as any other, exactly
/// as many in every sample. Grids of any shape will do whose sides are multiples of the block.
///
/// A position is what the branch draws masks of: a token under [`DropToken`](crate::DropToken), so that 4 is 64 pixels of a
/// ViT with patches of 16; a whole block of pixels under [`PatchDrop`](crate::PatchDrop) and
/// [`MaskToken`](crate::MaskToken), which make blocks of their own and mostly want [`RandomMasking`].
///
/// ```
/// use masksub::{BlockMasking, Grid, MaskGenerator, Seed};
/// let mask = BlockMasking::new(0.5, 4)?.generate(1, Grid::new(8, 16), Seed::new(0).at(0))?;
/// assert_eq!(mask.num_keep(), 4 * 16);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug)]
pub struct BlockMasking {
    blocks: RandomMasking,
    block: usize,
}

impl BlockMasking {
    /// Masks the share `mask_ratio` of all blocks of `block` x `block` positions.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`](crate::Error::InvalidArgument) when `mask_ratio` is NaN or outside [0, 1), or `block`
    /// is 0.
    pub fn new(mask_ratio: f64, block: usize) -> Result<Self> {
        Self::with_ratio(MaskRatio::fixed(mask_ratio)?, block)
    }

    /// Masks a share that may be drawn in every step.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`](crate::Error::InvalidArgument) when `block` is 0.
    pub fn with_ratio(mask_ratio: MaskRatio, block: usize) -> Result<Self> {
        Ok(Self {
            blocks: RandomMasking::with_ratio(mask_ratio),
            block: check::at_least_one("block", block)?,
        })
    }
}

impl MaskGenerator for BlockMasking {
    fn generate(&self, batch: usize, grid: Grid, key: StepKey) -> candle_core::Result<Mask> {
        let blocks = self.blocks.generate(batch, grid.divided_by(self.block)?, key);
        let blocks = blocks.map_err(|error| name_block(error, self.block, "positions"))?;
        Ok(blocks.upsample(self.block)?)
    }
}
