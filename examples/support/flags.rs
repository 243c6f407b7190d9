//! The flags of `vit_imagenet`, and what follows from them: the network's configuration and the data set.

use super::data::Dataset;
use super::device;
use super::digits::{self, Digits};
use super::image_tree::{ImageTree, Unreadable};
use super::input_flags::InputFlags;
use super::network::{self, Input, Network};
use super::recipe::Recipe;
use super::recipe_flags::RecipeFlags;
use anyhow::{bail, ensure, Result};
use candle_core::Device;
use clap::parser::ValueSource;
use clap::{CommandFactory, FromArgMatches, Parser, ValueEnum};
use std::fmt;
use std::path::PathBuf;

/// Trains a ViT, ResNet or Swin with MaskSub: on the handwritten digits that ship with the example, or with --data on a
/// tree of images. Each step runs the network twice, on the whole image and on a part of it, and teaches the second branch
/// what the first one predicts.
#[derive(Parser, Clone, Debug)]
#[command(
    name = "vit_imagenet",
    args_override_self = true,
    after_help = "Writes metrics.csv, curves.svg, checkpoint.safetensors (and the one before) and at the end \
                  model.safetensors (and model_ema.safetensors) to the output directory. Defaults in brackets are those of \
                  --recipe plain; --print-config shows another's. The last line printed is the result, with data_wait, the share of training in which the model waited for images. \
                  RAYON_NUM_THREADS sets the number of threads (default: one per core); the numbers do not depend on it."
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

    /// The network. `digits`: a ViT of width 64, 6 blocks, 4 heads, LayerScale 0.1; `digits-resnet`, `digits-swin`: small
    /// ones for the digits. These take one channel, with --data all others take three. Default: digits, with --data
    /// deit3-small
    #[arg(long, value_name = "NAME", value_parser = network::names(), help_heading = "Model")]
    pub model: Option<String>,

    /// Height and width of the network's input in pixels; the images are resized to it, and the digits' pixels repeated.
    /// Default: 8 for digits, 32 for digits-resnet and digits-swin, as in the paper for the others (160 to 224)
    #[arg(long, value_name = "PIXELS", value_parser = side, help_heading = "Model")]
    pub image_size: Option<usize>,

    /// Height and width of a patch, which becomes one token, in pixels. Default: 2 for digits, 14 or 16 for other ViTs, 4
    /// for Swin
    #[arg(long, value_name = "PIXELS", value_parser = side, help_heading = "Model")]
    pub patch_size: Option<usize>,

    /// Start from the weights in this file instead of random ones: a published checkpoint of timm, facebookresearch (DeiT,
    /// MAE), Hugging Face, OpenCLIP, OpenAI's CLIP or Microsoft's Swin, or this example's model.safetensors;
    /// .safetensors or .pth. Positions are resized and the head is replaced where they do not fit
    #[arg(long, value_name = "FILE", help_heading = "Model")]
    pub init_from: Option<PathBuf>,

    /// Accept a file of --init-from that lacks some of the network's weights, or has others
    #[arg(long, requires = "init_from", help_heading = "Model")]
    pub allow_differences: bool,

    /// Whose settings are the defaults: one of the paper's recipes, for the network. It is for images in --data; without
    /// --model it trains the smallest network of the paper's
    #[arg(long, value_enum, default_value = "plain", help_heading = "Training")]
    pub recipe: Recipe,

    /// What runs beside the main branch: masksub drops tokens (ViT), hides blocks of the image (ResNet) or puts a mask
    /// token in the place of blocks (Swin); dropsub adds dropout; pathsub adds stochastic depth;
    /// none is plain training; mask-only trains on what masking leaves, with the labels and without a main branch
    #[arg(long, value_enum, default_value = "masksub", help_heading = "MaskSub")]
    pub branch: Branch,

    /// Side of the square blocks that ResNet and Swin hide, in pixels; it divides the image's. Default: 32, and 8 for
    /// images below 64
    #[arg(long, value_name = "PIXELS", value_parser = side, help_heading = "MaskSub")]
    pub mask_block: Option<usize>,

    /// Share of the tokens or blocks that masksub and mask-only hide, at least 0 and below 1
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

    /// Decides initial weights, order of images, masks and every other draw
    #[arg(long, value_name = "SEED", default_value_t = 0, help_heading = "Training")]
    pub seed: u64,

    /// cpu, cuda (the first GPU), cuda:N, or metal; the last three need the crate's feature of that name
    #[arg(long, value_name = "DEVICE", default_value = "cpu", value_parser = device::parse, help_heading = "Training")]
    pub device: Device,

    /// Output directory; must be empty or not exist yet. Default: the first out/run-N that does not exist
    #[arg(long, value_name = "DIR", help_heading = "Output")]
    pub out: Option<PathBuf>,

    /// Write a checkpoint after every N steps, beside the one after every epoch
    #[arg(long, value_name = "N", value_parser = at_least_1, help_heading = "Output")]
    pub checkpoint_every: Option<usize>,

    /// Go on with the run in --out where its last checkpoint was written, with its settings
    #[arg(long, requires = "out", help_heading = "Output")]
    pub resume: bool,

    /// Only evaluate, the weights of --init-from or of the run to --resume
    #[arg(long, help_heading = "Output")]
    pub eval_only: bool,

    /// Print all settings and end
    #[arg(long, help_heading = "Output")]
    pub print_config: bool,

    #[command(flatten)]
    pub training: RecipeFlags,

    #[command(flatten)]
    pub input: InputFlags,

    /// As they were typed.
    #[arg(skip)]
    pub arguments: Vec<String>,
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

impl fmt::Display for Branch {
    /// As it is typed.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.to_possible_value()
            .map_or(Ok(()), |value| f.write_str(value.get_name()))
    }
}

impl Flags {
    /// From `arguments`, the program's name not among them. Those of the recipe come before them, so that each can be
    /// overridden.
    pub fn from_arguments(arguments: Vec<String>) -> Result<Self, clap::Error> {
        let parse = |recipe: &str| -> Result<_, clap::Error> {
            let program = std::iter::once("vit_imagenet");
            let given = arguments.iter().map(String::as_str);
            let all = program.chain(recipe.split_whitespace()).chain(given);
            let matches = Self::command().try_get_matches_from(all)?;
            Ok((Self::from_arg_matches(&matches)?, matches))
        };
        let (asked, matches) = parse("")?;
        let epochs = matches.value_source("epochs") == Some(ValueSource::CommandLine);
        let epochs = epochs.then_some(asked.training.epochs);
        let (flags, _) = parse(&asked.recipe.flags(asked.model(), epochs))?;
        Ok(Self { arguments, ..flags })
    }

    /// The network's name.
    pub fn model(&self) -> &str {
        let default = || self.recipe.models().first().copied();
        self.model
            .as_deref()
            .or_else(default)
            .unwrap_or(network::default_name(self.data.is_some()))
    }

    /// Whether the network is for images, as against the digits: those of `--data`, which recipes are for.
    pub fn takes_images(&self) -> bool {
        self.data.is_some() || self.recipe != Recipe::Plain
    }

    /// The network, with a head for `num_classes`.
    pub fn network(&self, num_classes: usize) -> Result<Network> {
        let network = Network::new(self.model(), num_classes, self)?;
        Ok(match self.training.drop_path {
            Some(rate) => network.with_drop_path(rate),
            None => network,
        })
    }

    /// The weight of the sub-branch: 0 where there is none, which then costs nothing.
    pub fn sub_weight(&self) -> f64 {
        match self.branch {
            Branch::None | Branch::MaskOnly => 0.,
            _ => self.sub_weight,
        }
    }

    /// The digits, or the images in `--data`.
    pub fn dataset(&self) -> Result<Box<dyn Dataset>> {
        let network = self.network(1)?; // only its input matters here
        let Some(root) = &self.data else {
            ensure!(
                self.recipe == Recipe::Plain,
                "--recipe is for images: say with --data where they are (the digits are trained by the plain one)"
            );
            if let Some(flag) = self.input.any() {
                bail!("{flag} is for the images in --data: the digits are trained as they are");
            }
            let train_size = self.train_size.unwrap_or(digits::POOL);
            let Input { image_size, .. } = network.input();
            let digits = Digits::load(train_size, self.seed, image_size / digits::SIDE, &self.device)?;
            return Ok(Box::new(digits));
        };
        let tree = ImageTree::open(
            root,
            self.input.transform(&network),
            self.unreadable,
            self.train_size,
            self.seed,
            self.input.workers.unwrap_or(0),
            &self.device,
        )?;
        Ok(Box::new(tree))
    }
}

pub fn number(text: &str, allowed: &str, fits: impl Fn(f64) -> bool) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(value) if fits(value) => Ok(value),
        _ => Err(format!("must be {allowed}")),
    }
}

pub fn share(text: &str) -> Result<f64, String> {
    number(text, "a number that is at least 0 and below 1", |v| {
        (0. ..1.).contains(&v)
    })
}

pub fn fraction(text: &str) -> Result<f64, String> {
    number(text, "a number above 0 and at most 1", |v| v > 0. && v <= 1.)
}

pub fn weight(text: &str) -> Result<f64, String> {
    number(text, "a number from 0 to 1", |v| (0. ..=1.).contains(&v))
}

pub fn positive(text: &str) -> Result<f64, String> {
    number(text, "a finite number above 0", |v| v > 0. && v.is_finite())
}

pub fn not_negative(text: &str) -> Result<f64, String> {
    number(text, "a finite number that is at least 0", |v| v >= 0. && v.is_finite())
}

pub fn whole(text: &str, allowed: std::ops::RangeInclusive<usize>, words: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(value) if allowed.contains(&value) => Ok(value),
        _ => Err(format!("must be a whole number {words}")),
    }
}

pub fn at_least_1(text: &str) -> Result<usize, String> {
    whole(text, 1..=u32::MAX as usize, "that is at least 1")
}

pub fn side(text: &str) -> Result<usize, String> {
    whole(text, 1..=4096, "from 1 to 4096")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(args: &str) -> Result<Flags, String> {
        let args = args.split_whitespace().map(String::from).collect();
        Flags::from_arguments(args).map_err(|error| error.to_string())
    }

    #[test]
    fn flags_are_consistent_and_all_have_help() {
        Flags::command().debug_assert();
        for arg in Flags::command().get_arguments() {
            assert!(arg.get_help().is_some_and(|help| help.to_string().len() > 10), "{arg}");
        }
    }

    fn vit(flags: &Flags) -> Result<masksub::models::vit::Config, String> {
        match flags.network(10).map_err(|error| error.to_string())? {
            Network::Vit(cfg) => Ok(cfg),
            other => Err(format!("{other:?} is no ViT")),
        }
    }

    fn input(args: &str) -> Result<(usize, usize, usize), String> {
        let cfg = vit(&parse(args)?)?;
        Ok((cfg.image_size.0, cfg.patch_size, cfg.in_channels))
    }

    // The trial's: see the README.
    #[test]
    fn defaults_are_the_digits_trial() {
        let flags = parse("").unwrap();
        let cfg = vit(&flags).unwrap();
        assert_eq!(
            (cfg.embed_dim, cfg.depth, cfg.num_heads, cfg.layer_scale),
            (64, 6, 4, Some(0.1))
        );
        assert_eq!(input(""), Ok((8, 2, 1)));
        assert_eq!(flags.branch, Branch::Masksub);
        assert_eq!(
            (flags.mask_ratio, flags.sub_weight(), flags.temperature),
            (0.5, 0.5, 1.)
        );
        let training = &flags.training;
        assert_eq!(
            (training.epochs, training.batch_size, training.warmup_steps),
            (60, 64, 100)
        );
        assert_eq!((training.lr, training.weight_decay), (2e-3, 0.05));
        let digits = flags.dataset().unwrap();
        assert_eq!((digits.train_len(), digits.test_len()), (1200, 597));
    }

    #[test]
    fn input_follows_the_model_and_the_data() {
        assert_eq!(vit(&parse("--data d").unwrap()).unwrap().embed_dim, 384);
        assert_eq!(input("--data d"), Ok((224, 16, 3)));
        assert_eq!(input("--data d --model deit3-base"), Ok((192, 16, 3)));
        assert_eq!(input("--data d --model deit3-huge"), Ok((160, 14, 3)));
        assert_eq!(input("--data d --model clip-large --image-size 28"), Ok((28, 14, 3)));
        assert_eq!(
            input("--data d --model digits --image-size 28 --patch-size 4"),
            Ok((28, 4, 1))
        );
        assert_eq!(input("--model deit3-tiny --patch-size 4"), Ok((8, 4, 1)));
        for (args, side, channels, block) in [
            ("--model digits-resnet", 32, 1, 8),
            ("--model resnet18", 32, 1, 8),
            ("--data d --model resnet50", 224, 3, 32),
            ("--model digits-swin", 32, 1, 8),
            ("--data d --model swin-tiny --image-size 448", 448, 3, 32),
        ] {
            let network = parse(args).unwrap().network(10).unwrap();
            let expected = Input {
                image_size: side,
                channels,
            };
            assert_eq!((network.input(), network.mask_block()), (expected, block), "{args}");
        }
    }

    #[test]
    fn branches_without_a_sub_branch_give_it_no_weight() {
        for (branch, weight) in [
            ("masksub", 0.3),
            ("dropsub", 0.3),
            ("pathsub", 0.3),
            ("none", 0.),
            ("mask-only", 0.),
        ] {
            let flags = parse(&format!("--branch {branch} --sub-weight 0.3")).unwrap();
            assert_eq!(
                (flags.sub_weight(), flags.branch.to_string().as_str()),
                (weight, branch)
            );
        }
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
            ("--device", &["gpu", "cuda:x", "cuda:-1", "cpu:1"], "cuda:N"),
            ("--branch", &["masked"], "mask-only"),
            ("--sub-loss", &["mse"], "soft-ce"),
            ("--model", &["resnet51"], "deit3-small"),
            ("--augment", &["crop"], "simple-crop"),
            ("--flip", &["1.5", "-1"], "from 0 to 1"),
            ("--auto-augment", &["autoaugment"], "rand-augment"),
            ("--magnitude", &["11", "-1", "nan"], "from 0 to 10"),
            ("--color-jitter", &["1.1"], "from 0 to 1"),
            ("--random-erasing", &["2"], "from 0 to 1"),
            ("--repeated-augment", &["0"], "at least 1"),
            ("--interpolation", &["nearest"], "bicubic"),
            ("--crop-pct", &["0", "1.1"], "above 0 and at most 1"),
            ("--workers", &["0"], "at least 1"),
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
        let error = |args: &str| input(args).unwrap_err();
        assert_eq!(
            error("--data d --model deit3-base --image-size 100"),
            "--image-size is 100, but must be a multiple of 16, the --patch-size"
        );
        assert_eq!(
            error("--patch-size 16"),
            "--patch-size is 16, but must be at most 8, the --image-size"
        );
        assert!(error("--image-size 12").contains("must be a multiple of 8, the size of the digits"));
        assert!(error("--model resnet50 --patch-size 4").contains("a ResNet does not"));
    }

    #[test]
    fn the_digits_take_no_flags_of_the_input() {
        for flag in [
            "--augment none",
            "--flip 0",
            "--auto-augment none",
            "--magnitude 1",
            "--color-jitter 0",
            "--random-erasing 0",
            "--repeated-augment 1",
            "--interpolation bicubic",
            "--crop-pct 1",
            "--workers 1",
        ] {
            let error = parse(flag).unwrap().dataset().err().unwrap().to_string();
            let name = flag.split(' ').next().unwrap();
            assert_eq!(
                error,
                format!("{name} is for the images in --data: the digits are trained as they are")
            );
        }
    }
}
