//! Vision transformers, and what stands on one.

use std::sync::Arc;

use candle_core::Result;
use candle_nn::func;
use candle_transformers::models::{
    beit, depth_anything_v2, dinov2, dinov2reg4, eva2, hiera, segformer, segment_anything, vit,
};

use super::{config, model, Entry, NORM_BATCH, NORM_SOFTMAX, OUR_VIT, OWN_COPY, OWN_COPY_BATCH, PLAIN};

pub fn entries() -> Vec<Entry> {
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
