//! The frame of operations with parameters: all that candle asks for, once for all of them.

use std::sync::{Mutex, MutexGuard};

use candle_core::{CpuStorage, CustomOp2, Layout, Result, Shape, Tensor};

use super::params::TrackedParams;
use crate::ops::cpu::kernel;
use crate::ops::cpu::write::Write;

/// An operation on one input and any number of parameters, on contiguous `f32` slices.
///
/// Parameters come in the order in which they were handed to [`apply`], and have that index in [`ParamGrads`].
pub(crate) trait Operation: Send + Sync + 'static {
    /// Its name in candle's errors.
    const NAME: &'static str;

    /// What the forward leaves for the backward. The first backward lets it go; a second one
    /// [recomputes](Self::recompute) it, and so does the first of an operation that does not [keep](Self::keeps) it.
    type Kept: Send;

    /// Dimensions of the result.
    fn result_dims(&self) -> Vec<usize>;

    /// The result, and what is to be kept of it, of which no more than is at hand unless there will be a backward
    /// (`keep`).
    fn forward(&self, xs: &[f32], params: &[&[f32]], keep: bool) -> Result<(Vec<f32>, Self::Kept)>;

    /// Whether what the forward leaves is kept until the backward.
    fn keeps(&self) -> bool {
        true
    }

    /// What [`forward`](Self::forward) has kept, once more.
    fn recompute(&self, xs: &[f32], params: &[&[f32]]) -> Result<Self::Kept>;

    /// The gradient of the input, which may be empty where nobody [wants](Backward::wants_dxs) it; those of the
    /// parameters go to `param_grads`.
    fn backward(&self, of: Backward, kept: Self::Kept, param_grads: &mut ParamGrads) -> Result<Vec<f32>>;

    /// [`backward`](Self::backward) of an operation that does not look at its result again; of a residual one, in the
    /// memory of the gradients, which are a part of the input's.
    fn backward_in_place(
        &self,
        xs: &[f32],
        params: &[&[f32]],
        grads: Vec<f32>,
        kept: Self::Kept,
        param_grads: &mut ParamGrads,
    ) -> Result<Vec<f32>> {
        let of = Backward {
            xs,
            ys: &[],
            grads: &grads,
            params,
            wants_dxs: true,
        };
        self.backward(of, kept, param_grads)
    }
}

/// Where a backward starts from.
#[derive(Clone, Copy)]
pub(crate) struct Backward<'a> {
    pub(crate) xs: &'a [f32],
    /// The result.
    pub(crate) ys: &'a [f32],
    /// The gradient of the result.
    pub(crate) grads: &'a [f32],
    pub(crate) params: &'a [&'a [f32]],
    /// Whether the gradient of the input is asked for.
    pub(crate) wants_dxs: bool,
}

/// Where the gradients of the parameters go.
pub(crate) struct ParamGrads<'a> {
    params: &'a TrackedParams,
    /// The operation's result in this backward.
    node: &'a Tensor,
    /// Of all parameters.
    grads: &'a mut [Option<Tensor>],
    /// From which of them indices count.
    first: usize,
}

impl ParamGrads<'_> {
    /// Those of the parameters from `first` on, which has index 0 there: for a part of an operation.
    pub(crate) fn part(&mut self, first: usize) -> ParamGrads<'_> {
        ParamGrads {
            grads: self.grads,
            first: self.first + first,
            ..*self
        }
    }

    /// Whether there is such a parameter, and its gradient is asked for.
    pub(crate) fn wants(&self, index: usize) -> bool {
        self.params.wants(self.first + index)
    }

    /// Has the gradient of a parameter written, or added to an earlier one, where it is asked for.
    pub(crate) fn write(&mut self, index: usize, write: impl FnOnce(&mut [f32], Write)) -> Result<()> {
        let index = self.first + index;
        if let Some(gradient) = self.params.gradient(index, self.node, write)? {
            self.grads[index] = Some(gradient);
        }
        Ok(())
    }

    /// As [`write`](Self::write), while `beside` is computed by the threads that are free: for a large gradient and a
    /// product that does not need it. Neither then keeps the other's threads waiting.
    pub(crate) fn write_beside(
        &mut self,
        index: usize,
        beside: impl FnOnce() + Send,
        write: impl FnOnce(&mut [f32], Write) + Send,
    ) -> Result<()> {
        if !self.wants(index) {
            beside();
            return Ok(());
        }
        self.write(index, |out, how| {
            rayon::join(|| write(out, how), beside);
        })
    }

    /// Takes the gradient of a parameter, where it is asked for: for what is at hand with others anyway.
    pub(crate) fn set(&mut self, index: usize, gradient: Vec<f32>) -> Result<()> {
        let index = self.first + index;
        if self.params.wants(index) {
            self.grads[index] = Some(kernel::tensor(gradient, self.params.tensors()[index].dims())?);
        }
        Ok(())
    }
}

/// The result of `op` on `xs` and `params`, all `f32` on the CPU, as a part of candle's graph.
pub(crate) fn apply<O: Operation>(op: O, xs: &Tensor, params: &[&Tensor]) -> Result<Tensor> {
    let (edge, params) = TrackedParams::new(params)?;
    let node = Node {
        keep: op.keeps() && (xs.track_op() || edge.track_op()),
        op,
        params,
        kept: Mutex::new(None),
    };
    let mut xs = xs.contiguous()?;
    // candle holds the input's lock while the parameters' are taken, and none may be taken twice (see `with_elements`).
    let mut params = node.params.tensors().iter();
    if params.any(|param| kernel::same_storage(&xs, param)) {
        xs = xs.force_contiguous()?;
    }
    xs.apply_op2(&edge, node)
}

/// An operation as candle sees it: of the input and the edge that comes from the parameters.
struct Node<O: Operation> {
    op: O,
    params: TrackedParams,
    /// Whether there will be a backward that finds what the forward leaves.
    keep: bool,
    kept: Mutex<Option<O::Kept>>,
}

impl<O: Operation> Node<O> {
    fn kept(&self) -> MutexGuard<'_, Option<O::Kept>> {
        // Nothing panics while it holds the lock.
        self.kept.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

impl<O: Operation> CustomOp2 for Node<O> {
    fn name(&self) -> &'static str {
        O::NAME
    }

    fn cpu_fwd(&self, s1: &CpuStorage, l1: &Layout, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        let xs = kernel::elements(s1, l1)?;
        let params: Vec<_> = self.params.tensors().iter().collect();
        let (ys, kept) = kernel::with_elements(&params, |params| self.op.forward(xs, params, self.keep))?;
        *self.kept() = self.keep.then_some(kept);
        Ok((CpuStorage::F32(ys), self.op.result_dims().into()))
    }

    fn bwd(
        &self,
        xs: &Tensor,
        edge: &Tensor,
        node: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let grad = grad.contiguous()?;
        let tensors: Vec<_> = [xs, node, &grad].into_iter().chain(self.params.tensors()).collect();
        let mut grads = vec![None; self.params.tensors().len()];
        let mut param_grads = ParamGrads {
            params: &self.params,
            node,
            grads: &mut grads,
            first: 0,
        };
        let dxs = kernel::with_elements(&tensors, |slices| {
            let Some((&[x, y, g], params)) = slices.split_first_chunk() else {
                candle_core::bail!("a backward of masksub was called without its input, its result or its gradient");
            };
            let kept = self.kept().take();
            let kept = match kept {
                Some(kept) => kept,
                None => self.op.recompute(x, params)?,
            };
            let of = Backward {
                xs: x,
                ys: y,
                grads: g,
                params,
                wants_dxs: xs.track_op(),
            };
            self.op.backward(of, kept, &mut param_grads)
        })?;
        let dxs = if xs.track_op() {
            Some(kernel::tensor(dxs, xs.dims())?)
        } else {
            None
        };
        let of_edge = if edge.track_op() {
            Some(self.params.leave(grads)?)
        } else {
            None
        };
        Ok((dxs, of_edge))
    }
}

#[cfg(test)]
mod tests;
