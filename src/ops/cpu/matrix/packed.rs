//! Products whose right factor is packed once, for all threads, which then take pieces of the result as they are free.
//!
//! `gemm` packs within each call: where threads share the rows of a product, each would pack the whole of the right
//! factor, and where one is disturbed, the others wait for all of its rows. Here `gemm`'s micro-kernels run in a blocking
//! of this crate's own, as Goto and van de Geijn describe it ("Anatomy of High-Performance Matrix Multiplication", 2008):
//! panels of the packed factor stay in the second-level cache, rows of the other one, as they are, in the first. An
//! element's sum runs over the same blocks of the inner dimension whatever piece it is in.

use std::arch::x86_64::*;
use std::ops::Range;

use gemm_f32::microkernel::fma::f32::{MR_DIV_N, NR as ROWS_OF_TILE, UKR};
use rayon::prelude::*;

use super::{fits, Mat, MatMut};
use crate::ops::cpu::buffer::Buffer;
use crate::ops::cpu::kernel;
use crate::ops::cpu::write::Write;

/// Rows and columns of what a micro-kernel computes at once, in registers of [`LANES`] columns. (`gemm` has columns in
/// the place of rows.)
const MR: usize = ROWS_OF_TILE;
const NR: usize = MR_DIV_N * LANES;
const LANES: usize = 8;
// What `pack_transposed` is written for.
const _: () = assert!(NR == 2 * LANES);

/// Longest part of the inner dimension: [`MR`] rows of it take 12 KiB.
const DEPTH: usize = 512;

/// Panels that are multiplied by the same few rows one after the other: at most 256 KiB.
const GROUP: usize = 8;

/// Elements that are packed at a time, 4 MiB, but at least [`NR`] columns.
const PACKED: usize = 1 << 20;

/// Fewest rows that are worth packing for.
const FEWEST_ROWS: usize = 64;

/// Fewest elements of the inner dimension: for less, `gemm` has other ways.
const FEWEST_INNER: usize = 16;

/// Pieces for each thread, where there is enough for them: the last ones to finish keep the others waiting for little.
const PIECES: usize = 8;

/// Rows of a piece, at least: so often is what a panel takes to come into the cache made use of.
const PIECE_ROWS: usize = 96;

/// Whether a product is to be computed here. Sizes and the CPU decide, not the number of threads.
pub(super) fn pays(a: Mat, b: Mat) -> bool {
    let work = a.rows.saturating_mul(a.cols).saturating_mul(b.cols);
    a.col_stride == 1
        && a.rows >= FEWEST_ROWS
        && a.cols >= FEWEST_INNER
        && b.cols >= super::FEWEST_COLS
        && work >= gemm::get_threading_threshold()
        && has_fma()
}

/// Whether this CPU has what the micro-kernels and [`transpose`] are compiled for.
fn has_fma() -> bool {
    is_x86_feature_detected!("avx") && is_x86_feature_detected!("fma")
}

/// `out = scale * a b`, or `out += scale * a b`, where that [`pays`].
pub(super) fn matmul(out: &mut MatMut, write: Write, scale: f32, a: Mat, b: Mat) {
    assert!(a.col_stride == 1 && a.cols == b.rows && a.rows == out.rows && b.cols == out.cols && has_fma());
    let depth = evenly(a.cols, DEPTH, 1);
    let columns = evenly(b.cols, (PACKED / a.cols).max(NR), NR);
    let mut memory = Buffer::new(columns.next_multiple_of(NR) * a.cols);
    let row_stride = out.row_stride;
    let shared = out.shared();
    // One visit to the pool for all that follows.
    rayon::scope(|_| {
        for start in (0..b.cols).step_by(columns) {
            let b = b.slice_cols(start..(start + columns).min(b.cols));
            let packed = Packed::new(&mut memory, b, depth);
            pieces(a.rows, packed.panels)
                .into_par_iter()
                .with_max_len(1)
                .for_each(|(rows, panels)| {
                    let first = panels.start * NR;
                    let width = (panels.end * NR).min(b.cols) - first;
                    // SAFETY: `out` is borrowed mutably all along, and no two pieces have a row and a panel in common.
                    let mut out = unsafe {
                        shared.columns(rows.start * row_stride + start + first, rows.len(), width, row_stride)
                    };
                    packed.multiply_into(&mut out, write, scale, a.slice_rows(rows), panels);
                });
        }
    });
}

/// The length of the parts, all but the last a multiple of `unit`, into which `len` is cut so that none exceeds `most`.
fn evenly(len: usize, most: usize, unit: usize) -> usize {
    let most = most / unit * unit;
    len.div_ceil(len.div_ceil(most)).next_multiple_of(unit)
}

/// Rows and panels of the pieces that threads take.
fn pieces(rows: usize, panels: usize) -> Vec<(Range<usize>, Range<usize>)> {
    let wanted = rayon::current_num_threads() * PIECES;
    let down = (rows / PIECE_ROWS).clamp(1, wanted);
    let across = (wanted / down).clamp(1, (panels / GROUP).max(1));
    let across = kernel::ranges(panels, across);
    let down = kernel::ranges(rows.div_ceil(MR), down);
    let down = down
        .into_iter()
        .map(|range| range.start * MR..(range.end * MR).min(rows));
    down.flat_map(|rows| across.iter().map(move |panels| (rows.clone(), panels.clone())))
        .collect()
}

/// Parts of the inner dimension, `depth` of it each, one after the other; in each, panels of [`NR`] columns, `[depth,
/// NR]`, the last one filled up with zeros.
struct Packed<'a> {
    data: &'a [f32],
    inner: usize,
    depth: usize,
    panels: usize,
}

impl<'a> Packed<'a> {
    /// `b`, in the memory that is given.
    fn new(memory: &'a mut [f32], b: Mat, depth: usize) -> Self {
        let (inner, panels) = (b.rows, b.cols.div_ceil(NR));
        let data = &mut memory[..inner * panels * NR];
        data.par_chunks_mut(depth * panels * NR)
            .enumerate()
            .for_each(|(i, part)| {
                let start = i * depth;
                let depth = depth.min(inner - start);
                part.par_chunks_mut(GROUP * depth * NR)
                    .enumerate()
                    .for_each(|(i, group)| {
                        let first = i * GROUP * NR;
                        let columns = first..(first + GROUP * NR).min(b.cols);
                        pack(group, b.slice_rows(start..start + depth).slice_cols(columns));
                    });
            });
        Self {
            data,
            inner,
            depth,
            panels,
        }
    }

    /// `out = scale * a b`, or that added to it, for the columns of some panels.
    fn multiply_into(&self, out: &mut MatMut, write: Write, scale: f32, a: Mat, panels: Range<usize>) {
        for start in (0..self.inner).step_by(self.depth) {
            let depth = self.depth.min(self.inner - start);
            let write = if start == 0 { write } else { Write::Add };
            let part = &self.data[start * self.panels * NR..];
            let part = &part[panels.start * depth * NR..panels.end * depth * NR];
            for (i, group) in part.chunks(GROUP * depth * NR).enumerate() {
                for row in (0..out.rows).step_by(MR) {
                    for (panel, data) in (i * GROUP..).zip(group.chunks_exact(depth * NR)) {
                        multiply_tile(out, [row, panel * NR], write, scale, (a, start), data);
                    }
                }
            }
        }
    }
}

/// At most [`MR`] rows and [`NR`] columns of `out`, from `at` on: `scale` times those rows of `a`, from column `start`
/// on, by `panel`, which says how many columns that are.
fn multiply_tile(out: &mut MatMut, at: [usize; 2], write: Write, scale: f32, (a, start): (Mat, usize), panel: &[f32]) {
    let [row, col] = at;
    assert!(row < out.rows && col < out.cols && out.rows == a.rows && a.col_stride == 1 && has_fma());
    let (rows, cols, depth) = (MR.min(out.rows - row), NR.min(out.cols - col), panel.len() / NR);
    let a_rows = &a.data[row * a.row_stride + start..];
    assert!(fits(a_rows.len(), rows, depth, a.row_stride));
    // SAFETY: the CPU has the instructions. The kernel of `rows` rows and `cols.div_ceil(LANES)` vectors reads `depth`
    // elements of as many rows of `a`, which are there, and `depth` times those vectors, `NR` elements apart, of the
    // panel, which has as many. It reads (to add to) and writes `rows` times `cols` elements from (row, col) on, which
    // are within `out`, whose rows are contiguous.
    unsafe {
        UKR[cols.div_ceil(LANES) - 1][rows - 1](
            cols,
            rows,
            depth,
            out.data.add(row * out.row_stride + col),
            panel.as_ptr(),
            a_rows.as_ptr(),
            out.row_stride as isize,
            1,
            NR as isize,
            1,
            a.row_stride as isize,
            1.0,
            scale,
            u8::from(write == Write::Add),
            false,
            false,
            false,
            std::ptr::null(),
        );
    }
}

/// Writes the panels of `b`.
fn pack(panels: &mut [f32], b: Mat) {
    let depth = b.rows;
    assert!(depth > 0 && panels.len() == b.cols.div_ceil(NR) * depth * NR);
    if b.col_stride == 1 {
        // Row by row: each is contiguous, and a page of its own where they are long.
        for k in 0..depth {
            let row = &b.data[k * b.row_stride..][..b.cols];
            for (chunk, panel) in row.chunks(NR).zip(panels.chunks_exact_mut(depth * NR)) {
                let (numbers, rest) = panel[k * NR..][..NR].split_at_mut(chunk.len());
                numbers.copy_from_slice(chunk);
                rest.fill(0.0);
            }
        }
        return;
    }
    assert!(b.row_stride == 1 && has_fma());
    for (i, panel) in panels.chunks_exact_mut(depth * NR).enumerate() {
        let columns = b.slice_cols(i * NR..((i + 1) * NR).min(b.cols)).t();
        let (panel, _) = panel.as_chunks_mut::<NR>();
        // SAFETY: the CPU has AVX.
        unsafe { pack_transposed(panel, columns) };
    }
}

/// Writes the transposed of a matrix of contiguous rows, at most [`NR`] of them, as a panel.
#[target_feature(enable = "avx")]
fn pack_transposed(panel: &mut [[f32; NR]], mat: Mat) {
    let row = |i: usize| &mat.data[i * mat.row_stride..][..mat.cols];
    let mut done = 0;
    if mat.rows == NR {
        // A cache line of each row at a time.
        let (blocks, _) = panel.as_chunks_mut::<{ 2 * LANES }>();
        for block in blocks {
            for first in [0, LANES] {
                for k in [0, LANES] {
                    let vectors = std::array::from_fn(|i| &row(first + i)[done + k..][..LANES]);
                    transpose(vectors, &mut block[k..][..LANES], first);
                }
            }
            done += 2 * LANES;
        }
    }
    panel[done..].fill([0.0; NR]);
    for i in 0..mat.rows {
        for (numbers, &x) in panel[done..].iter_mut().zip(&row(i)[done..]) {
            numbers[i] = x;
        }
    }
}

/// Writes 8 vectors of 8 elements as columns, from `first` on, of 8 rows.
#[inline]
#[target_feature(enable = "avx")]
fn transpose(columns: [&[f32]; LANES], rows: &mut [[f32; NR]], first: usize) {
    let mut c = [_mm256_setzero_ps(); LANES];
    for (c, column) in c.iter_mut().zip(columns) {
        let column = &column[..LANES];
        // SAFETY: there are 8 elements.
        *c = unsafe { _mm256_loadu_ps(column.as_ptr()) };
    }
    // Pairs of elements of two columns, then fours of four, in each half of a register.
    let mut fours = [_mm256_setzero_ps(); LANES];
    for half in [0, 4] {
        let low = [0, 2].map(|i| _mm256_unpacklo_ps(c[half + i], c[half + i + 1]));
        let high = [0, 2].map(|i| _mm256_unpackhi_ps(c[half + i], c[half + i + 1]));
        fours[half] = _mm256_shuffle_ps::<0x44>(low[0], low[1]);
        fours[half + 1] = _mm256_shuffle_ps::<0xee>(low[0], low[1]);
        fours[half + 2] = _mm256_shuffle_ps::<0x44>(high[0], high[1]);
        fours[half + 3] = _mm256_shuffle_ps::<0xee>(high[0], high[1]);
    }
    for i in 0..LANES / 2 {
        let (a, b) = (fours[i], fours[i + 4]);
        let (upper, lower) = (
            _mm256_permute2f128_ps::<0x20>(a, b),
            _mm256_permute2f128_ps::<0x31>(a, b),
        );
        for (row, vector) in [(i, upper), (i + 4, lower)] {
            let row = &mut rows[row][first..][..LANES];
            // SAFETY: there are 8 elements.
            unsafe { _mm256_storeu_ps(row.as_mut_ptr(), vector) };
        }
    }
}
