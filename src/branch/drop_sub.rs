//! DropSub: the sub-branch is the model under dropout.

use candle_core::{Result, Tensor};

use super::SubBranch;
use crate::check;
use crate::error::Error;
use crate::mask::Mask;
use crate::model::Forward;
use crate::pass::Pass;

/// Runs the model with dropout at `rate` wherever it asks its [`Pass`] for dropout, in the place of its recipe's rate
/// (MaskSub, arXiv 2306.11339, section 4). The main branch keeps the recipe's.
#[derive(Clone, Copy, Debug)]
pub struct DropSub {
    rate: f64,
}

impl DropSub {
    /// Dropout at `rate` in the sub-branch.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] when `rate` is NaN or outside [0, 1).
    pub fn new(rate: f64) -> crate::error::Result<Self> {
        check::rate("rate", rate).map(|rate| Self { rate })
    }
}

impl<M: Forward<O> + ?Sized, O> SubBranch<M, O> for DropSub {
    fn main(&self, model: &M, xs: &Tensor, pass: &mut Pass) -> Result<O> {
        model.forward_pass(xs, pass)
    }

    fn sub(&self, model: &M, xs: &Tensor, pass: &mut Pass) -> Result<(O, Option<Mask>)> {
        pass.impose_dropout(self.rate)?;
        let logits = model.forward_pass(xs, pass)?;
        if pass.dropout_sites() == 0 {
            return Err(Error::BranchWithoutEffect {
                branch: "DropSub",
                what: "dropout",
            }
            .into());
        }
        Ok((logits, None))
    }
}
