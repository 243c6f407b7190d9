//! Work that needs locks on tensors, on threads of its own.
//!
//! Who predicts holds read locks on several weights at once and waits for rayon's threads meanwhile. Were one of those to
//! wait for a lock that is held so, nothing would ever move again. So who locks one weight after the other in parallel
//! does it here, holds the lock of one weight at a time (an optimizer those of its gradient and its state, too, which
//! nobody else takes), and while it does waits for nobody but threads of its own, which take no lock.

use std::sync::Mutex;
use std::thread;

use candle_core::{Result, Tensor};

use super::Elements;
use crate::ops::route::on_cpu_f32;

/// Calls `f` with each of `items`, on this thread and on others that are started for it.
pub(crate) fn on_own_threads<T: Send>(items: &mut [T], threads: usize, f: impl Fn(&mut T) + Sync) {
    let threads = threads.min(items.len());
    let rest = Mutex::new(items.iter_mut());
    let work = || {
        let next = || rest.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).next();
        while let Some(item) = next() {
            f(item);
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

/// Number of threads for work on so many elements, each of which costs about as much as to read it: as many as rayon is
/// told to have, whose threads do the rest of a step, but none that is not worth starting.
pub(crate) fn own_threads(elements: usize) -> usize {
    const FEWEST: usize = 256 * 1024;
    rayon::current_num_threads().min(elements.div_ceil(FEWEST))
}

/// A value of each of `tensors`: `gather` of its pieces' values, which are computed in parallel, where it is f32 on the
/// CPU, and `composition` of it elsewhere.
pub(crate) fn map_tensors<P: Send, T>(
    tensors: &[&Tensor],
    piece: impl Fn(&[f32]) -> P + Sync,
    gather: impl Fn(Vec<P>) -> T,
    composition: impl Fn(&Tensor) -> Result<T>,
) -> Result<Vec<T>> {
    let here = tensors.iter().filter(|tensor| on_cpu_f32(&[tensor]));
    let slices = here.map(|tensor| tensor.contiguous()).collect::<Result<Vec<_>>>()?;
    let mut pieces = map_pieces(&slices, piece)?.into_iter();
    let values = tensors.iter().map(|tensor| {
        let pieces = if on_cpu_f32(&[tensor]) { pieces.next() } else { None };
        pieces.map_or_else(|| composition(tensor), |pieces| Ok(gather(pieces)))
    });
    values.collect()
}

/// `f` of pieces of `tensors`, contiguous f32 on the CPU, in parallel: the results tensor by tensor, in the pieces'
/// order.
fn map_pieces<T: Send>(tensors: &[Tensor], f: impl Fn(&[f32]) -> T + Sync) -> Result<Vec<Vec<T>>> {
    const PIECE: usize = 64 * 1024;
    let total: usize = tensors.iter().map(|tensor| tensor.elem_count()).sum();
    let mut pieces = Vec::with_capacity(total / PIECE + tensors.len());
    for (i, tensor) in tensors.iter().enumerate() {
        pieces.extend(
            (0..tensor.elem_count())
                .step_by(PIECE)
                .map(|start| (i, tensor, start, None)),
        );
    }
    on_own_threads(&mut pieces, own_threads(total), |(_, tensor, start, result)| {
        *result = Some(Elements::of(tensor).map(|elements| {
            let end = (*start + PIECE).min(elements.len());
            f(&elements[*start..end])
        }));
    });
    let mut results: Vec<Vec<T>> = tensors.iter().map(|_| vec![]).collect();
    for (i, _, _, result) in pieces {
        results[i].extend(result.transpose()?);
    }
    Ok(results)
}
