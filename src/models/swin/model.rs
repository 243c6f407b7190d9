//! Swin Transformer (arXiv 2103.14030), with a mask token for its sub-branch.

use candle_core::{Result, Tensor};
use candle_nn::{Init, Module, ModuleT, VarBuilder};

use crate::check;
use crate::error::Error;
use crate::grid::Grid;
use crate::model::{Forward, MaskTokenModel};
use crate::models::linear::{normal, pytorch_default, Linear};
use crate::models::mlp::{Mlp, MlpNames, Rates};
use crate::models::{pool, rules, Constructor};
use crate::nn::{layer_norm, LayerNorm};
use crate::ops::{self, Activation, Affine, AttentionBranch, Windows};
use crate::pass::Pass;

/// Whose names a model's weights have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WeightNames {
    /// The authors': the merging behind stage s is `layers.s.downsample`, the head is `head`.
    Microsoft,
    /// timm's (from 0.9 on): the merging before stage s is `layers.s.downsample`, the head is `head.fc`.
    ///
    /// Where a side of a stage is no longer than a window, timm gives each side a window and a shift of its own, as the
    /// authors' code does not. An `image_size` for which that makes a difference is refused; square ones never are.
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
    /// What layer norms add to the variance.
    pub norm_eps: f64,
    /// Dropout on the attention's output and twice in the MLP, in training; within [0, 1).
    pub dropout: f64,
    /// Stochastic depth of the last block, in training, growing linearly from 0 in the first; within [0, 1).
    pub drop_path: f64,
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
            dropout: 0.,
            drop_path: 0.,
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

    /// The published sizes by name, with the constructor of each: what a `--model` flag offers.
    pub const SIZES: [(&'static str, Constructor<Self>); 3] = [
        ("swin-tiny", Self::tiny),
        ("swin-small", Self::small),
        ("swin-base", Self::base),
    ];

    /// n, the number of blocks in all stages.
    pub fn num_blocks(&self) -> usize {
        self.depths.iter().sum()
    }

    /// The layer that a weight belongs to, by its name, for
    /// [`ParamGroups::with_layer_decay`](crate::train::optim::ParamGroups::with_layer_decay): 0 for the embeddings and the
    /// mask token, 1 to n for the blocks of all stages, and n + 1 for the last norm and the head. A merging layer counts
    /// as the block before it (as in SimMIM's fine-tuning).
    pub fn layer_of(&self, name: &str) -> usize {
        let before = |stage: usize| self.depths.iter().take(stage).sum::<usize>();
        let Some(below) = rules::below(name, "layers") else {
            let first = ["patch_embed", "mask_token"];
            return match first.iter().any(|part| rules::below(name, part).is_some()) {
                true => 0,
                false => self.num_blocks() + 1,
            };
        };
        let stage = rules::leading_number(below).unwrap_or(self.depths.len());
        let block = rules::below(below, "blocks").and_then(rules::leading_number);
        match (block, self.weight_names) {
            (Some(block), _) => before(stage) + block + 1,
            // Merging stands at the end of a stage, in timm's names at the start of the next.
            (None, WeightNames::Microsoft) => before(stage + 1),
            (None, WeightNames::Timm) => before(stage),
        }
    }

    /// The grid of each stage's tokens, and the window it uses: the whole side where that is smaller.
    fn stages(&self) -> crate::error::Result<Vec<Stage>> {
        // Of more, the first would need images of 2^16 tokens a side.
        const MOST_STAGES: usize = 16;
        check::counts([
            ("patch_size", self.patch_size),
            ("in_channels", self.in_channels),
            ("num_classes", self.num_classes),
            ("embed_dim", self.embed_dim),
            ("window_size", self.window_size),
            ("mlp_ratio", self.mlp_ratio),
            // A side of 0 is refused below, together with what would fit.
            ("image_size", self.image_size.0.max(1)),
            ("image_size", self.image_size.1.max(1)),
        ])?;
        check::counts(self.depths.iter().map(|&depth| ("depths", depth)))?;
        rules::patch_len(self.in_channels, self.patch_size)?;
        if !(1..=MOST_STAGES).contains(&self.depths.len()) {
            let value = format!("{} stages", self.depths.len());
            return Err(Error::invalid("depths", value, format!("1 to {MOST_STAGES}")));
        }
        if self.num_heads.len() != self.depths.len() {
            let allowed = format!("as many as depths, {}", self.depths.len());
            return Err(Error::invalid("num_heads", format!("{:?}", self.num_heads), allowed));
        }
        check::rate("dropout", self.dropout)?;
        check::rate("drop_path", self.drop_path)?;
        check::non_negative("norm_eps", self.norm_eps)?;
        let (height, width) = self.image_size;
        let size = format!("{height} x {width}");
        let fits = |side: usize| side > 0 && side.is_multiple_of(self.patch_size);
        if !fits(height) || !fits(width) {
            let allowed = format!("multiples of the patch, {} pixels", self.patch_size);
            return Err(Error::invalid("image_size", size, allowed));
        }
        let mut grid = Grid::new(height / self.patch_size, width / self.patch_size);
        let every = (self.patch_size * self.window_size) << (self.depths.len() - 1);
        let mut stages = Vec::with_capacity(self.depths.len());
        for (index, &num_heads) in self.num_heads.iter().enumerate() {
            let dim = self.embed_dim << index;
            if num_heads == 0 || !dim.is_multiple_of(num_heads) {
                let allowed = format!("a divisor of the width, {dim}, in stage {index}");
                return Err(Error::invalid("num_heads", num_heads, allowed));
            }
            let window_along = |side: usize| match side <= self.window_size {
                true => (side, 0),
                false => (self.window_size, self.window_size / 2),
            };
            // As in the authors' code, the shorter side decides for both.
            let (window, shift) = window_along(grid.height.min(grid.width));
            let pixels = self.patch_size << index;
            if self.weight_names == WeightNames::Timm && window_along(grid.height.max(grid.width)) != (window, shift) {
                let allowed = format!(
                    "square, or of more than {} pixels on each side: in stage {index}, of {grid} tokens of {pixels} pixels, \
                     timm's windows would be no squares of {window} tokens (or take WeightNames::Microsoft)",
                    self.window_size * pixels
                );
                return Err(Error::invalid("image_size", size, allowed));
            }
            if !grid.height.is_multiple_of(window) || !grid.width.is_multiple_of(window) {
                let allowed = format!(
                    "multiples of {} pixels: stage {index} has windows of {window} x {window} tokens of {pixels} pixels \
                     (multiples of {every} fit every stage)",
                    window * pixels
                );
                return Err(Error::invalid("image_size", size, allowed));
            }
            stages.push(Stage {
                grid,
                window,
                shift,
                dim,
                num_heads,
            });
            if index + 1 < self.depths.len() {
                if !grid.height.is_multiple_of(2) || !grid.width.is_multiple_of(2) {
                    let allowed = format!(
                        "multiples of {} pixels: 2 x 2 tokens of {pixels} pixels are merged behind stage {index} \
                         (multiples of {every} fit every stage)",
                        2 * pixels
                    );
                    return Err(Error::invalid("image_size", size, allowed));
                }
                grid = Grid::new(grid.height / 2, grid.width / 2);
            }
        }
        Ok(stages)
    }
}

/// What all blocks of a stage share.
#[derive(Clone, Copy, Debug)]
struct Stage {
    grid: Grid,
    window: usize,
    /// Of every second block.
    shift: usize,
    dim: usize,
    num_heads: usize,
}

const NORMAL: Init = normal(0.02);

fn linear(in_dim: usize, out_dim: usize, vb: VarBuilder) -> Result<Linear> {
    Linear::new(in_dim, out_dim, NORMAL, Init::Const(0.), vb)
}

/// Attention within windows: a residual branch behind a layer norm.
#[derive(Clone, Debug)]
struct Attention {
    stage: Stage,
    shift: usize,
    mask: Option<Tensor>,
    norm: LayerNorm,
    qkv: Linear,
    table: Tensor,
    proj: Linear,
    rates: Rates,
}

impl Attention {
    fn new(cfg: &Config, stage: Stage, index: usize, rates: Rates, vb: VarBuilder) -> Result<Self> {
        let (d, side) = (stage.dim, 2 * stage.window - 1);
        let shift = if index % 2 == 1 { stage.shift } else { 0 };
        let mask = match shift {
            0 => None,
            _ => Some(ops::shift_mask(stage.grid, stage.window, shift, vb.device())?),
        };
        let attn = vb.pp("attn");
        Ok(Self {
            stage,
            shift,
            mask,
            norm: layer_norm(d, cfg.norm_eps, vb.pp("norm1"))?,
            qkv: linear(d, 3 * d, attn.pp("qkv"))?,
            table: attn.get_with_hints((side * side, stage.num_heads), "relative_position_bias_table", NORMAL)?,
            proj: linear(d, d, attn.pp("proj"))?,
            rates,
        })
    }

    /// [B, L, D] to [B, L, D]: in one operation where nothing is dropped between the layers.
    fn forward(&self, xs: &Tensor, pass: &mut Pass) -> Result<Tensor> {
        match self.norm.affine() {
            Some(norm) if pass.skip_dropout(self.rates.dropout, 1)? => self.fused(norm, xs, pass),
            _ => self.composed(xs, pass),
        }
    }

    fn fused(&self, norm: Affine, xs: &Tensor, pass: &mut Pass) -> Result<Tensor> {
        let branch = AttentionBranch {
            norm,
            eps: self.norm.eps(),
            qkv: self.qkv.affine(),
            num_heads: self.stage.num_heads,
            proj: self.proj.affine(),
            gamma: None,
        };
        let windows = Windows {
            grid: self.stage.grid,
            window: self.stage.window,
            shift: self.shift,
            table: &self.table,
            mask: self.mask.as_ref(),
        };
        let factors = pass.drop_path_factors(xs.dim(0)?, self.rates.drop_path)?;
        ops::window_attention_branch(xs, &branch, &windows, factors.as_deref())
    }

    fn composed(&self, xs: &Tensor, pass: &mut Pass) -> Result<Tensor> {
        let Stage {
            grid,
            window,
            num_heads,
            ..
        } = self.stage;
        let ys = ops::window_partition(&self.norm.forward(xs)?, grid, window, self.shift)?;
        let bias = ops::relative_position_bias(&self.table, window)?;
        let ys = ops::window_attention(&self.qkv.forward(&ys)?, num_heads, &bias, self.mask.as_ref())?;
        let ys = pass.dropout(&self.proj.forward(&ys)?, self.rates.dropout)?;
        let ys = ops::window_reverse(&ys, grid, window, self.shift)?;
        let factors = pass.drop_path_factors(xs.dim(0)?, self.rates.drop_path)?;
        ops::add_branch(xs, ys, None, factors.as_deref())
    }
}

#[derive(Clone, Debug)]
struct Block {
    attention: Attention,
    mlp: Mlp,
}

impl Block {
    fn new(cfg: &Config, stage: Stage, index: usize, drop_path: f64, vb: VarBuilder) -> Result<Self> {
        let rates = Rates {
            dropout: cfg.dropout,
            drop_path,
        };
        let mlp_names = MlpNames {
            norm: "norm2",
            fc1: "mlp.fc1",
            fc2: "mlp.fc2",
        };
        let (dims, eps) = ([stage.dim, cfg.mlp_ratio * stage.dim], cfg.norm_eps);
        Ok(Self {
            attention: Attention::new(cfg, stage, index, rates, vb.clone())?,
            mlp: Mlp::new(dims, eps, Activation::Gelu, NORMAL, mlp_names, rates, vb)?,
        })
    }

    fn forward(&self, xs: &Tensor, pass: &mut Pass) -> Result<Tensor> {
        let xs = self.attention.forward(xs, pass)?;
        self.mlp.forward(&xs, pass)
    }
}

/// 2 x 2 neighbours become one token, twice as wide.
#[derive(Clone, Debug)]
struct Merging {
    grid: Grid,
    norm: LayerNorm,
    /// [2 D, 4 D]
    reduction: Tensor,
}

impl Merging {
    fn new(cfg: &Config, stage: Stage, vb: VarBuilder) -> Result<Self> {
        Ok(Self {
            grid: stage.grid,
            norm: layer_norm(4 * stage.dim, cfg.norm_eps, vb.pp("norm"))?,
            reduction: vb.get_with_hints((2 * stage.dim, 4 * stage.dim), "reduction.weight", NORMAL)?,
        })
    }

    fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        let merged = ops::merge_neighbours(xs, self.grid)?;
        ops::linear(&self.norm.forward(&merged)?, &self.reduction, None)
    }
}

/// A Swin Transformer that can be trained.
///
/// It is a [`ModuleT`] like any candle model, a [`MaskTokenModel`] for [`MaskToken`](crate::MaskToken), and a [`Forward`]
/// model for the other branches. The published checkpoints have no `mask_token`:
/// [`Pretrained`](crate::pretrained::Pretrained) draws one. Plain training does not use it: exempt it with [`Params::allow_missing`](crate::Params::allow_missing).
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
    patch: Linear,
    patch_norm: LayerNorm,
    mask_token: Tensor,
    stages: Vec<(Vec<Block>, Option<Merging>)>,
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
        let (d, p) = (cfg.embed_dim, cfg.patch_size);
        let in_dim = rules::patch_len(cfg.in_channels, p)?;
        let patch = vb.pp("patch_embed");
        // The published code leaves the convolution at PyTorch's default.
        let uniform = pytorch_default(in_dim);
        let kernel = patch.get_with_hints((d, cfg.in_channels, p, p), "proj.weight", uniform)?;
        let total = cfg.num_blocks();
        let mut first = 0;
        let mut stages = Vec::with_capacity(shapes.len());
        for (index, (&stage, &depth)) in shapes.iter().zip(&cfg.depths).enumerate() {
            let below = vb.pp("layers").pp(index);
            let blocks = (0..depth).map(|block| {
                let drop_path = rules::linear_drop_path(cfg.drop_path, first + block, total);
                Block::new(cfg, stage, block, drop_path, below.pp("blocks").pp(block))
            });
            let blocks = blocks.collect::<Result<_>>()?;
            let merging = match (index + 1 < shapes.len(), cfg.weight_names) {
                (false, _) => None,
                (true, WeightNames::Microsoft) => Some(Merging::new(cfg, stage, below.pp("downsample"))?),
                (true, WeightNames::Timm) => {
                    let next = vb.pp("layers").pp(index + 1);
                    Some(Merging::new(cfg, stage, next.pp("downsample"))?)
                }
            };
            first += depth;
            stages.push((blocks, merging));
        }
        let width = shapes.last().map_or(d, |stage| stage.dim);
        let head = match cfg.weight_names {
            WeightNames::Microsoft => vb.pp("head"),
            WeightNames::Timm => vb.pp("head.fc"),
        };
        Ok(Self {
            cfg: cfg.clone(),
            patch: Linear {
                weight: kernel.reshape((d, in_dim))?,
                bias: patch.get_with_hints(d, "proj.bias", uniform)?,
            },
            patch_norm: layer_norm(d, cfg.norm_eps, patch.pp("norm"))?,
            mask_token: vb.get_with_hints((1, 1, d), "mask_token", NORMAL)?,
            stages,
            norm: layer_norm(width, cfg.norm_eps, vb.pp("norm"))?,
            head: linear(width, cfg.num_classes, head)?,
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
        let patches = ops::patchify(xs, self.cfg.patch_size)?;
        let tokens = self.patch_norm.forward(&self.patch.forward(&patches)?)?;
        Ok((tokens, grid))
    }

    fn classify(&self, tokens: &Tensor, _: Grid, pass: &mut Pass) -> Result<Tensor> {
        let mut tokens = tokens.clone();
        for (blocks, merging) in &self.stages {
            for block in blocks {
                tokens = block.forward(&tokens, pass)?;
            }
            if let Some(merging) = merging {
                tokens = merging.forward(&tokens)?;
            }
        }
        self.head.forward(&pool::mean(&self.norm.forward(&tokens)?, 1)?)
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::key::Seed;
    use crate::ops::testing::{random, relative};
    use crate::weights::Weights;
    use candle_core::{DType, Device};

    fn build(cfg: &Config) -> SwinTransformer {
        SwinTransformer::new(cfg, Weights::seeded(Seed::new(0)).var_builder(DType::F32, &Device::Cpu)).unwrap()
    }

    fn small(image_size: (usize, usize), window_size: usize) -> Config {
        Config {
            image_size,
            patch_size: 1,
            embed_dim: 2,
            depths: vec![2, 2],
            num_heads: vec![1, 2],
            window_size,
            drop_path: 0.3,
            ..Config::tiny(2)
        }
    }

    /// Window, shift and whether there is a mask, of each block.
    fn windows(cfg: &Config) -> Vec<(usize, usize, bool)> {
        let blocks = build(cfg).stages.into_iter().flat_map(|(blocks, _)| blocks);
        blocks
            .map(|Block { attention, .. }| (attention.stage.window, attention.shift, attention.mask.is_some()))
            .collect()
    }

    #[test]
    fn every_second_block_is_shifted_unless_a_side_is_one_window() {
        assert_eq!(
            windows(&small((8, 16), 4)),
            [(4, 0, false), (4, 2, true), (4, 0, false), (4, 0, false)]
        );
        assert_eq!(
            windows(&small((6, 12), 7)),
            [(6, 0, false), (6, 0, false), (3, 0, false), (3, 0, false)]
        );
        assert_eq!(
            windows(&small((12, 12), 3)),
            [(3, 0, false), (3, 1, true), (3, 0, false), (3, 1, true)]
        );
    }

    #[test]
    fn drop_path_grows_over_the_blocks_of_all_stages() {
        let stages = build(&small((8, 8), 4)).stages;
        let rates = stages
            .iter()
            .flat_map(|(blocks, _)| blocks)
            .map(|block| block.attention.rates.drop_path);
        for (rate, expected) in rates.zip([0., 0.1, 0.2, 0.3]) {
            assert!((rate - expected).abs() < 1e-12, "{rate} instead of {expected}");
        }
    }

    /// A rate that no draw falls below takes the operations one by one, as every dropout does, and drops nothing.
    #[test]
    fn dropout_leaves_the_rest_as_it_is() {
        // Wide enough for norms that leave more than a sign.
        let swin = build(&Config {
            embed_dim: 16,
            ..small((8, 16), 4)
        });
        let xs = random(&[3, 3, 8, 16], 0).to_dtype(DType::F32).unwrap();
        let logits = |rate: f64| {
            let mut pass = Pass::train(Seed::new(1).at(0));
            pass.impose_dropout(rate).unwrap();
            let logits = swin.forward_pass(&xs, &mut pass).unwrap();
            (logits, pass.drop_path_sites(), pass.dropout_sites())
        };
        let ((one, paths, sites), (composed, same_paths, same_sites)) = (logits(0.), logits(1e-12));
        assert_eq!((paths, sites), (same_paths, same_sites));
        let error = relative(&composed, &one);
        assert!(error < 2e-6, "off by {error:e}");
    }
}
