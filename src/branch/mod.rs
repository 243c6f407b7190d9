//! How a model runs as its own sub-model.

mod drop_sub;
mod drop_token;
mod model;
mod pass;
mod patch_drop;
mod path_sub;

pub use drop_sub::DropSub;
pub use drop_token::DropToken;
pub use model::{Forward, Plain, TokenModel};
pub use pass::Pass;
pub use patch_drop::PatchDrop;
pub use path_sub::PathSub;

use candle_core::{Result, Tensor};

use crate::Mask;

/// Makes a sub-model of a model `M`: how its two branches run.
///
/// | branch | for | hides |
/// |---|---|---|
/// | [`DropToken`] | a [`TokenModel`] | tokens: the sequence gets shorter |
/// | [`PatchDrop`] | any [`Forward`] model, so any candle module through [`Plain`] | blocks of the image |
/// | [`DropSub`] | a [`Forward`] model that asks its [`Pass`] for dropout | activations |
/// | [`PathSub`] | a [`Forward`] model that asks its [`Pass`] for drop path | residual branches |
pub trait SubBranch<M: ?Sized> {
    /// The main branch: the untouched model. Logits [B, classes] of `xs` [B, ...].
    ///
    /// # Errors
    /// The model's own.
    fn main(&self, model: &M, xs: &Tensor, pass: &mut Pass) -> Result<Tensor>;

    /// The sub-branch: logits [B, classes], and the mask where there is one. `pass` is a training pass with a key,
    /// made for this branch.
    ///
    /// # Errors
    /// The model's own, and those of the branch: what it cannot hide, or a model it has no effect on.
    fn sub(&self, model: &M, xs: &Tensor, pass: &mut Pass) -> Result<(Tensor, Option<Mask>)>;
}

impl<M: ?Sized, S: SubBranch<M> + ?Sized> SubBranch<M> for Box<S> {
    fn main(&self, model: &M, xs: &Tensor, pass: &mut Pass) -> Result<Tensor> {
        (**self).main(model, xs, pass)
    }
    fn sub(&self, model: &M, xs: &Tensor, pass: &mut Pass) -> Result<(Tensor, Option<Mask>)> {
        (**self).sub(model, xs, pass)
    }
}
