//! Everything that makes one ConvNeXt differ from another.

use candle_core::DType;

use crate::check;
use crate::error::Result;
use crate::models::{Constructor, Source};

const fn source(option: &'static str) -> Source {
    Source::new("huggingface/pytorch-image-models", "timm/models/convnext.py", option)
}

/// Everything that makes one ConvNeXt differ from another.
///
/// ```
/// use masksub::models::convnext::Config;
/// let tiny = Config { drop_path: 0.1, ..Config::tiny(1000) };
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// Blocks of each stage.
    pub depths: [usize; 4],
    /// Width of each stage.
    pub dims: [usize; 4],
    /// Channels of the image.
    pub in_channels: usize,
    /// Classes.
    pub num_classes: usize,
    /// Term that layer norms add to the variance.
    pub norm_eps: f64,
    /// Initial value of LayerScale (arXiv 2103.17239), where there is one: in the first version.
    pub layer_scale: Option<f64>,
    /// Puts a global response normalisation into each MLP: in the second version.
    pub response_norm: bool,
    /// Stochastic depth of the last block, in training, growing linearly from 0 in the first; within [0, 1).
    pub drop_path: f64,
    /// What the factors of products are rounded to, as under PyTorch's autocast: bf16 or f16, for weights in f32. Weights,
    /// maps, norms, logits and gradients of weights stay f32. `None` or the dtype of the weights: nothing is
    /// rounded.
    pub compute_dtype: Option<DType>,
}

impl Config {
    const fn v1(depths: [usize; 4], dims: [usize; 4], num_classes: usize) -> Self {
        Self {
            depths,
            dims,
            in_channels: 3,
            num_classes,
            norm_eps: 1e-6,
            layer_scale: Some(1e-6),
            response_norm: false,
            drop_path: 0.0,
            compute_dtype: None,
        }
    }

    const fn v2(depths: [usize; 4], dims: [usize; 4], num_classes: usize) -> Self {
        Self {
            layer_scale: None,
            response_norm: true,
            ..Self::v1(depths, dims, num_classes)
        }
    }

    /// ConvNeXt-T.
    pub const fn tiny(num_classes: usize) -> Self {
        Self::v1([3, 3, 9, 3], [96, 192, 384, 768], num_classes)
    }
    /// ConvNeXt-S.
    pub const fn small(num_classes: usize) -> Self {
        Self::v1([3, 3, 27, 3], [96, 192, 384, 768], num_classes)
    }
    /// ConvNeXt-B.
    pub const fn base(num_classes: usize) -> Self {
        Self::v1([3, 3, 27, 3], [128, 256, 512, 1024], num_classes)
    }
    /// ConvNeXt-L.
    pub const fn large(num_classes: usize) -> Self {
        Self::v1([3, 3, 27, 3], [192, 384, 768, 1536], num_classes)
    }
    /// ConvNeXt V2-A.
    pub const fn v2_atto(num_classes: usize) -> Self {
        Self::v2([2, 2, 6, 2], [40, 80, 160, 320], num_classes)
    }
    /// ConvNeXt V2-N.
    pub const fn v2_nano(num_classes: usize) -> Self {
        Self::v2([2, 2, 8, 2], [80, 160, 320, 640], num_classes)
    }
    /// ConvNeXt V2-T.
    pub const fn v2_tiny(num_classes: usize) -> Self {
        Self::v2([3, 3, 9, 3], [96, 192, 384, 768], num_classes)
    }
    /// ConvNeXt V2-B.
    pub const fn v2_base(num_classes: usize) -> Self {
        Self::v2([3, 3, 27, 3], [128, 256, 512, 1024], num_classes)
    }

    /// The published sizes by name, with the constructor of each.
    pub const SIZES: &'static [(&'static str, Constructor<Self>)] = &[
        ("convnext-tiny", Self::tiny),
        ("convnext-small", Self::small),
        ("convnext-base", Self::base),
        ("convnext-large", Self::large),
        ("convnextv2-atto", Self::v2_atto),
        ("convnextv2-nano", Self::v2_nano),
        ("convnextv2-tiny", Self::v2_tiny),
        ("convnextv2-base", Self::v2_base),
    ];

    /// Names as in [`SIZES`](Self::SIZES), in their order, each with the place where its values were read.
    pub const SOURCES: &'static [(&'static str, Source)] = &[
        (
            "convnext-tiny",
            source("convnext_tiny: depths=3,3,9,3 dims=96,192,384,768"),
        ),
        (
            "convnext-small",
            source("convnext_small: depths=3,3,27,3 dims=96,192,384,768"),
        ),
        (
            "convnext-base",
            source("convnext_base: depths=3,3,27,3 dims=128,256,512,1024"),
        ),
        (
            "convnext-large",
            source("convnext_large: depths=3,3,27,3 dims=192,384,768,1536"),
        ),
        (
            "convnextv2-atto",
            source("convnextv2_atto: depths=2,2,6,2 dims=40,80,160,320"),
        ),
        (
            "convnextv2-nano",
            source("convnextv2_nano: depths=2,2,8,2 dims=80,160,320,640"),
        ),
        (
            "convnextv2-tiny",
            source("convnextv2_tiny: depths=3,3,9,3 dims=96,192,384,768"),
        ),
        (
            "convnextv2-base",
            source("convnextv2_base: depths=3,3,27,3 dims=128,256,512,1024"),
        ),
    ];

    /// Refuses a configuration that does not hold together.
    pub(super) fn check(&self) -> Result<()> {
        check::counts([("in_channels", self.in_channels), ("num_classes", self.num_classes)])?;
        check::counts(self.depths.map(|depth| ("depths", depth)))?;
        check::counts(self.dims.map(|dim| ("dims", dim)))?;
        check::rate("drop_path", self.drop_path)?;
        check::non_negative("norm_eps", self.norm_eps).map(drop)
    }
}
