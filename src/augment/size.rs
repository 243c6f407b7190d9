//! The sizes that transforms produce.

use super::image::Image;
use crate::check;
use crate::error::Result;

/// Largest side of what a transform produces: its square is less than an image may have.
const MOST_SIDE: usize = 1 << 15;

/// A side of the result in pixels: 1 to 2^15.
pub(super) fn side(argument: &'static str, value: usize) -> Result<usize> {
    check::in_range(argument, value, 1..=MOST_SIDE, "pixels")
}

/// The width and height at which the shorter side is `side`: torchvision's `Resize(side)`, which cuts the longer one to
/// whole pixels.
pub(super) fn shorter_side_to(image: &Image, side: usize) -> (usize, usize) {
    let longer = |long: usize, short: usize| {
        let scaled = side as u64 * long as u64 / short as u64; // more than 32 bits: a hair of an image is long
        usize::try_from(scaled).unwrap_or(usize::MAX / 2).max(side)
    };
    if image.width <= image.height {
        (side, longer(image.height, image.width))
    } else {
        (longer(image.width, image.height), side)
    }
}
