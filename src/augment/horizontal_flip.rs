//! Horizontal flip.

use rand::Rng;

use super::image::Image;
use crate::check;
use crate::error::Result;

/// Exchanges left and right with a probability: torchvision's `RandomHorizontalFlip`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct HorizontalFlip {
    prob: f64,
}

impl HorizontalFlip {
    /// Flips an image with probability `prob`; the recipes have 0.5.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`](crate::Error::InvalidArgument) when `prob` is not within [0, 1].
    pub fn new(prob: f64) -> Result<Self> {
        Ok(Self {
            prob: check::share("prob", prob)?,
        })
    }

    /// Changes `image`, or leaves it.
    pub fn apply(&self, image: &mut Image, rng: &mut impl Rng) {
        if rng.random_bool(self.prob) {
            image.mirror();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{noise, rng};
    use super::*;

    #[test]
    fn images_are_flipped_with_their_probability() {
        let (image, mut rng) = (noise(5, 3), rng(0));
        for (prob, expected) in [(0.0, 0..1), (0.5, 150..250), (1.0, 400..401)] {
            let flip = HorizontalFlip::new(prob).unwrap();
            let mut flipped = || {
                let mut copy = image.clone();
                flip.apply(&mut copy, &mut rng);
                copy != image
            };
            let n = (0..400).filter(|_| flipped()).count();
            assert!(expected.contains(&n), "{n} of 400 at {prob}"); // standard deviation 10
        }
        assert!([-0.1, 1.1, f64::NAN]
            .iter()
            .all(|&prob| HorizontalFlip::new(prob).is_err()));
    }
}
