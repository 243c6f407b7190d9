//! Mask-only: the paper's failing baseline, in which nothing but what masking leaves is seen and the labels are taught.

use candle_core::{Result, Tensor};
use masksub::{Mask, Pass, SubBranch};

/// In training the main branch is what `S` makes the sub-branch; in evaluation it is the untouched model. For a
/// `MaskSub` with weight 0.
pub struct MaskOnly<S>(pub S);

impl<M, S: SubBranch<M>> SubBranch<M> for MaskOnly<S> {
    fn main(&self, model: &M, xs: &Tensor, pass: &mut Pass) -> Result<Tensor> {
        match pass.is_train() {
            true => self.0.sub(model, xs, pass).map(|(logits, _)| logits),
            false => self.0.main(model, xs, pass),
        }
    }

    fn sub(&self, model: &M, xs: &Tensor, pass: &mut Pass) -> Result<(Tensor, Option<Mask>)> {
        self.0.sub(model, xs, pass)
    }
}
