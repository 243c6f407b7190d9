//! Memory that operations use again and again: what a forward keeps for its backward, and what either needs in passing.
//!
//! Fresh memory costs a page fault for every 4 KiB of it. What a step has given back is what the next one takes. It
//! stays with the process: about as much as was once in use at the same time, for a short request may take a long
//! piece.

use std::ops::{Deref, DerefMut};
use std::sync::{Mutex, MutexGuard};

use super::kernel;

static FREE: Mutex<Vec<Vec<f32>>> = Mutex::new(Vec::new());

fn free() -> MutexGuard<'static, Vec<Vec<f32>>> {
    // A thread that panicked while holding the lock leaves a list that is still whole.
    FREE.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

/// The shortest piece of at least `len` numbers. Where there is none, moves the longest to `evicted`, until as much is
/// gone as is about to be allocated.
fn take(free: &mut Vec<Vec<f32>>, len: usize, evicted: &mut Vec<Vec<f32>>) -> Option<Vec<f32>> {
    let fitting = (0..free.len()).filter(|&i| free[i].len() >= len);
    if let Some(shortest) = fitting.min_by_key(|&i| free[i].len()) {
        return Some(free.swap_remove(shortest));
    }
    let mut gone = 0;
    while gone < len {
        let longest = (0..free.len()).max_by_key(|&i| free[i].len())?;
        gone += free[longest].len();
        evicted.push(free.swap_remove(longest));
    }
    None
}

/// Gives the memory that waits for the next step back to the allocator; returns how many bytes that are. PyTorch's
/// `torch.cuda.empty_cache()`.
///
/// On the CPU, what an operation keeps for its backward and needs in passing stays with the process once it is free:
/// the next step takes it again, without a page fault for every 4 KiB. Call this after training, or before something
/// that needs the memory; the next step takes a little longer. Of scratch memory it is that of the calling thread and of
/// the threads of its rayon pool.
///
/// ```
/// let bytes = masksub::ops::empty_cache();
/// # let _ = bytes;
/// ```
pub fn empty_cache() -> usize {
    let free = std::mem::take(&mut *free());
    let buffers: usize = free.iter().map(|piece| piece.capacity() * size_of::<f32>()).sum();
    let of_pool = rayon::broadcast(|_| kernel::free_scratch());
    buffers + kernel::free_scratch() + of_pool.iter().sum::<usize>()
}

/// Numbers in memory that is given back when they are dropped.
pub(crate) struct Buffer {
    /// At least `len` numbers.
    data: Vec<f32>,
    len: usize,
}

impl Buffer {
    /// `len` numbers, whatever was left in them.
    pub(crate) fn new(len: usize) -> Self {
        // Pieces that are too short make room for a new one; they are let go once the lock is.
        let mut too_short = Vec::new();
        let reused = take(&mut free(), len, &mut too_short);
        drop(too_short);
        let data = reused.unwrap_or_else(|| vec![0.0; len]);
        Self { data, len }
    }
}

impl Deref for Buffer {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        &self.data[..self.len]
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [f32] {
        &mut self.data[..self.len]
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        free().push(std::mem::take(&mut self.data));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::pool;

    fn lengths(pieces: &[Vec<f32>]) -> Vec<usize> {
        let mut lengths: Vec<_> = pieces.iter().map(Vec::len).collect();
        lengths.sort_unstable();
        lengths
    }

    #[test]
    fn the_shortest_piece_that_is_long_enough_is_taken() {
        let mut free = vec![vec![0.0; 9], vec![0.0; 5], vec![0.0; 3], vec![0.0; 6]];
        let mut evicted = vec![];
        assert_eq!(take(&mut free, 4, &mut evicted).map(|piece| piece.len()), Some(5));
        assert_eq!((lengths(&free), evicted.len()), (vec![3, 6, 9], 0));
    }

    #[test]
    fn pieces_that_are_too_short_make_room() {
        let mut free = vec![vec![0.0; 3]; 5];
        let mut evicted = vec![];
        assert_eq!(take(&mut free, 7, &mut evicted), None);
        assert_eq!((lengths(&free), lengths(&evicted)), (vec![3, 3], vec![3, 3, 3]));
        assert_eq!(take(&mut free, 100, &mut evicted), None);
        assert_eq!((free.len(), evicted.len()), (0, 5));
    }

    #[test]
    fn the_scratch_memory_of_all_threads_is_given_back() {
        const LEN: usize = 1 << 20;
        let scratch = |_: rayon::BroadcastContext| kernel::with_scratch(LEN, |scratch| scratch.len());
        let pool = pool(3, false);
        pool.broadcast(scratch);
        assert!(pool.install(empty_cache) >= 3 * LEN * size_of::<f32>());
        assert_eq!(pool.broadcast(|_| kernel::free_scratch()), [0; 3]);
    }

    #[test]
    fn a_buffer_has_its_length_and_may_be_empty() {
        let mut buffer = Buffer::new(5);
        buffer.fill(1.0);
        assert_eq!(buffer.iter().sum::<f32>(), 5.0);
        assert_eq!(Buffer::new(0).len(), 0);
    }
}
