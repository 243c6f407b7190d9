//! Matrix products on slices: `gemm`'s, with views that have checked what it takes on trust.

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

    /// The rows of each range, of which none begins before the end of the one before it.
    fn par_split_rows<'s>(&'s mut self, ranges: &'s [Range<usize>]) -> impl IndexedParallelIterator<Item = MatMut<'s>> {
        assert!(within(ranges, self.rows) && ranges.windows(2).all(|pair| pair[0].end <= pair[1].start));
        let (rows, row_stride, cols) = (self.rows, self.row_stride, self.cols);
        // From the first row's start to the last one's end.
        let shared = SharedMut {
            data: self.data,
            len: rows.saturating_sub(1) * row_stride + cols,
            lifetime: PhantomData,
        };
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
    if matches!(parallelism, Parallelism::None) || !may_share_rows(out.rows, b) {
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
mod tests {
    use super::*;
    use crate::ops::testing::{pool, random};
    use candle_core::DType;
    use proptest::prelude::*;

    /// A matrix of random elements, as it is in memory or as what is in memory transposed.
    struct Random {
        data: Vec<f32>,
        shape: [usize; 2],
        transposed: bool,
    }

    impl Random {
        fn new(shape: [usize; 2], transposed: bool, seed: u64) -> Self {
            let data = random(&shape, seed).to_dtype(DType::F32).unwrap();
            let data = data.flatten_all().unwrap().to_vec1().unwrap();
            Self {
                data,
                shape,
                transposed,
            }
        }

        fn mat(&self) -> Mat<'_> {
            let [rows, cols] = self.shape;
            if self.transposed {
                Mat::rows(&self.data, cols, rows, rows).t()
            } else {
                Mat::rows(&self.data, rows, cols, cols)
            }
        }

        fn at(&self, row: usize, col: usize) -> f64 {
            let [rows, cols] = self.shape;
            f64::from(
                self.data[if self.transposed {
                    col * rows + row
                } else {
                    row * cols + col
                }],
            )
        }
    }

    /// What is in the memory of a matrix with a gap behind each row, once the product is in it.
    fn product(a: &Random, b: &Random, write: Write, threads: usize) -> Vec<f32> {
        let ([rows, _], [_, cols]) = (a.shape, b.shape);
        let mut memory = vec![0.5; rows * (cols + 2)];
        pool(threads, false).install(|| {
            let mut out = MatMut::rows(&mut memory, rows, cols, cols + 2);
            matmul(&mut out, write, 0.3, a.mat(), b.mat(), Parallelism::Rayon(0));
        });
        memory
    }

    fn shares(rows: usize, b: &Random, threads: usize) -> bool {
        pool(threads, false).install(|| may_share_rows(rows, b.mat()))
    }

    /// Numbers, what lies between the rows, and that each number of threads gives the same bits.
    fn check([rows, inner, cols]: [usize; 3], transposed: [bool; 2], write: Write, threads: &[usize]) {
        let a = Random::new([rows, inner], transposed[0], 0);
        let b = Random::new([inner, cols], transposed[1], 1);
        let case = format!("{rows} x {inner} x {cols}, {transposed:?}, {write:?}");
        let single = product(&a, &b, write, 1);
        for (i, row) in single.chunks_exact(cols + 2).enumerate() {
            for (j, &got) in row[..cols].iter().enumerate() {
                let sum: f64 = (0..inner).map(|k| a.at(i, k) * b.at(k, j)).sum();
                let want = 0.3 * sum + if write == Write::Add { 0.5 } else { 0.0 };
                let error = (f64::from(got) - want).abs();
                assert!(error < 1e-5 * (inner as f64).sqrt(), "{case}: {got} for {want}");
            }
            assert_eq!(row[cols..], [0.5, 0.5], "{case}");
        }
        for &threads in threads {
            assert!(product(&a, &b, write, threads) == single, "{case}, {threads} threads");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]

        #[test]
        fn products_are_right_and_the_same_for_any_number_of_threads(
            rows in 1usize..400, inner in 1usize..700, cols in 1usize..200, transposed: [bool; 2], add: bool,
        ) {
            let write = if add { Write::Add } else { Write::Replace };
            check([rows, inner, cols], transposed, write, &[2, 3, 8]);
        }
    }

    /// Where each thread computes its rows; 33 rows for each but the last of 40 would leave it a single one.
    #[test]
    fn products_whose_rows_are_shared_are_the_same() {
        for (shape, transposed, threads) in [
            ([1100, 70, 90], [false, true], 2),
            ([1600, 33, 66], [true, true], 3),
            ([1288, 768, 96], [false, false], 40),
            ([1288, 600, 96], [true, false], 40),
        ] {
            let [rows, inner, cols] = shape;
            assert!(shares(rows, &Random::new([inner, cols], transposed[1], 1), threads));
            for write in [Write::Replace, Write::Add] {
                check(shape, transposed, write, &[2, threads, 64]);
            }
        }
    }

    #[test]
    fn threads_share_rows_where_that_pays() {
        let by_rows = Random::new([512, 96], false, 0);
        let transposed = Random::new([512, 96], true, 0);
        let narrow = Random::new([512, 64], false, 0);
        assert!(!shares(2048, &by_rows, 1) && shares(2048, &by_rows, 2));
        assert!(!shares(63, &by_rows, 2) && shares(64, &by_rows, 2));
        assert!(!shares(95, &by_rows, 3) && shares(96, &by_rows, 3));
        assert!(!shares(1023, &transposed, 2) && shares(1024, &transposed, 2));
        assert!(!shares(2048, &narrow, 2));
        // Little work.
        assert!(!shares(64, &Random::new([64, 96], false, 0), 2));
    }

    #[test]
    fn what_does_not_fit_is_seen_in_spite_of_overflows() {
        assert!(fits(12, 3, 4, 4) && fits(11, 3, 3, 4) && fits(0, 0, 4, 4) && fits(4, 5, 0, 1));
        assert!(!fits(10, 3, 3, 4) && !fits(3, 5, 0, 1));
        // 2 * (usize::MAX / 2 + 1) is 0 after an overflow.
        assert!(!fits(12, 3, 4, usize::MAX / 2 + 1) && !fits(12, 2, 4, usize::MAX));
    }
}
