//! Patch drop: the sub-branch of any model sees an image with blocks hidden.

use candle_core::{Result, Tensor};

use super::SubBranch;
use crate::check;
use crate::mask::{name_block, Fill, Mask, MaskGenerator};
use crate::model::Forward;
use crate::pass::Pass;

/// Runs any model on images `[B, C, H, W]` in which the blocks that a generator does not keep are filled, with 0 unless
/// told otherwise. It costs what the main branch costs: the image stays as large as it is.
///
/// MaskSub (arXiv 2306.11339) does this for ResNet, with blocks of 32 x 32 pixels set to 0 after normalisation.
///
/// ```
/// use masksub::{Fill, PatchDrop, RandomMasking};
/// let branch = PatchDrop::new(RandomMasking::new(0.5)?, 32)?.with_fill(Fill::Mean);
/// # Ok::<(), masksub::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct PatchDrop<G> {
    masking: G,
    block: usize,
    fill: Fill,
    running_statistics: bool,
}

impl<G: MaskGenerator> PatchDrop<G> {
    /// Hides what `masking` does not keep of the grid of `block` x `block`-pixel blocks. `block` must divide both sides of
    /// the images, or each step is an error; for a model with patches take a multiple of theirs, so that none is hidden in
    /// part.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`](crate::Error::InvalidArgument) when `block` is 0.
    pub fn new(masking: G, block: usize) -> crate::error::Result<Self> {
        Ok(Self {
            masking,
            block: check::at_least_one("block", block)?,
            fill: Fill::Zero,
            running_statistics: true,
        })
    }

    /// Fills hidden blocks with something else than 0.
    pub fn with_fill(self, fill: Fill) -> Self {
        Self { fill, ..self }
    }

    /// Keeps the sub pass from updating running statistics that a model stages in its [`Pass`], as ours do: they then are
    /// those of whole images only. By default both passes update them, as the paper's authors do. Without effect on
    /// candle's own batch norms, which write theirs themselves.
    pub fn without_running_statistics(self) -> Self {
        Self {
            running_statistics: false,
            ..self
        }
    }
}

impl<G: MaskGenerator, M: Forward<O> + ?Sized, O> SubBranch<M, O> for PatchDrop<G> {
    fn main(&self, model: &M, xs: &Tensor, pass: &mut Pass) -> Result<O> {
        model.forward_pass(xs, pass)
    }

    fn sub(&self, model: &M, xs: &Tensor, pass: &mut Pass) -> Result<(O, Option<Mask>)> {
        let key = pass.require_key("the mask")?;
        let (batch, blocks) = super::blocks_of(xs, self.block)?;
        let mask = self.masking.generate(batch, blocks, key);
        let mask = mask.map_err(|error| name_block(error, self.block, "pixels"))?;
        let hidden = mask.fill(xs, &self.fill, key)?;
        let logits = model.forward_pass(&hidden, pass)?;
        if !self.running_statistics {
            pass.forget_running();
        }
        Ok((logits, Some(mask)))
    }
}
