//! A residual block of the ResNet.

use candle_core::Result;
use candle_nn::VarBuilder;

use super::config::{BlockKind, Config};
use super::conv_batch_norm::{ConvBatchNorm, Geometry};
use crate::ops::ResidualBlock;
use crate::pass::Pass;

/// A residual block: convolutions with ReLU between, added to the identity or to a projection of it.
#[derive(Clone, Debug)]
pub(super) struct Block {
    convs: Vec<ConvBatchNorm>,
    downsample: Option<ConvBatchNorm>,
    pub(super) drop_path: f64,
}

impl Block {
    pub(super) fn new(
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
            let scale = if number == last && cfg.zero_init_last { 0.0 } else { 1.0 };
            let (conv, norm) = (vb.pp(format!("conv{number}")), vb.pp(format!("bn{number}")));
            ConvBatchNorm::new(cfg, channels, at, scale, conv, norm)
        });
        let changes = stride != 1 || in_channels != out_channels;
        let projection = || {
            let (vb, channels) = (vb.pp("downsample"), (in_channels, out_channels));
            ConvBatchNorm::new(cfg, channels, strided(1), 1.0, vb.pp(0), vb.pp(1))
        };
        Ok(Self {
            convs: convs.collect::<Result<_>>()?,
            downsample: changes.then(projection).transpose()?,
            drop_path,
        })
    }

    /// See [`ConvBatchNorm::rounded`].
    pub(super) fn rounded(&self) -> Result<Self> {
        Ok(Self {
            convs: self.convs.iter().map(ConvBatchNorm::rounded).collect::<Result<_>>()?,
            downsample: self.downsample.as_ref().map(ConvBatchNorm::rounded).transpose()?,
            drop_path: self.drop_path,
        })
    }

    /// The convolutions, the projection last.
    pub(super) fn layers(&self) -> impl Iterator<Item = &ConvBatchNorm> {
        self.convs.iter().chain(&self.downsample)
    }

    /// The parameters, for `batch` samples.
    pub(super) fn params(&self, batch: usize, pass: &mut Pass) -> Result<ResidualBlock<'_>> {
        Ok(ResidualBlock {
            convs: self.convs.iter().map(|conv| conv.params(pass)).collect(),
            downsample: self.downsample.as_ref().map(|conv| conv.params(pass)),
            drop_path: pass.drop_path_factors(batch, self.drop_path)?,
        })
    }
}
