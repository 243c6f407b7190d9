//! Matrix products on slices: `gemm`'s, with views that have checked what it takes on trust.

use std::marker::PhantomData;

use gemm::Parallelism;

/// A matrix in memory, read only. Element (i, j) is at `i * row_stride + j * col_stride`.
#[derive(Clone, Copy)]
pub(super) struct Mat<'a> {
    data: &'a [f32],
    rows: usize,
    cols: usize,
    row_stride: usize,
    col_stride: usize,
}

impl<'a> Mat<'a> {
    /// Rows of `cols` elements each, `row_stride` apart.
    pub(super) fn rows(data: &'a [f32], rows: usize, cols: usize, row_stride: usize) -> Self {
        assert!(fits(data.len(), rows, cols, row_stride));
        Self {
            data,
            rows,
            cols,
            row_stride,
            col_stride: 1,
        }
    }

    pub(super) fn t(self) -> Self {
        Self {
            rows: self.cols,
            cols: self.rows,
            row_stride: self.col_stride,
            col_stride: self.row_stride,
            ..self
        }
    }
}

/// A matrix in memory whose rows are contiguous, to be written.
pub(super) struct MatMut<'a> {
    data: *mut f32,
    rows: usize,
    cols: usize,
    row_stride: usize,
    lifetime: PhantomData<&'a mut [f32]>,
}

impl<'a> MatMut<'a> {
    /// Rows of `cols` elements each, `row_stride` apart.
    pub(super) fn rows(data: &'a mut [f32], rows: usize, cols: usize, row_stride: usize) -> Self {
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

/// Whether `rows` rows of `cols` elements, `row_stride` apart, lie within `len` elements.
fn fits(len: usize, rows: usize, cols: usize, row_stride: usize) -> bool {
    // Also where there are no columns: rows are pointers into the slice then, too.
    let end = || (rows - 1).checked_mul(row_stride)?.checked_add(cols);
    rows == 0 || end().is_some_and(|end| end <= len)
}

/// A matrix whose rows are pieces of a larger one's, so that several threads can write next to each other.
#[derive(Clone, Copy)]
pub(super) struct SharedMut<'a> {
    data: *mut f32,
    len: usize,
    lifetime: PhantomData<&'a mut [f32]>,
}

// SAFETY: a pointer to `f32`s that its owner has borrowed mutably for 'a; who may write where is settled by the contract
// of `columns`.
unsafe impl Send for SharedMut<'_> {}
// SAFETY: as above.
unsafe impl Sync for SharedMut<'_> {}

impl<'a> SharedMut<'a> {
    pub(super) fn new(data: &'a mut [f32]) -> Self {
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
    pub(super) unsafe fn columns(self, start: usize, rows: usize, cols: usize, row_stride: usize) -> MatMut<'a> {
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
    pub(super) fn num_rows(&self) -> usize {
        self.rows
    }

    pub(super) fn row(&mut self, row: usize) -> &mut [f32] {
        assert!(row < self.rows);
        // SAFETY: the constructors have checked that `rows` rows of `cols` elements are within the allocation, and this
        // matrix is the only access to them.
        unsafe { std::slice::from_raw_parts_mut(self.data.add(row * self.row_stride), self.cols) }
    }
}

/// What becomes of the elements that a product is written over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Write {
    Replace,
    Add,
}

/// `out = scale * a b`, or `out += scale * a b`.
///
/// The sum over the inner dimension runs in the same order for any number of threads.
pub(super) fn matmul(out: &mut MatMut, write: Write, scale: f32, a: Mat, b: Mat, parallelism: Parallelism) {
    assert!(a.cols == b.rows && a.rows == out.rows && b.cols == out.cols);
    // SAFETY: the constructors of `Mat` and `MatMut` have checked that every element lies within its slice; `out` is
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
mod tests {
    use super::fits;

    #[test]
    fn what_does_not_fit_is_seen_in_spite_of_overflows() {
        assert!(fits(12, 3, 4, 4) && fits(11, 3, 3, 4) && fits(0, 0, 4, 4) && fits(4, 5, 0, 1));
        assert!(!fits(10, 3, 3, 4) && !fits(3, 5, 0, 1));
        // 2 * (usize::MAX / 2 + 1) is 0 after an overflow.
        assert!(!fits(12, 3, 4, usize::MAX / 2 + 1) && !fits(12, 2, 4, usize::MAX));
    }
}
