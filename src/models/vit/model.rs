//! The Vision Transformer (arXiv 2010.11929) in its four published forms: DeiT-III, MAE fine-tuning, Hugging Face, CLIP.

use candle_core::{Result, Tensor};
use candle_nn::{Init, Module, ModuleT, VarBuilder};

use super::names::{Names, Qkv, CLIP, HUGGING_FACE, TIMM};
use crate::check;
use crate::error::Error;
use crate::grid::Grid;
use crate::mask::Mask;
use crate::model::{Forward, TokenModel};
use crate::models::linear::{normal, pytorch_default, Linear};
use crate::models::mlp::{Mlp, MlpNames, Rates};
use crate::models::{pool, rules, Constructor};
use crate::nn::{layer_norm, LayerNorm};
pub use crate::ops::Activation;
use crate::ops::{self, Affine, AttentionBranch, PatchEmbed, Tokens};
use crate::pass::Pass;

/// Whose names and shapes a model's weights have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WeightNames {
    /// timm's and facebookresearch's: DeiT-III and MAE.
    Timm,
    /// Hugging Face's `ViTForImageClassification`; candle-transformers' ViT has the same.
    HuggingFace,
    /// The vision tower of Hugging Face's CLIP below `clip`, and a `head`.
    Clip,
}

/// How the drop-path rate runs over the blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DropPathSchedule {
    /// The same rate in every block (DeiT-III).
    Constant,
    /// From 0 in the first block to the full rate in the last (everyone else).
    Linear,
}

/// What the head reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pool {
    /// The class token, after the final norm.
    ClassToken,
    /// The mean of the patch tokens without the class token, then `fc_norm` and no final norm (MAE fine-tuning).
    Mean,
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
    /// Whether pixels right and below of the last whole patch are ignored, as a strided convolution does. Otherwise an
    /// image side that is no multiple of the patch is an error.
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
    /// The MLP's activation.
    pub activation: Activation,
    /// What layer norms add to the variance.
    pub norm_eps: f64,
    /// Initial value of LayerScale (arXiv 2103.17239), where there is one.
    pub layer_scale: Option<f64>,
    /// Whether the class token has a position embedding of its own.
    pub class_token_position: bool,
    /// Whether the patch projection has a bias.
    pub patch_bias: bool,
    /// Whether there is a layer norm before the first block (CLIP).
    pub pre_norm: bool,
    /// What the head reads.
    pub pool: Pool,
    /// Standard deviation of the head's initial weights.
    pub head_init_std: f64,
    /// Dropout on the attention's output and twice in the MLP, in training; within [0, 1).
    pub dropout: f64,
    /// Stochastic depth of the residual branches, in training; within [0, 1).
    pub drop_path: f64,
    /// How that rate runs over the blocks.
    pub drop_path_schedule: DropPathSchedule,
}

impl Config {
    /// A DeiT-III (arXiv 2204.07118) with 16-pixel patches at 224 pixels: no position for the class token, LayerScale
    /// 1e-4, constant drop path.
    fn deit3(embed_dim: usize, depth: usize, num_heads: usize, num_classes: usize) -> Self {
        Self {
            weight_names: WeightNames::Timm,
            image_size: (224, 224),
            patch_size: 16,
            crop_remainder: false,
            in_channels: 3,
            num_classes,
            embed_dim,
            depth,
            num_heads,
            mlp_dim: 4 * embed_dim,
            activation: Activation::Gelu,
            norm_eps: 1e-6,
            layer_scale: Some(1e-4),
            class_token_position: false,
            patch_bias: true,
            pre_norm: false,
            pool: Pool::ClassToken,
            head_init_std: 0.02,
            dropout: 0.,
            drop_path: 0.,
            drop_path_schedule: DropPathSchedule::Constant,
        }
    }

    /// MAE's fine-tuning model (arXiv 2111.06377): a position for the class token, mean pooling with `fc_norm`, a head
    /// that starts near 0, linear drop path.
    fn mae(embed_dim: usize, depth: usize, num_heads: usize, num_classes: usize) -> Self {
        Self {
            layer_scale: None,
            class_token_position: true,
            pool: Pool::Mean,
            head_init_std: 2e-5,
            drop_path_schedule: DropPathSchedule::Linear,
            ..Self::deit3(embed_dim, depth, num_heads, num_classes)
        }
    }

    /// CLIP's vision tower (arXiv 2103.00020) with a classifier head on the class token.
    fn clip(embed_dim: usize, depth: usize, num_heads: usize, num_classes: usize) -> Self {
        Self {
            weight_names: WeightNames::Clip,
            activation: Activation::QuickGelu,
            norm_eps: 1e-5,
            patch_bias: false,
            pre_norm: true,
            pool: Pool::ClassToken,
            head_init_std: 0.02,
            ..Self::mae(embed_dim, depth, num_heads, num_classes)
        }
    }

    /// DeiT-III with DeiT-tiny's width (192, 3 heads), 16-pixel patches.
    pub fn deit3_tiny(num_classes: usize) -> Self {
        Self::deit3(192, 12, 3, num_classes)
    }
    /// DeiT-III ViT-S/16.
    pub fn deit3_small(num_classes: usize) -> Self {
        Self::deit3(384, 12, 6, num_classes)
    }
    /// DeiT-III ViT-B/16.
    pub fn deit3_base(num_classes: usize) -> Self {
        Self::deit3(768, 12, 12, num_classes)
    }
    /// DeiT-III ViT-L/16.
    pub fn deit3_large(num_classes: usize) -> Self {
        Self::deit3(1024, 24, 16, num_classes)
    }
    /// DeiT-III ViT-H/14.
    pub fn deit3_huge(num_classes: usize) -> Self {
        Self {
            patch_size: 14,
            ..Self::deit3(1280, 32, 16, num_classes)
        }
    }
    /// MAE fine-tuning, ViT-B/16.
    pub fn mae_base(num_classes: usize) -> Self {
        Self::mae(768, 12, 12, num_classes)
    }
    /// MAE fine-tuning, ViT-L/16.
    pub fn mae_large(num_classes: usize) -> Self {
        Self::mae(1024, 24, 16, num_classes)
    }
    /// MAE fine-tuning, ViT-H/14.
    pub fn mae_huge(num_classes: usize) -> Self {
        Self {
            patch_size: 14,
            ..Self::mae(1280, 32, 16, num_classes)
        }
    }
    /// CLIP ViT-B/16.
    pub fn clip_base(num_classes: usize) -> Self {
        Self::clip(768, 12, 12, num_classes)
    }
    /// CLIP ViT-L/14.
    pub fn clip_large(num_classes: usize) -> Self {
        Self {
            patch_size: 14,
            ..Self::clip(1024, 24, 16, num_classes)
        }
    }
    /// Hugging Face's `google/vit-base-patch16-224`, and candle-transformers' `Config::vit_base_patch16_224`.
    pub fn hf_base(num_classes: usize) -> Self {
        Self {
            weight_names: WeightNames::HuggingFace,
            norm_eps: 1e-12,
            pool: Pool::ClassToken,
            head_init_std: 0.02,
            ..Self::mae(768, 12, 12, num_classes)
        }
    }

    /// The published sizes by name, with the constructor of each: what a `--model` flag offers.
    pub const SIZES: [(&'static str, Constructor<Self>); 11] = [
        ("deit3-tiny", Self::deit3_tiny),
        ("deit3-small", Self::deit3_small),
        ("deit3-base", Self::deit3_base),
        ("deit3-large", Self::deit3_large),
        ("deit3-huge", Self::deit3_huge),
        ("mae-base", Self::mae_base),
        ("mae-large", Self::mae_large),
        ("mae-huge", Self::mae_huge),
        ("clip-base", Self::clip_base),
        ("clip-large", Self::clip_large),
        ("hf-base", Self::hf_base),
    ];

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
    /// [`ParamGroups::with_layer_decay`](crate::train::optim::ParamGroups::with_layer_decay): 0 for the embeddings, 1 to
    /// `depth` for the blocks, and `depth` + 1 for the last norm and the head (as in MAE's and BEiT's fine-tuning).
    ///
    /// ```
    /// let cfg = masksub::models::vit::Config::mae_base(10);
    /// let layers = ["cls_token", "blocks.0.norm1.weight", "blocks.11.mlp.fc2.bias", "head.weight"];
    /// assert_eq!(layers.map(|name| cfg.layer_of(name)), [0, 1, 12, 13]);
    /// ```
    pub fn layer_of(&self, name: &str) -> usize {
        self.names().layer_of(name, self.depth)
    }

    /// Positions of an image of the configured size.
    fn grid(&self) -> Grid {
        Grid::new(self.image_size.0 / self.patch_size, self.image_size.1 / self.patch_size)
    }

    /// The drop-path rate of block `index`.
    fn drop_path_at(&self, index: usize) -> f64 {
        match self.drop_path_schedule {
            DropPathSchedule::Constant => self.drop_path,
            DropPathSchedule::Linear => rules::linear_drop_path(self.drop_path, index, self.depth),
        }
    }

    fn names(&self) -> &'static Names {
        match self.weight_names {
            WeightNames::Timm => &TIMM,
            WeightNames::HuggingFace => &HUGGING_FACE,
            WeightNames::Clip => &CLIP,
        }
    }

    fn check(&self) -> crate::error::Result<()> {
        check::counts([
            ("patch_size", self.patch_size),
            ("in_channels", self.in_channels),
            ("num_classes", self.num_classes),
            ("embed_dim", self.embed_dim),
            ("depth", self.depth),
            ("num_heads", self.num_heads),
            ("mlp_dim", self.mlp_dim),
            // A side of 0 is refused below, together with what would fit.
            ("image_size", self.image_size.0.max(1)),
            ("image_size", self.image_size.1.max(1)),
        ])?;
        rules::patch_len(self.in_channels, self.patch_size)?;
        if !self.embed_dim.is_multiple_of(self.num_heads) {
            let allowed = format!("a divisor of embed_dim, {}", self.embed_dim);
            return Err(Error::invalid("num_heads", self.num_heads, allowed));
        }
        check::rate("dropout", self.dropout)?;
        check::rate("drop_path", self.drop_path)?;
        check::non_negative("norm_eps", self.norm_eps)?;
        let (height, width) = self.image_size;
        if !self.fits(height) || !self.fits(width) {
            let value = format!("{height} x {width}");
            return Err(Error::invalid("image_size", value, self.sides()));
        }
        Ok(())
    }

    fn fits(&self, side: usize) -> bool {
        side >= self.patch_size && (self.crop_remainder || side.is_multiple_of(self.patch_size))
    }

    fn sides(&self) -> String {
        match self.crop_remainder {
            true => format!("at least one patch, {} pixels, on each side", self.patch_size),
            false => format!(
                "multiples of the patch, {} pixels, on each side (or set crop_remainder)",
                self.patch_size
            ),
        }
    }
}

const NORMAL: Init = normal(0.02);
const ZERO: Init = Init::Const(0.);

/// The projection to queries, keys and values.
#[derive(Clone, Debug)]
enum QkvProjection {
    Packed(Linear),
    Apart([Linear; 3]),
}

impl QkvProjection {
    fn packed(&self) -> Result<Linear> {
        match self {
            Self::Packed(packed) => Ok(packed.clone()),
            // Small beside the product: the weights are put together, not the tokens.
            Self::Apart([q, k, v]) => Ok(Linear {
                weight: Tensor::cat(&[&q.weight, &k.weight, &v.weight], 0)?,
                bias: Tensor::cat(&[&q.bias, &k.bias, &v.bias], 0)?,
            }),
        }
    }
}

/// Self-attention: a residual branch behind a layer norm, scaled and dropped.
#[derive(Clone, Debug)]
struct Attention {
    norm: LayerNorm,
    qkv: QkvProjection,
    num_heads: usize,
    proj: Linear,
    gamma: Option<Tensor>,
    rates: Rates,
}

impl Attention {
    fn new(cfg: &Config, gamma: Option<Tensor>, rates: Rates, vb: VarBuilder) -> Result<Self> {
        let (d, names) = (cfg.embed_dim, cfg.names());
        let linear = |out_dim, name: &str| Linear::new(d, out_dim, NORMAL, ZERO, vb.pp(name));
        let qkv = match names.qkv {
            Qkv::Packed(name) => QkvProjection::Packed(linear(3 * d, name)?),
            Qkv::Apart([q, k, v]) => QkvProjection::Apart([linear(d, q)?, linear(d, k)?, linear(d, v)?]),
        };
        Ok(Self {
            norm: layer_norm(d, cfg.norm_eps, vb.pp(names.norm1))?,
            qkv,
            num_heads: cfg.num_heads,
            proj: linear(d, names.proj)?,
            gamma,
            rates,
        })
    }

    /// [B, N, D] to [B, N, D], or to [B, 1, D]: in one operation where nothing is dropped between the layers.
    fn forward(&self, xs: &Tensor, tokens: Tokens, pass: &mut Pass) -> Result<Tensor> {
        let qkv = self.qkv.packed()?;
        match self.norm.affine() {
            Some(norm) if pass.skip_dropout(self.rates.dropout, 1)? => self.fused(norm, &qkv, xs, tokens, pass),
            _ => self.composed(&qkv, xs, tokens, pass),
        }
    }

    fn fused(&self, norm: Affine, qkv: &Linear, xs: &Tensor, tokens: Tokens, pass: &mut Pass) -> Result<Tensor> {
        let branch = AttentionBranch {
            norm,
            eps: self.norm.eps(),
            qkv: qkv.affine(),
            num_heads: self.num_heads,
            proj: self.proj.affine(),
            gamma: self.gamma.as_ref(),
        };
        let factors = pass.drop_path_factors(xs.dim(0)?, self.rates.drop_path)?;
        ops::attention_branch(xs, &branch, tokens, factors.as_deref())
    }

    fn composed(&self, qkv: &Linear, xs: &Tensor, tokens: Tokens, pass: &mut Pass) -> Result<Tensor> {
        let heads = ops::attention(&qkv.forward(&self.norm.forward(xs)?)?, self.num_heads)?;
        // Dropout draws token by token: the same for the first, whether others follow or not.
        let (xs, heads) = match tokens {
            Tokens::All => (xs.clone(), heads),
            Tokens::First => (xs.narrow(1, 0, 1)?, heads.narrow(1, 0, 1)?.contiguous()?),
        };
        let ys = pass.dropout(&self.proj.forward(&heads)?, self.rates.dropout)?;
        let factors = pass.drop_path_factors(xs.dim(0)?, self.rates.drop_path)?;
        ops::add_branch(&xs, ys, self.gamma.as_ref(), factors.as_deref())
    }
}

#[derive(Clone, Debug)]
struct Block {
    attention: Attention,
    mlp: Mlp,
}

impl Block {
    fn new(cfg: &Config, index: usize, vb: VarBuilder) -> Result<Self> {
        let (d, names) = (cfg.embed_dim, cfg.names());
        let gamma = |name: &str| {
            let init = cfg.layer_scale.map(Init::Const);
            init.map(|init| vb.get_with_hints(d, name, init)).transpose()
        };
        let rates = Rates {
            dropout: cfg.dropout,
            drop_path: cfg.drop_path_at(index),
        };
        let mlp_names = MlpNames {
            norm: names.norm2,
            fc1: names.fc1,
            fc2: names.fc2,
        };
        let dims = [d, cfg.mlp_dim];
        let mlp = Mlp::new(dims, cfg.norm_eps, cfg.activation, NORMAL, mlp_names, rates, vb.clone())?;
        Ok(Self {
            attention: Attention::new(cfg, gamma(names.gamma1)?, rates, vb.clone())?,
            mlp: mlp.with_gamma(gamma(names.gamma2)?),
        })
    }

    fn forward(&self, xs: &Tensor, tokens: Tokens, pass: &mut Pass) -> Result<Tensor> {
        let xs = self.attention.forward(xs, tokens, pass)?;
        self.mlp.forward(&xs, pass)
    }
}

/// A Vision Transformer that can be trained: gradients reach every parameter, dropout and drop path are active in
/// training.
///
/// It is a [`ModuleT`] like any candle model, a [`TokenModel`] for [`DropToken`](crate::DropToken), and a [`Forward`]
/// model for the other branches.
///
/// Images [B, C, H, W] become logits [B, classes]. `forward_t` refuses, as [`Error::Shape`], images that are not of the
/// configured size and channels, and an empty batch; and as [`Error::DrawsWithoutKey`] to train with a dropout or drop
/// path above 0, which need a [`Pass`] with a key.
///
/// ```
/// use candle_core::{DType, Device, Tensor};
/// use candle_nn::ModuleT;
/// use masksub::models::vit::{Config, VisionTransformer};
/// use masksub::{Seed, Weights};
/// let cfg = Config { embed_dim: 24, depth: 2, num_heads: 3, mlp_dim: 96, ..Config::deit3_tiny(10) }.with_input(32, 8, 3);
/// let weights = Weights::seeded(Seed::new(0));
/// let vit = VisionTransformer::new(&cfg, weights.var_builder(DType::F32, &Device::Cpu))?;
/// let images = Tensor::zeros((2, 3, 32, 32), DType::F32, &Device::Cpu)?;
/// assert_eq!(vit.forward_t(&images, false)?.dims(), [2, 10]);
/// # Ok::<(), candle_core::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct VisionTransformer {
    cfg: Config,
    /// [D, C, p, p], as a convolution has it.
    patch_weight: Tensor,
    patch_bias: Option<Tensor>,
    cls_token: Tensor,
    pos_embed: Tensor,
    pre_norm: Option<LayerNorm>,
    blocks: Vec<Block>,
    /// The final norm, or `fc_norm` where tokens are averaged.
    norm: LayerNorm,
    head: Linear,
}

impl VisionTransformer {
    /// The model of `cfg`, its weights from `vb` under the names of `cfg.weight_names`.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] when the configuration does not hold together; those of `vb` for weights that are
    /// missing or of another shape.
    pub fn new(cfg: &Config, vb: VarBuilder) -> Result<Self> {
        cfg.check()?;
        let (d, p, names) = (cfg.embed_dim, cfg.patch_size, cfg.names());
        // timm leaves the patch convolution at PyTorch's default.
        let (patch_init, bias_init) = match cfg.weight_names {
            WeightNames::Timm => {
                let uniform = pytorch_default(rules::patch_len(cfg.in_channels, p)?);
                (uniform, uniform)
            }
            WeightNames::HuggingFace | WeightNames::Clip => (NORMAL, ZERO),
        };
        let patch = vb.pp(names.patch_embed);
        let patch_bias = match cfg.patch_bias {
            true => Some(patch.get_with_hints(d, "bias", bias_init)?),
            false => None,
        };
        let positions = cfg.grid().len() + usize::from(cfg.class_token_position);
        let (cls_shape, pos_shape) = match names.batched_embeddings {
            true => (vec![1, 1, d], vec![1, positions, d]),
            false => (vec![d], vec![positions, d]),
        };
        let pre_norm = match cfg.pre_norm {
            true => Some(layer_norm(d, cfg.norm_eps, vb.pp(names.pre_norm))?),
            false => None,
        };
        let norm = match cfg.pool {
            Pool::ClassToken => names.norm,
            Pool::Mean => names.fc_norm,
        };
        let blocks = vb.pp(names.blocks);
        Ok(Self {
            patch_weight: patch.get_with_hints((d, cfg.in_channels, p, p), "weight", patch_init)?,
            patch_bias,
            cls_token: vb
                .get_with_hints(cls_shape, names.cls_token, NORMAL)?
                .reshape((1, 1, d))?,
            pos_embed: vb
                .get_with_hints(pos_shape, names.pos_embed, NORMAL)?
                .reshape((1, positions, d))?,
            pre_norm,
            blocks: (0..cfg.depth)
                .map(|index| Block::new(cfg, index, blocks.pp(index)))
                .collect::<Result<_>>()?,
            norm: layer_norm(d, cfg.norm_eps, vb.pp(norm))?,
            head: Linear::new(d, cfg.num_classes, normal(cfg.head_init_std), ZERO, vb.pp(names.head))?,
            cfg: cfg.clone(),
        })
    }

    /// The configuration the model was made from.
    pub fn config(&self) -> &Config {
        &self.cfg
    }
}

impl TokenModel for VisionTransformer {
    fn grid(&self, xs: &Tensor) -> Result<Grid> {
        let cfg = &self.cfg;
        let (channels, size) = match *xs.dims() {
            [b, c, h, w] if b > 0 => (c, (h, w)),
            _ => {
                let expected = "[B, C, H, W] with at least one image".to_string();
                return Err(Error::shape("images", xs.dims(), expected).into());
            }
        };
        let (height, width) = size;
        // The configured grid is what the position embeddings are for.
        let grid = Grid::new(height / cfg.patch_size, width / cfg.patch_size);
        if channels != cfg.in_channels || !cfg.fits(height) || !cfg.fits(width) || grid != cfg.grid() {
            let (h, w) = cfg.image_size;
            let expected = format!(
                "[B, {}, {h}, {w}] as configured; sides are {}",
                cfg.in_channels,
                cfg.sides()
            );
            return Err(Error::shape("images", xs.dims(), expected).into());
        }
        Ok(grid)
    }

    fn num_prefix_tokens(&self) -> usize {
        1
    }

    fn embed(&self, xs: &Tensor, keep: Option<&Mask>, _: &mut Pass) -> Result<Tensor> {
        let grid = self.grid(xs)?;
        let keep = keep.map(|mask| mask.indices_on(grid, xs.dim(0)?)).transpose()?;
        let embed = PatchEmbed {
            weight: &self.patch_weight,
            bias: self.patch_bias.as_ref(),
            class_token: &self.cls_token,
            positions: &self.pos_embed,
        };
        let tokens = ops::patch_embed(xs, &embed, keep)?;
        match &self.pre_norm {
            Some(norm) => norm.forward(&tokens),
            None => Ok(tokens),
        }
    }

    fn classify(&self, tokens: &Tensor, pass: &mut Pass) -> Result<Tensor> {
        match *tokens.dims() {
            [b, n, d] if b > 0 && n > 1 && d == self.cfg.embed_dim => (),
            _ => {
                let expected = format!("[B, 1 + K, {}] with B, K > 0", self.cfg.embed_dim);
                return Err(Error::shape("tokens", tokens.dims(), expected).into());
            }
        }
        let mut tokens = tokens.clone();
        for (i, block) in self.blocks.iter().enumerate() {
            let read = match self.cfg.pool {
                Pool::ClassToken if i + 1 == self.blocks.len() => Tokens::First,
                _ => Tokens::All,
            };
            tokens = block.forward(&tokens, read, pass)?;
        }
        let pooled = match self.cfg.pool {
            Pool::ClassToken => tokens.narrow(1, 0, 1)?.squeeze(1)?,
            Pool::Mean => pool::mean(&tokens.narrow(1, 1, tokens.dim(1)? - 1)?, 1)?,
        };
        self.head.forward(&self.norm.forward(&pooled.contiguous()?)?)
    }
}

impl Forward for VisionTransformer {
    fn forward_pass(&self, xs: &Tensor, pass: &mut Pass) -> Result<Tensor> {
        let tokens = self.embed(xs, None, pass)?;
        self.classify(&tokens, pass)
    }
}

impl ModuleT for VisionTransformer {
    fn forward_t(&self, xs: &Tensor, train: bool) -> Result<Tensor> {
        self.forward_pass(xs, &mut Pass::without_key(train))
    }
}
