//! One step over all parameters, in parallel and in their memory.
//!
//! Who predicts on another thread holds read locks on several weights and waits for rayon's threads. So who writes
//! holds the lock of one weight at a time, on the calling thread, and waits for nobody meanwhile but for threads of its
//! own.

use std::sync::Mutex;
use std::thread;

use candle_core::Tensor;

use super::in_place::with_elements;
use super::rule::private::{Piece, Update, UpdateSettings};
use super::slot::Slot;
use crate::error::Result;
use crate::ops::Elements;

/// Elements of one piece of work. How parameters are cut depends on their lengths only, so that sums over pieces do not
/// depend on the number of threads.
const PIECE: usize = 32 * 1024;

/// Pieces for which a thread is worth starting.
const FEWEST: usize = 8;

/// Updates parameters from their gradients, which share no memory with them.
pub(super) fn update(rule: &dyn Update, grad_scale: f64, due: Vec<(&mut Slot, Tensor)>) -> Result<()> {
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
            update_in_memory(rule, &settings, slot, &grad)?;
        } else {
            slot.compose(rule, &settings, &grad)?;
        }
        slot.round()?;
    }
    Ok(())
}

fn update_in_memory(rule: &dyn Update, settings: &UpdateSettings, slot: &Slot, grad: &Tensor) -> Result<()> {
    let grads = Elements::of(grad)?;
    let tensors: Vec<_> = std::iter::once(slot.weights()).chain(&slot.buffers).collect();
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
        in_parallel(&mut pieces, |(piece, sums)| *sums = rule.first_pass(settings, piece));
        if rule.has_second_pass() {
            let add = |[a, b]: [f64; 2], (_, [c, d]): &(Piece, [f64; 2])| [a + c, b + d];
            let sums = pieces.iter().fold([0.0; 2], add);
            in_parallel(&mut pieces, |(piece, _)| rule.second_pass(settings, sums, piece));
        }
    })?)
}

/// Calls `f` with each of `pieces`, on this thread and on others that do nothing else.
fn in_parallel<T: Send>(pieces: &mut [T], f: impl Fn(&mut T) + Sync) {
    // As many as rayon is told to have, whose threads do the rest of a step.
    let threads = rayon::current_num_threads().min(pieces.len().div_ceil(FEWEST));
    let rest = Mutex::new(pieces.iter_mut());
    let work = || {
        let next = || rest.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).next();
        while let Some(piece) = next() {
            f(piece);
        }
    };
    thread::scope(|scope| {
        for _ in 1..threads {
            // A thread that cannot be had leaves its share to the others.
            let _ = thread::Builder::new().spawn_scoped(scope, work);
        }
        work();
    });
}
