//! Products beside sums in `f64`, and on several numbers of threads.

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
        ([1100, 70, 90], [true, true], 2),
        ([1600, 33, 66], [true, true], 3),
        ([1288, 768, 96], [true, false], 40),
        ([1288, 600, 96], [true, false], 40),
    ] {
        let [rows, inner, cols] = shape;
        assert!(shares(rows, &Random::new([inner, cols], transposed[1], 1), threads));
        for write in [Write::Replace, Write::Add] {
            check(shape, transposed, write, &[2, threads, 64]);
        }
    }
}

/// Column blocks, parts of the inner dimension, and pieces of rows and of panels, none of which comes out even.
#[cfg(target_arch = "x86_64")]
#[test]
fn products_of_a_packed_factor_are_the_same() {
    for (shape, transposed) in [
        ([67, 4001, 600], [false, true]),
        ([64, 3000, 501], [false, false]),
        ([997, 530, 137], [false, true]),
        ([400, 16, 129], [false, true]),
        ([100, 513, 270], [false, false]),
    ] {
        let [rows, inner, cols] = shape;
        let (a, b) = (
            Random::new([rows, inner], false, 0),
            Random::new([inner, cols], transposed[1], 1),
        );
        assert!(packed::pays(a.mat(), b.mat()));
        for write in [Write::Replace, Write::Add] {
            check(shape, transposed, write, &[2, 3, 40]);
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[test]
fn a_factor_is_packed_where_that_pays() {
    let pays = |[rows, inner, cols]: [usize; 3], transposed| {
        let (a, b) = (
            Random::new([rows, inner], transposed, 0),
            Random::new([inner, cols], false, 0),
        );
        packed::pays(a.mat(), b.mat())
    };
    assert!(pays([64, 200, 65], false) && !pays([64, 200, 65], true));
    assert!(!pays([63, 200, 65], false) && !pays([64, 200, 64], false) && !pays([64, 100, 65], false));
    assert!(pays([640, 16, 65], false) && !pays([700, 15, 65], false));
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
