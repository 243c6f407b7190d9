//! Mask tokens: the sub-branch of a model that needs all positions sees a learned token where they are hidden.

use candle_core::{Result, Tensor};

use super::SubBranch;
use crate::check;
use crate::error::Error;
use crate::grid::Grid;
use crate::mask::{name_block, Mask, MaskGenerator};
use crate::model::MaskTokenModel;
use crate::pass::Pass;

/// Runs a [`MaskTokenModel`] with the positions that a generator does not keep replaced by the model's mask token, in
/// square blocks of the image. The sequence stays as long as it is, so it costs what the main branch costs.
///
/// MaskSub (arXiv 2306.11339) does this for Swin, with blocks of 32 x 32 pixels, as SimMIM (arXiv 2111.09886) does.
///
/// ```
/// use masksub::{MaskToken, RandomMasking};
/// let branch = MaskToken::new(RandomMasking::new(0.5)?, 32)?;
/// # Ok::<(), masksub::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct MaskToken<G> {
    masking: G,
    block: usize,
}

impl<G: MaskGenerator> MaskToken<G> {
    /// Hides what `masking` does not keep of the grid of `block` x `block`-pixel blocks. `block` must divide both sides of
    /// the images, and be a multiple of the model's patch (4 pixels in a Swin), or each step is an error.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] when `block` is 0.
    pub fn new(masking: G, block: usize) -> crate::error::Result<Self> {
        check::at_least_one("block", block).map(|block| Self { masking, block })
    }
}

impl<G: MaskGenerator, M: MaskTokenModel<O> + ?Sized, O> SubBranch<M, O> for MaskToken<G> {
    fn main(&self, model: &M, xs: &Tensor, pass: &mut Pass) -> Result<O> {
        let (tokens, grid) = model.embed(xs, pass)?;
        model.classify(&tokens, grid, pass)
    }

    fn sub(&self, model: &M, xs: &Tensor, pass: &mut Pass) -> Result<(O, Option<Mask>)> {
        let key = pass.require_key("the mask")?;
        let block = self.block;
        let (batch, blocks) = super::blocks_of(xs, block)?;
        let (tokens, grid) = model.embed(xs, pass)?;
        let factor = grid.height / blocks.height;
        if factor == 0 || grid != Grid::new(blocks.height * factor, blocks.width * factor) {
            // The blocks divide the image, so this is its height over the grid's.
            let pixels = blocks.height * block / grid.height.max(1);
            let value = format!("{block} pixels, {blocks} of them over a grid of {grid} positions");
            return Err(Error::invalid("block", value, format!("a multiple of {pixels} pixels")).into());
        }
        let mask = self.masking.generate(batch, blocks, key);
        let mask = mask.map_err(|error| name_block(error, block, "pixels"))?;
        let hidden = mask.upsample(factor)?.replace(&tokens, model.mask_token())?;
        Ok((model.classify(&hidden, grid, pass)?, Some(mask)))
    }
}
