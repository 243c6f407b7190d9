//! The vision models of candle-transformers 0.11.1, each at the smallest size its constructor allows.
//!
//! Left out: what is no vision model in spite of its name (`openclip` holds a text tower, `mixformer` is Phi), TrOCR's
//! encoder (it is `vit`), generators, and towers of language models that read packed patches instead of images.

use std::sync::Arc;

use candle_core::{Error, ModuleT, Result, Tensor};
use candle_nn::{func, VarBuilder};
use candle_transformers::models::*;

/// A model as a function of images \[B, 3, H, W\] and the training flag.
pub type Model = Box<dyn Fn(&Tensor, bool) -> Result<Tensor>>;

pub struct Entry {
    /// Module in candle-transformers, and the variant.
    pub name: &'static str,
    /// Side of the square images.
    pub image: usize,
    /// Numbers of images that are tried.
    pub batches: &'static [usize],
    pub build: fn(VarBuilder<'static>) -> Result<Model>,
    /// Tensors that the source takes as optional and this variant's checkpoint lacks: a `VarMap` would make them.
    pub absent: fn(&str) -> bool,
    /// Start of the image model's parameter names, where the type holds a text model too.
    pub part: &'static str,
    /// Mean of the norms' weights at the start. Where batch norm does not normalise, activations can outgrow f32.
    pub norm_weight: f64,
    /// How many of the parameters get a gradient, as the table has it.
    pub with_gradient: &'static str,
    /// What stands out, as the table has it in bold; README sums these up.
    pub found: &'static str,
    pub cause: &'static str,
    pub remedy: &'static str,
}

/// Stands in for the fields that most entries leave alone.
const PLAIN: Entry = Entry {
    name: "",
    image: 32,
    batches: &[4, 1],
    build: |_| candle_core::bail!("no constructor"),
    absent: |_| false,
    part: "",
    norm_weight: 1.,
    with_gradient: "",
    found: "",
    cause: "",
    remedy: "",
};

const NORM: &str = "`LayerNorm` (contiguous input) has no backward";
const NORM_SOFTMAX: &str = "`LayerNorm` (contiguous input) and `softmax_last_dim` have no backward";
const NORM_BATCH: &str = "`LayerNorm` (contiguous input) has no backward; class token or positions are not broadcast";
const CLIP: &str = "`LayerNorm` (contiguous input) has no backward; a `VarMap` gets no class token, it is a constant";
const FROZEN: &str = "the source passes `train = false` to `BatchNorm`";
const FUSED: &str = "the constructor fuses batch norms into convolutions";

const OUR_VIT: &str = "`masksub::models::vit`, same weights and names";
const OWN_COPY: &str = "own copy with the layers of `masksub::nn`";
const OWN_COPY_BATCH: &str = "own copy: broadcast over the batch, layers of `masksub::nn`";
const OWN_TRAIN: &str = "as it is for fine-tuning at fixed statistics; else own copy that passes `train` on";
const OWN_BRANCHES: &str = "own copy that keeps the branches apart while it trains";

fn model(module: impl ModuleT + 'static) -> Result<Model> {
    Ok(Box::new(move |xs, train| module.forward_t(xs, train)))
}

/// A configuration through serde: some have private fields.
macro_rules! config {
    ($($field:tt)*) => {
        serde_json::from_value(serde_json::json!({ $($field)* })).map_err(Error::wrap)?
    };
}

pub fn zoo() -> Vec<Entry> {
    [transformers(), image_towers(), hybrids(), convolutional()]
        .into_iter()
        .flatten()
        .collect()
}

fn transformers() -> Vec<Entry> {
    vec![
        Entry {
            name: "vit, 2 layers",
            build: |vb| {
                let cfg = config!(
                    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64,
                    "hidden_act": "gelu", "layer_norm_eps": 1e-12, "image_size": 32, "patch_size": 8,
                    "num_channels": 3, "qkv_bias": true
                );
                let vit = vit::Model::new(&cfg, 10, vb)?;
                model(func(move |xs| vit.forward(xs)))
            },
            with_gradient: "24 of 40, 2 of 40 at 1",
            found: "severed, severed",
            cause: NORM_SOFTMAX,
            remedy: OUR_VIT,
            ..PLAIN
        },
        Entry {
            name: "beit, 2 layers",
            image: 384,
            build: |vb| model(beit::BeitVisionTransformer::new(vb, 2, 32, 2)?),
            with_gradient: "2 of 37 at 1",
            found: "batch of 1 only, severed",
            cause: NORM_BATCH,
            remedy: OWN_COPY_BATCH,
            ..PLAIN
        },
        Entry {
            name: "dinov2, 2 layers",
            image: 518,
            build: |vb| model(dinov2::DinoVisionTransformer::new(vb, 2, 32, 2)?),
            with_gradient: "2 of 36 at 1",
            found: "batch of 1 only, severed",
            cause: NORM_BATCH,
            remedy: OWN_COPY_BATCH,
            ..PLAIN
        },
        Entry {
            name: "dinov2reg4, 2 layers",
            image: 518,
            build: |vb| model(dinov2reg4::DinoVisionTransformer::new(vb, 2, 32, 2)?),
            with_gradient: "2 of 37 at 1",
            found: "batch of 1 only, severed",
            cause: NORM_BATCH,
            remedy: OWN_COPY_BATCH,
            ..PLAIN
        },
        Entry {
            name: "eva2, 2 layers",
            image: 448,
            build: |vb| model(eva2::EVA2VisionTransformer::new(vb, 2, 64, 1)?),
            with_gradient: "2 of 47 at 1",
            found: "batch of 1 only, severed",
            cause: NORM_BATCH,
            remedy: OWN_COPY_BATCH,
            ..PLAIN
        },
        Entry {
            name: "hiera, 4 blocks",
            image: 224,
            build: |vb| {
                model(hiera::hiera(
                    &config!("channels": 16, "heads": 1, "stages": [1, 1, 1, 1]),
                    10,
                    vb,
                )?)
            },
            absent: |name| name.starts_with("blocks.0.proj."),
            with_gradient: "2 of 61 at 1",
            found: "batch of 1 only, severed",
            cause: "`LayerNorm` (contiguous input) has no backward; attention is written for one image",
            remedy: OWN_COPY_BATCH,
            ..PLAIN
        },
        Entry {
            name: "segformer, classifier",
            image: 64,
            build: |vb| model(segformer::ImageClassificationModel::new(&segformer_config()?, 10, vb)?),
            with_gradient: "86 of 110",
            found: "severed",
            cause: NORM_SOFTMAX,
            remedy: OWN_COPY,
            ..PLAIN
        },
        Entry {
            name: "segformer, segmentation",
            image: 64,
            build: |vb| model(segformer::SemanticSegmentationModel::new(&segformer_config()?, 10, vb)?),
            with_gradient: "96 of 120",
            found: "severed, batch norm frozen",
            cause: "the same, and the source passes `train = false` to `BatchNorm`",
            remedy: OWN_COPY,
            ..PLAIN
        },
        Entry {
            name: "segment_anything, image encoder",
            image: 64,
            build: |vb| {
                use segment_anything::image_encoder::ImageEncoderViT;
                model(ImageEncoderViT::new(
                    64,
                    16,
                    3,
                    32,
                    2,
                    2,
                    16,
                    true,
                    true,
                    true,
                    2,
                    &[1],
                    vb,
                )?)
            },
            with_gradient: "25 of 37 at 1",
            found: "batch of 1 only, severed",
            cause: "`LayerNorm`, `softmax_last_dim` and its own `add3` have no backward; positions are not broadcast",
            remedy: OWN_COPY_BATCH,
            ..PLAIN
        },
        Entry {
            name: "depth_anything_v2 on dinov2",
            image: 518,
            build: |vb| {
                use depth_anything_v2::{DepthAnythingV2, DepthAnythingV2Config};
                let dino = dinov2::DinoVisionTransformer::new(vb.pp("pretrained"), 4, 32, 2)?;
                let cfg = DepthAnythingV2Config::new([8; 4], 32, 8, false, false, vec![0, 1, 2, 3], 518, 37);
                model(DepthAnythingV2::new(Arc::new(dino), cfg, vb)?)
            },
            with_gradient: "–",
            found: "fails, fails",
            cause: "`upsample_nearest2d` has a backward for integer factors only, here 296 becomes 518; dinov2",
            remedy: "own copy with another interpolation, on an own copy of dinov2",
            ..PLAIN
        },
    ]
}

fn segformer_config() -> Result<segformer::Config> {
    Ok(config!(
        "num_channels": 3, "num_encoder_blocks": 4, "depths": [1, 1, 1, 1], "sr_ratios": [8, 4, 2, 1],
        "hidden_sizes": [8, 16, 24, 32], "patch_sizes": [7, 3, 3, 3], "strides": [4, 2, 2, 2],
        "num_attention_heads": [1, 1, 2, 2], "mlp_ratios": [2, 2, 2, 2], "hidden_act": "gelu",
        "layer_norm_eps": 1e-6, "decoder_hidden_size": 32
    ))
}

fn image_towers() -> Vec<Entry> {
    vec![
        Entry {
            name: "clip, image tower",
            build: |vb| {
                let cfg = clip::vision_model::ClipVisionConfig {
                    embed_dim: 32,
                    intermediate_size: 64,
                    num_hidden_layers: 2,
                    num_attention_heads: 2,
                    image_size: 32,
                    patch_size: 8,
                    ..clip::vision_model::ClipVisionConfig::vit_base_patch32()
                };
                model(clip::vision_model::ClipVisionTransformer::new(vb, &cfg)?)
            },
            with_gradient: "26 of 38, 0 of 38 at 1",
            found: "severed, severed, part is no variable",
            cause: CLIP,
            remedy: OUR_VIT,
            ..PLAIN
        },
        Entry {
            name: "chinese_clip, image tower",
            build: |vb| {
                let cfg = chinese_clip::vision_model::ChineseClipVisionConfig {
                    hidden_size: 32,
                    intermediate_size: 64,
                    num_hidden_layers: 2,
                    num_attention_heads: 2,
                    image_size: 32,
                    patch_size: 8,
                    ..Default::default()
                };
                model(chinese_clip::vision_model::ChineseClipVisionTransformer::new(vb, &cfg)?)
            },
            with_gradient: "26 of 38, 0 of 38 at 1",
            found: "severed, severed, part is no variable",
            cause: CLIP,
            remedy: OUR_VIT,
            ..PLAIN
        },
        Entry {
            name: "siglip, image tower",
            build: |vb| {
                let cfg = config!(
                    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64,
                    "image_size": 32, "patch_size": 8
                );
                model(siglip::VisionModel::new(&cfg, true, vb)?)
            },
            with_gradient: "8 of 48",
            found: "severed",
            cause: NORM_SOFTMAX,
            remedy: OWN_COPY,
            ..PLAIN
        },
        Entry {
            name: "blip, image tower",
            build: |vb| {
                let cfg = config!(
                    "projection_dim": 16, "image_text_hidden_size": 16,
                    "vision_config": {
                        "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64,
                        "projection_dim": 16, "image_size": 32, "patch_size": 8, "hidden_act": "gelu",
                        "layer_norm_eps": 1e-5
                    },
                    "text_config": {
                        "vocab_size": 8, "hidden_size": 8, "encoder_hidden_size": 32, "intermediate_size": 8,
                        "projection_dim": 8, "num_hidden_layers": 1, "num_attention_heads": 1,
                        "max_position_embeddings": 8, "hidden_act": "gelu", "layer_norm_eps": 1e-12,
                        "is_decoder": true
                    }
                );
                let blip = blip::BlipForConditionalGeneration::new(&cfg, vb)?;
                model(func(move |xs| xs.apply(blip.vision_model())))
            },
            part: "vision_model.",
            with_gradient: "0 of 30",
            found: "severed",
            cause: NORM_SOFTMAX,
            remedy: OWN_COPY,
            ..PLAIN
        },
        Entry {
            name: "pixtral, image tower",
            build: |vb| {
                let cfg = config!(
                    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64,
                    "image_size": 32, "patch_size": 8, "rope_theta": 10000.0
                );
                model(pixtral::vision_model::Model::new(&cfg, vb)?)
            },
            with_gradient: "12 of 20",
            found: "severed",
            cause: "`RmsNorm` (contiguous input), `rope` and `softmax_last_dim` have no backward",
            remedy: OWN_COPY,
            ..PLAIN
        },
    ]
}

fn hybrids() -> Vec<Entry> {
    vec![
        Entry {
            name: "segment_anything, tiny_vit",
            image: 1024,
            batches: &[2],
            build: |vb| {
                use segment_anything::tiny_vit::TinyViT;
                model(TinyViT::new(&[4, 8, 16], &[1; 3], &[1; 3], &[7; 3], 0, vb)?)
            },
            with_gradient: "65 of 71",
            found: "severed, batch norm frozen, updates are lost in part",
            cause:
                "`LayerNorm`, `softmax_last_dim` have no backward; `BatchNorm` gets `train = false`; attention biases \
                    are gathered by the constructor",
            remedy: OWN_COPY,
            ..PLAIN
        },
        Entry {
            name: "efficientvit m0",
            image: 224,
            batches: &[2],
            build: |vb| model(efficientvit::efficientvit(&efficientvit::Config::m0(), 10, vb)?),
            norm_weight: 0.4,
            with_gradient: "348 of 348",
            found: "batch norm frozen",
            cause: FROZEN,
            remedy: OWN_TRAIN,
            ..PLAIN
        },
        Entry {
            name: "fastvit, 4 blocks",
            image: 64,
            batches: &[2],
            build: |vb| model(fastvit::fastvit(&fastvit_config(false), 10, vb)?),
            absent: |name| fastvit_lacks(name) || name.contains(".proj.0.se.") || name.contains(".pos_emb."),
            with_gradient: "138 of 138",
            found: "batch norm frozen, updates are lost in part",
            cause: FUSED,
            remedy: OWN_BRANCHES,
            ..PLAIN
        },
        Entry {
            name: "mobileclip, image tower",
            image: 64,
            batches: &[2],
            build: |vb| model(fastvit::fastvit(&fastvit_config(true), 10, vb)?),
            absent: |name| fastvit_lacks(name) || name.contains(".pos_emb.") && !name.starts_with("stages.3"),
            with_gradient: "147 of 147",
            found: "batch norm frozen, updates are lost in part",
            cause: FUSED,
            remedy: OWN_BRANCHES,
            ..PLAIN
        },
    ]
}

fn fastvit_config(mobileclip: bool) -> fastvit::Config {
    fastvit::Config {
        exp_ratio: 2,
        in_channels: 16,
        blocks: [1; 4],
        attn: mobileclip,
        lkc_use_act: mobileclip,
    }
}

/// What no FastViT of timm has: a squeeze-and-excitation but in the last block, a scale branch beside a 1x1
/// convolution, an identity branch where the shape changes, a convolution in a mixer's norm, a first downsampling.
fn fastvit_lacks(name: &str) -> bool {
    let has = |part| name.contains(part);
    let starts = |parts: &[&str]| parts.iter().any(|part| name.starts_with(part));
    has(".se.") && !has(".proj.0.se.") && !starts(&["final_conv"])
        || has(".conv_scale.") && (starts(&["stem.2"]) || has(".proj.1."))
        || has(".identity.") && starts(&["stem.0", "stem.1", "final_conv"])
        || has(".token_mixer.norm.") && !has(".identity.")
        || starts(&["stages.0.downsample"])
}

fn convolutional() -> Vec<Entry> {
    vec![
        Entry {
            name: "convnext atto",
            build: |vb| model(convnext::convnext(&convnext::Config::atto(), 10, vb)?),
            with_gradient: "2 of 152",
            found: "severed",
            cause: NORM,
            remedy: OWN_COPY,
            ..PLAIN
        },
        Entry {
            name: "efficientnet b0",
            image: 16,
            batches: &[2],
            build: |vb| model(efficientnet::EfficientNet::new(vb, efficientnet::MBConvConfig::b0(), 10)?),
            with_gradient: "213 of 213",
            found: "batch norm frozen",
            cause: FROZEN,
            remedy: OWN_TRAIN,
            ..PLAIN
        },
        Entry {
            name: "mobilenetv4 small",
            batches: &[2],
            build: |vb| model(mobilenetv4::mobilenetv4(&mobilenetv4::Config::small(), 10, vb)?),
            // Depthwise convolutions of kernel size 0, and the hybrids' layer scale.
            absent: |name| {
                let start = |block| name.starts_with(&format!("blocks.{block}.dw_start"));
                let blocks = ["2.1", "2.2", "2.3", "2.4", "3.2", "3.3", "3.4", "3.5"];
                blocks.into_iter().any(start) || name.starts_with("blocks.2.5.dw_mid") || name.contains("layer_scale")
            },
            with_gradient: "140 of 140",
            found: "batch norm frozen",
            cause: FROZEN,
            remedy: OWN_TRAIN,
            ..PLAIN
        },
        Entry {
            name: "mobileone s0",
            batches: &[2],
            build: |vb| model(mobileone::mobileone(&mobileone::Config::s0(), 10, vb)?),
            absent: |name| name.contains(".attn."),
            with_gradient: "643 of 643",
            found: "batch norm frozen, updates are lost in part",
            cause: FUSED,
            remedy: OWN_BRANCHES,
            ..PLAIN
        },
        Entry {
            name: "repvgg a0",
            batches: &[2],
            build: |vb| model(repvgg::repvgg(&repvgg::Config::a0(), 10, vb)?),
            with_gradient: "168 of 168",
            found: "batch norm frozen, updates are lost in part",
            cause: FUSED,
            remedy: OWN_BRANCHES,
            ..PLAIN
        },
        Entry {
            name: "resnet18",
            build: |vb| model(resnet::resnet18(10, vb)?),
            with_gradient: "–",
            found: "fails, batch norm frozen",
            cause: "`max_pool2d` has a backward where kernel = stride only; the source passes `train = false` to `BatchNorm`",
            remedy: "`masksub::models::resnet`, same weights and names",
            ..PLAIN
        },
        Entry {
            name: "vgg13",
            image: 224,
            build: |vb| {
                let vgg = vgg::Vgg::new(vb, vgg::Models::Vgg13)?;
                // It adds the batch dimension itself.
                Ok(Box::new(move |xs, train| match xs.dim(0)? {
                    1 => vgg.forward_t(&xs.squeeze(0)?, train),
                    _ => vgg.forward_t(xs, train),
                }))
            },
            with_gradient: "26 of 26 at 1",
            found: "batch of 1 only, wrong gradient",
            cause: "written for one image; the backward of `max_pool2d` divides by the window's size: 4, five times",
            remedy: "own copy with `masksub::ops::max_pool2d`",
            ..PLAIN
        },
        Entry {
            name: "convmixer 1024, 20 blocks",
            // The smallest of its sizes on a single patch: candle runs a convolution for each of 20 x 1024 channels.
            image: 14,
            batches: &[1],
            build: |vb| model(convmixer::c1024_20(10, vb)?),
            with_gradient: "166 of 166 at 1",
            found: "batch norm frozen",
            cause: FROZEN,
            remedy: OWN_TRAIN,
            ..PLAIN
        },
    ]
}
