//! The ResNet: a stem, stages of residual blocks, and a head on the mean of the last map.

use candle_core::{Result, Tensor};
use candle_nn::{ModuleT, VarBuilder};

use super::block::Block;
use super::config::Config;
use super::conv_batch_norm::{ConvBatchNorm, Geometry};
use crate::check::{self, WEIGHTS};
use crate::error::Error;
use crate::model::Forward;
use crate::models::init::pytorch_default;
use crate::models::linear::Linear;
use crate::models::{pool, rules};
use crate::ops::{self, Pooling};
use crate::pass::Pass;

/// The max pooling behind the first convolution.
const POOLING: Pooling = Pooling {
    kernel: 3,
    stride: 2,
    padding: 1,
};

/// A ResNet that can be trained: batch norm with statistics of the batch, a max pooling and convolutions with a
/// backward of their own, drop path.
///
/// It is a [`ModuleT`] like any candle model and a [`Forward`] model for [`PatchDrop`](crate::PatchDrop). Names are
/// timm's and torchvision's, which candle-transformers' ResNet has, too.
///
/// Images [B, C, H, W] of any size become logits [B, classes]. `forward_t` refuses, as [`Error::Shape`], images of
/// other channels, an empty batch, and to train on a single image whose last map is one pixel; and as
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
        rules::check_compute_dtype(cfg.compute_dtype, vb.dtype())?;
        let stem = Geometry { kernel: 7, stride: 2 };
        let channels = (cfg.in_channels, cfg.stem_channels);
        let stem = ConvBatchNorm::new(cfg, channels, stem, 1.0, vb.pp("conv1"), vb.pp("bn1"))?;
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
            fc: Linear::new(in_channels, cfg.num_classes, uniform, uniform, vb.pp("fc"))?.in_dtype(cfg.compute_dtype),
            in_channels: cfg.in_channels,
        })
    }

    /// The last map: all of it in two operations, which keep and write little in between.
    fn features(&self, xs: &Tensor, pass: &mut Pass) -> Result<Tensor> {
        let (ys, seen) = ops::stem(xs, &self.stem.rounded()?.params(pass), POOLING)?;
        if let Some(seen) = seen {
            self.stem.norm.note(&seen, pass)?;
        }
        let batch = xs.dim(0)?;
        let rounded: Vec<_> = self.blocks.iter().map(Block::rounded).collect::<Result<_>>()?;
        let blocks = rounded.iter().map(|block| block.params(batch, pass));
        let blocks = blocks.collect::<Result<Vec<_>>>()?;
        let (ys, seen) = ops::residual_blocks(&ys, &blocks)?;
        for (layer, seen) in self.blocks.iter().flat_map(Block::layers).zip(&seen) {
            if let Some(seen) = seen {
                layer.norm.note(seen, pass)?;
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
        check::same_dtype("images", xs, WEIGHTS, &self.fc.weight)?;
        let ys = self.features(xs, pass)?;
        let pooled = pool::mean(&ys, (2, 3))?;
        self.fc.forward(&pooled)?.to_dtype(pooled.dtype())
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
        for (rate, expected) in rates.zip([0.0, 0.05, 0.1, 0.15, 0.2]) {
            assert!((rate - expected).abs() < 1e-12, "{rate} instead of {expected}");
        }
    }
}
