//! The flags that say how the images in `--data` become a network's input, and the settings that follow from them.

use super::value::{at_least_1, fraction, number, weight};
use crate::data::augment::{Augment, AutoAugment, Crop, Interpolation};
use crate::data::transform::Settings;
use crate::network::Network;
use clap::{ArgAction, Args, ValueEnum};

/// What is not given is left to a recipe, or to what the images' size suggests. The digits are not varied.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Input (with --data)")]
pub struct InputFlags {
    /// How training images become squares. Default: resized-crop where --image-size is at least 64, shift below that,
    /// since most of a small picture's crops no longer show what it is of
    #[arg(long, value_enum, value_name = "CROP")]
    pub augment: Option<Crop>,

    /// Probability with which training images are mirrored, 0 to 1. Default: 0.5 with resized-crop and simple-crop, else 0
    #[arg(long, value_name = "P", value_parser = weight)]
    pub flip: Option<f64>,

    /// What else is done to training images. Default: none
    #[arg(long, value_enum, value_name = "METHOD")]
    pub auto_augment: Option<AutoKind>,

    /// Strength of rand-augment's operations, 0 to 10; each varies by a standard deviation of 0.5.
    /// Default: 9
    #[arg(long, value_name = "M", value_parser = magnitude)]
    pub magnitude: Option<f64>,

    /// Whether all of rand-augment's operations grow with --magnitude: true is timm's `inc1`, as in most scripts of every recipe;
    /// false is without, as in the ResNet script of MaskSub's authors. Default: true
    #[arg(long, value_name = "BOOL", action = ArgAction::Set)]
    pub increasing: Option<bool>,

    /// Vary brightness, contrast and saturation by factors of 1 - F to 1 + F, 0 to 1. Beside rand-augment it has no
    /// effect, as in timm. Default: 0
    #[arg(long, value_name = "F", value_parser = weight)]
    pub color_jitter: Option<f64>,

    /// Probability with which a box of the image is replaced by noise, 0 to 1. Default: 0
    #[arg(long, value_name = "P", value_parser = weight)]
    pub random_erasing: Option<f64>,

    /// Repeated augmentation: an epoch shows each image that it shows N times, and as many images as ever (in whole 256s).
    /// Default: 1
    #[arg(long, value_name = "N", value_parser = at_least_1)]
    pub repeated_augment: Option<usize>,

    /// How resized, turned and moved images get their pixels; evaluation takes bilinear where training draws.
    /// Default: bicubic
    #[arg(long, value_enum, value_name = "FILTER")]
    pub interpolation: Option<Interpolation>,

    /// Share of the shorter side that evaluation looks at, above 0 and at most 1. Default: the network's (0.875 to 1)
    #[arg(long, value_name = "SHARE", value_parser = fraction)]
    pub crop_pct: Option<f64>,

    /// Threads that decode and vary images, beside those that compute. Default: RAYON_NUM_THREADS or one per core
    #[arg(long, value_name = "N", value_parser = at_least_1)]
    pub workers: Option<usize>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum AutoKind {
    None,
    /// Exactly one of greyscale, solarize and Gaussian blur (3-Augment)
    ThreeAugment,
    /// Two operations drawn from fifteen, each applied half the time
    RandAugment,
}

impl InputFlags {
    /// One of those that are given, if any is.
    pub fn any(&self) -> Option<&'static str> {
        let Self {
            augment,
            flip,
            auto_augment,
            magnitude,
            increasing,
            color_jitter,
            random_erasing,
            repeated_augment,
            interpolation,
            crop_pct,
            workers,
        } = self;
        let flags = [
            ("--augment", augment.is_some()),
            ("--flip", flip.is_some()),
            ("--auto-augment", auto_augment.is_some()),
            ("--magnitude", magnitude.is_some()),
            ("--increasing", increasing.is_some()),
            ("--color-jitter", color_jitter.is_some()),
            ("--random-erasing", random_erasing.is_some()),
            ("--repeated-augment", repeated_augment.is_some()),
            ("--interpolation", interpolation.is_some()),
            ("--crop-pct", crop_pct.is_some()),
            ("--workers", workers.is_some()),
        ];
        flags.into_iter().find(|(_, given)| *given).map(|(name, _)| name)
    }

    /// How images are turned into what `network` takes.
    pub fn settings(&self, network: &Network) -> Settings {
        let input = network.input();
        Settings {
            image_size: input.image_size,
            channels: input.channels,
            normalize: network.normalize(),
            interpolation: self.interpolation.unwrap_or(Interpolation::Bicubic),
            crop_pct: self.crop_pct.unwrap_or(network.crop_pct()),
            augment: self.augment(suggested(input.image_size)),
        }
    }

    /// `base` (a recipe's, or what the size suggests) with what the flags say in its place.
    pub fn augment(&self, base: Augment) -> Augment {
        let (crop, flip) = match self.augment {
            Some(crop) => (crop, flip_with(crop)),
            None => (base.crop, base.flip),
        };
        let (magnitude, increasing) = match base.auto {
            AutoAugment::Rand { magnitude, increasing } => (magnitude, increasing),
            _ => (9.0, true),
        };
        let rand = AutoAugment::Rand {
            magnitude: self.magnitude.unwrap_or(magnitude),
            increasing: self.increasing.unwrap_or(increasing),
        };
        let auto = match (self.auto_augment, base.auto) {
            (None, AutoAugment::Rand { .. }) | (Some(AutoKind::RandAugment), _) => rand,
            (None, auto) => auto,
            (Some(AutoKind::None), _) => AutoAugment::None,
            (Some(AutoKind::ThreeAugment), _) => AutoAugment::Three,
        };
        Augment {
            crop,
            flip: self.flip.unwrap_or(flip),
            auto,
            color_jitter: self.color_jitter.unwrap_or(base.color_jitter),
            erasing: self.random_erasing.unwrap_or(base.erasing),
            repeats: self.repeated_augment.unwrap_or(base.repeats),
        }
    }
}

/// How often images are mirrored where nothing else is said: where something else in them is drawn as freely.
fn flip_with(crop: Crop) -> f64 {
    match crop {
        Crop::Resized | Crop::Simple => 0.5,
        Crop::Shift | Crop::None => 0.0,
    }
}

/// How images of that size are varied where nothing else is said.
fn suggested(image_size: usize) -> Augment {
    let crop = match image_size {
        ..64 => Crop::Shift,
        _ => Crop::Resized,
    };
    Augment {
        crop,
        flip: flip_with(crop),
        ..Augment::NONE
    }
}

fn magnitude(text: &str) -> Result<f64, String> {
    number(text, "a number from 0 to 10", |v| (0.0..=10.0).contains(&v))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flags::Flags;
    use clap::Parser;

    fn augment(args: &str, image_size: usize) -> Augment {
        let args = std::iter::once("vit_imagenet").chain(args.split_whitespace());
        Flags::try_parse_from(args)
            .unwrap()
            .input
            .augment(suggested(image_size))
    }

    #[test]
    fn defaults_follow_the_size() {
        let resized = Augment {
            crop: Crop::Resized,
            flip: 0.5,
            ..Augment::NONE
        };
        let shifted = Augment {
            crop: Crop::Shift,
            ..Augment::NONE
        };
        assert_eq!((augment("", 64), augment("", 63)), (resized, shifted));
        assert_eq!(augment("--augment resized-crop", 32), resized);
        assert_eq!(augment("--augment none", 224), Augment::NONE);
    }

    #[test]
    fn every_flag_arrives() {
        let deit3 = "--auto-augment three-augment --color-jitter 0.3 --repeated-augment 3";
        assert_eq!(
            augment(deit3, 224).to_string(),
            "random resized crop 0.08-1, flip 0.5, 3-Augment, colour jitter 0.3, repeated augmentation 3"
        );
        let other = "--augment simple-crop --flip 0.25 --auto-augment rand-augment --magnitude 7 --random-erasing 0.25";
        assert_eq!(
            augment(other, 224).to_string(),
            "simple random crop, padded by 4, flip 0.25, RandAugment 7/0.5 increasing, random erasing 0.25"
        );
    }

    // What a recipe says stays, except for what a flag names.
    #[test]
    fn flags_go_before_a_recipe() {
        let recipe = Augment {
            crop: Crop::Simple,
            flip: 0.1,
            auto: AutoAugment::Rand {
                magnitude: 7.0,
                increasing: false,
            },
            color_jitter: 0.4,
            erasing: 0.25,
            repeats: 3,
        };
        let over = |args: &str| {
            let args = std::iter::once("vit_imagenet").chain(args.split_whitespace());
            Flags::try_parse_from(args).unwrap().input.augment(recipe)
        };
        assert_eq!(over(""), recipe);
        assert_eq!(over("--auto-augment rand-augment"), recipe);
        let auto = AutoAugment::Rand {
            magnitude: 5.0,
            increasing: false,
        };
        assert_eq!(over("--magnitude 5"), Augment { auto, ..recipe });
        let auto = AutoAugment::Rand {
            magnitude: 7.0,
            increasing: true,
        };
        assert_eq!(over("--increasing true"), Augment { auto, ..recipe });
        let auto = AutoAugment::None;
        assert_eq!(over("--auto-augment none"), Augment { auto, ..recipe });
        let off = over("--augment none --color-jitter 0 --random-erasing 0 --repeated-augment 1 --auto-augment none");
        assert_eq!(off, Augment::NONE);
    }

    #[test]
    fn evaluation_and_interpolation_can_be_set() {
        let settings = |args: &str| {
            let args = "vit_imagenet --data d ".to_string() + args;
            let flags = Flags::try_parse_from(args.split_whitespace()).unwrap();
            flags.input.settings(&flags.network(10).unwrap())
        };
        let default = settings("--model resnet50");
        assert_eq!(
            (default.crop_pct, default.interpolation),
            (0.95, Interpolation::Bicubic)
        );
        let set = settings("--model resnet50 --crop-pct 0.8 --interpolation random");
        assert_eq!((set.crop_pct, set.interpolation), (0.8, Interpolation::Random));
    }
}
