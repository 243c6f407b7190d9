//! Memory that operations use again and again: what a forward keeps for its backward, and what either needs in passing.
//!
//! Fresh memory costs a page fault for every 4 KiB of it, a third of the time of a step that allocates everything anew.
//! What a step has given back is what the next one takes, so no more is ever held than was once in use at the same time.

use std::ops::{Deref, DerefMut};
use std::sync::{Mutex, MutexGuard};

static FREE: Mutex<Vec<Vec<f32>>> = Mutex::new(Vec::new());

fn free() -> MutexGuard<'static, Vec<Vec<f32>>> {
    // A thread that panicked while holding the lock leaves a list that is still whole.
    FREE.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

/// Numbers in memory that is given back when they are dropped.
pub(super) struct Buffer {
    /// At least `len` numbers.
    data: Vec<f32>,
    len: usize,
}

impl Buffer {
    /// `len` numbers, whatever was left in them.
    pub(super) fn new(len: usize) -> Self {
        let reused = {
            let mut free = free();
            let fitting = (0..free.len()).filter(|&i| free[i].len() >= len);
            match fitting.min_by_key(|&i| free[i].len()) {
                Some(smallest) => Some(free.swap_remove(smallest)),
                None => {
                    // One that is too small makes room for the new one.
                    let largest = (0..free.len()).max_by_key(|&i| free[i].len());
                    largest.map(|i| free.swap_remove(i));
                    None
                }
            }
        };
        let data = reused.unwrap_or_else(|| vec![0.; len]);
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
