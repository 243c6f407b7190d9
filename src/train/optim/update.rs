//! One step over all parameters, in parallel and in their memory.
//!
//! Weights are locked on threads of the step's own, for the reason that [`on_own_threads`] has.

use candle_core::Tensor;

use super::in_place::with_elements;
#[cfg(feature = "cuda")]
use super::on_cuda;
use super::rule::private::{Piece, Update, UpdateSettings};
use super::slot::Slot;
use crate::error::Result;
use crate::ops::{on_own_threads, own_threads, Elements};

/// Elements of one piece of work. How parameters are cut depends on their lengths only, so that sums over pieces do not
/// depend on the number of threads.
const PIECE: usize = 32 * 1024;

/// Updates parameters from their gradients, which share no memory with them.
pub(super) fn update(rule: &dyn Update, grad_scale: f64, due: Vec<(&mut Slot, Tensor)>) -> Result<()> {
    let mut in_memory = Vec::with_capacity(due.len());
    #[cfg(feature = "cuda")]
    let mut cuda = vec![];
    for (slot, grad) in due {
        slot.steps += 1;
        let settings = UpdateSettings {
            lr: rule.lr() * slot.lr_scale,
            weight_decay: if slot.decays { rule.weight_decay() } else { 0.0 },
            step: slot.steps,
            grad_scale,
        };
        if slot.var.elem_count() == 0 {
            continue;
        }
        if slot.in_memory() {
            let slot = &*slot;
            in_memory.push(Job { slot, grad, settings });
            continue;
        }
        #[cfg(feature = "cuda")]
        if on_cuda::takes(rule, slot, &grad) {
            let slot = &*slot;
            cuda.push(Job { slot, grad, settings });
            continue;
        }
        slot.compose(rule, &settings, &grad)?;
        slot.round()?;
    }
    #[cfg(feature = "cuda")]
    on_cuda::update(rule, &cuda)?;
    update_in_memory(rule, &in_memory)?;
    in_memory.iter().try_for_each(|job| job.slot.round())
}

/// Updates what is due: every thread takes one parameter after the other, but one with more than a thread's share of all
/// elements is shared by all of them.
fn update_in_memory(rule: &dyn Update, jobs: &[Job]) -> Result<()> {
    let elements: usize = jobs.iter().map(Job::elements).sum();
    let threads = own_threads(elements);
    let is_large = |job: &&Job| threads > 1 && job.elements() > elements / threads;
    for job in jobs.iter().filter(is_large) {
        job.run(rule, threads)?;
    }
    let mut rest: Vec<_> = jobs
        .iter()
        .filter(|job| !is_large(job))
        .map(|job| (job, Ok(())))
        .collect();
    // Large ones first, so that all threads end together.
    rest.sort_by_key(|(job, _)| std::cmp::Reverse(job.elements()));
    let elements: usize = rest.iter().map(|(job, _)| job.elements()).sum();
    on_own_threads(&mut rest, own_threads(elements), |(job, result)| {
        *result = job.run(rule, 1);
    });
    rest.into_iter().try_for_each(|(_, result)| result)
}

/// One parameter's update.
pub(super) struct Job<'a> {
    pub(super) slot: &'a Slot,
    pub(super) grad: Tensor,
    pub(super) settings: UpdateSettings,
}

impl Job<'_> {
    fn elements(&self) -> usize {
        self.grad.elem_count()
    }

    fn run(&self, rule: &dyn Update, threads: usize) -> Result<()> {
        let grads = Elements::of(&self.grad)?;
        let tensors: Vec<_> = std::iter::once(self.slot.weights()).chain(&self.slot.buffers).collect();
        Ok(with_elements(&tensors, |slices| {
            let mut slices = slices.into_iter().map(|slice| slice.chunks_mut(PIECE));
            let Some(weights) = slices.next() else { return };
            let mut buffers: Vec<_> = slices.collect();
            let pieces = weights.zip(grads.chunks(PIECE)).map(|(weights, grads)| {
                let buffers = buffers.iter_mut().filter_map(Iterator::next).collect();
                let piece = Piece {
                    weights,
                    grads,
                    buffers,
                };
                (piece, [0.0; 2])
            });
            let mut pieces: Vec<_> = pieces.collect();
            on_own_threads(&mut pieces, threads, |(piece, sums)| {
                *sums = rule.first_pass(&self.settings, piece);
            });
            if rule.has_second_pass() {
                let add = |[a, b]: [f64; 2], (_, [c, d]): &(Piece, [f64; 2])| [a + c, b + d];
                let sums = pieces.iter().fold([0.0; 2], add);
                on_own_threads(&mut pieces, threads, |(piece, _)| {
                    rule.second_pass(&self.settings, sums, piece);
                });
            }
        })?)
    }
}
