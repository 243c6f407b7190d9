//! A loop compiled for what this CPU can do, found out at run time.

use pulp::{Simd, WithSimd};

use crate::ops::cpu::kernel::dispatch;

struct Work<F>(F);

impl<T, F: FnOnce() -> T> WithSimd for Work<F> {
    type Output = T;

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) -> T {
        self.0()
    }
}

/// Runs `work`, with AVX2 where there is any. The closure and whatever it calls must be `#[inline(always)]`, or it
/// would be compiled for the baseline.
#[inline(always)]
pub(super) fn vectorized<T>(work: impl FnOnce() -> T) -> T {
    dispatch(Work(work))
}

/// `value` cut to 0..=255 and truncated. A cast would do, but its rules for NaN keep loops from being vectorized.
#[inline(always)]
pub(super) fn byte(value: f32) -> u8 {
    // From 2^23 on the last bits of a float count ones.
    const ONES: f32 = (1 << 23) as f32;
    (value.clamp(0.0, 255.0).floor() + ONES).to_bits() as u8
}

#[cfg(test)]
mod tests {
    #[test]
    fn bytes_are_what_a_cast_gives() {
        for i in -3000..80_000 {
            let value = i as f32 / 256.0;
            assert_eq!(super::byte(value), value as u8, "{value}");
        }
    }
}
