//! From an image file to the numbers a model sees: the operations of a recipe, in their order.

use super::augment::{Augment, AutoAugment, Crop, Interpolation};
use super::decode::{decode, recycle};
use super::draws::{repeat_rng, Purpose};
use anyhow::Result;
use masksub::augment::{
    ColorJitter, HorizontalFlip, Image, Normalize, RandAugment, RandomErasing, RandomResizedCrop, RandomShift,
    ResizeCenterCrop, SimpleRandomCrop, ThreeAugment,
};
use rand::Rng;
use std::path::Path;

/// What decides how a file turns into `[C, H, W]`.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Height and width of the result.
    pub image_size: usize,
    /// 3, or 1 for grey levels.
    pub channels: usize,
    pub normalize: Normalize,
    pub interpolation: Interpolation,
    /// Evaluation crops this share of the shorter side.
    pub crop_pct: f64,
    pub augment: Augment,
}

/// Everything that turns a file into `[C, H, W]`.
#[derive(Clone, Debug)]
pub struct Transform {
    settings: Settings,
    center: ResizeCenterCrop,
    cut: Cut,
    flip: HorizontalFlip,
    auto: Option<Auto>,
    jitter: Option<ColorJitter>,
    erasing: RandomErasing,
}

/// A training image to a square.
#[derive(Clone, Copy, Debug)]
enum Cut {
    Resized(RandomResizedCrop),
    Simple(SimpleRandomCrop),
    /// Of what evaluation sees.
    Shift(RandomShift),
    Center,
}

#[derive(Clone, Copy, Debug)]
enum Auto {
    Three,
    Rand(RandAugment),
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
    /// # Errors
    /// When settings do not go together.
    pub fn new(settings: Settings) -> Result<Self> {
        let (size, augment) = (settings.image_size, settings.augment);
        let interpolation: masksub::augment::Interpolation = settings.interpolation.into();
        Ok(Self {
            center: ResizeCenterCrop::new(size)?
                .with_crop_pct(settings.crop_pct)?
                .with_filter(interpolation.fixed()),
            cut: match augment.crop {
                Crop::Resized => Cut::Resized(RandomResizedCrop::new(size)?.with_interpolation(interpolation)),
                Crop::Simple => Cut::Simple(SimpleRandomCrop::new(size)?.with_interpolation(interpolation)),
                Crop::Shift => Cut::Shift(RandomShift::new(size / 8)?),
                Crop::None => Cut::Center,
            },
            flip: HorizontalFlip::new(augment.flip)?,
            auto: match augment.auto {
                AutoAugment::None => None,
                AutoAugment::Three => Some(Auto::Three),
                AutoAugment::Rand { magnitude, increasing } => Some(Auto::Rand(
                    RandAugment::new(magnitude)?
                        .with_increasing(increasing)
                        .with_interpolation(interpolation)
                        .with_fill(settings.normalize.mean_color()),
                )),
            },
            jitter: if augment.jitters() {
                Some(ColorJitter::new(augment.color_jitter)?)
            } else {
                None
            },
            erasing: RandomErasing::new(augment.erasing)?,
            settings,
        })
    }

    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// How many numbers an image becomes.
    pub fn len(&self) -> usize {
        self.settings.channels * self.settings.image_size * self.settings.image_size
    }

    /// Writes the image of `path` to `out` `[C, image_size, image_size]`.
    pub fn load(&self, path: &Path, draw: Draw, out: &mut [f32]) -> Result<()> {
        let image = decode(path)?;
        self.apply(&image, draw, out)?;
        recycle(image);
        Ok(())
    }

    pub fn apply(&self, image: &Image, draw: Draw, out: &mut [f32]) -> Result<()> {
        let Draw::Train {
            seed,
            epoch,
            index,
            repeat,
        } = draw
        else {
            return self.write(&self.center.apply(image)?, out);
        };
        // Each operation has draws of its own: switching one on leaves the others' as they are.
        let rng = |purpose| repeat_rng(seed, epoch, index, repeat, purpose);
        let mut image = self.square(image, &mut rng(Purpose::Crop))?;
        self.flip.apply(&mut image, &mut rng(Purpose::Flip));
        match self.auto {
            None => {}
            Some(Auto::Three) => ThreeAugment.apply(&mut image, &mut rng(Purpose::AutoAugment)),
            Some(Auto::Rand(rand)) => rand.apply(&mut image, &mut rng(Purpose::AutoAugment)),
        }
        if let Some(jitter) = self.jitter {
            jitter.apply(&mut image, &mut rng(Purpose::Jitter));
        }
        self.write(&image, out)?;
        let size = (image.height(), image.width());
        Ok(self.erasing.apply(out, size, &mut rng(Purpose::Erase))?)
    }

    fn square(&self, image: &Image, rng: &mut impl Rng) -> masksub::Result<Image> {
        match self.cut {
            Cut::Resized(crop) => crop.apply(image, rng),
            Cut::Simple(crop) => crop.apply(image, rng),
            Cut::Shift(shift) => Ok(shift.apply(&self.center.apply(image)?, rng)),
            Cut::Center => self.center.apply(image),
        }
    }

    fn write(&self, image: &Image, out: &mut [f32]) -> Result<()> {
        let Settings {
            normalize, channels, ..
        } = &self.settings;
        match channels {
            1 => normalize.write_gray(image, out)?,
            _ => normalize.write(image, out)?,
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
