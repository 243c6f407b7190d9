//! Images and generators for the tests.

use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

use super::Image;

pub(super) fn image(width: usize, height: usize, pixels: Vec<u8>) -> Image {
    Image::from_raw(width, height, pixels).unwrap()
}

/// Values without any order.
pub(super) fn noise(width: usize, height: usize) -> Image {
    let value = |i: usize| ((i as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8;
    image(width, height, (0..width * height * 3).map(value).collect())
}

pub(super) fn rng(seed: u64) -> ChaCha8Rng {
    ChaCha8Rng::seed_from_u64(seed)
}
