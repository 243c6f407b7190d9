//! Drop tokens: the sub-branch of a transformer sees a shorter sequence.

use candle_core::{Result, Tensor};

use super::SubBranch;
use crate::error::Error;
use crate::mask::{Mask, MaskGenerator};
use crate::model::TokenModel;
use crate::pass::Pass;

/// Runs a [`TokenModel`] on the tokens that a generator keeps, dropped after the position embedding is added. At a mask
/// ratio r the sub-branch costs about (1 - r) of the main branch (MaskSub, arXiv 2306.11339, section 3).
///
/// ```
/// use masksub::{DropToken, RandomMasking};
/// let branch = DropToken::new(RandomMasking::new(0.5)?);
/// # Ok::<(), masksub::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct DropToken<G> {
    masking: G,
}

impl<G: MaskGenerator> DropToken<G> {
    /// Drops what `masking` does not keep.
    pub fn new(masking: G) -> Self {
        Self { masking }
    }
}

impl<G: MaskGenerator, M: TokenModel<O> + ?Sized, O> SubBranch<M, O> for DropToken<G> {
    fn main(&self, model: &M, xs: &Tensor, pass: &mut Pass) -> Result<O> {
        let tokens = model.embed(xs, None, pass)?;
        model.classify(&tokens, None, pass)
    }

    fn sub(&self, model: &M, xs: &Tensor, pass: &mut Pass) -> Result<(O, Option<Mask>)> {
        let key = pass.require_key("the mask")?;
        let mask = self.masking.generate(xs.dim(0)?, model.grid(xs)?, key)?;
        let tokens = model.embed(xs, Some(&mask), pass)?;
        // A model that forgets to drop would train, at full price, on nothing hidden.
        let sequence = model.num_prefix_tokens() + mask.num_keep();
        if tokens.rank() != 3 || tokens.dims()[..2] != [mask.batch(), sequence] {
            let expected = format!(
                "[{}, {sequence}, D] as TokenModel::embed returns it under this mask",
                mask.batch()
            );
            return Err(Error::shape("tokens", tokens.dims(), expected).into());
        }
        Ok((model.classify(&tokens, Some(&mask), pass)?, Some(mask)))
    }
}
