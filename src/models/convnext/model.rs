//! The ConvNeXt: a stem of patches, stages of blocks with a merging of patches before each, and a head on the mean.

use candle_core::{Module, Result, Tensor};
use candle_nn::{ModuleT, VarBuilder};

use super::block::Block;
use super::config::Config;
use crate::check::{self, WEIGHTS};
use crate::error::Error;
use crate::grid::Grid;
use crate::model::Forward;
use crate::models::init::{NORMAL, ZERO};
use crate::models::linear::Linear;
use crate::models::{pool, rules};
use crate::nn::{layer_norm, LayerNorm};
use crate::ops::{self, Stream};
use crate::pass::Pass;

/// Sides of the stem's patches and of those that the other stages merge.
const SIDES: [usize; 4] = [4, 2, 2, 2];
/// Pixels that become one position of the last stage.
const STRIDE: usize = 32;

/// A ConvNeXt that can be trained, of either version: gradients reach every parameter, drop path is active in training.
///
/// It is a [`ModuleT`] like any candle model and a [`Forward`] model for [`PatchDrop`](crate::PatchDrop), in blocks of 32
/// pixels. Names are timm's.
///
/// Images [B, C, H, W] of any size from 32 pixels on become logits [B, classes]. `forward_t` refuses, as [`Error::Shape`],
/// images of other channels, smaller ones, and an empty batch; and as [`Error::DrawsWithoutKey`] to train with a drop path
/// above 0, which needs a [`Pass`] with a key.
///
/// ```
/// use candle_core::{DType, Device, Tensor};
/// use candle_nn::ModuleT;
/// use masksub::models::convnext::{Config, ConvNeXt};
/// use masksub::{Seed, Weights};
/// let cfg = Config { depths: [1; 4], dims: [4, 8, 16, 32], ..Config::v2_tiny(10) };
/// let weights = Weights::seeded(Seed::new(0));
/// let convnext = ConvNeXt::new(&cfg, weights.var_builder(DType::F32, &Device::Cpu))?;
/// let images = Tensor::zeros((2, 3, 64, 48), DType::F32, &Device::Cpu)?;
/// assert_eq!(convnext.forward_t(&images, false)?.dims(), [2, 10]);
/// # Ok::<(), candle_core::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct ConvNeXt {
    stages: Vec<Stage>,
    norm: LayerNorm,
    head: Linear,
    in_channels: usize,
}

#[derive(Clone, Debug)]
struct Stage {
    /// The layer norm before the patches, or behind the stem's.
    norm: LayerNorm,
    /// Weight [C', C p p] and bias of a convolution whose stride is its side p.
    patches: Linear,
    side: usize,
    blocks: Vec<Block>,
}

impl ConvNeXt {
    /// The model of `cfg`, its weights from `vb`.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] when the configuration does not hold together; those of `vb` for weights that are
    /// missing or of another shape.
    pub fn new(cfg: &Config, vb: VarBuilder) -> Result<Self> {
        cfg.check()?;
        rules::check_compute_dtype(cfg.compute_dtype, vb.dtype())?;
        let total: usize = cfg.depths.iter().sum();
        let (mut stages, mut from, mut count) = (Vec::with_capacity(4), cfg.in_channels, 0);
        for (index, ((&depth, &dim), &side)) in cfg.depths.iter().zip(&cfg.dims).zip(&SIDES).enumerate() {
            let vb_stage = vb.pp("stages").pp(index);
            let (norm, conv) = match index {
                0 => (layer_norm(dim, cfg.norm_eps, vb.pp("stem.1"))?, vb.pp("stem.0")),
                _ => {
                    let vb = vb_stage.pp("downsample");
                    (layer_norm(from, cfg.norm_eps, vb.pp(0))?, vb.pp(1))
                }
            };
            let blocks = (0..depth).map(|block| {
                let drop_path = rules::linear_drop_path(cfg.drop_path, count + block, total);
                Block::new(cfg, dim, drop_path, vb_stage.pp("blocks").pp(block))
            });
            let blocks = blocks.collect::<Result<_>>()?;
            let weight = conv.get_with_hints((dim, from, side, side), "weight", NORMAL)?;
            let patches = Linear::of(weight.flatten_from(1)?, conv.get_with_hints(dim, "bias", ZERO)?);
            stages.push(Stage {
                norm,
                patches: patches.in_dtype(cfg.compute_dtype),
                side,
                blocks,
            });
            (from, count) = (dim, count + depth);
        }
        Ok(Self {
            stages,
            norm: layer_norm(from, cfg.norm_eps, vb.pp("head.norm"))?,
            head: Linear::new(from, cfg.num_classes, NORMAL, ZERO, vb.pp("head.fc"))?.in_dtype(cfg.compute_dtype),
            in_channels: cfg.in_channels,
        })
    }

    /// The last stage's positions, [B, L, C].
    fn positions(&self, images: &Tensor, pass: &mut Pass) -> Result<Tensor> {
        let (mut maps, mut tokens) = (images.clone(), None);
        for stage in &self.stages {
            if let Some((tokens, grid)) = &tokens {
                maps = to_maps(&stage.norm.forward(tokens)?, *grid)?;
            }
            let (_, _, height, width) = maps.dims4()?;
            let grid = Grid::new(height / stage.side, width / stage.side);
            let ys = stage.patches.forward(&ops::patchify(&maps, stage.side)?)?;
            let mut ys = ys.to_dtype(maps.dtype())?;
            if tokens.is_none() {
                ys = stage.norm.forward(&ys)?;
            }
            let mut stream = Stream::new(&ys);
            for block in &stage.blocks {
                block.forward(&mut stream, grid, pass)?;
            }
            tokens = Some((stream.tokens()?, grid));
        }
        Ok(tokens.map_or(maps, |(tokens, _)| tokens))
    }
}

/// [B, L, C] to [B, C, H, W].
fn to_maps(tokens: &Tensor, grid: Grid) -> Result<Tensor> {
    let (batch, _, dim) = tokens.dims3()?;
    tokens.transpose(1, 2)?.reshape((batch, dim, grid.height, grid.width))
}

impl Forward for ConvNeXt {
    fn forward_pass(&self, xs: &Tensor, pass: &mut Pass) -> Result<Tensor> {
        match *xs.dims() {
            [b, c, h, w] if b > 0 && h >= STRIDE && w >= STRIDE && c == self.in_channels => {}
            _ => {
                let expected = format!(
                    "[B, {}, H, W] with B > 0 and sides of at least {STRIDE} pixels",
                    self.in_channels
                );
                return Err(Error::shape("images", xs.dims(), expected).into());
            }
        }
        check::same_dtype("images", xs, WEIGHTS, &self.head.weight)?;
        let pooled = pool::mean(&self.positions(xs, pass)?, 1)?;
        let logits = self.head.forward(&self.norm.forward(&pooled)?)?;
        logits.to_dtype(pooled.dtype())
    }
}

impl ModuleT for ConvNeXt {
    fn forward_t(&self, xs: &Tensor, train: bool) -> Result<Tensor> {
        self.forward_pass(xs, &mut Pass::without_key(train))
    }
}
