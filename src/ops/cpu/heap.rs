//! The C library's heap, where candle's tensors on the CPU are.

/// Has the C library keep the memory that is freed for what is allocated next; returns `true` if it now does.
///
/// A model made of candle's own operations allocates, fills and frees a tensor for each of them and for each sum of two
/// gradients. glibc maps the large ones afresh each time, and the system hands out and clears each page of 4 KiB at its
/// first touch: in such a model's step that can take as long as the arithmetic. Call this first in `main`: threads
/// that have allocated before have heaps of their own, which it does not reach. The process then keeps the memory of its largest step until it ends
/// ([`empty_cache`](crate::ops::empty_cache) gives nothing back to the system any more). This crate's own models take
/// their memory from a pool and gain next to nothing. PyTorch keeps memory so on a GPU; on a CPU it leaves it to the C
/// library, too.
///
/// It does `mallopt` with `M_MMAP_MAX` 0, `M_TRIM_THRESHOLD` -1 and `M_ARENA_MAX` 1, as the variables
/// `MALLOC_MMAP_MAX_`, `MALLOC_TRIM_THRESHOLD_` and `MALLOC_ARENA_MAX` of a process that is still to be started do.
/// Returns `false`, and changes nothing, where the C library is not glibc. An allocator that the program brings along
/// (`#[global_allocator]`) does not hear of it.
///
/// ```
/// let kept = masksub::ops::keep_freed_memory();
/// assert_eq!(kept, cfg!(all(target_os = "linux", target_env = "gnu")));
/// // .. a model made of candle's operations, its training
/// ```
pub fn keep_freed_memory() -> bool {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        let settings = [
            (libc::M_MMAP_MAX, 0),
            (libc::M_TRIM_THRESHOLD, -1),
            (libc::M_ARENA_MAX, 1),
        ];
        // SAFETY: `mallopt` locks what it changes, and takes any number.
        settings.map(|(name, value)| unsafe { libc::mallopt(name, value) }) == [1; 3]
    }
    #[cfg(not(all(target_os = "linux", target_env = "gnu")))]
    false
}

/// Has the system hand out memory that is not touched yet in huge pages of 2 MiB, where it does so on request: a fault for
/// each page of 4 KiB takes longer than reading its content. Nothing happens where it does not, and only whole huge pages
/// are asked for, so that no more memory is taken than is there to be filled.
pub(crate) fn advise_huge_pages(numbers: &mut [f32]) {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        const HUGE: usize = 2 << 20;
        let start = numbers.as_mut_ptr().cast::<u8>();
        let before = start.align_offset(HUGE);
        let whole = size_of_val(numbers).saturating_sub(before) / HUGE * HUGE;
        if whole > 0 {
            // SAFETY: the range lies within `numbers`, and the advice changes no byte of it. It may be refused.
            unsafe { libc::madvise(start.wrapping_add(before).cast(), whole, libc::MADV_HUGEPAGE) };
        }
    }
    #[cfg(not(all(target_os = "linux", target_env = "gnu")))]
    let _ = numbers;
}
