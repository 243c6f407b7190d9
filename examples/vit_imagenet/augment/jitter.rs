//! Colour jitter: brightness, contrast and saturation, each by a factor around 1, in random order.

use super::op::Op;
use rand::seq::SliceRandom;
use rand::Rng;

/// Factors are drawn evenly from 1 - strength (at least 0) to 1 + strength, as torchvision's `ColorJitter` does; the hue
/// stays.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ColourJitter {
    pub strength: f64,
}

impl ColourJitter {
    pub fn draw(self, rng: &mut impl Rng) -> [Op; 3] {
        let mut factor = || rng.random_range((1. - self.strength).max(0.)..=1. + self.strength);
        let mut ops = [
            Op::Brightness { factor: factor() },
            Op::Contrast { factor: factor() },
            Op::Saturation { factor: factor() },
        ];
        ops.shuffle(rng);
        ops
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng;
    use rand_chacha::ChaCha8Rng;
    use std::collections::HashMap;

    #[test]
    fn every_order_is_equally_likely_and_factors_fill_their_range() {
        let mut rng = ChaCha8Rng::seed_from_u64(0);
        for strength in [0.3, 2.] {
            let (mut orders, mut lowest, mut highest) = (HashMap::new(), f64::MAX, 0f64);
            for _ in 0..6000 {
                let order = ColourJitter { strength }.draw(&mut rng).map(|op| match op {
                    Op::Brightness { factor } => ("brightness", factor),
                    Op::Contrast { factor } => ("contrast", factor),
                    Op::Saturation { factor } => ("saturation", factor),
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
            let from = (1. - strength).max(0f64);
            assert!(lowest >= from && lowest < from + 0.01, "{lowest}");
            assert!(highest <= 1. + strength && highest > 0.99 + strength, "{highest}");
        }
    }
}
