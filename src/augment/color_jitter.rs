//! Colour jitter: brightness, contrast and saturation, each by a factor around 1, in random order.

use rand::seq::SliceRandom;
use rand::Rng;

use super::image::Image;
use super::operation::{Kind, Operation};
use crate::check;
use crate::error::Result;

/// Varies brightness, contrast and saturation by factors drawn evenly from 1 - strength (at least 0) to 1 + strength,
/// in random order: torchvision's `ColorJitter(strength, strength, strength)`, the hue stays. timm's `color_jitter`,
/// which it leaves out beside RandAugment.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ColorJitter {
    strength: f64,
}

impl ColorJitter {
    const MOST: f64 = 1000.0;

    /// Jitter of that strength: 0.3 in DeiT-III's recipe, 0.4 is timm's default.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`](crate::Error::InvalidArgument) when `strength` is not 0 to 1000.
    pub fn new(strength: f64) -> Result<Self> {
        let strength = check::in_range("strength", strength, 0.0..=Self::MOST, "")?;
        Ok(Self { strength })
    }

    /// Changes the image.
    pub fn apply(&self, image: &mut Image, rng: &mut impl Rng) {
        self.draw(rng).into_iter().for_each(|op| op.apply(image));
    }

    /// The operations for one image, in their order.
    pub fn draw(&self, rng: &mut impl Rng) -> [Operation; 3] {
        let mut factor = || rng.random_range((1.0 - self.strength).max(0.0)..=1.0 + self.strength);
        let mut ops = [
            Operation(Kind::Brightness { factor: factor() }),
            Operation(Kind::Contrast { factor: factor() }),
            Operation(Kind::Saturation { factor: factor() }),
        ];
        ops.shuffle(rng);
        ops
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{noise, rng};
    use super::*;
    use std::collections::HashMap;

    #[test]
    fn every_order_is_equally_likely_and_factors_fill_their_range() {
        let mut rng = rng(0);
        for strength in [0.3, 2.0] {
            let (mut orders, mut lowest, mut highest) = (HashMap::new(), f64::MAX, 0f64);
            for _ in 0..6000 {
                let order = ColorJitter::new(strength).unwrap().draw(&mut rng).map(|op| match op.0 {
                    Kind::Brightness { factor } => ("brightness", factor),
                    Kind::Contrast { factor } => ("contrast", factor),
                    Kind::Saturation { factor } => ("saturation", factor),
                    other => panic!("{other:?}"),
                });
                for (_, factor) in order {
                    (lowest, highest) = (lowest.min(factor), highest.max(factor));
                }
                *orders.entry(order.map(|(name, _)| name)).or_insert(0) += 1;
            }
            // 1000 expected, standard deviation 29.
            assert_eq!(orders.len(), 6);
            assert!(orders.values().all(|n| (850..1150).contains(n)), "{orders:?}");
            let from = (1.0 - strength).max(0f64);
            assert!(lowest >= from && lowest < from + 0.01, "{lowest}");
            assert!(highest <= 1.0 + strength && highest > 0.99 + strength, "{highest}");
        }
    }

    #[test]
    fn strengths_are_finite_and_not_negative() {
        for strength in [-0.1, f64::NAN, f64::INFINITY, f64::MAX] {
            assert!(ColorJitter::new(strength).is_err());
        }
        let mut image = noise(3, 3);
        ColorJitter::new(ColorJitter::MOST)
            .unwrap()
            .apply(&mut image, &mut rng(0));
    }
}
