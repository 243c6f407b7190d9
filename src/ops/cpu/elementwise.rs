//! The plain loops over slices that several operations need.

use super::kernel;

/// A copy, made by all threads: the pages of fresh memory cost more than the copying.
pub(crate) fn to_vec(xs: &[f32]) -> Vec<f32> {
    let mut copy = vec![0f32; xs.len()];
    kernel::for_rows(&mut copy, 1, |first, copy| {
        copy.copy_from_slice(&xs[first..][..copy.len()])
    });
    copy
}

kernel::simd_fn! {
    /// sum += x
    pub(crate) fn add<S>(sums: &mut [f32], xs: &[f32]) -> () {
        for (sum, x) in sums.iter_mut().zip(xs) {
            *sum += x;
        }
    }
}

kernel::simd_fn! {
    /// y = x * factor
    pub(crate) fn scale_into<S>(xs: &[f32], factor: f32, ys: &mut [f32]) -> () {
        for (y, x) in ys.iter_mut().zip(xs) {
            *y = x * factor;
        }
    }
}

kernel::simd_fn! {
    pub(crate) fn dot<S>(a: &[f32], b: &[f32]) -> f32 {
        kernel::sum_by([a, b], |[a, b]| a * b)
    }
}
