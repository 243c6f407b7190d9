//! The flags of `vit_imagenet`, and what follows from them: the device, the data set, sizes that depend on the model.

use super::data::Dataset;
use super::digits::{self, Digits};
use super::image_tree::{ImageTree, Unreadable};
use super::transform::{Augment, Normalization, Transform};
use anyhow::{ensure, Context, Result};
use candle_core::Device;
use clap::{Parser, ValueEnum};
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

/// Trains a vision transformer with MaskSub: on the handwritten digits that ship with the example, or with --data on a
/// tree of images. Each step runs the network twice, on the whole image and on a part of its tokens, and teaches the
/// second branch what the first one predicts.
#[derive(Parser, Clone, Debug)]
#[command(
    name = "vit_imagenet",
    after_help = "Writes metrics.csv, curves.svg and model.safetensors to the output directory; the last line printed \
                  is the result. RAYON_NUM_THREADS sets the number of threads (default: one per core); the numbers do \
                  not depend on it."
)]
pub struct Flags {
    /// Directory with train/CLASS/* and val/CLASS/* (JPEG, PNG, WebP; a class is a directory, and both must have the
    /// same ones). Without it: 8x8-pixel digits, 1200 to train on and 597 to test on
    #[arg(long, value_name = "DIR", help_heading = "Data")]
    pub data: Option<PathBuf>,

    /// How many training images to use, drawn by the seed. Default: all of them (1200 digits)
    #[arg(long, value_name = "N", value_parser = at_least_1, help_heading = "Data")]
    pub train_size: Option<usize>,

    /// What to do about an image in --data that cannot be decoded
    #[arg(long, value_enum, default_value = "error", help_heading = "Data")]
    pub unreadable: Unreadable,

    /// How images in --data are varied in training. Default: resized-crop where --image-size is at least 64, shift
    /// below that, since most of a small picture's crops no longer show what it is of. The digits are not varied
    #[arg(long, value_enum, help_heading = "Data")]
    pub augment: Option<Augment>,

    /// The network. `digits`: width 64, 6 blocks, 4 heads, LayerScale 0.1, one input channel; all others take three.
    /// Default: digits, with --data deit3-small
    #[arg(long, value_enum, help_heading = "Model")]
    pub model: Option<Model>,

    /// Height and width of the network's input in pixels; the images are resized to it. Default: 8 for digits, as in
    /// the paper for the others (160 to 224)
    #[arg(long, value_name = "PIXELS", value_parser = side, help_heading = "Model")]
    pub image_size: Option<usize>,

    /// Height and width of a patch, which becomes one token, in pixels. Default: 2 for digits, 14 or 16 for the others
    #[arg(long, value_name = "PIXELS", value_parser = side, help_heading = "Model")]
    pub patch_size: Option<usize>,

    /// Start from the weights in this safetensors file instead of random ones
    #[arg(long, value_name = "FILE", help_heading = "Model")]
    pub init_from: Option<PathBuf>,

    /// What runs beside the main branch: masksub drops tokens; dropsub adds dropout; pathsub adds stochastic depth;
    /// none is plain training; mask-only trains on what masking leaves, with the labels and without a main branch
    #[arg(long, value_enum, default_value = "masksub", help_heading = "MaskSub")]
    pub branch: Branch,

    /// Share of the tokens that masksub and mask-only drop, at least 0 and below 1
    #[arg(long, value_name = "SHARE", default_value_t = 0.5, value_parser = share, help_heading = "MaskSub")]
    pub mask_ratio: f64,

    /// Loss between sub-branch and main branch. soft-ce and kl have the same gradient; bce treats classes as independent
    #[arg(long, value_enum, default_value = "soft-ce", help_heading = "MaskSub")]
    pub sub_loss: SubLoss,

    /// Divides the logits of both branches in the sub-branch's loss, above 0; the loss is multiplied by its square
    #[arg(long, value_name = "T", default_value_t = 1., value_parser = positive, help_heading = "MaskSub")]
    pub temperature: f64,

    /// Weight w of the sub-branch, 0 to 1: the loss is (1-w) main + w sub
    #[arg(long, value_name = "W", default_value_t = 0.5, value_parser = weight, help_heading = "MaskSub")]
    pub sub_weight: f64,

    /// Probability with which dropsub drops a value, or pathsub a block; at least 0 and below 1
    #[arg(long, value_name = "P", default_value_t = 0.2, value_parser = share, help_heading = "MaskSub")]
    pub sub_drop_rate: f64,

    /// How often every training image is seen
    #[arg(long, value_name = "N", default_value_t = 60, value_parser = at_least_1, help_heading = "Training")]
    pub epochs: usize,

    /// Images per step
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = at_least_1, help_heading = "Training")]
    pub batch_size: usize,

    /// Highest learning rate of AdamW; falls to 0 along a half cosine
    #[arg(long, value_name = "RATE", default_value_t = 2e-3, value_parser = positive, help_heading = "Training")]
    pub lr: f64,

    /// Weight decay of AdamW, on every parameter
    #[arg(long, value_name = "DECAY", default_value_t = 0.05, value_parser = not_negative, help_heading = "Training")]
    pub weight_decay: f64,

    /// Steps in which the learning rate rises linearly from 0 to --lr
    #[arg(long, value_name = "STEPS", default_value_t = 100, help_heading = "Training")]
    pub warmup_steps: usize,

    /// Decides initial weights, order of images, masks and every other draw
    #[arg(long, value_name = "SEED", default_value_t = 0, help_heading = "Training")]
    pub seed: u64,

    /// cpu, cuda (the first GPU), cuda:N, or metal; the last three need the crate's feature of that name
    #[arg(long, value_name = "DEVICE", default_value = "cpu", help_heading = "Training")]
    pub device: DeviceName,

    /// Output directory; must be empty or not exist yet. Default: the first out/run-N that does not exist
    #[arg(long, value_name = "DIR", help_heading = "Output")]
    pub out: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Model {
    Digits,
    Deit3Tiny,
    Deit3Small,
    Deit3Base,
    Deit3Large,
    Deit3Huge,
    MaeBase,
    MaeLarge,
    MaeHuge,
    ClipBase,
    ClipLarge,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Branch {
    Masksub,
    None,
    MaskOnly,
    Dropsub,
    Pathsub,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum SubLoss {
    SoftCe,
    Kl,
    Bce,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeviceName {
    Cpu,
    Cuda(usize),
    Metal,
}

// Names as they are typed.
impl fmt::Display for Model {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&value_name(self))
    }
}

impl fmt::Display for Branch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&value_name(self))
    }
}

fn value_name(value: &impl ValueEnum) -> String {
    value
        .to_possible_value()
        .map_or_else(String::new, |v| v.get_name().to_string())
}

impl FromStr for DeviceName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once(':') {
            None if text == "cpu" => Some(Self::Cpu),
            None if text == "cuda" => Some(Self::Cuda(0)),
            None if text == "metal" => Some(Self::Metal),
            Some(("cuda", number)) => number.parse().ok().map(Self::Cuda),
            _ => None,
        }
        .ok_or_else(|| "must be cpu, cuda, cuda:N with a GPU's number from 0, or metal".to_string())
    }
}

impl DeviceName {
    pub fn open(self) -> Result<Device> {
        match self {
            Self::Cpu => Ok(Device::Cpu),
            Self::Cuda(number) => {
                let built = candle_core::utils::cuda_is_available();
                ensure!(
                    built,
                    "--device cuda needs the crate's feature cuda: add --features cuda to the command"
                );
                Device::new_cuda(number).with_context(|| format!("--device cuda:{number} cannot be used"))
            }
            Self::Metal => {
                let built = candle_core::utils::metal_is_available();
                ensure!(
                    built,
                    "--device metal needs the crate's feature metal: add --features metal to the command"
                );
                Device::new_metal(0).context("--device metal cannot be used")
            }
        }
    }
}

impl Model {
    /// Sizes of an image and a patch in pixels: those of the paper's recipes.
    pub fn sizes(self) -> (usize, usize) {
        match self {
            Self::Digits => (digits::SIDE, 2),
            Self::Deit3Tiny | Self::Deit3Small => (224, 16),
            Self::Deit3Base | Self::Deit3Large => (192, 16),
            Self::Deit3Huge => (160, 14),
            Self::MaeBase | Self::MaeLarge | Self::ClipBase => (224, 16),
            Self::MaeHuge | Self::ClipLarge => (224, 14),
        }
    }

    pub fn channels(self) -> usize {
        match self {
            Self::Digits => 1,
            _ => 3,
        }
    }

    /// Whether pixels at the right and lower edge that fill no patch are ignored: 160 is 11 * 14 + 6.
    pub fn crops_remainder(self) -> bool {
        self == Self::Deit3Huge
    }

    fn normalization(self) -> Normalization {
        match self {
            Self::ClipBase | Self::ClipLarge => Normalization::CLIP,
            _ => Normalization::IMAGENET,
        }
    }

    /// The share of the shorter side that evaluation looks at.
    fn crop_share(self) -> f64 {
        match self {
            Self::MaeBase | Self::MaeLarge | Self::MaeHuge | Self::ClipBase | Self::ClipLarge => 0.875,
            _ => 1.,
        }
    }
}

impl Flags {
    pub fn model(&self) -> Model {
        let default = match self.data {
            Some(_) => Model::Deit3Small,
            None => Model::Digits,
        };
        self.model.unwrap_or(default)
    }

    pub fn image_size(&self) -> usize {
        let default = match self.data {
            Some(_) => self.model().sizes().0,
            None => digits::SIDE,
        };
        self.image_size.unwrap_or(default)
    }

    pub fn patch_size(&self) -> usize {
        self.patch_size.unwrap_or(self.model().sizes().1)
    }

    /// The weight of the sub-branch: 0 where there is none, which then costs nothing.
    pub fn sub_weight(&self) -> f64 {
        match self.branch {
            Branch::None => 0.,
            _ => self.sub_weight,
        }
    }

    /// Refuses values that do not go together.
    pub fn check(&self) -> Result<()> {
        let (image, patch) = (self.image_size(), self.patch_size());
        ensure!(
            patch <= image,
            "--patch-size is {patch}, but must be at most {image}, the --image-size"
        );
        ensure!(
            image % patch == 0 || self.model().crops_remainder(),
            "--image-size is {image}, but must be a multiple of {patch}, the --patch-size"
        );
        ensure!(
            self.data.is_some() || image == digits::SIDE,
            "--image-size is {image}, but must be {}, the size of the digits; other sizes need --data",
            digits::SIDE
        );
        Ok(())
    }

    /// The digits, or the images in `--data`.
    pub fn dataset(&self, device: &Device) -> Result<Box<dyn Dataset>> {
        self.check()?;
        let Some(root) = &self.data else {
            let digits = Digits::load(self.train_size.unwrap_or(digits::POOL), self.seed, device)?;
            return Ok(Box::new(digits));
        };
        let (model, image_size) = (self.model(), self.image_size());
        let transform = Transform {
            image_size,
            channels: model.channels(),
            normalization: model.normalization(),
            crop_share: model.crop_share(),
            augment: self.augment.unwrap_or(match image_size {
                ..64 => Augment::Shift,
                _ => Augment::ResizedCrop,
            }),
        };
        let tree = ImageTree::open(root, transform, self.unreadable, self.train_size, self.seed, 0, device)?;
        Ok(Box::new(tree))
    }
}

fn number(text: &str, allowed: &str, fits: impl Fn(f64) -> bool) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(value) if fits(value) => Ok(value),
        _ => Err(format!("must be {allowed}")),
    }
}

fn share(text: &str) -> Result<f64, String> {
    number(text, "a number that is at least 0 and below 1", |v| {
        (0. ..1.).contains(&v)
    })
}

fn weight(text: &str) -> Result<f64, String> {
    number(text, "a number from 0 to 1", |v| (0. ..=1.).contains(&v))
}

fn positive(text: &str) -> Result<f64, String> {
    number(text, "a finite number above 0", |v| v > 0. && v.is_finite())
}

fn not_negative(text: &str) -> Result<f64, String> {
    number(text, "a finite number that is at least 0", |v| v >= 0. && v.is_finite())
}

fn whole(text: &str, allowed: std::ops::RangeInclusive<usize>, words: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(value) if allowed.contains(&value) => Ok(value),
        _ => Err(format!("must be a whole number {words}")),
    }
}

fn at_least_1(text: &str) -> Result<usize, String> {
    whole(text, 1..=u32::MAX as usize, "that is at least 1")
}

fn side(text: &str) -> Result<usize, String> {
    whole(text, 1..=4096, "from 1 to 4096")
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    fn parse(args: &str) -> Result<Flags, String> {
        let args = std::iter::once("vit_imagenet").chain(args.split_whitespace());
        Flags::try_parse_from(args).map_err(|error| error.to_string())
    }

    #[test]
    fn flags_are_consistent_and_all_have_help() {
        Flags::command().debug_assert();
        for arg in Flags::command().get_arguments() {
            assert!(arg.get_help().is_some_and(|help| help.to_string().len() > 10), "{arg}");
        }
    }

    // The trial's: see the issue that ordered the example.
    #[test]
    fn defaults_are_the_digits_trial() {
        let flags = parse("").unwrap();
        assert_eq!(flags.model(), Model::Digits);
        assert_eq!((flags.image_size(), flags.patch_size()), (8, 2));
        assert_eq!(flags.branch, Branch::Masksub);
        assert_eq!(
            (flags.mask_ratio, flags.sub_weight(), flags.temperature),
            (0.5, 0.5, 1.)
        );
        assert_eq!((flags.epochs, flags.batch_size, flags.warmup_steps), (60, 64, 100));
        assert_eq!((flags.lr, flags.weight_decay), (2e-3, 0.05));
        let digits = flags.dataset(&Device::Cpu).unwrap();
        assert_eq!(
            (digits.train_len(), digits.test_len(), digits.channels()),
            (1200, 597, 1)
        );
    }

    #[test]
    fn sizes_follow_the_model() {
        let flags = |args: &str| parse(&format!("--data d {args}")).unwrap();
        assert_eq!(flags("").model(), Model::Deit3Small);
        let huge = flags("--model deit3-huge");
        assert_eq!((huge.image_size(), huge.patch_size()), (160, 14));
        assert!(huge.check().is_ok());
        let small_grey = flags("--model digits --image-size 28 --patch-size 4");
        assert!(small_grey.check().is_ok());
        assert_eq!(parse("--branch none").unwrap().sub_weight(), 0.);
    }

    #[test]
    fn values_out_of_range_are_refused_by_name() {
        for (flag, values, range) in [
            (
                "--mask-ratio",
                &["1", "-0.1", "NaN", "half"][..],
                "at least 0 and below 1",
            ),
            ("--sub-drop-rate", &["1", "-1"], "at least 0 and below 1"),
            ("--sub-weight", &["1.01", "-0.01", "nan"], "from 0 to 1"),
            ("--temperature", &["0", "-1", "inf", "nan"], "above 0"),
            ("--lr", &["0", "inf"], "above 0"),
            ("--weight-decay", &["-1", "inf"], "at least 0"),
            ("--epochs", &["0", "-1", "1.5"], "at least 1"),
            ("--batch-size", &["0", "99999999999"], "at least 1"),
            ("--train-size", &["0"], "at least 1"),
            ("--image-size", &["0", "5000"], "from 1 to 4096"),
            ("--patch-size", &["0"], "from 1 to 4096"),
            ("--device", &["gpu", "cuda:x", "cuda:-1", "cpu:0"], "cuda:N"),
            ("--branch", &["masked"], "mask-only"),
            ("--sub-loss", &["mse"], "soft-ce"),
            ("--model", &["resnet50"], "deit3-small"),
        ] {
            for value in values {
                let error = parse(&format!("{flag}={value}")).unwrap_err();
                for part in [flag, &format!("'{value}'"), range] {
                    assert!(error.contains(part), "{part} is not in: {error}");
                }
            }
        }
    }

    #[test]
    fn values_that_do_not_go_together_are_refused() {
        let error = |args: &str| parse(args).unwrap().check().unwrap_err().to_string();
        assert_eq!(
            error("--data d --model deit3-base --image-size 100"),
            "--image-size is 100, but must be a multiple of 16, the --patch-size"
        );
        assert_eq!(
            error("--patch-size 16"),
            "--patch-size is 16, but must be at most 8, the --image-size"
        );
        assert!(error("--image-size 16").contains("must be 8, the size of the digits"));
    }

    #[test]
    fn devices_have_names() {
        let device = |name: &str| name.parse::<DeviceName>().unwrap();
        assert_eq!(device("cpu"), DeviceName::Cpu);
        assert_eq!(device("cuda"), DeviceName::Cuda(0));
        assert_eq!(device("cuda:3"), DeviceName::Cuda(3));
        assert_eq!(device("metal"), DeviceName::Metal);
        if !cfg!(feature = "cuda") {
            let error = device("cuda:1").open().unwrap_err().to_string();
            assert!(error.contains("--features cuda"), "{error}");
        }
    }
}
