//! Reductions of slices, in an order that neither threads nor registers change.

/// Partial sums of a reduction: two AVX registers of `f32`, enough to hide an addition's latency.
pub(crate) const LANES: usize = 16;

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

/// The largest element, -inf of an empty slice. NaN is skipped: `exp(x - max)` brings it back.
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
