//! How a model runs as its own sub-model.

mod drop_sub;
mod drop_token;
mod mask_token;
mod patch_drop;
mod path_sub;
mod sequence_drop;

pub use drop_sub::DropSub;
pub use drop_token::DropToken;
pub use mask_token::MaskToken;
pub use patch_drop::PatchDrop;
pub use path_sub::PathSub;
pub use sequence_drop::SequenceDrop;

use candle_core::{Result, Tensor};

use crate::error::Error;
use crate::grid::Grid;
use crate::mask::Mask;
use crate::pass::Pass;

/// Makes a sub-model of a model `M`: how its two branches run.
///
/// | branch | for | hides |
/// |---|---|---|
/// | [`DropToken`] | a [`TokenModel`](crate::TokenModel) | tokens: the sequence gets shorter |
/// | [`SequenceDrop`] | a [`SequenceModel`](crate::SequenceModel) | tokens of samples that differ in length |
/// | [`MaskToken`] | a [`MaskTokenModel`](crate::MaskTokenModel) | blocks of positions, behind a learned token |
/// | [`PatchDrop`] | any [`Forward`](crate::Forward) model, so any candle module through [`Plain`](crate::Plain) | blocks of the image |
/// | [`DropSub`] | a [`Forward`](crate::Forward) model that asks its [`Pass`] for dropout | activations |
/// | [`PathSub`] | a [`Forward`](crate::Forward) model that asks its [`Pass`] for drop path | residual branches |
///
/// One of your own:
///
/// ```
/// use candle_core::{Result, Tensor};
/// use masksub::{Forward, Mask, Pass, SubBranch};
///
/// /// The sub-branch sees images at half the contrast.
/// struct Faint;
///
/// impl<M: Forward> SubBranch<M> for Faint {
///     fn main(&self, model: &M, images: &Tensor, pass: &mut Pass) -> Result<Tensor> {
///         model.forward_pass(images, pass)
///     }
///
///     fn sub(&self, model: &M, images: &Tensor, pass: &mut Pass) -> Result<(Tensor, Option<Mask>)> {
///         Ok((model.forward_pass(&(images * 0.5)?, pass)?, None))
///     }
/// }
/// ```
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot make a sub-model of `{M}`",
    label = "does not implement `SubBranch<{M}>`",
    note = "`DropToken` is for a `TokenModel` (a ViT), `SequenceDrop` for a `SequenceModel` (text), `MaskToken` for a \
            `MaskTokenModel` (a Swin), `PatchDrop`, `DropSub` and `PathSub` for any `Forward`; a candle `Module` becomes one by \
            `MaskSub::wrap(module, PatchDrop::new(..)?)`"
)]
pub trait SubBranch<M: ?Sized, O = Tensor> {
    /// The main branch: the untouched model. Its logits of `xs` `[B, ...]`.
    ///
    /// # Errors
    /// The model's own.
    fn main(&self, model: &M, xs: &Tensor, pass: &mut Pass) -> Result<O>;

    /// The sub-branch: logits, and the mask where there is one. `pass` is a training pass with a key,
    /// made for this branch.
    ///
    /// # Errors
    /// The model's own, and those of the branch: what it cannot hide, or a model it has no effect on.
    fn sub(&self, model: &M, xs: &Tensor, pass: &mut Pass) -> Result<(O, Option<Mask>)>;
}

impl<M: ?Sized, O, S: SubBranch<M, O> + ?Sized> SubBranch<M, O> for Box<S> {
    fn main(&self, model: &M, xs: &Tensor, pass: &mut Pass) -> Result<O> {
        (**self).main(model, xs, pass)
    }
    fn sub(&self, model: &M, xs: &Tensor, pass: &mut Pass) -> Result<(O, Option<Mask>)> {
        (**self).sub(model, xs, pass)
    }
}

/// B, and the grid of `block` x `block`-pixel blocks that tile `images` `[B, C, H, W]`.
///
/// # Errors
/// [`Error::Shape`] when the sides are no positive multiples of `block`; it names the block.
fn blocks_of(images: &Tensor, block: usize) -> crate::error::Result<(usize, Grid)> {
    match *images.dims() {
        [b, _, h, w] if h > 0 && w > 0 && h.is_multiple_of(block) && w.is_multiple_of(block) => {
            Ok((b, Grid::new(h / block, w / block)))
        }
        _ => {
            let expected = format!("[B, C, H, W] with H and W multiples of the block, {block} pixels");
            Err(Error::shape("images", images.dims(), expected))
        }
    }
}
