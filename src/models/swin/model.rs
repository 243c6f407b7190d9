//! The Swin Transformer: patches to tokens, stages of blocks with a merging between, and a head on the tokens' mean.

use candle_core::{DType, Module, Result, Tensor};
use candle_nn::{ModuleT, VarBuilder};

use super::block::Block;
use super::config::{Config, WeightNames};
use super::stages::StageShape;
use crate::check::{self, WEIGHTS};
use crate::error::Error;
use crate::grid::Grid;
use crate::model::{Forward, MaskTokenModel};
use crate::models::init::{pytorch_default, NORMAL, ZERO};
use crate::models::linear::Linear;
use crate::models::{pool, rules};
use crate::nn::{layer_norm, LayerNorm};
use crate::ops::{self, Stream};
use crate::pass::Pass;

/// Images to tokens.
#[derive(Clone, Debug)]
struct Embedding {
    patch_size: usize,
    proj: Linear,
    norm: LayerNorm,
}

impl Embedding {
    fn new(cfg: &Config, vb: VarBuilder) -> Result<Self> {
        let (d, c, p) = (cfg.embed_dim, cfg.in_channels, cfg.patch_size);
        let fan_in = c * p * p;
        // The published code leaves the convolution at PyTorch's default.
        let uniform = pytorch_default(fan_in);
        let kernel = vb.get_with_hints((d, c, p, p), "proj.weight", uniform)?;
        Ok(Self {
            patch_size: p,
            proj: Linear::of(
                kernel.reshape((d, fan_in))?,
                vb.get_with_hints(d, "proj.bias", uniform)?,
            )
            .in_dtype(cfg.compute_dtype),
            norm: layer_norm(d, cfg.norm_eps, vb.pp("norm"))?,
        })
    }

    /// [B, C, H, W] to [B, L, D].
    fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        check::same_dtype("images", xs, WEIGHTS, &self.proj.weight)?;
        let patches = ops::patchify(xs, self.patch_size)?;
        self.norm.forward(&self.proj.forward(&patches)?.to_dtype(xs.dtype())?)
    }
}

/// 2 x 2 neighbours become one token, twice as wide.
#[derive(Clone, Debug)]
struct Merging {
    grid: Grid,
    norm: LayerNorm,
    /// [2 D, 4 D]
    reduction: Tensor,
    compute_dtype: Option<DType>,
}

impl Merging {
    fn new(cfg: &Config, shape: StageShape, vb: VarBuilder) -> Result<Self> {
        Ok(Self {
            grid: shape.grid,
            norm: layer_norm(4 * shape.dim, cfg.norm_eps, vb.pp("norm"))?,
            reduction: vb.get_with_hints((2 * shape.dim, 4 * shape.dim), "reduction.weight", NORMAL)?,
            compute_dtype: cfg.compute_dtype,
        })
    }

    fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        let merged = ops::merge_neighbours(xs, self.grid)?;
        let dtype = self.compute_dtype.unwrap_or(xs.dtype());
        let merged = self.norm.forward(&merged)?.to_dtype(dtype)?;
        ops::linear(&merged, &self.reduction.to_dtype(dtype)?, None)?.to_dtype(xs.dtype())
    }
}

/// Blocks on one grid, and the merging behind them.
#[derive(Clone, Debug)]
pub(super) struct Stage {
    pub(super) blocks: Vec<Block>,
    merging: Option<Merging>,
}

impl Stage {
    /// Stage `index`, its weights below `layers`.
    fn new(cfg: &Config, index: usize, shape: StageShape, layers: &VarBuilder) -> Result<Self> {
        let vb = layers.pp(index);
        let (first, next) = (cfg.blocks_before(index), cfg.blocks_before(index + 1));
        let blocks = (first..next).enumerate().map(|(block, number)| {
            let drop_path = rules::linear_drop_path(cfg.drop_path, number, cfg.num_blocks());
            Block::new(cfg, shape, block, drop_path, vb.pp("blocks").pp(block))
        });
        let merging = || {
            let vb = match cfg.weight_names {
                WeightNames::Microsoft => vb.clone(),
                WeightNames::Timm => layers.pp(index + 1),
            };
            Merging::new(cfg, shape, vb.pp("downsample"))
        };
        let is_last = index + 1 == cfg.depths.len();
        Ok(Self {
            blocks: blocks.collect::<Result<_>>()?,
            merging: (!is_last).then(merging).transpose()?,
        })
    }

    /// [B, L, D] to [B, L / 4, 2 D], or to [B, L, D] in the last stage.
    fn forward(&self, xs: &Tensor, pass: &mut Pass) -> Result<Tensor> {
        let mut stream = Stream::new(xs);
        for block in &self.blocks {
            block.forward(&mut stream, pass)?;
        }
        let xs = stream.tokens()?;
        match &self.merging {
            Some(merging) => merging.forward(&xs),
            None => Ok(xs),
        }
    }
}

/// A Swin Transformer that can be trained.
///
/// It is a [`ModuleT`] like any candle model, a [`MaskTokenModel`] for [`MaskToken`](crate::MaskToken), and a
/// [`Forward`] model for the other branches. The published checkpoints have no `mask_token`:
/// [`Pretrained`](crate::pretrained::Pretrained) draws one. Plain training does not use it: exempt it with
/// [`Params::allow_missing`](crate::Params::allow_missing).
///
/// Images [B, C, H, W] become logits [B, classes]. `forward_t` refuses, as [`Error::Shape`], images that are not of the
/// configured size and channels, and an empty batch; and as [`Error::DrawsWithoutKey`] to train with a dropout or drop
/// path above 0, which need a [`Pass`] with a key.
///
/// ```
/// use candle_core::{DType, Device, Tensor};
/// use candle_nn::ModuleT;
/// use masksub::models::swin::{Config, SwinTransformer};
/// use masksub::{Seed, Weights};
/// let cfg = Config {
///     image_size: (32, 64),
///     patch_size: 2,
///     embed_dim: 8,
///     depths: vec![2, 2],
///     num_heads: vec![2, 4],
///     window_size: 4,
///     ..Config::tiny(10)
/// };
/// let weights = Weights::seeded(Seed::new(0));
/// let swin = SwinTransformer::new(&cfg, weights.var_builder(DType::F32, &Device::Cpu))?;
/// let images = Tensor::zeros((2, 3, 32, 64), DType::F32, &Device::Cpu)?;
/// assert_eq!(swin.forward_t(&images, false)?.dims(), [2, 10]);
/// # Ok::<(), candle_core::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct SwinTransformer {
    cfg: Config,
    embedding: Embedding,
    /// [1, 1, D]
    mask_token: Tensor,
    pub(super) stages: Vec<Stage>,
    norm: LayerNorm,
    head: Linear,
}

impl SwinTransformer {
    /// The model of `cfg`, its weights from `vb`.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] when the configuration does not hold together, or the image does not fit its windows;
    /// those of `vb` for weights that are missing or of another shape.
    pub fn new(cfg: &Config, vb: VarBuilder) -> Result<Self> {
        let shapes = cfg.stages()?;
        rules::check_compute_dtype(cfg.compute_dtype, vb.dtype())?;
        let width = shapes.last().map_or(cfg.embed_dim, |shape| shape.dim);
        let layers = vb.pp("layers");
        let stages = shapes.into_iter().enumerate();
        let stages = stages.map(|(index, shape)| Stage::new(cfg, index, shape, &layers));
        let head = match cfg.weight_names {
            WeightNames::Microsoft => vb.pp("head"),
            WeightNames::Timm => vb.pp("head.fc"),
        };
        Ok(Self {
            cfg: cfg.clone(),
            embedding: Embedding::new(cfg, vb.pp("patch_embed"))?,
            mask_token: vb.get_with_hints((1, 1, cfg.embed_dim), "mask_token", NORMAL)?,
            stages: stages.collect::<Result<_>>()?,
            norm: layer_norm(width, cfg.norm_eps, vb.pp("norm"))?,
            head: Linear::new(width, cfg.num_classes, NORMAL, ZERO, head)?.in_dtype(cfg.compute_dtype),
        })
    }

    /// The configuration the model was made from.
    pub fn config(&self) -> &Config {
        &self.cfg
    }
}

impl MaskTokenModel for SwinTransformer {
    fn mask_token(&self) -> &Tensor {
        &self.mask_token
    }

    fn embed(&self, xs: &Tensor, _: &mut Pass) -> Result<(Tensor, Grid)> {
        let (height, width) = self.cfg.image_size;
        match *xs.dims() {
            [b, c, h, w] if b > 0 && c == self.cfg.in_channels && (h, w) == (height, width) => {}
            _ => {
                let expected = format!("[B, {}, {height}, {width}] as configured", self.cfg.in_channels);
                return Err(Error::shape("images", xs.dims(), expected).into());
            }
        }
        let grid = Grid::new(height / self.cfg.patch_size, width / self.cfg.patch_size);
        Ok((self.embedding.forward(xs)?, grid))
    }

    fn classify(&self, tokens: &Tensor, _: Grid, pass: &mut Pass) -> Result<Tensor> {
        let mut tokens = tokens.clone();
        for stage in &self.stages {
            tokens = stage.forward(&tokens, pass)?;
        }
        let pooled = pool::mean(&self.norm.forward(&tokens)?, 1)?;
        self.head.forward(&pooled)?.to_dtype(pooled.dtype())
    }
}

impl Forward for SwinTransformer {
    fn forward_pass(&self, xs: &Tensor, pass: &mut Pass) -> Result<Tensor> {
        let (tokens, grid) = self.embed(xs, pass)?;
        self.classify(&tokens, grid, pass)
    }
}

impl ModuleT for SwinTransformer {
    fn forward_t(&self, xs: &Tensor, train: bool) -> Result<Tensor> {
        self.forward_pass(xs, &mut Pass::without_key(train))
    }
}
