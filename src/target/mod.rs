//! Targets of the sub-branch: what it is asked to predict.

mod mutual;
mod teacher;

pub use mutual::Mutual;
pub use teacher::{MaskedTeacher, Teacher};

use candle_core::{Result, Tensor};

use crate::mask::Mask;

/// Target of the sub-branch, set by [`MaskSub::with_target`](crate::MaskSub::with_target).
///
/// | target | the sub-branch learns from | a step beside the default |
/// |---|---|---|
/// | [`MainBranch`] | the main branch: MaskSub, the default | |
/// | [`Teacher`] | another model that sees the whole input: distillation into the sub-branch; or an averaged copy of this one (`train::ema`) | a prediction more |
/// | [`MaskedTeacher`] | another model that sees what the sub-branch sees | the part of a prediction more |
/// | [`Mutual`] | the main branch, which learns from the sub-branch as well: CoSub, R-Drop | a forward pass of the sub-branch more |
#[diagnostic::on_unimplemented(
    message = "`{Self}` is no target for a sub-branch that predicts `{O}`",
    label = "does not implement `SubTarget<{O}>`",
    note = "take `MainBranch`, `Mutual`, or a model in `Teacher(..)`"
)]
pub trait SubTarget<O = Tensor> {
    /// The target for inputs `xs` `[B, ...]` of which the main branch predicts `main`, detached, and the sub-branch sees
    /// what `mask` keeps, where it masks. No gradient flows into it.
    ///
    /// # Errors
    /// Those of a model that is run.
    fn target(&self, xs: &Tensor, main: &O, mask: Option<&Mask>) -> Result<O>;

    /// Share of each branch's loss that is its distance from the other branch, where both learn from each other
    /// ([`Mutual`]); 0, where the main branch learns from the labels alone.
    fn mutual_share(&self) -> f64 {
        0.0
    }
}

impl<O, T: SubTarget<O> + ?Sized> SubTarget<O> for Box<T> {
    fn target(&self, xs: &Tensor, main: &O, mask: Option<&Mask>) -> Result<O> {
        (**self).target(xs, main, mask)
    }
    fn mutual_share(&self) -> f64 {
        (**self).mutual_share()
    }
}

/// The main branch's own prediction: what MaskSub is (arXiv 2306.11339).
///
/// ```
/// # use masksub::{DropToken, MainBranch, MaskSub, RandomMasking, SubBranch};
/// # fn of<M, S: SubBranch<M>>(model: M, branch: S) {
/// // Nothing but the default, spelt out.
/// let model = MaskSub::unchecked(model, branch).with_target(MainBranch);
/// # }
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MainBranch;

impl<O: Clone> SubTarget<O> for MainBranch {
    fn target(&self, _: &Tensor, main: &O, _: Option<&Mask>) -> Result<O> {
        Ok(main.clone())
    }
}
