//! The flags of `vit_imagenet`, and what follows from them: the network's configuration and the data set.

mod batches;
mod choices;
mod device;
mod help;
mod images;
mod input;
pub mod training;
mod value;

use crate::data::image_tree::Unreadable;
use crate::network::{self, Network};
use crate::recipe::{Asked, Preset, Recipe};
use crate::saving::SaveLayout;
use anyhow::{ensure, Result};
use candle_core::Device;
pub use choices::{Branch, PrintConfig, SubLoss, Target};
use clap::error::ErrorKind;
use clap::parser::ValueSource;
use clap::{CommandFactory, FromArgMatches, Parser};
use help::with_brief_help;
use input::InputFlags;
use masksub::models::Recompute;
use masksub::{MaskRatio, RandomMasking};
use rand_distr::Uniform;
use std::ffi::OsString;
use std::path::PathBuf;
use training::{ComputeDType, TrainingFlags};
use value::{at_least_1, positive, share, side, weight};

/// Trains a ViT, ResNet or Swin with MaskSub: on the handwritten digits that ship with the example, or with --data on a
/// tree of images. Each step runs the network twice, on the whole image and on a part of it, and teaches the second branch
/// what the first one predicts.
#[derive(Parser, Clone, Debug)]
#[command(
    name = "vit_imagenet",
    args_override_self = true,
    after_help = "Writes metrics.csv, curves.svg, images.txt (with --data), checkpoint.safetensors (and the one before) and at the end \
                  model.safetensors (and model_ema.safetensors) to the output directory. Defaults in brackets are those of \
                  --recipe plain; --print-config shows another's. The last line printed is the result, with data_wait, the share of training in which the model waited for images. \
                  RAYON_NUM_THREADS sets the number of threads (default: one per core); the numbers do not depend on it. \
                  The exit code is 3 where the loss or a gradient became infinite or NaN, 1 after any other error."
)]
pub struct Flags {
    /// Directory with train/CLASS/* and val/CLASS/* (JPEG, PNG, WebP; a class is a directory, and both must have the
    /// same ones), or with the four files of a set like MNIST (train-images-idx3-ubyte and so on, plain or .gz), whose grey
    /// levels become -1 to 1. Without it: 8x8-pixel digits, 1200 to train on and 597 to test on
    #[arg(long, value_name = "DIR", help_heading = "Data")]
    pub data: Option<PathBuf>,

    /// How many training images to use, drawn by the seed. Default: all of them (1200 digits)
    #[arg(long, value_name = "N", value_parser = at_least_1, help_heading = "Data")]
    pub train_size: Option<usize>,

    /// Hold N of the training images out, drawn by the seed, and evaluate on them instead of on the test images: what
    /// settings are chosen on. --train-size draws what it does without. Default: none
    #[arg(
        long,
        value_name = "N",
        default_value_t = 0,
        hide_default_value = true,
        help_heading = "Data"
    )]
    pub validation: usize,

    /// The directory in --data that is evaluated on, in the place of val: test, once all settings are chosen
    #[arg(long, value_name = "NAME", default_value = "val", help_heading = "Data")]
    pub val_split: String,

    /// What to do about an image in --data that cannot be decoded
    #[arg(long, value_enum, default_value = "error", help_heading = "Data")]
    pub unreadable: Unreadable,

    /// The network. `digits`: a ViT of width 64, 6 blocks, 4 heads, LayerScale 0.1; `digits-resnet`, `digits-swin`: small
    /// ones for the digits. These take one channel, with --data all others take three. Both heads of a distilled DeiT learn
    /// from the labels, and the sub-branch matches each; evaluation takes their mean. Default: digits, with --data
    /// deit3-small
    #[arg(long, value_name = "NAME", value_parser = network::names(), help_heading = "Model")]
    pub model: Option<String>,

    /// Height and width of the network's input in pixels; the images are resized to it, and the digits' pixels repeated.
    /// Default: 8 for digits, 32 for digits-resnet and digits-swin, as published for the others (160 to 384)
    #[arg(long, value_name = "PIXELS", value_parser = side, help_heading = "Model")]
    pub image_size: Option<usize>,

    /// Height and width of a patch, which becomes one token, in pixels. Default: 2 for digits, 14 or 16 for other ViTs, 4
    /// for Swin
    #[arg(long, value_name = "PIXELS", value_parser = side, help_heading = "Model")]
    pub patch_size: Option<usize>,

    /// Start from the weights in this file or directory instead of random ones: a published checkpoint of timm,
    /// facebookresearch (DeiT, MAE), Hugging Face, OpenCLIP, OpenAI's CLIP, torchvision, Google or Microsoft's Swin, or this
    /// example's model.safetensors; .safetensors, .pth, .npz or shards. Positions are resized and the head is replaced where
    /// they do not fit
    #[arg(long, value_name = "FILE", help_heading = "Model")]
    pub init_from: Option<PathBuf>,

    /// Take the weights below this key of --init-from, of a file that holds several: state_dict_ema for timm's averaged
    /// ones, student for DINO's. Default: the likeliest, averaged ones only where there are no others
    #[arg(long, value_name = "KEY", requires = "init_from", help_heading = "Model")]
    pub init_key: Option<String>,

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

    /// The share at the end of training, which it goes to from --mask-ratio step by step; 0 to end on whole images. Default:
    /// it stays
    #[arg(long, value_name = "SHARE", value_parser = share, help_heading = "MaskSub")]
    pub mask_ratio_end: Option<f64>,

    /// The largest share; each step draws one evenly between --mask-ratio and this. Default: it is not drawn
    #[arg(long, value_name = "SHARE", value_parser = share, conflicts_with = "mask_ratio_end", help_heading = "MaskSub")]
    pub mask_ratio_max: Option<f64>,

    /// What the sub-branch learns from: main, the main branch's prediction; ema, that of the average (--ema); teacher, that
    /// of the same network with other weights (--teacher); mutual, the main branch, which learns from the sub-branch as
    /// well, half and half with the labels in both (CoSub)
    #[arg(long, value_enum, default_value = "main", help_heading = "MaskSub")]
    pub target: Target,

    /// Weights of the teacher, as for --init-from
    #[arg(long, value_name = "FILE", help_heading = "MaskSub")]
    pub teacher: Option<PathBuf>,

    /// Loss between sub-branch and main branch. soft-ce and kl have the same gradient; bce treats classes as independent
    #[arg(long, value_enum, default_value = "soft-ce", help_heading = "MaskSub")]
    pub sub_loss: SubLoss,

    /// Divides the logits of both branches in the sub-branch's loss, above 0; the loss is multiplied by its square
    #[arg(long, value_name = "T", default_value_t = 1.0, value_parser = positive, help_heading = "MaskSub")]
    pub temperature: f64,

    /// Weight w of the sub-branch, 0 to 1: the loss is (1-w) main + w sub
    #[arg(long, value_name = "W", default_value_t = 0.5, value_parser = weight, help_heading = "MaskSub")]
    pub sub_weight: f64,

    /// Probability with which dropsub drops a value, or pathsub a block; at least 0 and below 1
    #[arg(long, value_name = "P", default_value_t = 0.2, value_parser = share, help_heading = "MaskSub")]
    pub sub_drop_rate: f64,

    /// Record in metrics.csv how hard the sub-branch's task is: the norms of the main branch's and the sub-branch's
    /// gradients, the cosine between them, and how often both predict the same class. With --accumulate or --replicas they
    /// are means over the parts, whose gradients are of fewer images and so have larger norms
    #[arg(long, help_heading = "MaskSub")]
    pub record_difficulty: bool,

    /// Decides initial weights, order of images, masks and every other draw
    #[arg(long, value_name = "SEED", default_value_t = 0, help_heading = "Training")]
    pub seed: u64,

    /// The device: cpu, cuda (the first GPU), cuda:N, or metal; the last three need the crate's feature of that name
    #[arg(long, value_name = "DEVICE", default_value = "cpu", value_parser = device::parse, help_heading = "Training")]
    pub device: Device,

    /// Output directory; must be empty or not exist yet. Default: the first out/run-N that does not exist
    #[arg(long, value_name = "DIR", help_heading = "Output")]
    pub out: Option<PathBuf>,

    /// Whose loaders take model.safetensors, with strict=True. Default: timm's, or transformers' where timm has no such
    /// model, as of DINOv2's head on class token and mean
    #[arg(long, value_enum, value_name = "NAMES", help_heading = "Output")]
    pub save_layout: Option<SaveLayout>,

    /// Evaluate after every N epochs, and after the last; in between, metrics.csv has no test scores
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = at_least_1, help_heading = "Output")]
    pub evaluate_every: usize,

    /// Write a checkpoint after every N steps, beside the one after every epoch
    #[arg(long, value_name = "N", value_parser = at_least_1, help_heading = "Output")]
    pub checkpoint_every: Option<usize>,

    /// Go on with the run in --out where its last checkpoint was written, with its settings
    #[arg(long, requires = "out", help_heading = "Output")]
    pub resume: bool,

    /// Only evaluate, the weights of --init-from or of the run to --resume
    #[arg(long, help_heading = "Output")]
    pub eval_only: bool,

    /// Only write the features of all images below DIR: what a ViT's head would read of each, as evaluation sees it, to
    /// features.safetensors in --out, as `features` [N, D], with their paths in its metadata. With the weights of
    /// --init-from
    #[arg(long, value_name = "DIR", requires = "init_from", conflicts_with_all = ["resume", "eval_only"], help_heading = "Output")]
    pub features_of: Option<PathBuf>,

    /// Print all settings and end; with =sources where each of the recipe's and the network's was read, too, and what
    /// still differs from there
    #[arg(long, value_enum, value_name = "WHAT", num_args = 0..=1, require_equals = true, default_missing_value = "values", help_heading = "Output")]
    pub print_config: Option<PrintConfig>,

    /// Print the operations, the memory and the time that the run needs, and end: operations are counted, the rest is
    /// measured in a few steps with a few images
    #[arg(long, help_heading = "Output")]
    pub plan: bool,

    /// Make a few steps with as many images, and print what they take: for --plan, in a process of its own
    #[arg(long, value_name = "N", value_parser = at_least_1, hide = true, help_heading = "Output")]
    pub plan_images: Option<usize>,

    #[command(flatten)]
    pub training: TrainingFlags,

    #[command(flatten)]
    pub input: InputFlags,

    /// As they were typed.
    #[arg(skip)]
    pub arguments: Vec<OsString>,

    /// The flags that were typed, without their dashes.
    #[arg(skip)]
    pub given: Vec<String>,
}

impl Flags {
    /// From `arguments`, the program's name not among them. Those of the recipe come before them, so that each can be
    /// overridden.
    pub fn from_arguments(arguments: Vec<OsString>) -> Result<Self, clap::Error> {
        let parse = |recipe: Vec<String>| -> Result<_, clap::Error> {
            let recipe = std::iter::once("vit_imagenet".to_string()).chain(recipe);
            let all = recipe.map(OsString::from).chain(arguments.iter().cloned());
            let command = Self::command();
            let brief = arguments.iter().any(|argument| argument == "-h");
            let command = if brief { with_brief_help(command) } else { command };
            let matches = command.try_get_matches_from(all)?;
            Ok((Self::from_arg_matches(&matches)?, matches))
        };
        let (given, matches) = parse(vec![])?;
        let is_given = |id: &str| matches.value_source(id) == Some(ValueSource::CommandLine);
        let asked = Asked {
            epochs: is_given("epochs").then_some(given.training.epochs),
            batch_size: is_given("batch_size").then_some(given.training.batch_size),
        };
        let (flags, _) = parse(given.recipe.flags(given.model(), asked))?;
        let ids = Self::command();
        let ids = ids
            .get_arguments()
            .map(|arg| arg.get_id().as_str())
            .filter(|id| is_given(id));
        Ok(Self {
            given: ids.map(|id| id.replace('_', "-")).collect(),
            arguments,
            ..flags
        })
    }

    /// What somebody who typed these may not have meant.
    pub fn warnings(&self) -> Vec<String> {
        let (replicas, repeats) = (self.training.replicas, self.input.repeated_augment.unwrap_or(1));
        let meet = (1 < replicas && replicas < repeats).then(|| {
            format!(
                "an image's copies meet in a replica's batch: --replicas is {replicas}, --repeated-augment {repeats}"
            )
        });
        self.recipe.warning(self.model()).into_iter().chain(meet).collect()
    }

    /// The presets of the recipe with the network.
    pub fn presets(&self) -> Vec<Preset> {
        let epochs = self
            .given
            .iter()
            .any(|flag| flag == "epochs")
            .then_some(self.training.epochs);
        self.recipe.presets(self.model(), epochs)
    }

    /// The network's name.
    pub fn model(&self) -> &str {
        let default = || self.recipe.models().first().copied();
        self.model
            .as_deref()
            .or_else(default)
            .unwrap_or(network::default_name(self.data.is_some() || self.features_of.is_some()))
    }

    /// The same, unless they are not for so many ranks.
    pub fn for_ranks(self, ranks: usize) -> Result<Self, clap::Error> {
        match self.of_one_process() {
            Some(flag) if ranks > 1 => {
                let text = format!("{flag} is for one process: start it without mpirun");
                Err(Self::command().error(ErrorKind::ArgumentConflict, text))
            }
            _ => Ok(self),
        }
    }

    /// The flag, if there is one, that a process by itself heeds: it measures this machine, or writes one file.
    fn of_one_process(&self) -> Option<&'static str> {
        let flags = [
            ("--plan", self.plan),
            ("--plan-images", self.plan_images.is_some()),
            ("--features-of", self.features_of.is_some()),
        ];
        flags.into_iter().find_map(|(flag, given)| given.then_some(flag))
    }

    /// Whether the network is for images, as against the digits: those of `--data`, which recipes are for.
    pub fn takes_images(&self) -> bool {
        self.data.is_some() || self.features_of.is_some() || self.recipe != Recipe::Plain
    }

    /// The network, with a head for `num_classes`.
    pub fn network(&self, num_classes: usize) -> Result<Network> {
        let training = &self.training;
        ensure!(
            training.dtype == ComputeDType::F32 || training.recompute == Recompute::Never,
            "--recompute is for --dtype f32, but --dtype is bf16, with which nothing is computed again"
        );
        let network = Network::new(self.model(), num_classes, self)?
            .with_recompute(training.recompute)?
            .with_compute_dtype(training.dtype.of_config());
        Ok(match training.drop_path {
            Some(rate) => network.with_drop_path(rate),
            None => network,
        })
    }

    /// Does for the device what is a switch of candle's, for the whole process.
    pub fn prepare_device(&self) -> Result<()> {
        if self.training.tf32 {
            device::allow_tf32(&self.device)?;
        }
        Ok(())
    }

    /// Whether the run is evaluated after this epoch, counted from 1.
    pub fn evaluates_after(&self, epoch: usize) -> bool {
        epoch.is_multiple_of(self.evaluate_every) || epoch >= self.training.epochs
    }

    /// The weight of the sub-branch: 0 where there is none, which then costs nothing.
    pub fn sub_weight(&self) -> f64 {
        match self.branch {
            Branch::None | Branch::MaskOnly => 0.0,
            _ => self.sub_weight,
        }
    }

    /// What masks hide, in a run over epochs of so many images.
    pub fn masking(&self, epoch_len: usize) -> Result<RandomMasking> {
        let start = self.mask_ratio;
        let ratio = match (self.mask_ratio_end, self.mask_ratio_max) {
            (Some(end), _) => {
                let steps = self.training.epochs * self.training.steps_per_epoch(epoch_len)?;
                MaskRatio::linear(start, end, steps)?
            }
            (None, Some(max)) => {
                ensure!(
                    start < max,
                    "--mask-ratio-max is {max}, but must be above {start}, the --mask-ratio"
                );
                MaskRatio::drawn(Uniform::new(start, max)?)
            }
            (None, None) => MaskRatio::fixed(start)?,
        };
        Ok(RandomMasking::with_ratio(ratio))
    }
}

#[cfg(test)]
mod tests;
