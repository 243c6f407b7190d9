//! From an image file to the numbers a model sees: the operations of a recipe, in their order.

use super::augment::crop::{CentreCrop, RandomResizedCrop, SimpleCrop};
use super::augment::erase::RandomErasing;
use super::augment::jitter::ColourJitter;
use super::augment::pixels::{Interpolation, Pixels};
use super::augment::rand_augment::RandAugment;
use super::augment::three_augment::three_augment;
use super::data::{repeat_rng, Purpose};
use super::decode::{decode, recycle};
use anyhow::Result;
use rand::Rng;
use std::fmt;
use std::path::Path;

pub use super::augment::normalize::Normalization;

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
mod tests {
    use super::super::augment::pixels::Filter;
    use super::*;

    fn transform(image_size: usize, augment: Augment) -> Transform {
        Transform {
            image_size,
            channels: 3,
            normalization: Normalization {
                mean: [0.; 3],
                std: [1. / 255.; 3],
            },
            interpolation: Interpolation::Bicubic,
            crop_share: 1.,
            augment,
        }
    }

    const RESIZED_CROP: Crop = Crop::RandomResized(RandomResizedCrop {
        scale: (0.08, 1.),
        aspect: (0.75, 1.33),
    });

    fn everything() -> Augment {
        Augment {
            crop: RESIZED_CROP,
            flip: 0.5,
            auto: AutoAugment::Three,
            colour_jitter: 0.3,
            erasing: 0.25,
            repeats: 3,
        }
    }

    /// Every pixel tells where it is: red is x, green is y, blue is 7.
    fn ramp(width: usize, height: usize) -> Pixels {
        let values = (0..width * height)
            .flat_map(|i| [(i % width) as u8, (i / width) as u8, 7])
            .collect();
        Pixels { width, height, values }
    }

    fn draw(index: usize) -> Draw {
        Draw::Train {
            seed: 1,
            epoch: 2,
            index,
            repeat: 0,
        }
    }

    fn apply(transform: &Transform, image: &Pixels, draw: Draw) -> Vec<f32> {
        let mut out = vec![f32::NAN; transform.len()];
        transform.apply(image, draw, &mut out).unwrap();
        out
    }

    #[test]
    fn evaluation_takes_the_centre_channel_by_channel_and_draws_nothing() {
        // 12x8 at size 8: columns 2 to 9.
        let values = apply(&transform(8, everything()), &ramp(12, 8), Draw::Test);
        let (red, green, blue) = (&values[..64], &values[64..128], &values[128..]);
        for i in 0..64 {
            assert!((red[i] - (2 + i % 8) as f32).abs() < 1e-4);
            assert!((green[i] - (i / 8) as f32).abs() < 1e-4);
            assert!((blue[i] - 7.).abs() < 1e-4);
        }
    }

    #[test]
    fn crop_share_leaves_a_margin() {
        let mut transform = transform(8, Augment::NONE);
        transform.crop_share = 0.5; // 16 pixels, of which the middle eight
        for draw in [Draw::Test, draw(0)] {
            let values = apply(&transform, &ramp(16, 16), draw);
            assert!((values[0] - 4.).abs() < 1e-4 && (values[63] - 11.).abs() < 1e-4);
        }
    }

    #[test]
    fn every_part_of_the_key_counts_and_nothing_else() {
        let transform = transform(16, everything());
        let image = ramp(64, 48);
        let at = |seed, epoch, index, repeat| {
            let draw = Draw::Train {
                seed,
                epoch,
                index,
                repeat,
            };
            apply(&transform, &image, draw)
        };
        let first = at(1, 2, 3, 0);
        assert_eq!(first, at(1, 2, 3, 0));
        for other in [at(2, 2, 3, 0), at(1, 3, 3, 0), at(1, 2, 4, 0), at(1, 2, 3, 1)] {
            assert_ne!(first, other);
        }
    }

    #[test]
    fn an_image_is_mirrored_with_its_probability() {
        let image = ramp(64, 48);
        for (flip, expected) in [(0., 0..1), (0.5, 150..250), (1., 400..401)] {
            let transform = transform(
                16,
                Augment {
                    crop: RESIZED_CROP,
                    flip,
                    ..Augment::NONE
                },
            );
            let mirrored = |&i: &usize| {
                let red = apply(&transform, &image, draw(i));
                red[0] > red[15] // x falls from left to right
            };
            let n = (0..400).filter(mirrored).count();
            assert!(expected.contains(&n), "{n} of 400 at {flip}"); // standard deviation 10
        }
    }

    #[test]
    fn shifts_stay_in_reach_and_repeat_the_edge() {
        let transform = transform(
            16,
            Augment {
                crop: Crop::Shift,
                ..Augment::NONE
            },
        );
        let mut seen = std::collections::BTreeSet::new();
        for index in 0..500 {
            let values = apply(&transform, &ramp(16, 16), draw(index));
            let middle = 8 * 16 + 8;
            let (right, down) = (8. - values[middle], 8. - values[256 + middle]);
            seen.insert((right.round() as i32, down.round() as i32));
            let corner = (0f32.max(-right), 0f32.max(-down));
            assert!((values[0] - corner.0).abs() < 1e-4 && (values[256] - corner.1).abs() < 1e-4);
        }
        assert_eq!(seen.len(), 25); // -2..=2 in both directions
    }

    #[test]
    fn switching_one_operation_on_leaves_the_draws_of_the_others() {
        let image = ramp(64, 48);
        let base = Augment {
            crop: RESIZED_CROP,
            flip: 0.5,
            ..Augment::NONE
        };
        let erased = Augment { erasing: 1., ..base };
        for index in 0..20 {
            let plain = apply(&transform(16, base), &image, draw(index));
            let erased = apply(&transform(16, erased), &image, draw(index));
            let same = plain.iter().zip(&erased).filter(|(a, b)| a == b).count();
            // At most a third of the area, and a little for rounding.
            assert!(
                (plain.len() / 2..plain.len()).contains(&same),
                "{same} of {}",
                plain.len()
            );
        }
    }

    // Beside RandAugment timm leaves it out.
    #[test]
    fn colours_are_jittered_except_beside_rand_augment() {
        let image = ramp(32, 32);
        for (auto, changes) in [
            (AutoAugment::None, true),
            (AutoAugment::Three, true),
            (AutoAugment::Rand(RandAugment::new(9.)), false),
        ] {
            let with = |colour_jitter| {
                let augment = Augment {
                    auto,
                    colour_jitter,
                    ..Augment::NONE
                };
                let transform = transform(32, augment);
                (0..20).map(|i| apply(&transform, &image, draw(i))).collect::<Vec<_>>()
            };
            assert_eq!(with(0.) != with(0.4), changes, "{auto:?}");
        }
    }

    #[test]
    fn a_recipe_can_be_read() {
        assert_eq!(
            everything().to_string(),
            "random resized crop 0.08-1, flip 0.5, 3-Augment, colour jitter 0.3, random erasing 0.25, repeated augmentation 3"
        );
        let swin = Augment {
            auto: AutoAugment::Rand(RandAugment::new(9.)),
            colour_jitter: 0.4,
            ..Augment::NONE
        };
        assert_eq!(swin.to_string(), "centre crop, RandAugment 9/0.5");
    }

    #[test]
    fn resizing_is_antialiased_and_blind_to_what_lies_outside() {
        // Every eighth column is bright: an eighth of the light, wherever a pixel of the small image is sampled. Right of
        // the box all is bright, and must not leak in.
        let (width, height) = (64, 32);
        let bright = |x: usize| if x >= 32 || x.is_multiple_of(8) { 200 } else { 0 };
        let stripes = Pixels {
            width,
            height,
            values: (0..width * height).flat_map(|i| [bright(i % width); 3]).collect(),
        };
        let left = super::super::augment::pixels::Area {
            left: 0,
            top: 0,
            width: 32,
            height: 32,
        };
        let small = stripes.resized(left, 4, 4, Filter::Bicubic).unwrap();
        let row: Vec<u8> = (0..4)
            .map(|at| widened_cubic(&|x| bright(x) as f64, 32, 4, at))
            .collect();
        assert!(row.iter().all(|v| (10..=40).contains(v)), "{row:?}");
        let off = |(at, v): (usize, &u8)| v.abs_diff(row[at / 3 % 4]);
        assert!(
            small.values.iter().enumerate().all(|pixel| off(pixel) <= 1),
            "{:?}",
            small.values
        );
    }

    /// Pixel `at` of `to`, from `from` pixels, by Pillow's rule: the cubic of Keys (a = -1/2), as wide as the reduction,
    /// cut at the border and normalised.
    fn widened_cubic(pixel: &dyn Fn(usize) -> f64, from: usize, to: usize, at: usize) -> u8 {
        let scale = from as f64 / to as f64;
        let cubic = |x: f64| match x.abs() {
            x if x < 1. => (1.5 * x - 2.5) * x * x + 1.,
            x if x < 2. => ((-0.5 * x + 2.5) * x - 4.) * x + 2.,
            _ => 0.,
        };
        let centre = (at as f64 + 0.5) * scale;
        let weights: Vec<f64> = (0..from).map(|x| cubic((x as f64 + 0.5 - centre) / scale)).collect();
        let sum: f64 = weights.iter().enumerate().map(|(x, w)| w * pixel(x)).sum();
        (sum / weights.iter().sum::<f64>()).round() as u8
    }
}
