//! ResNet (arXiv 1512.03385), as timm and torchvision have it.

use candle_core::{Result, Tensor};
use candle_nn::init::{FanInOut, NonLinearity, NormalOrUniform};
use candle_nn::{Init, ModuleT, VarBuilder};

use crate::check;
use crate::error::Error;
use crate::model::Forward;
use crate::models::linear::{pytorch_default, Linear};
use crate::models::{pool, rules, Constructor};
use crate::nn::{batch_norm_from, BatchNorm};
use crate::ops::{self, Affine, Pooling, ResidualBlock};
use crate::pass::Pass;

/// What a stage is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BlockKind {
    /// Two 3x3 convolutions (ResNet-18, -34).
    Basic,
    /// 1x1, 3x3, 1x1, the last four times as wide; the 3x3 has the stride (ResNet-50 and up).
    Bottleneck,
}

impl BlockKind {
    /// How much wider a block's output is than its stage.
    const fn expansion(self) -> usize {
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
    /// What a stage is made of.
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
    /// What batch norms add to the variance.
    pub norm_eps: f64,
    /// Share of a batch's statistics in the running ones, each step.
    pub norm_momentum: f64,
    /// Whether the last batch norm of each block starts at 0, so that blocks start as the identity
    /// (arXiv 1706.02677, section 5.1).
    pub zero_init_last: bool,
    /// Stochastic depth of the last block, in training, growing linearly from 0 in the first; within [0, 1).
    pub drop_path: f64,
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
            drop_path: 0.,
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

    /// The published sizes by name, with the constructor of each: what a `--model` flag offers.
    pub const SIZES: [(&'static str, Constructor<Self>); 5] = [
        ("resnet18", Self::resnet18),
        ("resnet34", Self::resnet34),
        ("resnet50", Self::resnet50),
        ("resnet101", Self::resnet101),
        ("resnet152", Self::resnet152),
    ];

    fn check(&self) -> crate::error::Result<()> {
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

    fn norm(&self) -> candle_nn::BatchNormConfig {
        candle_nn::BatchNormConfig {
            eps: self.norm_eps,
            momentum: self.norm_momentum,
            ..Default::default()
        }
    }
}

/// A convolution without bias, and the batch norm behind it.
#[derive(Clone, Debug)]
struct ConvBatchNorm {
    weight: Tensor,
    norm: BatchNorm,
    stride: usize,
    padding: usize,
}

/// Side of a kernel, and its stride. Padding keeps the size: half the kernel.
#[derive(Clone, Copy)]
struct Geometry {
    kernel: usize,
    stride: usize,
}

impl ConvBatchNorm {
    /// `scale` is the initial weight of the norm.
    fn new(
        cfg: &Config,
        (in_channels, out_channels): (usize, usize),
        at: Geometry,
        scale: f64,
        conv: VarBuilder,
        norm: VarBuilder,
    ) -> Result<Self> {
        // timm and torchvision: He et al., arXiv 1502.01852, by fan out.
        let init = Init::Kaiming {
            dist: NormalOrUniform::Normal,
            fan: FanInOut::FanOut,
            non_linearity: NonLinearity::ReLU,
        };
        let shape = (out_channels, in_channels, at.kernel, at.kernel);
        Ok(Self {
            weight: conv.get_with_hints(shape, "weight", init)?,
            norm: batch_norm_from(out_channels, cfg.norm(), scale, norm)?,
            stride: at.stride,
            padding: at.kernel / 2,
        })
    }

    fn params(&self, pass: &Pass) -> ops::ConvNorm<'_> {
        let (weight, bias) = self.norm.weight_and_bias();
        ops::ConvNorm {
            weight: &self.weight,
            stride: self.stride,
            padding: self.padding,
            norm: Affine { weight, bias },
            eps: self.norm.eps(),
            running: (!pass.is_train()).then(|| self.norm.running()),
        }
    }
}

/// A residual block: convolutions with ReLU between, added to the identity or to a projection of it.
#[derive(Clone, Debug)]
struct Block {
    convs: Vec<ConvBatchNorm>,
    downsample: Option<ConvBatchNorm>,
    drop_path: f64,
}

impl Block {
    fn new(
        cfg: &Config,
        in_channels: usize,
        width: usize,
        stride: usize,
        drop_path: f64,
        vb: VarBuilder,
    ) -> Result<Self> {
        let out_channels = width * cfg.block.expansion();
        let same = |kernel| Geometry { kernel, stride: 1 };
        let strided = |kernel| Geometry { kernel, stride };
        let convs = match cfg.block {
            BlockKind::Basic => vec![((in_channels, width), strided(3)), ((width, width), same(3))],
            BlockKind::Bottleneck => vec![
                ((in_channels, width), same(1)),
                ((width, width), strided(3)),
                ((width, out_channels), same(1)),
            ],
        };
        let last = convs.len();
        let convs = (1..).zip(convs).map(|(number, (channels, at))| {
            let scale = if number == last && cfg.zero_init_last { 0. } else { 1. };
            let (conv, norm) = (vb.pp(format!("conv{number}")), vb.pp(format!("bn{number}")));
            ConvBatchNorm::new(cfg, channels, at, scale, conv, norm)
        });
        let downsample = vb.pp("downsample");
        Ok(Self {
            convs: convs.collect::<Result<_>>()?,
            downsample: match stride != 1 || in_channels != out_channels {
                true => Some(ConvBatchNorm::new(
                    cfg,
                    (in_channels, out_channels),
                    strided(1),
                    1.,
                    downsample.pp(0),
                    downsample.pp(1),
                )?),
                false => None,
            },
            drop_path,
        })
    }

    /// The convolutions, the projection last.
    fn layers(&self) -> impl Iterator<Item = &ConvBatchNorm> {
        self.convs.iter().chain(&self.downsample)
    }

    /// The parameters, for `batch` samples.
    fn params(&self, batch: usize, pass: &mut Pass) -> Result<ResidualBlock<'_>> {
        Ok(ResidualBlock {
            convs: self.convs.iter().map(|conv| conv.params(pass)).collect(),
            downsample: self.downsample.as_ref().map(|conv| conv.params(pass)),
            drop_path: pass.drop_path_factors(batch, self.drop_path)?,
        })
    }
}

/// A ResNet that can be trained: batch norm with statistics of the batch, a max pooling and convolutions with a backward of
/// their own, drop path.
///
/// It is a [`ModuleT`] like any candle model and a [`Forward`] model for [`PatchDrop`](crate::PatchDrop). Names are
/// timm's and torchvision's, which candle-transformers' ResNet has, too.
///
/// Images [B, C, H, W] of any size become logits [B, classes]. `forward_t` refuses, as [`Error::Shape`], images of other
/// channels, an empty batch, and to train on a single image whose last map is one pixel; and as
/// [`Error::DrawsWithoutKey`] to train with a drop path above 0, which needs a [`Pass`] with a key.
///
/// `forward_t(xs, true)` writes the running statistics at once, as candle's batch norm does.
/// [`MaskSub`](crate::MaskSub) writes them when a step is accepted.
///
/// ```
/// use candle_core::{DType, Device, Tensor};
/// use candle_nn::ModuleT;
/// use masksub::models::resnet::{Config, ResNet};
/// use masksub::{Seed, Weights};
/// let cfg = Config { depths: [1; 4], channels: [4, 8, 16, 32], stem_channels: 4, ..Config::resnet18(10) };
/// let weights = Weights::seeded(Seed::new(0));
/// let resnet = ResNet::new(&cfg, weights.var_builder(DType::F32, &Device::Cpu))?;
/// let images = Tensor::zeros((2, 3, 64, 48), DType::F32, &Device::Cpu)?;
/// assert_eq!(resnet.forward_t(&images, false)?.dims(), [2, 10]);
/// # Ok::<(), candle_core::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct ResNet {
    stem: ConvBatchNorm,
    blocks: Vec<Block>,
    fc: Linear,
    in_channels: usize,
}

impl ResNet {
    /// The model of `cfg`, its weights from `vb`.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] when the configuration does not hold together; those of `vb` for weights that are
    /// missing or of another shape.
    pub fn new(cfg: &Config, vb: VarBuilder) -> Result<Self> {
        cfg.check()?;
        let stem = Geometry { kernel: 7, stride: 2 };
        let stem = ConvBatchNorm::new(
            cfg,
            (cfg.in_channels, cfg.stem_channels),
            stem,
            1.,
            vb.pp("conv1"),
            vb.pp("bn1"),
        )?;
        let total: usize = cfg.depths.iter().sum();
        let mut blocks = Vec::with_capacity(total);
        let mut in_channels = cfg.stem_channels;
        for (stage, (&depth, &width)) in cfg.depths.iter().zip(&cfg.channels).enumerate() {
            let vb = vb.pp(format!("layer{}", stage + 1));
            for index in 0..depth {
                let stride = if stage > 0 && index == 0 { 2 } else { 1 };
                let drop_path = rules::linear_drop_path(cfg.drop_path, blocks.len(), total);
                blocks.push(Block::new(cfg, in_channels, width, stride, drop_path, vb.pp(index))?);
                in_channels = width * cfg.block.expansion();
            }
        }
        let uniform = pytorch_default(in_channels);
        Ok(Self {
            stem,
            blocks,
            fc: Linear::new(in_channels, cfg.num_classes, uniform, uniform, vb.pp("fc"))?,
            in_channels: cfg.in_channels,
        })
    }
}

/// The max pooling behind the first convolution.
const POOLING: Pooling = Pooling {
    kernel: 3,
    stride: 2,
    padding: 1,
};

impl ResNet {
    /// The last map: all of it in two operations, which keep and write little in between.
    fn features(&self, xs: &Tensor, pass: &mut Pass) -> Result<Tensor> {
        let (ys, seen) = ops::stem(xs, &self.stem.params(pass), POOLING)?;
        if let Some(seen) = seen {
            self.stem.norm.note(&seen, pass);
        }
        let batch = xs.dim(0)?;
        let blocks = self.blocks.iter().map(|block| block.params(batch, pass));
        let blocks = blocks.collect::<Result<Vec<_>>>()?;
        let (ys, seen) = ops::residual_blocks(&ys, &blocks)?;
        for (layer, seen) in self.blocks.iter().flat_map(Block::layers).zip(&seen) {
            if let Some(seen) = seen {
                layer.norm.note(seen, pass);
            }
        }
        Ok(ys)
    }
}

impl Forward for ResNet {
    fn forward_pass(&self, xs: &Tensor, pass: &mut Pass) -> Result<Tensor> {
        match *xs.dims() {
            [b, c, h, w] if b > 0 && h > 0 && w > 0 && c == self.in_channels => {}
            _ => {
                let expected = format!("[B, {}, H, W], not empty", self.in_channels);
                return Err(Error::shape("images", xs.dims(), expected).into());
            }
        }
        let ys = self.features(xs, pass)?;
        self.fc.forward(&pool::mean(&ys, (2, 3))?)
    }
}

impl ModuleT for ResNet {
    fn forward_t(&self, xs: &Tensor, train: bool) -> Result<Tensor> {
        let mut pass = Pass::without_key(train);
        let logits = self.forward_pass(xs, &mut pass)?;
        pass.commit()?;
        Ok(logits)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::key::Seed;
    use crate::weights::Weights;
    use candle_core::{DType, Device};

    #[test]
    fn drop_path_grows_over_the_blocks_of_all_stages() {
        let cfg = Config {
            depths: [1, 2, 1, 1],
            channels: [1, 1, 1, 1],
            drop_path: 0.2,
            ..Config::resnet18(2)
        };
        let net = ResNet::new(
            &cfg,
            Weights::seeded(Seed::new(0)).var_builder(DType::F32, &Device::Cpu),
        )
        .unwrap();
        let rates = net.blocks.iter().map(|block| block.drop_path);
        for (rate, expected) in rates.zip([0., 0.05, 0.1, 0.15, 0.2]) {
            assert!((rate - expected).abs() < 1e-12, "{rate} instead of {expected}");
        }
    }
}
