//! PathSub: the sub-branch is the model under stochastic depth.

use candle_core::{Result, Tensor};

use super::SubBranch;
use crate::check;
use crate::error::Error;
use crate::mask::Mask;
use crate::model::Forward;
use crate::pass::Pass;

/// Runs the model with stochastic depth at `rate` in every residual branch for which it asks its [`Pass`], in the place
/// of its recipe's rates (MaskSub, arXiv 2306.11339, section 4). The main branch keeps the recipe's.
#[derive(Clone, Copy, Debug)]
pub struct PathSub {
    rate: f64,
}

impl PathSub {
    /// Drop path at `rate` in the sub-branch.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] when `rate` is NaN or outside [0, 1).
    pub fn new(rate: f64) -> crate::error::Result<Self> {
        check::rate("rate", rate).map(|rate| Self { rate })
    }
}

impl<M: Forward<O> + ?Sized, O> SubBranch<M, O> for PathSub {
    fn main(&self, model: &M, xs: &Tensor, pass: &mut Pass) -> Result<O> {
        model.forward_pass(xs, pass)
    }

    fn sub(&self, model: &M, xs: &Tensor, pass: &mut Pass) -> Result<(O, Option<Mask>)> {
        pass.impose_drop_path(self.rate)?;
        let logits = model.forward_pass(xs, pass)?;
        if pass.drop_path_sites() == 0 {
            return Err(Error::BranchWithoutEffect {
                branch: "PathSub",
                what: "drop path",
            }
            .into());
        }
        Ok((logits, None))
    }
}
