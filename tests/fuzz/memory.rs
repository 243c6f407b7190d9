//! An allocator that refuses what no case needs: whoever did not ask whether memory can be had is aborted, and found.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

/// Most bytes that a process has at once.
pub const MOST: usize = 2 << 30;

/// The system's allocator, up to [`MOST`] bytes.
pub struct Limited;

static USED: AtomicUsize = AtomicUsize::new(0);

/// Counts `bytes`, if they may be had.
fn charge(bytes: usize) -> bool {
    USED.fetch_update(Relaxed, Relaxed, |used| {
        used.checked_add(bytes).filter(|used| *used <= MOST)
    })
    .is_ok()
}

fn refund(bytes: usize) {
    USED.fetch_sub(bytes, Relaxed);
}

/// Counts what `allocate` is asked for, unless that is refused or it fails.
fn charged(bytes: usize, allocate: impl FnOnce() -> *mut u8) -> *mut u8 {
    if !charge(bytes) {
        return std::ptr::null_mut();
    }
    let memory = allocate();
    if memory.is_null() {
        refund(bytes);
    }
    memory
}

// SAFETY: memory is the system's, handed out and taken back as the caller says; a null pointer says that there is none.
unsafe impl GlobalAlloc for Limited {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's promises are the system's.
        charged(layout.size(), || unsafe { System.alloc(layout) })
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's promises are the system's.
        charged(layout.size(), || unsafe { System.alloc_zeroed(layout) })
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // SAFETY: `memory` is the system's, of this layout.
        unsafe { System.dealloc(memory, layout) };
        refund(layout.size());
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // SAFETY: `memory` is the system's, of this layout.
        let moved = charged(size, || unsafe { System.realloc(memory, layout, size) });
        if !moved.is_null() {
            refund(layout.size());
        }
        moved
    }
}
