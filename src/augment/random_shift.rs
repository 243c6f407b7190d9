//! Random shift: for pictures too small to cut.

use rand::Rng;

use super::image::Image;
use super::size::side;
use crate::error::Result;

/// Moves an image by a few pixels in both directions and repeats its edges: torchvision's
/// `RandomCrop(size, padding=n, padding_mode="edge")` for an image of that size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RandomShift {
    reach: i32,
}

impl RandomShift {
    /// Shifts of up to `pixels` in either direction, each as likely.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`](crate::Error::InvalidArgument) when `pixels` is more than 2^15.
    pub fn new(pixels: usize) -> Result<Self> {
        let reach = if pixels == 0 { 0 } else { side("pixels", pixels)? };
        Ok(Self { reach: reach as i32 })
    }

    /// The shifted image [H, W, 3].
    pub fn apply(&self, image: &Image, rng: &mut impl Rng) -> Image {
        let mut places = |length: usize| -> Vec<usize> {
            let by = rng.random_range(-self.reach..=self.reach) as isize;
            let from = |at: usize| (at as isize - by).clamp(0, length as isize - 1) as usize;
            (0..length).map(from).collect()
        };
        let columns = places(image.width);
        image.gathered(&columns, &places(image.height))
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{image, rng};
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn shifts_stay_in_reach_and_repeat_the_edge() {
        let ramp = |(width, height): (usize, usize)| {
            let pixel = |i: usize| [(i % width) as u8, (i / width) as u8, 7];
            image(width, height, (0..width * height).flat_map(pixel).collect())
        };
        let ((width, height), mut rng) = ((16, 12), rng(0));
        let picture = ramp((width, height));
        let mut seen = BTreeSet::new();
        for _ in 0..500 {
            let shifted = RandomShift::new(2).unwrap().apply(&picture, &mut rng);
            let middle = &shifted.row(6)[8 * 3..];
            let (right, down) = (8 - i32::from(middle[0]), 6 - i32::from(middle[1]));
            seen.insert((right, down));
            for (i, &v) in shifted.as_raw().iter().enumerate() {
                let (x, y) = ((i / 3 % width) as i32, (i / 3 / width) as i32);
                let from = [(x - right).clamp(0, 15), (y - down).clamp(0, 11), 7];
                assert_eq!(i32::from(v), from[i % 3], "{x} {y}");
            }
        }
        assert_eq!(seen.len(), 25); // -2..=2 in both directions
        assert_eq!(RandomShift::new(0).unwrap().apply(&picture, &mut rng), picture);
        assert!(RandomShift::new(usize::MAX).is_err());
        RandomShift::new(1 << 15).unwrap().apply(&ramp((1, 1)), &mut rng);
    }
}
