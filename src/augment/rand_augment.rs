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
                moved(kind, signed, resample)
            }
        })
    }
}

/// A geometric operation, of a share of its most in one direction or the other.
fn moved(kind: u32, share: f64, resample: Resample) -> Kind {
    match kind {
        10 => Kind::Rotate {
            degrees: share * 30.0,
            resample,
        },
        11 => Kind::ShearX {
            factor: share * 0.3,
            resample,
        },
        12 => Kind::ShearY {
            factor: share * 0.3,
            resample,
        },
        13 => Kind::TranslateX {
            share: share * 0.45,
            resample,
        },
        _ => Kind::TranslateY {
            share: share * 0.45,
            resample,
        },
    }
}

const KINDS: u32 = 15;
/// The magnitude at which an argument reaches the end of its range.
const MOST: f64 = 10.0;

#[cfg(test)]
mod tests;
