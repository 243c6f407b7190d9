//! How training images are varied: the values in which recipes differ.

use masksub::augment::{self, RandAugment, RandomResizedCrop, SimpleRandomCrop};
use std::fmt;

#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Augment {
    pub crop: Crop,
    /// Probability with which left and right are exchanged.
    pub flip: f64,
    pub auto: AutoAugment,
    /// Brightness, contrast and saturation by factors of 1 - this to 1 + this. Not beside RandAugment: timm leaves it out
    /// there unless forced, so a recipe that lists both (Swin's) was trained without it.
    pub color_jitter: f64,
    /// Probability of random erasing.
    pub erasing: f64,
    /// How often an image appears in an epoch that shows it, each time varied anew; the epoch shows that many fewer.
    pub repeats: usize,
}

/// How a training image becomes a square.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Crop {
    /// A box of 8 to 100 % of the image and of aspect 3/4 to 4/3, resized (Inception's crop)
    #[value(name = "resized-crop")]
    Resized,
    /// The shorter side resized to the input's, 4 pixels reflected on around it, a square cut (DeiT-III's)
    #[value(name = "simple-crop")]
    Simple,
    /// Shifted by up to an eighth of the side in both directions, edges repeated
    Shift,
    /// As in evaluation
    None,
}

/// What else is done to the picture.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum AutoAugment {
    None,
    Three,
    Rand {
        magnitude: f64,
        /// timm's `inc1`: forms that grow with the magnitude.
        increasing: bool,
    },
}

/// How resized, turned and moved images get their pixels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Interpolation {
    Bilinear,
    Bicubic,
    /// One of the two for each image and each operation, as timm's default is
    Random,
}

impl From<Interpolation> for augment::Interpolation {
    fn from(interpolation: Interpolation) -> Self {
        match interpolation {
            Interpolation::Bilinear => Self::Bilinear,
            Interpolation::Bicubic => Self::Bicubic,
            Interpolation::Random => Self::Random,
        }
    }
}

impl Augment {
    /// Images as evaluation sees them.
    pub const NONE: Self = Self {
        crop: Crop::None,
        flip: 0.0,
        auto: AutoAugment::None,
        color_jitter: 0.0,
        erasing: 0.0,
        repeats: 1,
    };

    pub fn jitters(&self) -> bool {
        self.color_jitter > 0.0 && !matches!(self.auto, AutoAugment::Rand { .. })
    }
}

impl fmt::Display for Augment {
    /// What is done, in its order, as a row of a table.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (from, to) = RandomResizedCrop::SCALE;
        let mut parts = vec![match self.crop {
            Crop::Resized => format!("random resized crop {from}-{to}"),
            Crop::Simple => format!("simple random crop, padded by {}", SimpleRandomCrop::PADDING),
            Crop::Shift => "shift".into(),
            Crop::None => "centre crop".into(),
        }];
        if self.flip > 0.0 {
            parts.push(format!("flip {}", self.flip));
        }
        match self.auto {
            AutoAugment::None => {}
            AutoAugment::Three => parts.push("3-Augment".into()),
            AutoAugment::Rand { magnitude, increasing } => {
                let form = if increasing { " increasing" } else { "" };
                parts.push(format!("RandAugment {magnitude}/{}{form}", RandAugment::MAGNITUDE_STD));
            }
        }
        if self.jitters() {
            parts.push(format!("colour jitter {}", self.color_jitter));
        }
        if self.erasing > 0.0 {
            parts.push(format!("random erasing {}", self.erasing));
        }
        if self.repeats > 1 {
            parts.push(format!("repeated augmentation {}", self.repeats));
        }
        write!(f, "{}", parts.join(", "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_recipe_can_be_read() {
        let everything = Augment {
            crop: Crop::Resized,
            flip: 0.5,
            auto: AutoAugment::Three,
            color_jitter: 0.3,
            erasing: 0.25,
            repeats: 3,
        };
        assert_eq!(
            everything.to_string(),
            "random resized crop 0.08-1, flip 0.5, 3-Augment, colour jitter 0.3, random erasing 0.25, repeated augmentation 3"
        );
        let swin = Augment {
            auto: AutoAugment::Rand {
                magnitude: 9.0,
                increasing: true,
            },
            color_jitter: 0.4,
            ..Augment::NONE
        };
        assert_eq!(swin.to_string(), "centre crop, RandAugment 9/0.5 increasing");
        let auto = AutoAugment::Rand {
            magnitude: 7.0,
            increasing: false,
        };
        let rsb = Augment { auto, ..Augment::NONE };
        assert_eq!(rsb.to_string(), "centre crop, RandAugment 7/0.5");
    }
}
