//! Matrix products on slices: `gemm`'s, with views that have checked what it takes on trust.

#[cfg(target_arch = "x86_64")]
mod packed;

use std::marker::PhantomData;
use std::ops::Range;

use gemm::Parallelism;
use rayon::prelude::*;

use super::kernel;
use super::write::Write;

/// A matrix in memory, read only. Element (i, j) is at `i * row_stride + j * col_stride`.
#[derive(Clone, Copy)]
pub(crate) struct Mat<'a> {
    data: &'a [f32],
    rows: usize,
    cols: usize,
    row_stride: usize,
    col_stride: usize,
}

impl<'a> Mat<'a> {
    /// Rows of `cols` elements each, `row_stride` apart.
    pub(crate) fn rows(data: &'a [f32], rows: usize, cols: usize, row_stride: usize) -> Self {
        assert!(fits(data.len(), rows, cols, row_stride));
        Self {
            data,
            rows,
            cols,
            row_stride,
            col_stride: 1,
        }
    }

    /// Some of the rows.
    pub(crate) fn slice_rows(self, rows: Range<usize>) -> Self {
        assert!(rows.start <= rows.end && rows.end <= self.rows);
        Self {
            data: &self.data[(rows.start * self.row_stride).min(self.data.len())..],
            rows: rows.len(),
            ..self
        }
    }

    /// Some of the columns.
    fn slice_cols(self, cols: Range<usize>) -> Self {
        self.t().slice_rows(cols).t()
    }

    pub(crate) fn t(self) -> Self {
        Self {
            rows: self.cols,
            cols: self.rows,
            row_stride: self.col_stride,
            col_stride: self.row_stride,
            ..self
        }
    }

    /// The rows of each range.
    fn par_split_rows<'r>(self, ranges: &'r [Range<usize>]) -> impl IndexedParallelIterator<Item = Self> + use<'a, 'r> {
        assert!(within(ranges, self.rows));
        ranges.par_iter().map(move |range| Self {
            data: &self.data[range.start * self.row_stride..],
            rows: range.len(),
            ..self
        })
    }
}

/// A matrix in memory whose rows are contiguous, to be written.
pub(crate) struct MatMut<'a> {
    data: *mut f32,
    rows: usize,
    cols: usize,
    row_stride: usize,
    lifetime: PhantomData<&'a mut [f32]>,
}

// SAFETY: it is the only access to its elements, as `&mut [f32]` is.
unsafe impl Send for MatMut<'_> {}

impl<'a> MatMut<'a> {
    /// Rows of `cols` elements each, `row_stride` apart.
    pub(crate) fn rows(data: &'a mut [f32], rows: usize, cols: usize, row_stride: usize) -> Self {
        assert!(fits(data.len(), rows, cols, row_stride) && cols <= row_stride);
        Self {
            data: data.as_mut_ptr(),
            rows,
            cols,
            row_stride,
            lifetime: PhantomData,
        }
    }
}

/// Whether each range is one of some of `rows` rows.
fn within(ranges: &[Range<usize>], rows: usize) -> bool {
    ranges.iter().all(|range| range.start <= range.end && range.end <= rows)
}

/// Whether `rows` rows of `cols` elements, `row_stride` apart, lie within `len` elements.
fn fits(len: usize, rows: usize, cols: usize, row_stride: usize) -> bool {
    // Also where there are no columns: rows are pointers into the slice then, too.
    let end = || (rows - 1).checked_mul(row_stride)?.checked_add(cols);
    rows == 0 || end().is_some_and(|end| end <= len)
}

/// A matrix whose rows are pieces of a larger one's, so that several threads can write next to each other.
#[derive(Clone, Copy)]
pub(crate) struct SharedMut<'a> {
    data: *mut f32,
    len: usize,
    lifetime: PhantomData<&'a mut [f32]>,
}

// SAFETY: a pointer to `f32`s that its owner has borrowed mutably for 'a; who may write where is settled by the
// contract of `columns`.
unsafe impl Send for SharedMut<'_> {}
// SAFETY: as above.
unsafe impl Sync for SharedMut<'_> {}

impl<'a> SharedMut<'a> {
    pub(crate) fn new(data: &'a mut [f32]) -> Self {
        Self {
            data: data.as_mut_ptr(),
            len: data.len(),
            lifetime: PhantomData,
        }
    }

    /// `rows` rows of `cols` elements, `row_stride` apart, the first at `start`.
    ///
    /// # Safety
    ///
    /// While the result is in use, nothing else may read or write these elements.
    pub(crate) unsafe fn columns(self, start: usize, rows: usize, cols: usize, row_stride: usize) -> MatMut<'a> {
        assert!(start <= self.len && fits(self.len - start, rows, cols, row_stride) && cols <= row_stride);
        MatMut {
            // SAFETY: `start` is at most the length.
            data: unsafe { self.data.add(start) },
            rows,
            cols,
            row_stride,
            lifetime: PhantomData,
        }
    }
}

impl MatMut<'_> {
    pub(crate) fn num_rows(&self) -> usize {
        self.rows
    }

    pub(crate) fn row(&mut self, row: usize) -> &mut [f32] {
        assert!(row < self.rows);
        // SAFETY: the constructors have checked that `rows` rows of `cols` elements are within the allocation, and this
        // matrix is the only access to them.
        unsafe { std::slice::from_raw_parts_mut(self.data.add(row * self.row_stride), self.cols) }
    }

    /// The same matrix, for several threads.
    fn shared(&mut self) -> SharedMut<'_> {
        SharedMut {
            data: self.data,
            // From the first row's start to the last one's end.
            len: if self.rows == 0 {
                0
            } else {
                (self.rows - 1) * self.row_stride + self.cols
            },
            lifetime: PhantomData,
        }
    }

    /// The rows of each range, of which none begins before the end of the one before it.
    fn par_split_rows<'s>(&'s mut self, ranges: &'s [Range<usize>]) -> impl IndexedParallelIterator<Item = MatMut<'s>> {
        assert!(within(ranges, self.rows) && ranges.windows(2).all(|pair| pair[0].end <= pair[1].start));
        let (row_stride, cols) = (self.row_stride, self.cols);
        let shared = self.shared();
        ranges.par_iter().map(move |range| {
            // SAFETY: no two ranges have a row in common, rows are no longer than they are apart, and this matrix,
            // which is the only access to them, is borrowed for as long as the parts are.
            unsafe { shared.columns(range.start * row_stride, range.len(), cols, row_stride) }
        })
    }
}

/// Columns from which a product may be computed some rows at a time: `gemm` sums the elements of a narrower one in an
/// order that depends on the number of rows. (So it does of a single row, and of some with a few.)
const FEWEST_COLS: usize = 65;

/// Rows that are worth a thread of their own, which packs the whole of the other factor; and where that has to be
/// transposed for it. Measured on two threads at the sizes of ViT-tiny, -small and -base; on many, fewer rows are left
/// for each, and `gemm` shares them out.
const FEWEST_ROWS: [usize; 2] = [32, 512];

/// `out = scale * a b`, or `out += scale * a b`; with [`Parallelism::Rayon`] on all threads of the pool.
///
/// The sum over the inner dimension runs in the same order for any number of threads.
pub(crate) fn matmul(out: &mut MatMut, write: Write, scale: f32, a: Mat, b: Mat, parallelism: Parallelism) {
    assert!(a.cols == b.rows && a.rows == out.rows && b.cols == out.cols);
    if matches!(parallelism, Parallelism::None) {
        return multiply(out, write, scale, a, b, parallelism);
    }
    #[cfg(target_arch = "x86_64")]
    if packed::pays(a, b) {
        return packed::matmul(out, write, scale, a, b);
    }
    if !may_share_rows(out.rows, b) {
        return multiply(out, write, scale, a, b, parallelism);
    }
    // `gemm`'s own threads wait for each other after every part of the inner dimension.
    let shares = kernel::ranges(out.rows, rayon::current_num_threads());
    out.par_split_rows(&shares)
        .zip(a.par_split_rows(&shares))
        .for_each(|(mut out, a)| multiply(&mut out, write, scale, a, b, Parallelism::None));
}

/// Whether each thread is to compute its share of the `rows` rows of a product with `b`. Otherwise they are left to
/// `gemm`.
fn may_share_rows(rows: usize, b: Mat) -> bool {
    let threads = rayon::current_num_threads();
    let work = rows.saturating_mul(b.rows).saturating_mul(b.cols);
    let fewest = FEWEST_ROWS[usize::from(b.col_stride != 1)];
    threads > 1 && rows / threads >= fewest && b.cols >= FEWEST_COLS && work >= gemm::get_threading_threshold()
}

fn multiply(out: &mut MatMut, write: Write, scale: f32, a: Mat, b: Mat, parallelism: Parallelism) {
    // SAFETY: what makes a `Mat` or a `MatMut` has checked that every element lies within its slice; `out` is
    // borrowed mutably and `a` and `b` shared, so that they do not overlap.
    unsafe {
        gemm::gemm(
            out.rows,
            out.cols,
            a.cols,
            out.data,
            1,
            out.row_stride as isize,
            write == Write::Add,
            a.data.as_ptr(),
            a.col_stride as isize,
            a.row_stride as isize,
            b.data.as_ptr(),
            b.col_stride as isize,
            b.row_stride as isize,
            1f32,
            scale,
            false,
            false,
            false,
            parallelism,
        );
    }
}

#[cfg(test)]
mod tests;
