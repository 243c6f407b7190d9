//! From an image file to the numbers a model sees: the operations of a recipe, in their order.

use super::decode::{decode, recycle};
use super::draws::{repeat_rng, Purpose};
use crate::augment::crop::{CentreCrop, RandomResizedCrop, SimpleCrop};
use crate::augment::erase::RandomErasing;
use crate::augment::jitter::ColourJitter;
use crate::augment::pixels::{Interpolation, Pixels};
use crate::augment::rand_augment::RandAugment;
use crate::augment::three_augment::three_augment;
use anyhow::Result;
use rand::Rng;
use std::fmt;
use std::path::Path;

pub use crate::augment::normalize::Normalization;

/// Everything that turns a file into `[C, H, W]`.
#[derive(Clone, Debug)]
pub struct Transform {
    /// Height and width of the result.
    pub image_size: usize,
    /// 3, or 1 for grey levels.
    pub channels: usize,
    pub normalization: Normalization,
    pub interpolation: Interpolation,
    /// Evaluation crops this share of the shorter side.
    pub crop_share: f64,
    pub augment: Augment,
}

/// How training images are varied: the values in which recipes differ.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Augment {
    pub crop: Crop,
    /// Probability with which left and right are exchanged.
    pub flip: f64,
    pub auto: AutoAugment,
    /// Brightness, contrast and saturation by factors of 1 - this to 1 + this. Not beside RandAugment: timm leaves it out
    /// there unless forced, so a recipe that lists both (Swin's) was trained without it.
    pub colour_jitter: f64,
    /// Probability of random erasing.
    pub erasing: f64,
    /// How often an image appears in an epoch that shows it, each time varied anew; the epoch shows that many fewer.
    pub repeats: usize,
}

/// How a training image becomes a square.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Crop {
    RandomResized(RandomResizedCrop),
    Simple(SimpleCrop),
    /// As in evaluation, then shifted by up to an eighth of the side in both directions, edges repeated.
    Shift,
    /// As in evaluation.
    Centre,
}

/// What else is done to the picture.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum AutoAugment {
    None,
    Three,
    Rand(RandAugment),
}

impl Augment {
    /// Images as evaluation sees them.
    pub const NONE: Self = Self {
        crop: Crop::Centre,
        flip: 0.,
        auto: AutoAugment::None,
        colour_jitter: 0.,
        erasing: 0.,
        repeats: 1,
    };
}

impl fmt::Display for Augment {
    /// What is done, in its order, as a row of a table.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut parts = vec![match self.crop {
            Crop::RandomResized(RandomResizedCrop { scale: (from, to), .. }) => {
                format!("random resized crop {from}-{to}")
            }
            Crop::Simple(SimpleCrop { pad }) => format!("simple random crop, padded by {pad}"),
            Crop::Shift => "shift".into(),
            Crop::Centre => "centre crop".into(),
        }];
        if self.flip > 0. {
            parts.push(format!("flip {}", self.flip));
        }
        match self.auto {
            AutoAugment::None => {}
            AutoAugment::Three => parts.push("3-Augment".into()),
            AutoAugment::Rand(rand) => parts.push(format!("RandAugment {}/{}", rand.magnitude, rand.magnitude_std)),
        }
        if self.jitters() {
            parts.push(format!("colour jitter {}", self.colour_jitter));
        }
        if self.erasing > 0. {
            parts.push(format!("random erasing {}", self.erasing));
        }
        if self.repeats > 1 {
            parts.push(format!("repeated augmentation {}", self.repeats));
        }
        write!(f, "{}", parts.join(", "))
    }
}

impl Augment {
    fn jitters(&self) -> bool {
        self.colour_jitter > 0. && !matches!(self.auto, AutoAugment::Rand(_))
    }
}

/// Which draws an image gets: none in evaluation.
#[derive(Clone, Copy)]
pub enum Draw {
    Train {
        seed: u64,
        epoch: usize,
        index: usize,
        repeat: usize,
    },
    Test,
}

impl Transform {
    /// How many numbers an image becomes.
    pub fn len(&self) -> usize {
        self.channels * self.image_size * self.image_size
    }

    /// Writes the image of `path` to `out` `[C, image_size, image_size]`.
    pub fn load(&self, path: &Path, draw: Draw, out: &mut [f32]) -> Result<()> {
        let image = decode(path)?;
        self.apply(&image, draw, out)?;
        recycle(image);
        Ok(())
    }

    pub fn apply(&self, image: &Pixels, draw: Draw, out: &mut [f32]) -> Result<()> {
        let Draw::Train {
            seed,
            epoch,
            index,
            repeat,
        } = draw
        else {
            self.normalization.write(&self.centre(image)?, out);
            return Ok(());
        };
        // Each operation has draws of its own: switching one on leaves the others' as they are.
        let rng = |purpose| repeat_rng(seed, epoch, index, repeat, purpose);
        let Augment {
            flip, auto, erasing, ..
        } = self.augment;
        let mut image = self.cropped(image, &mut rng(Purpose::Crop))?;
        if rng(Purpose::Flip).random_bool(flip) {
            image.mirror();
        }
        let fill = self.normalization.mean_colour();
        let mut auto_rng = rng(Purpose::AutoAugment);
        match auto {
            AutoAugment::None => {}
            AutoAugment::Three => three_augment(&mut auto_rng).apply(&mut image, fill),
            AutoAugment::Rand(rand) => {
                for op in rand.draw(self.interpolation, &mut auto_rng) {
                    op.apply(&mut image, fill);
                }
            }
        }
        if self.augment.jitters() {
            let strength = self.augment.colour_jitter;
            for op in (ColourJitter { strength }).draw(&mut rng(Purpose::Jitter)) {
                op.apply(&mut image, fill);
            }
        }
        self.normalization.write(&image, out);
        RandomErasing { prob: erasing }.apply(out, self.image_size, &mut rng(Purpose::Erase));
        Ok(())
    }

    fn centre(&self, image: &Pixels) -> Result<Pixels> {
        let crop = CentreCrop::of_share(self.image_size, self.crop_share);
        crop.cut(image, self.image_size, self.interpolation.fixed())
    }

    fn cropped(&self, image: &Pixels, rng: &mut impl Rng) -> Result<Pixels> {
        let side = self.image_size;
        match self.augment.crop {
            Crop::RandomResized(crop) => {
                let area = crop.draw(image.width, image.height, rng);
                image.resized(area, side, side, self.interpolation.draw(rng))
            }
            Crop::Simple(crop) => {
                let place = crop.draw(image, side, rng);
                crop.cut(image, side, place, self.interpolation.draw(rng))
            }
            Crop::Shift => {
                let reach = (side / 8) as i32;
                let mut places = || -> Vec<usize> {
                    let by = rng.random_range(-reach..=reach) as isize;
                    let from = |at: usize| (at as isize - by).clamp(0, side as isize - 1) as usize;
                    (0..side).map(from).collect()
                };
                let columns = places();
                Ok(self.centre(image)?.gathered(&columns, &places()))
            }
            Crop::Centre => self.centre(image),
        }
    }
}

#[cfg(test)]
mod tests;
