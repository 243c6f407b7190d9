//! RandAugment as timm draws it (`rand-m9-mstd0.5-inc1` and `rand-m9-mstd0.5`): a few operations of one strength.

use rand::Rng;
use rand_distr::{Distribution, StandardNormal};

use super::geometry::Resample;
use super::image::{Image, CHANNELS};
use super::interpolation::Interpolation;
use super::normalize::Normalize;
use super::operation::{Kind, Operation};
use crate::check;
use crate::error::Result;

/// Applies operations drawn with replacement from fifteen, each with probability 1/2 at a strength around one
/// magnitude: timm's `rand-m{magnitude}-mstd0.5-inc1`, or without `inc1`.
///
/// The fifteen are auto contrast, equalize, invert, posterize, solarize, solarize-add, saturation, contrast,
/// brightness, sharpness, rotation, shears and translations. What a magnitude m means to each is told by timm's
/// `data/auto_augment.py`. Six of them have two forms ([`with_increasing`](Self::with_increasing)):
///
/// | | increasing (`inc1`) | not |
/// |---|---|---|
/// | saturation, contrast, brightness, sharpness | by max(.1, 1 ± .9 m/10) | by .1 + 1.8 m/10 |
/// | posterize | to 4 - ⌊4 m/10⌋ bits | to ⌊4 m/10⌋ bits |
/// | solarize | from 256 - ⌊25.6 m⌋ | from ⌊25.6 m⌋ |
///
/// E. D. Cubuk et al., "RandAugment: Practical automated data augmentation with a reduced search space", 2019 (arXiv
/// 1909.13719).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RandAugment {
    num_ops: usize,
    magnitude: f64,
    magnitude_std: f64,
    prob: f64,
    increasing: bool,
    interpolation: Interpolation,
    fill: [u8; CHANNELS],
}

impl RandAugment {
    /// Standard deviation of each operation's own magnitude, where nothing else is said.
    pub const MAGNITUDE_STD: f64 = 0.5;

    /// Draws two operations around `magnitude`, from 0 to 10, where most operations are strongest: 9 in most recipes, 7
    /// in ResNet strikes back. Moves images by bicubic interpolation, and fills what comes in with ImageNet's mean colour.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`](crate::Error::InvalidArgument) when `magnitude` is not 0 to 10.
    pub fn new(magnitude: f64) -> Result<Self> {
        Ok(Self {
            num_ops: 2,
            magnitude: check::in_range("magnitude", magnitude, 0.0..=MOST, "")?,
            magnitude_std: Self::MAGNITUDE_STD,
            prob: 0.5,
            increasing: true,
            interpolation: Interpolation::Bicubic,
            fill: Normalize::IMAGENET.mean_color(),
        })
    }

    /// Offers an image so many operations. timm's `n`.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`](crate::Error::InvalidArgument) when `num_ops` is not 1 to 2^20.
    pub fn with_num_ops(self, num_ops: usize) -> Result<Self> {
        check::counts([("num_ops", num_ops)])?;
        Ok(Self { num_ops, ..self })
    }

    /// Draws each operation's magnitude with this standard deviation; it stays within 0 to 10. timm's `mstd`.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`](crate::Error::InvalidArgument) when `magnitude_std` is negative, infinite or NaN.
    pub fn with_magnitude_std(self, magnitude_std: f64) -> Result<Self> {
        let magnitude_std = check::non_negative("magnitude_std", magnitude_std)?;
        Ok(Self { magnitude_std, ..self })
    }

    /// Applies each operation with this probability. timm's `p`.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`](crate::Error::InvalidArgument) when `prob` is not within [0, 1].
    pub fn with_prob(self, prob: f64) -> Result<Self> {
        let prob = check::share("prob", prob)?;
        Ok(Self { prob, ..self })
    }

    /// Takes the forms that grow with the magnitude, timm's `inc1`, as is the default and as most recipes do; or those
    /// without, of which a small magnitude posterizes, solarizes and darkens most. timm's `inc`.
    pub fn with_increasing(self, increasing: bool) -> Self {
        Self { increasing, ..self }
    }

    /// Turns and moves images by this interpolation.
    pub fn with_interpolation(self, interpolation: Interpolation) -> Self {
        Self { interpolation, ..self }
    }

    /// Fills what comes in from outside with this colour: [`Normalize::mean_color`] of what follows.
    pub fn with_fill(self, fill: [u8; 3]) -> Self {
        Self { fill, ..self }
    }

    /// Changes the image.
    pub fn apply(&self, image: &mut Image, rng: &mut impl Rng) {
        self.draw(rng).into_iter().for_each(|op| op.apply(image));
    }

    /// The operations for one image, in their order.
    pub fn draw(&self, rng: &mut impl Rng) -> Vec<Operation> {
        let mut ops = Vec::with_capacity(self.num_ops);
        for _ in 0..self.num_ops {
            let kind = rng.random_range(0..KINDS);
            if !rng.random_bool(self.prob) {
                continue;
            }
            let deviation: f64 = StandardNormal.sample(rng);
            let magnitude = (self.magnitude + self.magnitude_std * deviation).clamp(0.0, MOST);
            ops.push(self.op(kind, magnitude, rng));
        }
        ops
    }

    /// A level, or what is left of the whole where operations grow with the magnitude.
    fn reversed(&self, whole: u32, level: f64) -> u32 {
        if self.increasing {
            whole - level as u32
        } else {
            level as u32
        }
    }

    /// Operation number `kind` at `magnitude`.
    fn op(&self, kind: u32, magnitude: f64, rng: &mut impl Rng) -> Operation {
        let share = magnitude / MOST;
        let mut either_way = |value: f64| if rng.random() { value } else { -value };
        Operation(match kind {
            0 => Kind::AutoContrast,
            1 => Kind::Equalize,
            2 => Kind::Invert,
            3 => Kind::Posterize {
                bits: self.reversed(4, share * 4.0),
            },
            4 => Kind::Solarize {
                threshold: self.reversed(256, share * 256.0),
            },
            5 => Kind::SolarizeAdd {
                add: (share * 110.0).min(128.0) as u8,
                threshold: 128,
            },
            6..10 => {
                let factor = if self.increasing {
                    (1.0 + either_way(share * 0.9)).max(0.1)
                } else {
                    0.1 + share * 1.8
                };
                match kind {
                    6 => Kind::Saturation { factor },
                    7 => Kind::Contrast { factor },
                    8 => Kind::Brightness { factor },
                    _ => Kind::Sharpness { factor },
                }
            }
            _ => {
                let signed = either_way(share);
                let resample = Resample {
                    filter: self.interpolation.draw(rng),
                    fill: self.fill,
                };
                match kind {
                    10 => Kind::Rotate {
                        degrees: signed * 30.0,
                        resample,
                    },
                    11 => Kind::ShearX {
                        factor: signed * 0.3,
                        resample,
                    },
                    12 => Kind::ShearY {
                        factor: signed * 0.3,
                        resample,
                    },
                    13 => Kind::TranslateX {
                        share: signed * 0.45,
                        resample,
                    },
                    _ => Kind::TranslateY {
                        share: signed * 0.45,
                        resample,
                    },
                }
            }
        })
    }
}

const KINDS: u32 = 15;
/// The magnitude at which an argument reaches the end of its range.
const MOST: f64 = 10.0;

#[cfg(test)]
mod tests {
    use super::super::resize::Filter;
    use super::super::testing::{noise, rng};
    use super::*;
    use std::collections::HashMap;
    use std::mem::discriminant;

    #[test]
    fn operations_are_equally_likely_and_half_of_them_are_applied() {
        let (mut rng, mut kinds, mut counts) = (rng(0), HashMap::new(), [0; 3]);
        for _ in 0..15_000 {
            let ops = RandAugment::new(9.0).unwrap().draw(&mut rng);
            counts[ops.len()] += 1;
            for op in ops {
                *kinds.entry(discriminant(&op.0)).or_insert(0) += 1;
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
        let mut rng = rng(0);
        let rand_augment = RandAugment::new(9.0).unwrap().with_fill([1, 2, 3]);
        let mut drawn = |kind| rand_augment.op(kind, 5.0, &mut rng).0;
        let resample = Resample {
            filter: Filter::Bicubic,
            fill: [1, 2, 3],
        };
        let both = |value: f64, make: &dyn Fn(f64) -> Kind| [make(value), make(-value)];
        for (kind, allowed) in [
            (0, [Kind::AutoContrast; 2]),
            (1, [Kind::Equalize; 2]),
            (2, [Kind::Invert; 2]),
            (3, [Kind::Posterize { bits: 2 }; 2]),
            (4, [Kind::Solarize { threshold: 128 }; 2]),
            (
                5,
                [Kind::SolarizeAdd {
                    add: 55,
                    threshold: 128,
                }; 2],
            ),
            (6, both(0.45, &|by| Kind::Saturation { factor: 1.0 + by })),
            (7, both(0.45, &|by| Kind::Contrast { factor: 1.0 + by })),
            (8, both(0.45, &|by| Kind::Brightness { factor: 1.0 + by })),
            (9, both(0.45, &|by| Kind::Sharpness { factor: 1.0 + by })),
            (10, both(15.0, &|degrees| Kind::Rotate { degrees, resample })),
            (11, both(0.15, &|factor| Kind::ShearX { factor, resample })),
            (12, both(0.15, &|factor| Kind::ShearY { factor, resample })),
            (13, both(0.225, &|share| Kind::TranslateX { share, resample })),
            (14, both(0.225, &|share| Kind::TranslateY { share, resample })),
        ] {
            let ops: Vec<Kind> = (0..40).map(|_| drawn(kind)).collect();
            assert!(ops.iter().all(|op| allowed.contains(op)), "{kind}: {:?}", ops[0]);
            assert!(allowed.iter().all(|op| ops.contains(op)), "{kind}: one sign only");
        }
        let mut most = |kind| rand_augment.op(kind, 10.0, &mut rng).0;
        assert_eq!(most(3), Kind::Posterize { bits: 0 });
        assert_eq!(most(4), Kind::Solarize { threshold: 0 });
        assert_eq!(
            most(5),
            Kind::SolarizeAdd {
                add: 110,
                threshold: 128
            }
        );
        let factors: Vec<Kind> = (0..40).map(|_| most(9)).collect();
        assert!(
            factors.contains(&Kind::Sharpness { factor: 0.1 }) && factors.contains(&Kind::Sharpness { factor: 1.9 })
        );
    }

    // timm's `rand-m7` without `inc1`, by hand: factors of 1.36, two bits, from 179.
    #[test]
    fn without_increasing_forms_a_magnitude_is_one_argument() {
        let (mut rng, mut same) = (rng(0), [rng(1), rng(1)]);
        let rand_augment = RandAugment::new(7.0).unwrap().with_increasing(false);
        let near = |factor: f64, expected: f64| (factor - expected).abs() < 1e-12;
        for _ in 0..20 {
            assert_eq!(rand_augment.op(3, 7.0, &mut rng).0, Kind::Posterize { bits: 2 });
            assert_eq!(rand_augment.op(4, 7.0, &mut rng).0, Kind::Solarize { threshold: 179 });
            let add = Kind::SolarizeAdd {
                add: 77,
                threshold: 128,
            };
            assert_eq!(rand_augment.op(5, 7.0, &mut rng).0, add);
            for kind in 6..10 {
                let factor = |magnitude, rng: &mut _| match rand_augment.op(kind, magnitude, rng).0 {
                    Kind::Saturation { factor } | Kind::Contrast { factor } => factor,
                    Kind::Brightness { factor } | Kind::Sharpness { factor } => factor,
                    other => panic!("{other:?}"),
                };
                assert!(near(factor(7.0, &mut rng), 1.36) && near(factor(0.0, &mut rng), 0.1));
                assert!(near(factor(10.0, &mut rng), 1.9));
            }
        }
        // A turn is the same in both.
        let turns = [true, false].map(|increasing| rand_augment.with_increasing(increasing));
        let turns: Vec<_> = turns
            .iter()
            .zip(&mut same)
            .map(|(rand, rng)| rand.op(10, 7.0, rng))
            .collect();
        assert_eq!(turns[0], turns[1]);
    }

    // The magnitude shows in a rotation: mean 9, standard deviation a half, never above 10.
    #[test]
    fn magnitudes_are_normal_around_theirs() {
        let mut rng = rng(0);
        let certain = RandAugment::new(7.0).unwrap().with_prob(1.0).unwrap();
        let certain = certain.with_interpolation(Interpolation::Random);
        let drawn = (0..60_000).flat_map(|_| certain.draw(&mut rng));
        let magnitudes: Vec<f64> = drawn
            .filter_map(|op| match op.0 {
                Kind::Rotate { degrees, .. } => Some(degrees.abs() / 3.0),
                _ => None,
            })
            .collect();
        let n = magnitudes.len() as f64;
        let mean = magnitudes.iter().sum::<f64>() / n;
        let std = (magnitudes.iter().map(|m| (m - mean).powi(2)).sum::<f64>() / n).sqrt();
        assert!((mean - 7.0).abs() < 0.03 && (std - 0.5).abs() < 0.02, "{mean} {std}");
        assert!(magnitudes.iter().all(|&m| m <= 10.0));
    }

    #[test]
    fn settings_are_set_and_checked() {
        let three = RandAugment::new(10.0).unwrap().with_num_ops(3).unwrap();
        let three = three.with_prob(1.0).unwrap().with_magnitude_std(0.0).unwrap();
        let ops = three.with_interpolation(Interpolation::Bilinear).draw(&mut rng(0));
        assert_eq!(ops.len(), 3);
        let nothing = three.with_prob(0.0).unwrap();
        let mut image = noise(9, 9);
        nothing.apply(&mut image, &mut rng(0));
        assert_eq!(image, noise(9, 9));
        for magnitude in [-0.1, 10.1, f64::NAN] {
            assert!(RandAugment::new(magnitude).is_err());
        }
        assert!(three.with_num_ops(0).is_err() && three.with_num_ops(usize::MAX).is_err());
        assert!(three.with_prob(1.1).is_err() && three.with_magnitude_std(f64::NAN).is_err());
        // As uneven as can be, a magnitude is still one.
        let wild = three.with_magnitude_std(f64::MAX).unwrap();
        (0..100).for_each(|seed| wild.apply(&mut image, &mut rng(seed)));
    }
}
