//! Dropped tokens of sequences: the sub-branch of a text encoder sees a shorter sequence.

use candle_core::{Result, Tensor};

use super::SubBranch;
use crate::mask::{Mask, MaskGenerator};
use crate::model::SequenceModel;
use crate::pass::Pass;

/// Runs a [`SequenceModel`] on the tokens that a generator keeps of each sample, and those that must stay: the ratio is of
/// each sample's own tokens, and padding is never kept. As [`DropToken`](crate::DropToken) does for images, whose samples
/// all have as many positions.
///
/// `cargo run --release --example text_encoder` trains one.
///
/// ```
/// use masksub::{RandomMasking, SequenceDrop};
/// let branch = SequenceDrop::new(RandomMasking::new(0.5)?);
/// # Ok::<(), masksub::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct SequenceDrop<G> {
    masking: G,
}

impl<G: MaskGenerator> SequenceDrop<G> {
    /// Drops what `masking` does not keep of the tokens that may be dropped.
    pub fn new(masking: G) -> Self {
        Self { masking }
    }
}

impl<G: MaskGenerator, M: SequenceModel<O> + ?Sized, O> SubBranch<M, O> for SequenceDrop<G> {
    fn main(&self, model: &M, xs: &Tensor, pass: &mut Pass) -> Result<O> {
        model.forward_kept(xs, &model.sequences(xs)?.whole(), pass)
    }

    fn sub(&self, model: &M, xs: &Tensor, pass: &mut Pass) -> Result<(O, Option<Mask>)> {
        let key = pass.require_key("the mask")?;
        let mask = model.sequences(xs)?.draw(&self.masking, key)?;
        Ok((model.forward_kept(xs, &mask, pass)?, Some(mask)))
    }
}
