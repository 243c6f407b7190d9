//! The networks that `--model` names, and what each asks of its input.

use crate::data::digits;
use crate::flags::Flags;
use anyhow::{bail, ensure, Result};
use candle_core::DType;
use clap::builder::{PossibleValuesParser, TypedValueParser};
use masksub::augment::Normalize;
use masksub::models::vit::{Pool, QkvBias, Rotary, WeightNames};
use masksub::models::{convnext, resnet, swin, vit, Constructor, Recompute};

/// A network's configuration. Each family hides things in its own way.
#[derive(Clone, Debug)]
pub enum Network {
    Vit(vit::Config),
    ResNet(resnet::Config, Input),
    ConvNeXt(convnext::Config, Input),
    Swin(swin::Config),
}

/// What a network takes that does not say so itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Input {
    pub image_size: usize,
    pub channels: usize,
}

const DIGITS: &str = "digits";
const DIGITS_RESNET: &str = "digits-resnet";
const DIGITS_SWIN: &str = "digits-swin";
/// The digits, each pixel as 4 x 4: the least that a ResNet's five halvings leave something of.
const ENLARGED: usize = 4 * digits::SIDE;

pub fn names() -> impl TypedValueParser<Value = String> {
    let vits = vit::Config::SIZES.iter().map(|size| size.0);
    let resnets = resnet::Config::SIZES.iter().map(|size| size.0);
    let swins = swin::Config::SIZES.iter().map(|size| size.0);
    let convnexts = convnext::Config::SIZES.iter().map(|size| size.0);
    let own = [DIGITS, DIGITS_RESNET, DIGITS_SWIN];
    PossibleValuesParser::new(own.into_iter().chain(vits).chain(resnets).chain(convnexts).chain(swins))
}

/// What is trained where no flag says otherwise.
pub fn default_name(with_data: bool) -> &'static str {
    if with_data {
        "deit3-small"
    } else {
        DIGITS
    }
}

impl Network {
    /// The network of that name with a head for `num_classes`, as the flags shape its input.
    pub fn new(name: &str, num_classes: usize, flags: &Flags) -> Result<Self> {
        fn find<T: Copy>(sizes: &[(&str, T)], name: &str) -> Option<T> {
            sizes.iter().find(|size| size.0 == name).map(|size| size.1)
        }
        if let Some(size) = find(resnet::Config::SIZES, name) {
            return resnet(size(num_classes), 224, flags);
        }
        if let Some(size) = find(convnext::Config::SIZES, name) {
            let cfg = size(num_classes);
            let input = whole(224, cfg.in_channels, flags)?;
            let in_channels = input.channels;
            return Ok(Self::ConvNeXt(convnext::Config { in_channels, ..cfg }, input));
        }
        if let Some(size) = find(swin::Config::SIZES, name) {
            return swin(size(num_classes), flags);
        }
        match name {
            DIGITS_RESNET => {
                let cfg = resnet::Config {
                    depths: [1, 1, 1, 1],
                    channels: [16, 32, 64, 128],
                    stem_channels: 16,
                    in_channels: 1,
                    ..resnet::Config::resnet18(num_classes)
                };
                resnet(cfg, ENLARGED, flags)
            }
            DIGITS_SWIN => {
                let cfg = swin::Config {
                    image_size: (ENLARGED, ENLARGED),
                    patch_size: 2,
                    in_channels: 1,
                    embed_dim: 32,
                    depths: vec![2, 2],
                    num_heads: vec![2, 4],
                    window_size: 4,
                    ..swin::Config::tiny(num_classes)
                };
                swin(cfg, flags)
            }
            _ => vit(name, find(vit::Config::SIZES, name), num_classes, flags),
        }
    }

    /// The same with residual branches dropped at that rate.
    pub fn with_drop_path(self, drop_path: f64) -> Self {
        match self {
            Self::Vit(cfg) => Self::Vit(vit::Config { drop_path, ..cfg }),
            Self::ResNet(cfg, input) => Self::ResNet(resnet::Config { drop_path, ..cfg }, input),
            Self::ConvNeXt(cfg, input) => Self::ConvNeXt(convnext::Config { drop_path, ..cfg }, input),
            Self::Swin(cfg) => Self::Swin(swin::Config { drop_path, ..cfg }),
        }
    }

    /// The same with such blocks that compute again what they would keep.
    pub fn with_recompute(self, recompute: Recompute) -> Result<Self> {
        match self {
            Self::Vit(cfg) => Ok(Self::Vit(vit::Config { recompute, ..cfg })),
            Self::Swin(cfg) => Ok(Self::Swin(swin::Config { recompute, ..cfg })),
            Self::ResNet(..) | Self::ConvNeXt(..) if recompute == Recompute::Never => Ok(self),
            Self::ResNet(..) | Self::ConvNeXt(..) => {
                bail!("--recompute is for a ViT or Swin, but --model names a ResNet or ConvNeXt")
            }
        }
    }

    /// The same with products in that dtype.
    pub fn with_compute_dtype(self, compute_dtype: Option<DType>) -> Self {
        match self {
            Self::Vit(cfg) => Self::Vit(vit::Config { compute_dtype, ..cfg }),
            Self::ResNet(cfg, input) => Self::ResNet(resnet::Config { compute_dtype, ..cfg }, input),
            Self::ConvNeXt(cfg, input) => Self::ConvNeXt(convnext::Config { compute_dtype, ..cfg }, input),
            Self::Swin(cfg) => Self::Swin(swin::Config { compute_dtype, ..cfg }),
        }
    }

    /// Height and width of its images, and their channels.
    pub fn input(&self) -> Input {
        match self {
            Self::Vit(cfg) => Input {
                image_size: cfg.image_size.0,
                channels: cfg.in_channels,
            },
            Self::ResNet(_, input) | Self::ConvNeXt(_, input) => *input,
            Self::Swin(cfg) => Input {
                image_size: cfg.image_size.0,
                channels: cfg.in_channels,
            },
        }
    }

    /// Mean and standard deviation of its published checkpoints' images.
    pub fn normalize(&self) -> Normalize {
        match self {
            Self::Vit(cfg) if matches!(cfg.rotary, Some(Rotary::Eva { .. })) => Normalize::CLIP,
            // SigLIP's.
            Self::Vit(cfg) if cfg.pool == Pool::Attention => Normalize::INCEPTION,
            Self::Vit(cfg) => match cfg.weight_names {
                WeightNames::Timm => Normalize::IMAGENET,
                WeightNames::Clip => Normalize::CLIP,
                WeightNames::HuggingFace => Normalize::INCEPTION,
            },
            Self::ResNet(..) | Self::ConvNeXt(..) | Self::Swin(_) => Normalize::IMAGENET,
        }
    }

    /// The share of an image's shorter side that evaluation looks at: distilled DeiT, DINOv2, ConvNeXt, MAE and Swin seven
    /// eighths at their usual size and MAE all of it above, BEiT v2 and EVA-02 90 %, RSB 95 %, everyone else whole images.
    /// Where that was read, [`sources`](crate::sources) tells.
    pub fn crop_pct(&self) -> f64 {
        match self {
            // BEiT v2's and EVA-02's.
            Self::Vit(cfg) if cfg.qkv_bias == QkvBias::QueryAndValue => 0.9,
            Self::Vit(cfg) if cfg.weight_names == WeightNames::Timm && cfg.pool == Pool::Mean => {
                if cfg.image_size.0 <= 224 {
                    0.875
                } else {
                    1.0
                }
            }
            Self::Vit(cfg) if matches!(cfg.pool, Pool::ClassAndDistillation | Pool::ClassAndMean) => 0.875,
            Self::Vit(_) => 1.0,
            Self::ResNet(..) => 0.95,
            Self::ConvNeXt(..) | Self::Swin(_) => 0.875,
        }
    }

    /// Side of the blocks that ResNet and Swin hide, in pixels: the paper's 32 where the image is large.
    pub fn mask_block(&self) -> usize {
        match self.input().image_size {
            ..64 => 8,
            _ => 32,
        }
    }
}

fn vit(name: &str, size: Option<Constructor<vit::Config>>, num_classes: usize, flags: &Flags) -> Result<Network> {
    let cfg = match size {
        Some(size) => size(num_classes),
        None => vit::Config {
            embed_dim: 64,
            depth: 6,
            num_heads: 4,
            mlp_dim: 256,
            layer_scale: Some(0.1),
            ..vit::Config::deit3_tiny(num_classes).with_input(digits::SIDE, 2, 1)
        },
    };
    // What DeiT-III trains at on ImageNet-1k; 160 is no multiple of 14.
    let (image_size, crop_remainder) = match name {
        "deit3-base" | "deit3-large" => (192, false),
        "deit3-huge" => (160, true),
        _ => (cfg.image_size.0, false),
    };
    let Input { image_size, channels } = if flags.takes_images() {
        input(image_size, cfg.in_channels, flags)?
    } else {
        input(digits::SIDE, 1, flags)?
    };
    let patch_size = flags.patch_size.unwrap_or(cfg.patch_size);
    ensure!(
        patch_size <= image_size,
        "--patch-size is {patch_size}, but must be at most {image_size}, the --image-size"
    );
    ensure!(
        crop_remainder || image_size.is_multiple_of(patch_size),
        "--image-size is {image_size}, but must be a multiple of {patch_size}, the --patch-size"
    );
    Ok(Network::Vit(vit::Config {
        crop_remainder,
        ..cfg.with_input(image_size, patch_size, channels)
    }))
}

/// The input of a network that has no patches of its own choice.
fn whole(image_size: usize, channels: usize, flags: &Flags) -> Result<Input> {
    ensure!(
        flags.patch_size.is_none(),
        "--patch-size is for networks that cut the image in patches, which a ResNet does not, and a ConvNeXt neither"
    );
    if flags.takes_images() {
        input(image_size, channels, flags)
    } else {
        input(ENLARGED, 1, flags)
    }
}

fn resnet(cfg: resnet::Config, image_size: usize, flags: &Flags) -> Result<Network> {
    let input = whole(image_size, cfg.in_channels, flags)?;
    let in_channels = input.channels;
    Ok(Network::ResNet(resnet::Config { in_channels, ..cfg }, input))
}

fn swin(cfg: swin::Config, flags: &Flags) -> Result<Network> {
    let channels = if flags.takes_images() { cfg.in_channels } else { 1 };
    let input = input(cfg.image_size.0, channels, flags)?;
    Ok(Network::Swin(swin::Config {
        image_size: (input.image_size, input.image_size),
        in_channels: input.channels,
        patch_size: flags.patch_size.unwrap_or(cfg.patch_size),
        ..cfg
    }))
}

fn input(default_size: usize, channels: usize, flags: &Flags) -> Result<Input> {
    let image_size = flags.image_size.unwrap_or(default_size);
    ensure!(
        flags.takes_images() || image_size.is_multiple_of(digits::SIDE),
        "--image-size is {image_size}, but must be a multiple of {}, the size of the digits; other sizes need --data",
        digits::SIDE
    );
    Ok(Input { image_size, channels })
}
