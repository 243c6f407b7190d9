//! Memory that a thread needs in passing, and uses again.

use std::cell::Cell;

thread_local! {
    static SCRATCH: Cell<Vec<f32>> = const { Cell::new(vec![]) };
}

/// Gives the calling thread's scratch memory back to the allocator; returns its bytes.
pub(crate) fn free_scratch() -> usize {
    SCRATCH.take().capacity() * size_of::<f32>()
}

/// Calls `f` with `len` elements of this thread's scratch memory, in which earlier calls have left what they liked.
///
/// Should `f` wait for other threads and be given work that wants scratch memory, too, that gets its own.
pub(crate) fn with_scratch<T>(len: usize, f: impl FnOnce(&mut [f32]) -> T) -> T {
    let mut scratch = SCRATCH.take();
    if scratch.len() < len {
        scratch.resize(len, 0.0);
    }
    let result = f(&mut scratch[..len]);
    SCRATCH.set(scratch);
    result
}
