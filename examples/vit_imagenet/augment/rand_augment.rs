//! RandAugment as timm draws it (`rand-m9-mstd0.5-inc1` at its settings): a few operations of one strength.
//!
//! E. D. Cubuk et al., "RandAugment: Practical automated data augmentation with a reduced search space", 2019 (arXiv
//! 1909.13719); the operations and what a magnitude means to each are those of timm's `auto_augment.py`, "increasing".

use super::op::Op;
use super::pixels::Interpolation;
use rand::Rng;
use rand_distr::{Distribution, StandardNormal};

#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RandAugment {
    /// Operations an image is offered, drawn with replacement.
    pub num_ops: usize,
    /// 0 to 10, where most operations are strongest.
    pub magnitude: f64,
    /// Standard deviation of each operation's own magnitude.
    pub magnitude_std: f64,
    /// Probability with which an operation is applied.
    pub prob: f64,
}

impl RandAugment {
    pub const fn new(magnitude: f64) -> Self {
        Self {
            num_ops: 2,
            magnitude,
            magnitude_std: 0.5,
            prob: 0.5,
        }
    }

    pub fn draw(&self, interpolation: Interpolation, rng: &mut impl Rng) -> Vec<Op> {
        let mut ops = Vec::with_capacity(self.num_ops);
        for _ in 0..self.num_ops {
            let kind = rng.random_range(0..KINDS);
            if !rng.random_bool(self.prob) {
                continue;
            }
            let deviation: f64 = StandardNormal.sample(rng);
            let magnitude = (self.magnitude + self.magnitude_std * deviation).clamp(0., MOST);
            ops.push(op(kind, magnitude, interpolation, rng));
        }
        ops
    }
}

const KINDS: u32 = 15;
/// The magnitude at which an argument reaches the end of its range.
const MOST: f64 = 10.;

/// Operation number `kind` at `magnitude`.
fn op(kind: u32, magnitude: f64, interpolation: Interpolation, rng: &mut impl Rng) -> Op {
    let share = magnitude / MOST;
    let mut either_way = |value: f64| if rng.random() { value } else { -value };
    match kind {
        0 => Op::AutoContrast,
        1 => Op::Equalize,
        2 => Op::Invert,
        3 => Op::Posterize {
            bits: 4 - (share * 4.) as u32,
        },
        4 => Op::Solarize {
            threshold: 256 - (share * 256.) as u32,
        },
        5 => Op::SolarizeAdd {
            add: (share * 110.).min(128.) as u8,
            threshold: 128,
        },
        6..10 => {
            let factor = (1. + either_way(share * 0.9)).max(0.1);
            match kind {
                6 => Op::Saturation { factor },
                7 => Op::Contrast { factor },
                8 => Op::Brightness { factor },
                _ => Op::Sharpness { factor },
            }
        }
        _ => {
            let signed = either_way(share);
            let filter = interpolation.draw(rng);
            match kind {
                10 => Op::Rotate {
                    degrees: signed * 30.,
                    filter,
                },
                11 => Op::ShearX {
                    factor: signed * 0.3,
                    filter,
                },
                12 => Op::ShearY {
                    factor: signed * 0.3,
                    filter,
                },
                13 => Op::TranslateX {
                    share: signed * 0.45,
                    filter,
                },
                _ => Op::TranslateY {
                    share: signed * 0.45,
                    filter,
                },
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::pixels::Filter;
    use super::*;
    use rand::SeedableRng;
    use rand_chacha::ChaCha8Rng;
    use std::collections::HashMap;
    use std::mem::discriminant;

    #[test]
    fn operations_are_equally_likely_and_half_of_them_are_applied() {
        let (mut rng, mut kinds, mut counts) = (ChaCha8Rng::seed_from_u64(0), HashMap::new(), [0; 3]);
        for _ in 0..15_000 {
            let ops = RandAugment::new(9.).draw(Interpolation::Bicubic, &mut rng);
            counts[ops.len()] += 1;
            for op in ops {
                *kinds.entry(discriminant(&op)).or_insert(0) += 1;
            }
        }
        // 1000 expected of each, standard deviation 31; none, one or two in a quarter, a half and a quarter.
        assert_eq!(kinds.len(), KINDS as usize);
        assert!(kinds.values().all(|n| (870..1130).contains(n)), "{kinds:?}");
        assert!(
            (3500..4000).contains(&counts[0]) && (7200..7800).contains(&counts[1]),
            "{counts:?}"
        );
    }

    // At magnitude 5, by hand: half of everything.
    #[test]
    fn a_magnitude_means_to_each_operation_what_timm_says() {
        let mut rng = ChaCha8Rng::seed_from_u64(0);
        let mut drawn = |kind| op(kind, 5., Interpolation::Bicubic, &mut rng);
        let filter = Filter::Bicubic;
        let both = |value: f64, make: &dyn Fn(f64) -> Op| [make(value), make(-value)];
        for (kind, allowed) in [
            (0, [Op::AutoContrast; 2]),
            (1, [Op::Equalize; 2]),
            (2, [Op::Invert; 2]),
            (3, [Op::Posterize { bits: 2 }; 2]),
            (4, [Op::Solarize { threshold: 128 }; 2]),
            (
                5,
                [Op::SolarizeAdd {
                    add: 55,
                    threshold: 128,
                }; 2],
            ),
            (6, both(0.45, &|by| Op::Saturation { factor: 1. + by })),
            (7, both(0.45, &|by| Op::Contrast { factor: 1. + by })),
            (8, both(0.45, &|by| Op::Brightness { factor: 1. + by })),
            (9, both(0.45, &|by| Op::Sharpness { factor: 1. + by })),
            (10, both(15., &|degrees| Op::Rotate { degrees, filter })),
            (11, both(0.15, &|factor| Op::ShearX { factor, filter })),
            (12, both(0.15, &|factor| Op::ShearY { factor, filter })),
            (13, both(0.225, &|share| Op::TranslateX { share, filter })),
            (14, both(0.225, &|share| Op::TranslateY { share, filter })),
        ] {
            let ops: Vec<Op> = (0..40).map(|_| drawn(kind)).collect();
            assert!(ops.iter().all(|op| allowed.contains(op)), "{kind}: {:?}", ops[0]);
            assert!(allowed.iter().all(|op| ops.contains(op)), "{kind}: one sign only");
        }
        let mut most = |kind| op(kind, 10., Interpolation::Bilinear, &mut rng);
        assert_eq!(most(3), Op::Posterize { bits: 0 });
        assert_eq!(most(4), Op::Solarize { threshold: 0 });
        assert_eq!(
            most(5),
            Op::SolarizeAdd {
                add: 110,
                threshold: 128
            }
        );
        let factors: Vec<Op> = (0..40).map(|_| most(9)).collect();
        assert!(factors.contains(&Op::Sharpness { factor: 0.1 }) && factors.contains(&Op::Sharpness { factor: 1.9 }));
    }

    // The magnitude shows in a rotation: mean 9, standard deviation a half, never above 10.
    #[test]
    fn magnitudes_are_normal_around_theirs() {
        let mut rng = ChaCha8Rng::seed_from_u64(0);
        let certain = RandAugment {
            prob: 1.,
            ..RandAugment::new(7.)
        };
        let drawn = (0..60_000).flat_map(|_| certain.draw(Interpolation::Random, &mut rng));
        let magnitudes: Vec<f64> = drawn
            .filter_map(|op| match op {
                Op::Rotate { degrees, .. } => Some(degrees.abs() / 3.),
                _ => None,
            })
            .collect();
        let n = magnitudes.len() as f64;
        let mean = magnitudes.iter().sum::<f64>() / n;
        let std = (magnitudes.iter().map(|m| (m - mean).powi(2)).sum::<f64>() / n).sqrt();
        assert!((mean - 7.).abs() < 0.03 && (std - 0.5).abs() < 0.02, "{mean} {std}");
        assert!(magnitudes.iter().all(|&m| m <= 10.));
    }
}
