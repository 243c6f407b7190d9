//! Everything that makes one ViT differ from another.

use candle_core::DType;

use super::names::{Names, CLIP, HUGGING_FACE, TIMM};
use super::Activation;
use crate::check;
use crate::error::{Error, Result};
use crate::grid::Grid;
use crate::models::{rules, Recompute};
use crate::ops::Pairs;

/// Names and shapes that a model's weights have, by whose they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WeightNames {
    /// timm's and facebookresearch's: DeiT-III and MAE.
    Timm,
    /// Hugging Face's `ViTForImageClassification`; candle-transformers' ViT has the same.
    HuggingFace,
    /// The vision tower of Hugging Face's CLIP below `clip`, and a `head`.
    Clip,
}

/// Rotary position embeddings (arXiv 2104.09864) of a grid: half of a head's pairs are turned by the row, half by the
/// column. They go with their positions where others are dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rotary {
    /// EVA-02's: neighbours are turned, with a base of 10000, by positions on the grid of pre-training.
    Eva {
        /// Side of that grid; images of another size have positions between those.
        grid: usize,
    },
    /// DINOv3's: elements i and i + d/2 are turned, with a base of 100, by the patches' centres within [-1, 1]. (The
    /// authors' random shift, jitter and scale of pre-training are not drawn.)
    DinoV3,
}

impl Rotary {
    pub(super) const fn pairs(self) -> Pairs {
        match self {
            Self::Eva { .. } => Pairs::Neighbours,
            Self::DinoV3 => Pairs::Halves,
        }
    }
}

/// Biases of the projection to queries, keys and values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QkvBias {
    /// One for each.
    All,
    /// None for the keys, which would move no score against another (BEiT, EVA-02).
    QueryAndValue,
    /// None (timm's DINOv3).
    Absent,
}

/// The form of a gated MLP, silu(gate) * value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gate {
    /// Gate and value from one projection (DINOv2's giant; EVA-02, tiny and small).
    Packed,
    /// From two, and a layer norm on their product (EVA-02, base and large).
    Normed,
}

/// Course of the drop-path rate over the blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DropPathSchedule {
    /// The same rate in every block (DeiT-III).
    Constant,
    /// From 0 in the first block to the full rate in the last (everyone else).
    Linear,
}

/// Tokens that the head reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pool {
    /// The class token, after the final norm.
    ClassToken,
    /// Class and distillation token, after the final norm and each with a head of its own; the logits are the mean of
    /// both heads' (DeiT's distilled models, arXiv 2012.12877). [`TwoHeads`](super::TwoHeads) gives them apart.
    ClassAndDistillation,
    /// The class token beside the mean of the patch tokens, 2 D numbers, after the final norm (DINOv2, arXiv
    /// 2304.07193).
    ClassAndMean,
    /// The mean of the patch tokens without the class token, then `fc_norm` and no final norm (MAE fine-tuning).
    Mean,
    /// `fc_norm` on every patch token, then their mean without the class token, and no final norm (FT-CLIP).
    NormThenMean,
    /// The final norm on every token, then the mean of the patch tokens (SigLIP without attention pooling).
    FinalNormThenMean,
    /// Attention of a learned query to all tokens after the final norm, and an MLP behind it (SigLIP, arXiv 2303.15343).
    Attention,
    /// The mean of the patch tokens without the class token and without any norm (Hugging Face's
    /// `CLIPForImageClassification`).
    MeanOnly,
}

/// Everything that makes one ViT differ from another.
///
/// The constructors give the published sizes; a size of your own is a struct update on one of them.
///
/// ```
/// use masksub::models::vit::Config;
/// let small = Config { drop_path: 0.05, ..Config::deit3_small(1000) };
/// let digits = Config { embed_dim: 64, depth: 6, num_heads: 4, ..Config::deit3_tiny(10) }.with_input(8, 2, 1);
/// assert_eq!((small.embed_dim, small.depth, digits.image_size), (384, 12, (8, 8)));
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// Names and shapes of the weights.
    pub weight_names: WeightNames,
    /// Height and width of the image, in pixels.
    pub image_size: (usize, usize),
    /// Side of a patch, in pixels.
    pub patch_size: usize,
    /// Takes images of any size, not of `image_size` alone: absolute positions are resized to each (timm's
    /// `dynamic_img_size`), [`AntialiasedBicubic`](crate::pretrained::Resize::AntialiasedBicubic), and gradients go
    /// back to those of `image_size`. All images of a batch have one size.
    /// [`classify`](crate::TokenModel::classify) is told it by the [`Pass`](crate::Pass) that
    /// [`embed`](crate::TokenModel::embed) got.
    pub dynamic_image_size: bool,
    /// Ignores pixels right and below of the last whole patch, as a strided convolution does. Otherwise an image side
    /// that is no multiple of the patch is an error.
    pub crop_remainder: bool,
    /// Channels of the image.
    pub in_channels: usize,
    /// Classes.
    pub num_classes: usize,
    /// D, the width of a token.
    pub embed_dim: usize,
    /// Blocks.
    pub depth: usize,
    /// Attention heads; they divide `embed_dim`.
    pub num_heads: usize,
    /// Width of the MLP's hidden layer.
    pub mlp_dim: usize,
    /// The MLP's activation, where it has no gate.
    pub activation: Activation,
    /// Makes the MLP a gated one (SwiGLU, arXiv 2002.05202).
    pub gate: Option<Gate>,
    /// Biases of queries, keys and values.
    pub qkv_bias: QkvBias,
    /// Term that layer norms add to the variance.
    pub norm_eps: f64,
    /// Initial value of LayerScale (arXiv 2103.17239), where there is one.
    pub layer_scale: Option<f64>,
    /// Puts a learned class token in front of the patches'.
    pub class_token: bool,
    /// Puts a distillation token behind the class token (DeiT's distilled models).
    pub distillation_token: bool,
    /// Learned tokens behind those, which no head reads (registers, arXiv 2309.16588).
    pub num_registers: usize,
    /// Adds a learned embedding to each position.
    pub absolute_positions: bool,
    /// Turns queries and keys by their positions, in every block.
    pub rotary: Option<Rotary>,
    /// Adds a learned bias for how far a key is from a query to the scores, from a table in every block (BEiT, arXiv
    /// 2106.08254). It takes a class token and no other token in front.
    pub relative_positions: bool,
    /// Gives class and distillation token position embeddings of their own. Registers have none.
    pub class_token_position: bool,
    /// Gives the patch projection a bias.
    pub patch_bias: bool,
    /// Puts a layer norm before the first block (CLIP).
    pub pre_norm: bool,
    /// Tokens that the head reads.
    pub pool: Pool,
    /// Standard deviation of the head's initial weights.
    pub head_init_std: f64,
    /// Bound of the head's initial biases, which are uniform within ± it; 0 where they are 0.
    pub head_bias_bound: f64,
    /// Dropout on the attention's output and twice in the MLP, in training; within [0, 1).
    pub dropout: f64,
    /// Stochastic depth of the residual branches, in training; within [0, 1).
    pub drop_path: f64,
    /// Course of that rate over the blocks.
    pub drop_path_schedule: DropPathSchedule,
    /// Blocks that take less memory and more time.
    pub recompute: Recompute,
    /// What the factors of products are rounded to, as under PyTorch's autocast: bf16 or f16, for weights in f32. Weights,
    /// tokens, norms, softmax, logits and gradients of weights stay f32. `None` or the dtype of the weights: nothing is
    /// rounded.
    pub compute_dtype: Option<DType>,
}

impl Config {
    /// The same model for square images of another size, cut in other patches, with other channels.
    pub fn with_input(self, image_size: usize, patch_size: usize, in_channels: usize) -> Self {
        Self {
            image_size: (image_size, image_size),
            patch_size,
            in_channels,
            ..self
        }
    }

    /// The layer that a weight belongs to, by its name, for
    /// [`ParamGroups::with_layer_decay`](crate::train::optim::ParamGroups::with_layer_decay): 0 for the embeddings, 1
    /// to `depth` for the blocks, and `depth` + 1 for the last norm and the head (as in MAE's and BEiT's fine-tuning).
    ///
    /// ```
    /// let cfg = masksub::models::vit::Config::mae_base(10);
    /// let layers = ["cls_token", "blocks.0.norm1.weight", "blocks.11.mlp.fc2.bias", "head.weight"];
    /// assert_eq!(layers.map(|name| cfg.layer_of(name)), [0, 1, 12, 13]);
    /// ```
    pub fn layer_of(&self, name: &str) -> usize {
        self.names().layer_of(name, self.depth)
    }

    /// P, the tokens in front of the patches'.
    pub fn num_prefix_tokens(&self) -> usize {
        self.num_tokens_before_registers() + self.num_registers
    }

    pub(crate) fn num_tokens_before_registers(&self) -> usize {
        usize::from(self.class_token) + usize::from(self.distillation_token)
    }

    /// Whether blocks take the tokens' positions.
    pub(super) fn has_positions_in_blocks(&self) -> bool {
        self.rotary.is_some() || self.relative_positions
    }

    /// How many of the tokens in front of the patches' have positions.
    pub(super) fn num_prefix_positions(&self) -> usize {
        if self.absolute_positions && self.class_token_position {
            self.num_tokens_before_registers()
        } else {
            0
        }
    }

    pub(super) fn names(&self) -> &'static Names {
        match self.weight_names {
            WeightNames::Timm => &TIMM,
            WeightNames::HuggingFace => &HUGGING_FACE,
            WeightNames::Clip => &CLIP,
        }
    }

    /// Positions of an image of the configured size.
    pub(super) fn grid(&self) -> Grid {
        Grid::new(self.image_size.0 / self.patch_size, self.image_size.1 / self.patch_size)
    }

    /// The drop-path rate of block `index`.
    pub(super) fn drop_path_at(&self, index: usize) -> f64 {
        match self.drop_path_schedule {
            DropPathSchedule::Constant => self.drop_path,
            DropPathSchedule::Linear => rules::linear_drop_path(self.drop_path, index, self.depth),
        }
    }

    /// Refuses a configuration that does not hold together.
    pub(super) fn check(&self) -> Result<()> {
        let (height, width) = self.image_size;
        check::counts([
            ("patch_size", self.patch_size),
            ("in_channels", self.in_channels),
            ("num_classes", self.num_classes),
            ("embed_dim", self.embed_dim),
            ("depth", self.depth),
            ("num_heads", self.num_heads),
            ("mlp_dim", self.mlp_dim),
            ("num_registers", self.num_registers.max(1)),
            // A side of 0 is refused below, together with what would fit.
            ("image_size", height.max(1)),
            ("image_size", width.max(1)),
        ])?;
        rules::check_patch(self.in_channels, self.patch_size)?;
        let dim = self.embed_dim;
        check::divisor("num_heads", self.num_heads, dim, format_args!("embed_dim, {dim}"))?;
        check::rate("dropout", self.dropout)?;
        check::rate("drop_path", self.drop_path)?;
        self.recompute
            .check(self.dropout, self.gate.is_some(), self.compute_dtype)?;
        self.check_tokens()?;
        check::non_negative("norm_eps", self.norm_eps)?;
        check::non_negative("head_bias_bound", self.head_bias_bound)?;
        if self.dynamic_image_size && self.relative_positions {
            let allowed = "false with relative_positions, whose tables are for one size";
            return Err(Error::invalid("dynamic_image_size", true, allowed));
        }
        if !self.fits(height) || !self.fits(width) {
            let value = format!("{height} x {width}");
            return Err(Error::invalid("image_size", value, self.sides()));
        }
        Ok(())
    }

    /// Refuses to pool tokens that there are not.
    fn check_tokens(&self) -> Result<()> {
        if let Some(Rotary::Eva { grid }) = self.rotary {
            check::at_least_one("rotary", grid)?;
        }
        let width = self.embed_dim / self.num_heads;
        if self.rotary.is_some() && !width.is_multiple_of(4) {
            let allowed = format!("one that leaves heads of a multiple of 4, not {width}, for rotary positions");
            return Err(Error::invalid("num_heads", self.num_heads, allowed));
        }
        if self.relative_positions && (self.num_prefix_tokens() != 1 || !self.class_token) {
            let value = format!("true with {} tokens in front of the patches'", self.num_prefix_tokens());
            let allowed = "false, or with a class token and no other";
            return Err(Error::invalid("relative_positions", value, allowed));
        }
        let needed = match self.pool {
            Pool::ClassToken | Pool::ClassAndMean => self.class_token,
            Pool::ClassAndDistillation => self.class_token && self.distillation_token,
            Pool::Mean | Pool::NormThenMean | Pool::FinalNormThenMean | Pool::MeanOnly | Pool::Attention => true,
        };
        if needed {
            return Ok(());
        }
        let value = format!("{:?}", self.pool);
        let allowed = format!(
            "one that reads what there is: class_token is {}, distillation_token {}",
            self.class_token, self.distillation_token
        );
        Err(Error::invalid("pool", value, allowed))
    }

    /// Refuses images that are not as configured, and gives their grid.
    pub(super) fn check_images(&self, dims: &[usize]) -> Result<Grid> {
        let (channels, height, width) = match *dims {
            [b, c, h, w] if b > 0 => (c, h, w),
            _ => return Err(Error::shape("images", dims, "[B, C, H, W] with at least one image")),
        };
        // The configured grid is what the position embeddings are for.
        let grid = Grid::new(height / self.patch_size, width / self.patch_size);
        let is_own = self.dynamic_image_size || grid == self.grid();
        if channels != self.in_channels || !self.fits(height) || !self.fits(width) || !is_own {
            let (channels, (h, w)) = (self.in_channels, self.image_size);
            let expected = match self.dynamic_image_size {
                true => format!("[B, {channels}, H, W]"),
                false => format!("[B, {channels}, {h}, {w}] as configured"),
            };
            let why = if dims[1] == channels && self.fits(height) && self.fits(width) {
                // A size like any other: only the positions are for another grid.
                let resized = if self.absolute_positions {
                    ", to which a checkpoint's positions are resized"
                } else {
                    ""
                };
                format!(
                    ": for images of {height} x {width} set Config::image_size{resized}, or for images of all sizes \
                     Config::dynamic_image_size"
                )
            } else {
                format!("; sides are {}", self.sides())
            };
            return Err(Error::shape("images", dims, expected + &why));
        }
        Ok(grid)
    }

    fn fits(&self, side: usize) -> bool {
        side >= self.patch_size && (self.crop_remainder || side.is_multiple_of(self.patch_size))
    }

    fn sides(&self) -> String {
        let patch = self.patch_size;
        if self.crop_remainder {
            format!("at least one patch, {patch} pixels, on each side")
        } else {
            format!("multiples of the patch, {patch} pixels, on each side (or set crop_remainder)")
        }
    }
}
