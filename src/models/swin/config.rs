//! Everything that makes one Swin differ from another.

use candle_core::DType;

use crate::check;
use crate::error::{Error, Result};
use crate::models::{path, rules, Constructor, Recompute, Source};

const fn source(option: &'static str) -> Source {
    Source::new("microsoft/Swin-Transformer", "config.py, configs/swin", option)
}

/// Most stages: of more, the first would need images of 2^16 tokens a side.
const MOST_STAGES: usize = 16;

/// Names that a model's weights have, by whose they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WeightNames {
    /// The authors': the merging behind stage s is `layers.s.downsample`, the head is `head`.
    Microsoft,
    /// timm's (from 0.9 on): the merging before stage s is `layers.s.downsample`, the head is `head.fc`.
    ///
    /// timm gives each side of a stage that is no longer than a window a window and a shift of its own, as the authors'
    /// code does not. An `image_size` for which that makes a difference is refused; square ones never are.
    Timm,
}

/// Everything that makes one Swin differ from another.
///
/// ```
/// use masksub::models::swin::Config;
/// let tiny = Config { drop_path: 0.2, ..Config::tiny(1000) };
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// Names of the weights.
    pub weight_names: WeightNames,
    /// Height and width of the image, in pixels.
    pub image_size: (usize, usize),
    /// Side of a patch, in pixels.
    pub patch_size: usize,
    /// Channels of the image.
    pub in_channels: usize,
    /// Classes.
    pub num_classes: usize,
    /// D, the width of a token in the first stage; it doubles with each.
    pub embed_dim: usize,
    /// Blocks of each stage.
    pub depths: Vec<usize>,
    /// Attention heads of each stage.
    pub num_heads: Vec<usize>,
    /// Side of a window, in tokens.
    pub window_size: usize,
    /// Width of the MLP's hidden layer, in tokens' widths.
    pub mlp_ratio: usize,
    /// Term that layer norms add to the variance.
    pub norm_eps: f64,
    /// Dropout on the attention's output and twice in the MLP, in training; within [0, 1).
    pub dropout: f64,
    /// Stochastic depth of the last block, in training, growing linearly from 0 in the first; within [0, 1).
    pub drop_path: f64,
    /// Blocks that take less memory and more time.
    pub recompute: Recompute,
    /// What the factors of products are rounded to, as under PyTorch's autocast: bf16 or f16, for weights in f32. Weights,
    /// tokens, norms, softmax, logits and gradients of weights stay f32. `None` or the dtype of the weights: nothing is
    /// rounded.
    pub compute_dtype: Option<DType>,
}

impl Config {
    fn new(embed_dim: usize, depths: [usize; 4], num_heads: [usize; 4], num_classes: usize) -> Self {
        Self {
            weight_names: WeightNames::Microsoft,
            image_size: (224, 224),
            patch_size: 4,
            in_channels: 3,
            num_classes,
            embed_dim,
            depths: depths.to_vec(),
            num_heads: num_heads.to_vec(),
            window_size: 7,
            mlp_ratio: 4,
            norm_eps: 1e-5,
            dropout: 0.0,
            drop_path: 0.0,
            recompute: Recompute::Never,
            compute_dtype: None,
        }
    }

    /// Swin-T.
    pub fn tiny(num_classes: usize) -> Self {
        Self::new(96, [2, 2, 6, 2], [3, 6, 12, 24], num_classes)
    }
    /// Swin-S.
    pub fn small(num_classes: usize) -> Self {
        Self::new(96, [2, 2, 18, 2], [3, 6, 12, 24], num_classes)
    }
    /// Swin-B.
    pub fn base(num_classes: usize) -> Self {
        Self::new(128, [2, 2, 18, 2], [4, 8, 16, 32], num_classes)
    }

    /// The published sizes by name, with the constructor of each: values that a `--model` flag offers.
    pub const SIZES: &'static [(&'static str, Constructor<Self>)] = &[
        ("swin-tiny", Self::tiny),
        ("swin-small", Self::small),
        ("swin-base", Self::base),
    ];

    /// Names as in [`SIZES`](Self::SIZES), in their order, each with the place where its values were read.
    pub const SOURCES: &'static [(&'static str, Source)] = &[
        ("swin-tiny", source("swin_tiny_patch4_window7_224.yaml: PATCH_SIZE=4 EMBED_DIM=96 DEPTHS=2,2,6,2 NUM_HEADS=3,6,12,24 WINDOW_SIZE=7 MLP_RATIO=4")),
        ("swin-small", source("swin_small_patch4_window7_224.yaml: PATCH_SIZE=4 EMBED_DIM=96 DEPTHS=2,2,18,2 NUM_HEADS=3,6,12,24 WINDOW_SIZE=7 MLP_RATIO=4")),
        ("swin-base", source("swin_base_patch4_window7_224.yaml: PATCH_SIZE=4 EMBED_DIM=128 DEPTHS=2,2,18,2 NUM_HEADS=4,8,16,32 WINDOW_SIZE=7 MLP_RATIO=4")),
    ];

    /// n, the number of blocks in all stages.
    pub fn num_blocks(&self) -> usize {
        self.depths.iter().sum()
    }

    /// The number of blocks in the stages before one.
    pub(super) fn blocks_before(&self, stage: usize) -> usize {
        self.depths.iter().take(stage).sum()
    }

    /// The layer that a weight belongs to, by its name, for
    /// [`ParamGroups::with_layer_decay`](crate::train::optim::ParamGroups::with_layer_decay): 0 for the embeddings and
    /// the mask token, 1 to n for the blocks of all stages, and n + 1 for the last norm and the head. A merging layer
    /// counts as the block before it (as in SimMIM's fine-tuning).
    pub fn layer_of(&self, name: &str) -> usize {
        let Some(below) = path::below(name, "layers") else {
            let first = ["patch_embed", "mask_token"];
            let is_first = first.iter().any(|part| path::below(name, part).is_some());
            return if is_first { 0 } else { self.num_blocks() + 1 };
        };
        let stage = path::leading_number(below).unwrap_or(self.depths.len());
        let block = path::below(below, "blocks").and_then(path::leading_number);
        match (block, self.weight_names) {
            (Some(block), _) => self.blocks_before(stage) + block + 1,
            // Merging stands at the end of a stage, in timm's names at the start of the next.
            (None, WeightNames::Microsoft) => self.blocks_before(stage + 1),
            (None, WeightNames::Timm) => self.blocks_before(stage),
        }
    }

    /// Refuses a configuration that does not hold together. (Of windows, [`stages`](Self::stages) knows.)
    pub(super) fn check(&self) -> Result<()> {
        let (height, width) = self.image_size;
        check::counts([
            ("patch_size", self.patch_size),
            ("in_channels", self.in_channels),
            ("num_classes", self.num_classes),
            ("embed_dim", self.embed_dim),
            ("window_size", self.window_size),
            ("mlp_ratio", self.mlp_ratio),
            // A side of 0 is refused below, together with what would fit.
            ("image_size", height.max(1)),
            ("image_size", width.max(1)),
        ])?;
        check::counts(self.depths.iter().map(|&depth| ("depths", depth)))?;
        rules::check_patch(self.in_channels, self.patch_size)?;
        check::in_range("depths", self.depths.len(), 1..=MOST_STAGES, "stages")?;
        if self.num_heads.len() != self.depths.len() {
            let allowed = format!("as many as depths, {}", self.depths.len());
            return Err(Error::invalid("num_heads", format!("{:?}", self.num_heads), allowed));
        }
        check::rate("dropout", self.dropout)?;
        self.recompute.check(self.dropout, false, self.compute_dtype)?;
        check::rate("drop_path", self.drop_path)?;
        check::non_negative("norm_eps", self.norm_eps)?;
        let fits = |side: usize| side > 0 && side.is_multiple_of(self.patch_size);
        if !fits(height) || !fits(width) {
            return Err(self.misfit(format!("multiples of the patch, {} pixels", self.patch_size)));
        }
        Ok(())
    }

    /// An image size that is not `allowed`.
    pub(super) fn misfit(&self, allowed: String) -> Error {
        let (height, width) = self.image_size;
        Error::invalid("image_size", format!("{height} x {width}"), allowed)
    }
}
