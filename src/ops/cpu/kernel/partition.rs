//! Parallel work in pieces that the sizes of slices alone decide, and sums over them in a fixed order.

use std::ops::Range;

use rayon::prelude::*;

/// Elements of one piece of parallel work: large enough (64 KiB) to pay for handing it to a thread, small enough that
/// the pieces of a small batch still occupy every core.
const PIECE: usize = 16 * 1024;

/// Most pieces of a sum over rows, each of which needs an accumulator of its own.
const MOST_PARTIALS: usize = 64;

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
