//! The parameters of an operation as inputs of candle's graph.
//!
//! Each parameter is the input of a [`ParamNode`], whose result is a single number, the edge, that goes on from one
//! parameter's node to the next and at last to the operation proper. Backwards the operation computes all gradients at
//! once, leaves them [`Pending`] under the number of this pass, and returns that number as the gradient of the edge;
//! node after node then takes the gradient of its parameter. So every gradient arrives in candle's `GradStore` as any
//! other.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::{self, ThreadId};

use candle_core::{CpuStorage, CustomOp2, DType, Device, Layout, Result, Shape, Tensor};

use super::accumulator;
use super::in_place::write_into;
use crate::ops::cpu::kernel;
use crate::ops::cpu::write::Write;

/// The gradients of all backward passes through one operation that wait to be taken, by the number of their pass: of
/// two passes through the same graph, be it at the same time, each finds its own.
#[derive(Default)]
struct Pending {
    /// The number of the last pass. It travels as an `f32`, which counts exactly to 2^24.
    last_pass: u32,
    /// The oldest first.
    passes: VecDeque<PendingBackward>,
}

/// The gradients of one backward pass, by the parameters' indices.
struct PendingBackward {
    number: u32,
    /// A backward is one thread's from beginning to end.
    thread: ThreadId,
    gradients: HashMap<usize, Tensor>,
}

/// Passes of one thread through the same graph whose gradients may wait at the same time. What is left of others was
/// never asked for: their backward failed, or candle's does not visit a parameter (one that is rounded, say). How many
/// passes other threads make meanwhile does not matter: this one's may have to wait for the processor.
const MOST_PENDING: usize = 64;

/// The parameters of an operation, and where it leaves their gradients.
pub(super) struct TrackedParams {
    params: Vec<Tensor>,
    pending: Arc<Mutex<Pending>>,
}

impl TrackedParams {
    /// The edge, to be made an input of the operation, and the parameters, to be kept in it. They are on the CPU.
    pub(super) fn new(params: &[&Tensor]) -> Result<(Tensor, Self)> {
        let pending = Arc::new(Mutex::new(Pending::default()));
        let mut edge = Tensor::zeros((), DType::F32, &Device::Cpu)?;
        for (index, param) in params.iter().enumerate().filter(|(_, param)| param.track_op()) {
            let pending = pending.clone();
            edge = param.apply_op2(&edge, ParamNode { index, pending })?;
        }
        let params = params.iter().map(|param| param.contiguous()).collect::<Result<_>>()?;
        Ok((edge, Self { params, pending }))
    }

    /// The parameters, contiguous, in the order in which they were given.
    pub(super) fn tensors(&self) -> &[Tensor] {
        &self.params
    }

    /// Whether there is such a parameter, and its gradient is asked for.
    pub(super) fn wants(&self, index: usize) -> bool {
        self.params.get(index).is_some_and(Tensor::track_op)
    }

    /// The gradient of a parameter, where it is asked for. `write` writes it to fresh memory; or, where the backward
    /// that goes through `node` [accumulates](accumulator) and has an earlier one of this parameter, adds it to that.
    pub(super) fn gradient(
        &self,
        index: usize,
        node: &Tensor,
        write: impl FnOnce(&mut [f32], Write),
    ) -> Result<Option<Tensor>> {
        let Some(param) = self.params.get(index).filter(|param| param.track_op()) else {
            return Ok(None);
        };
        if let Some(earlier) = accumulator::take(param, node) {
            write_into(&earlier, |elements| write(elements, Write::Add))?;
            return Ok(Some(earlier));
        }
        let mut elements = vec![0f32; param.elem_count()];
        write(&mut elements, Write::Replace);
        Ok(Some(kernel::tensor(elements, param.dims())?))
    }

    /// Leaves the gradients of a backward pass, in the order of the parameters, to be taken; returns the gradient of
    /// the edge. Those that nobody waits for are dropped.
    pub(super) fn leave(&self, gradients: Vec<Option<Tensor>>) -> Result<Tensor> {
        let gradients = gradients
            .into_iter()
            .enumerate()
            .filter(|&(index, _)| self.wants(index));
        let gradients = gradients
            .filter_map(|(index, gradient)| Some((index, gradient?)))
            .collect();
        Tensor::new(lock(&self.pending).leave(gradients) as f32, &Device::Cpu)
    }
}

impl Pending {
    /// Keeps the gradients of a pass until they are taken; returns its number.
    fn leave(&mut self, gradients: HashMap<usize, Tensor>) -> u32 {
        self.last_pass = (self.last_pass + 1) % (1 << 24);
        let thread = thread::current().id();
        let mut of_thread = (0..self.passes.len()).filter(|&i| self.passes[i].thread == thread);
        if let (Some(oldest), true) = (of_thread.next(), of_thread.count() + 1 >= MOST_PENDING) {
            self.passes.remove(oldest);
        }
        let number = self.last_pass;
        // Left there by a pass of 2^24 passes ago.
        self.passes.retain(|earlier| earlier.number != number);
        self.passes.push_back(PendingBackward {
            number,
            thread,
            gradients,
        });
        number
    }

    fn take(&mut self, number: u32, index: usize) -> Option<Tensor> {
        let place = self.passes.iter().position(|pass| pass.number == number)?;
        let gradients = &mut self.passes.get_mut(place)?.gradients;
        let gradient = gradients.remove(&index);
        if gradients.is_empty() {
            self.passes.remove(place);
        }
        gradient
    }
}

fn lock(pending: &Mutex<Pending>) -> MutexGuard<'_, Pending> {
    // Nothing panics while it holds the lock.
    pending.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

/// The node of one parameter.
struct ParamNode {
    index: usize,
    pending: Arc<Mutex<Pending>>,
}

impl CustomOp2 for ParamNode {
    fn name(&self) -> &'static str {
        "param"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        Ok((CpuStorage::F32(vec![0.0]), ().into()))
    }

    fn bwd(
        &self,
        param: &Tensor,
        edge: &Tensor,
        node: &Tensor,
        number: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let Some(gradient) = lock(&self.pending).take(number.to_scalar::<f32>()? as u32, self.index) else {
            candle_core::bail!("a gradient of one of masksub's operations was asked for before it was computed");
        };
        let edge = edge.track_op().then(|| number.clone());
        Ok((accumulator::push(param, node, gradient)?, edge))
    }
}

#[cfg(test)]
mod tests;
