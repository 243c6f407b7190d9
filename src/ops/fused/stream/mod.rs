//! Residual branches one after the other as one operation of candle's graph.
//!
//! Between two operations candle makes zeros for a gradient and adds it to them, one thread at a time. Here the gradient
//! of the tokens goes from branch to branch in the same memory; and what a branch reads again in its backward is let go
//! once that is done, not with the whole graph.

use std::any::Any;
use std::ops::Range;

use candle_core::{Result, Tensor};

use crate::ops::autograd::{self, Backward, Operation, ParamGrads};
use crate::ops::cpu::elementwise::to_vec;

/// Tokens on their way through residual branches, which are computed together once the [tokens](Self::tokens) are asked
/// for.
pub(crate) struct Stream {
    /// Where it begins, [B, N, D].
    start: Tensor,
    branches: Vec<Branch>,
    /// Those of all branches.
    params: Vec<Tensor>,
}

impl Stream {
    pub(crate) fn new(xs: &Tensor) -> Self {
        Self {
            start: xs.clone(),
            branches: vec![],
            params: vec![],
        }
    }

    /// Where it begins: of the dtype, the device, B and D that the tokens have.
    pub(crate) fn start(&self) -> &Tensor {
        &self.start
    }

    /// N of the tokens as they are by now.
    pub(crate) fn length(&self) -> Result<usize> {
        match self.branches.last() {
            Some(branch) => Ok(branch.op.dims()[1]),
            None => self.start.dim(1),
        }
    }

    /// A further branch, of tensors that are all `f32` on the CPU and not empty.
    pub(crate) fn push(&mut self, op: Box<dyn Link>, params: &[&Tensor]) -> Result<()> {
        let is_tracked = self.start.track_op() || self.params.iter().any(Tensor::track_op);
        if !is_tracked && params.iter().any(|param| param.track_op()) {
            // Nothing before it is trained, and nothing is kept for that.
            self.tokens()?;
        }
        let first = self.params.len();
        self.params.extend(params.iter().copied().cloned());
        let params = first..self.params.len();
        self.branches.push(Branch { op, params });
        Ok(())
    }

    /// Goes on with what `f` makes of the tokens.
    pub(crate) fn then(&mut self, f: impl FnOnce(&Tensor) -> Result<Tensor>) -> Result<()> {
        *self = Self::new(&f(&self.tokens()?)?);
        Ok(())
    }

    /// The tokens behind all branches so far.
    pub(crate) fn tokens(&mut self) -> Result<Tensor> {
        let branches = std::mem::take(&mut self.branches);
        if !branches.is_empty() {
            let params = std::mem::take(&mut self.params);
            let params: Vec<_> = params.iter().collect();
            self.start = autograd::apply(Branches(branches), &self.start, &params)?;
        }
        Ok(self.start.clone())
    }
}

/// `xs`, and parameters with it.
pub(super) fn with_params<'a>(xs: &'a Tensor, params: &[&'a Tensor]) -> Vec<&'a Tensor> {
    [xs].into_iter().chain(params.iter().copied()).collect()
}

/// What a forward leaves for the backward of one branch.
type Kept = Box<dyn Any + Send>;

/// An [`Operation`] whose `Kept` is not part of its type.
pub(crate) trait Link: Send + Sync {
    fn dims(&self) -> Vec<usize>;

    /// The result, and what is kept of it.
    fn run(&self, xs: &[f32], params: &[&[f32]], keep: bool) -> Result<(Vec<f32>, Option<Kept>)>;

    /// What is kept, once more.
    fn keep_again(&self, xs: &[f32], params: &[&[f32]]) -> Result<Option<Kept>>;

    /// The gradient of the input, in the memory of `grads` where it fits.
    fn run_back(&self, of: BranchBackward, kept: Option<Kept>, param_grads: &mut ParamGrads) -> Result<Vec<f32>>;
}

/// Where the backward of a branch starts from, see [`Backward`].
pub(crate) struct BranchBackward<'a> {
    xs: &'a [f32],
    params: &'a [&'a [f32]],
    grads: Vec<f32>,
}

impl<O: Operation<Kept: 'static>> Link for O {
    fn dims(&self) -> Vec<usize> {
        self.result_dims()
    }

    fn run(&self, xs: &[f32], params: &[&[f32]], keep: bool) -> Result<(Vec<f32>, Option<Kept>)> {
        let (ys, kept) = self.forward(xs, params, keep)?;
        let kept: Option<Kept> = if keep && self.keeps() {
            Some(Box::new(kept))
        } else {
            None
        };
        Ok((ys, kept))
    }

    fn keep_again(&self, xs: &[f32], params: &[&[f32]]) -> Result<Option<Kept>> {
        if !self.keeps() {
            return Ok(None);
        }
        Ok(Some(Box::new(self.recompute(xs, params)?)))
    }

    fn run_back(&self, of: BranchBackward, kept: Option<Kept>, param_grads: &mut ParamGrads) -> Result<Vec<f32>> {
        let BranchBackward { xs, params, grads } = of;
        let kept = match kept.map(|kept| kept.downcast()) {
            Some(Ok(kept)) => *kept,
            Some(Err(_)) => candle_core::bail!("{}: what is kept is another operation's", Self::NAME),
            None => self.recompute(xs, params)?,
        };
        self.backward_in_place(xs, params, grads, kept, param_grads)
    }
}

struct Branch {
    op: Box<dyn Link>,
    /// Which of all parameters are its own.
    params: Range<usize>,
}

/// The branches of a [`Stream`], at least one.
struct Branches(Vec<Branch>);

/// What a backward reads of a branch.
struct KeptBranch {
    /// Its input, unless it is the first one.
    xs: Option<Vec<f32>>,
    kept: Option<Kept>,
}

impl Operation for Branches {
    const NAME: &'static str = "residual-branches";

    type Kept = Vec<KeptBranch>;

    fn result_dims(&self) -> Vec<usize> {
        self.0.last().map_or(vec![], |last| last.op.dims())
    }

    fn forward(&self, xs: &[f32], params: &[&[f32]], keep: bool) -> Result<(Vec<f32>, Vec<KeptBranch>)> {
        let mut all = Vec::new();
        let mut tokens: Option<Vec<f32>> = None;
        for branch in &self.0 {
            let input = tokens.as_deref().unwrap_or(xs);
            let (ys, kept) = branch.op.run(input, &params[branch.params.clone()], keep)?;
            let xs = tokens.replace(ys);
            if keep {
                all.push(KeptBranch { xs, kept });
            }
        }
        Ok((tokens.unwrap_or_default(), all))
    }

    fn recompute(&self, xs: &[f32], params: &[&[f32]]) -> Result<Vec<KeptBranch>> {
        let mut all = Vec::new();
        let mut tokens: Option<Vec<f32>> = None;
        for (i, branch) in self.0.iter().enumerate() {
            let input = tokens.as_deref().unwrap_or(xs);
            let params = &params[branch.params.clone()];
            // The last one's result is asked for by nobody.
            let (ys, kept) = if i + 1 < self.0.len() {
                let (ys, kept) = branch.op.run(input, params, true)?;
                (Some(ys), kept)
            } else {
                (None, branch.op.keep_again(input, params)?)
            };
            all.push(KeptBranch {
                xs: std::mem::replace(&mut tokens, ys),
                kept,
            });
        }
        Ok(all)
    }

    fn backward(&self, of: Backward, mut kept: Vec<KeptBranch>, param_grads: &mut ParamGrads) -> Result<Vec<f32>> {
        let mut grads = to_vec(of.grads);
        while let Some(KeptBranch { xs, kept: of_branch }) = kept.pop() {
            let Branch { op, params } = &self.0[kept.len()];
            let of = BranchBackward {
                xs: xs.as_deref().unwrap_or(of.xs),
                params: &of.params[params.clone()],
                grads,
            };
            grads = op.run_back(of, of_branch, &mut param_grads.part(params.start))?;
        }
        Ok(grads)
    }
}

#[cfg(test)]
mod tests;
