//! Everything that makes one ResNet differ from another.

use candle_core::DType;

use crate::check;
use crate::error::Result;
use crate::models::{Constructor, Source};

const fn source(option: &'static str) -> Source {
    Source::new("huggingface/pytorch-image-models", "timm/models/resnet.py", option)
}

/// Block that stages are made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BlockKind {
    /// Two 3x3 convolutions (ResNet-18, -34).
    Basic,
    /// 1x1, 3x3, 1x1, the last four times as wide; the 3x3 has the stride (ResNet-50 and up).
    Bottleneck,
}

impl BlockKind {
    /// Ratio of a block's output to its stage in width.
    pub(super) const fn expansion(self) -> usize {
        match self {
            Self::Basic => 1,
            Self::Bottleneck => 4,
        }
    }
}

/// Everything that makes one ResNet differ from another.
///
/// ```
/// use masksub::models::resnet::Config;
/// let rsb = Config { drop_path: 0.05, ..Config::resnet50(1000) };
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// Block that stages are made of.
    pub block: BlockKind,
    /// Blocks of each stage.
    pub depths: [usize; 4],
    /// Width of each stage, before the block's expansion.
    pub channels: [usize; 4],
    /// Width of the stem.
    pub stem_channels: usize,
    /// Channels of the image.
    pub in_channels: usize,
    /// Classes.
    pub num_classes: usize,
    /// Term that batch norms add to the variance.
    pub norm_eps: f64,
    /// Share of a batch's statistics in the running ones, each step.
    pub norm_momentum: f64,
    /// Starts the last batch norm of each block at 0, so that blocks start as the identity
    /// (arXiv 1706.02677, section 5.1).
    pub zero_init_last: bool,
    /// Stochastic depth of the last block, in training, growing linearly from 0 in the first; within [0, 1).
    pub drop_path: f64,
    /// What the factors of products are rounded to, as under PyTorch's autocast: bf16 or f16, for weights in f32. Weights,
    /// maps, norms, logits and gradients of weights stay f32. `None` or the dtype of the weights: nothing is
    /// rounded.
    pub compute_dtype: Option<DType>,
}

impl Config {
    const fn new(block: BlockKind, depths: [usize; 4], num_classes: usize) -> Self {
        Self {
            block,
            depths,
            channels: [64, 128, 256, 512],
            stem_channels: 64,
            in_channels: 3,
            num_classes,
            norm_eps: 1e-5,
            norm_momentum: 0.1,
            zero_init_last: true,
            drop_path: 0.0,
            compute_dtype: None,
        }
    }

    /// ResNet-18.
    pub const fn resnet18(num_classes: usize) -> Self {
        Self::new(BlockKind::Basic, [2, 2, 2, 2], num_classes)
    }
    /// ResNet-34.
    pub const fn resnet34(num_classes: usize) -> Self {
        Self::new(BlockKind::Basic, [3, 4, 6, 3], num_classes)
    }
    /// ResNet-50.
    pub const fn resnet50(num_classes: usize) -> Self {
        Self::new(BlockKind::Bottleneck, [3, 4, 6, 3], num_classes)
    }
    /// ResNet-101.
    pub const fn resnet101(num_classes: usize) -> Self {
        Self::new(BlockKind::Bottleneck, [3, 4, 23, 3], num_classes)
    }
    /// ResNet-152.
    pub const fn resnet152(num_classes: usize) -> Self {
        Self::new(BlockKind::Bottleneck, [3, 8, 36, 3], num_classes)
    }

    /// The published sizes by name, with the constructor of each: values that a `--model` flag offers.
    pub const SIZES: &'static [(&'static str, Constructor<Self>)] = &[
        ("resnet18", Self::resnet18),
        ("resnet34", Self::resnet34),
        ("resnet50", Self::resnet50),
        ("resnet101", Self::resnet101),
        ("resnet152", Self::resnet152),
    ];

    /// Names as in [`SIZES`](Self::SIZES), in their order, each with the place where its values were read.
    pub const SOURCES: &'static [(&'static str, Source)] = &[
        ("resnet18", source("resnet18: block=BasicBlock layers=2,2,2,2")),
        ("resnet34", source("resnet34: block=BasicBlock layers=3,4,6,3")),
        ("resnet50", source("resnet50: block=Bottleneck layers=3,4,6,3")),
        ("resnet101", source("resnet101: block=Bottleneck layers=3,4,23,3")),
        ("resnet152", source("resnet152: block=Bottleneck layers=3,8,36,3")),
    ];

    /// Refuses a configuration that does not hold together.
    pub(super) fn check(&self) -> Result<()> {
        check::counts([
            ("stem_channels", self.stem_channels),
            ("in_channels", self.in_channels),
            ("num_classes", self.num_classes),
        ])?;
        check::counts(self.depths.map(|depth| ("depths", depth)))?;
        check::counts(self.channels.map(|channels| ("channels", channels)))?;
        check::rate("drop_path", self.drop_path)?;
        check::non_negative("norm_eps", self.norm_eps)?;
        check::share("norm_momentum", self.norm_momentum).map(drop)
    }

    /// That of batch norms.
    pub(super) fn norm(&self) -> candle_nn::BatchNormConfig {
        candle_nn::BatchNormConfig {
            eps: self.norm_eps,
            momentum: self.norm_momentum,
            ..Default::default()
        }
    }
}
