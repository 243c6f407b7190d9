//! What the CPU kernels share: dispatch on the CPU's features, access to `f32` slices and partitions.
//!
//! A kernel is a plain loop that the compiler can vectorise, written with [`simd_fn!`], which compiles it once for the
//! baseline and once for AVX2 with FMA (NEON is the baseline on aarch64) and picks at run time. Reductions keep
//! [`LANES`] partial sums, and work is cut into pieces by the tensor's size alone: neither the number of threads nor
//! the width of the registers changes the order of an addition, so that a run can be repeated to the bit anywhere
//! that has the same fused multiply-add.

use std::cell::Cell;
use std::ops::{Deref, Range};

use candle_core::{CpuStorage, Layout, Result, Storage, StorageRef, Tensor};
use pulp::{Simd, WithSimd};
use rayon::prelude::*;

/// Partial sums of a reduction: two AVX registers of `f32`, enough to hide an addition's latency.
pub(crate) const LANES: usize = 16;

/// Elements of one piece of parallel work: large enough (64 KiB) to pay for handing it to a thread, small enough that
/// the pieces of a small batch still occupy every core.
const PIECE: usize = 16 * 1024;

/// Most pieces of a sum over rows, each of which needs an accumulator of its own.
const MOST_PARTIALS: usize = 64;

/// Runs `op` compiled for the best instruction set of this CPU.
#[inline]
pub(crate) fn dispatch<O: WithSimd>(op: O) -> O::Output {
    #[cfg(test)]
    if crate::ops::testing::scalar_only() {
        return op.with_simd(pulp::Scalar::new());
    }
    // `pulp::Arch` knows AVX2 only with a feature that `gemm`, and so candle, is built without; the token itself is
    // always there. AVX-512 was measured and dropped: the loops are limited by memory.
    #[cfg(any(target_arch = "x86", target_arch = "x86_64"))]
    if let Some(simd) = pulp::x86::V3::try_new() {
        return Simd::vectorize(simd, op);
    }
    pulp::Arch::new().dispatch(op)
}

/// Defines a function whose body is compiled for several instruction sets and dispatched at run time.
///
/// In the body `S` names the instruction set, for [`fma`] and the functions of [`super::math`]. Whatever the body calls
/// must be `#[inline(always)]`, or it would be compiled for the baseline.
macro_rules! simd_fn {
    ($(#[$attribute:meta])* $vis:vis fn $name:ident<$S:ident>($($arg:ident: $ty:ty),* $(,)?) -> $out:ty $body:block) => {
        $(#[$attribute])*
        $vis fn $name($($arg: $ty),*) -> $out {
            struct Call<T>(T);
            impl pulp::WithSimd for Call<($($ty,)*)> {
                type Output = $out;
                #[inline(always)]
                fn with_simd<$S: pulp::Simd>(self, _: $S) -> $out {
                    let ($($arg,)*) = self.0;
                    $body
                }
            }
            $crate::ops::cpu::kernel::dispatch(Call(($($arg,)*)))
        }
    };
}
pub(crate) use simd_fn;

/// `a * b + c`, rounded once where the instruction set can; without one, `f32::mul_add` would be a library call.
#[inline(always)]
pub(crate) fn fma<S: Simd>(a: f32, b: f32, c: f32) -> f32 {
    if S::IS_SCALAR || cfg!(target_arch = "wasm32") {
        a * b + c
    } else {
        a.mul_add(b, c)
    }
}

/// The sum of `term` over the elements of N slices of the same length, in [`LANES`] partial sums that are then added in
/// a fixed order.
#[inline(always)]
pub(crate) fn sum_by<const N: usize>(slices: [&[f32]; N], term: impl Fn([f32; N]) -> f32) -> f32 {
    let mut acc = [0f32; LANES];
    let split = slices.map(|slice| slice.as_chunks::<LANES>());
    for i in 0..split[0].0.len() {
        let chunks = split.map(|(whole, _)| &whole[i]);
        for lane in 0..LANES {
            acc[lane] += term(chunks.map(|chunk| chunk[lane]));
        }
    }
    for lane in 0..split[0].1.len() {
        acc[lane] += term(split.map(|(_, rest)| rest[lane]));
    }
    let mut width = LANES / 2;
    while width > 0 {
        for lane in 0..width {
            acc[lane] += acc[lane + width];
        }
        width /= 2;
    }
    acc[0]
}

/// The largest element, -inf of an empty slice. An undefined element is skipped: `exp(x - max)` brings it back.
#[inline(always)]
pub(crate) fn max(xs: &[f32]) -> f32 {
    let mut acc = [f32::NEG_INFINITY; LANES];
    let (whole, rest) = xs.as_chunks::<LANES>();
    for chunk in whole {
        for lane in 0..LANES {
            acc[lane] = if chunk[lane] > acc[lane] {
                chunk[lane]
            } else {
                acc[lane]
            };
        }
    }
    for (a, &x) in acc.iter_mut().zip(rest) {
        *a = if x > *a { x } else { *a };
    }
    acc.into_iter().fold(f32::NEG_INFINITY, f32::max)
}

// For the operations that do not ask `route` themselves yet.
pub(crate) use crate::ops::route::{in_f32, is_half, on_cpu_f32};

/// The elements of a contiguous `f32` argument of a custom op.
pub(crate) fn elements<'a>(storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [f32]> {
    match (storage, layout.contiguous_offsets()) {
        (CpuStorage::F32(data), Some((start, end))) => Ok(&data[start..end]),
        _ => candle_core::bail!("a CPU kernel of masksub was called with a tensor that is not contiguous f32"),
    }
}

/// Read access to the elements of a contiguous `f32` tensor on the CPU.
pub(crate) struct Elements<'a>(StorageRef<'a>, &'a Layout);

impl<'a> Elements<'a> {
    pub(crate) fn of(tensor: &'a Tensor) -> Result<Self> {
        let (storage, layout) = tensor.storage_and_layout();
        match &*storage {
            Storage::Cpu(cpu) => elements(cpu, layout)?,
            _ => candle_core::bail!("a CPU kernel of masksub was called with a tensor on another device"),
        };
        Ok(Self(storage, layout))
    }
}

impl Deref for Elements<'_> {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        match &*self.0 {
            // `of` has made sure of both.
            Storage::Cpu(cpu) => elements(cpu, self.1).unwrap_or_default(),
            _ => &[],
        }
    }
}

/// Whether two contiguous `f32` tensors on the CPU have elements in common.
pub(crate) fn shares_memory(a: &Tensor, b: &Tensor) -> Result<bool> {
    // One after the other: a lock that is waited for between two holds of the same one would never be given.
    let a = Elements::of(a)?.as_ptr_range();
    let b = Elements::of(b)?.as_ptr_range();
    Ok(a.start < b.end && b.start < a.end)
}

/// A tensor on the CPU from its elements.
pub(crate) fn tensor(data: Vec<f32>, shape: &[usize]) -> Result<Tensor> {
    Tensor::from_vec(data, shape, &candle_core::Device::Cpu)
}

/// `0..len` in `count` nearly equal pieces, or in `len`.
pub(crate) fn ranges(len: usize, count: usize) -> Vec<Range<usize>> {
    let count = count.min(len);
    (0..count).map(|i| i * len / count..(i + 1) * len / count).collect()
}

/// Rows of one piece of parallel work on a tensor of rows `width` long.
pub(crate) fn rows_per_piece(width: usize) -> usize {
    (PIECE / width.max(1)).max(1)
}

/// Calls `piece(first_row, rows)` on consecutive pieces of `out`, which has rows of `width` elements, in parallel.
pub(crate) fn for_rows(out: &mut [f32], width: usize, piece: impl Fn(usize, &mut [f32]) + Sync) {
    let rows = rows_per_piece(width);
    if out.len() <= rows * width {
        // Handing a single piece to the pool and waiting for it would cost more than a small one takes.
        if !out.is_empty() {
            piece(0, out);
        }
        return;
    }
    out.par_chunks_mut(rows * width)
        .enumerate()
        .for_each(|(i, out)| piece(i * rows, out));
}

/// As [`for_rows`], for a pass that also sums something of `sums` elements over all rows: `piece` adds its rows'
/// share to the zeros it is handed. The shares are added in the rows' order.
pub(crate) fn for_rows_summing(
    out: &mut [f32],
    width: usize,
    sums: usize,
    piece: impl Fn(usize, &mut [f32], &mut [f32]) + Sync,
) -> Vec<f32> {
    let rows = out.len() / width.max(1);
    let share = rows_per_piece(width).max(rows.div_ceil(MOST_PARTIALS));
    let mut partial = vec![0f32; rows.div_ceil(share).max(1) * sums];
    if rows <= share {
        piece(0, out, &mut partial);
        return partial;
    }
    out.par_chunks_mut(share * width)
        .zip(partial.par_chunks_mut(sums))
        .enumerate()
        .for_each(|(i, (out, partial))| piece(i * share, out, partial));
    add_rows(partial, sums)
}

/// As [`for_rows_summing`], for two matrices whose rows have the same width.
pub(crate) fn for_two_rows_summing(
    outs: [&mut [f32]; 2],
    width: usize,
    sums: usize,
    piece: impl Fn(usize, [&mut [f32]; 2], &mut [f32]) + Sync,
) -> Vec<f32> {
    let [a, b] = outs;
    let rows = a.len() / width.max(1);
    let share = rows_per_piece(width).max(rows.div_ceil(MOST_PARTIALS));
    let mut partial = vec![0f32; rows.div_ceil(share).max(1) * sums];
    a.par_chunks_mut(share * width)
        .zip(b.par_chunks_mut(share * width))
        .zip(partial.par_chunks_mut(sums))
        .enumerate()
        .for_each(|(i, ((a, b), partial))| piece(i * share, [a, b], partial));
    add_rows(partial, sums)
}

/// Sums `piece(first_row, num_rows, share)` over consecutive pieces of `rows` rows, `width` long, in the rows' order.
pub(crate) fn sum_over_rows(
    rows: usize,
    width: usize,
    sums: usize,
    piece: impl Fn(usize, usize, &mut [f32]) + Sync,
) -> Vec<f32> {
    let share = rows_per_piece(width).max(rows.div_ceil(MOST_PARTIALS));
    let mut partial = vec![0f32; rows.div_ceil(share).max(1) * sums];
    if rows <= share {
        piece(0, rows, &mut partial);
        return partial;
    }
    partial
        .par_chunks_mut(sums)
        .enumerate()
        .for_each(|(i, partial)| piece(i * share, share.min(rows - i * share), partial));
    add_rows(partial, sums)
}

/// The sum of the rows of `partial`, each `width` long, in their order.
pub(crate) fn add_rows(mut partial: Vec<f32>, width: usize) -> Vec<f32> {
    let (total, rest) = partial.split_at_mut(width);
    for row in rest.chunks_exact(width) {
        for (t, r) in total.iter_mut().zip(row) {
            *t += r;
        }
    }
    partial.truncate(width);
    partial
}

thread_local! {
    static SCRATCH: Cell<Vec<f32>> = const { Cell::new(vec![]) };
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
