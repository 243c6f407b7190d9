//! The image towers of models that know text, too.

use candle_nn::func;
use candle_transformers::models::{blip, chinese_clip, clip, pixtral, siglip};

use super::{config, model, Entry, CLIP, NORM_SOFTMAX, OUR_VIT, OWN_COPY, PLAIN};

pub fn entries() -> Vec<Entry> {
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
