//! One name for each weight, whatever a checkpoint or a model calls it; and what a checkpoint may leave over.

use super::format::{Family, Format};
use super::forms;
use super::respelled::{resnet_name, swin_name};
use crate::weights::is_buffer;

/// Key of the position embedding.
pub(super) const POS_EMBED: &str = "pos_embed";
/// Keys of the tokens that have positions before the patches', in their order.
pub(super) const TOKENS: [&str; 2] = ["cls_token", "dist_token"];
/// Key of the register tokens.
pub(super) const REG_TOKEN: &str = "reg_token";
/// Last part of the keys of Swin's relative positions.
pub(super) const POSITION_TABLE: &str = ".relative_position_bias_table";
/// Start of the head's keys, and of those of a distillation token's.
pub(super) const HEAD: &str = "head.";
const HEAD_DIST: &str = "head_dist.";
/// Starts of the keys of the final norm, and of the one that mean pooling has in its place.
pub(super) const FINAL_NORM: &str = "norm.";
pub(super) const FC_NORM: &str = "fc_norm.";
/// What a file's metadata have where its final norm is the `fc_norm` of a
/// [`Pool::NormThenMean`](crate::models::vit::Pool::NormThenMean), which peers call so: names alone would not tell it
/// from the norm of a class token.
pub(super) const ONE_NORM: &str = "masksub.norm_then_mean";
/// Key of the final norm's weight.
pub(super) const NORM: &str = "norm.weight";
/// Keys of the kernels that read an image's channels.
pub(super) const INPUT_KERNELS: [&str; 3] = ["patch_embed.proj.weight", "conv1.weight", "stem.0.weight"];
/// Query, key and value, packed and apart, in their order.
pub(super) const QKV: &str = ".attn.qkv.";
pub(super) const APART: [&str; 3] = [".attn.q.", ".attn.k.", ".attn.v."];

/// Tells whether the key is one of a head's.
pub(super) fn is_head(key: &str) -> bool {
    key.starts_with(HEAD) || key.starts_with(HEAD_DIST)
}

/// Tells whether the key is one of a block's, of whichever architecture, or of what lies between two stages of them.
pub(super) fn is_of_block(key: &str) -> bool {
    let starts = [
        "blocks.",
        "layers.",
        "layer1.",
        "layer2.",
        "layer3.",
        "layer4.",
        "stages.",
        "downsample.",
    ];
    starts.iter().any(|start| key.starts_with(start))
}

/// Parts of the projections of attention pooling: queries, and keys and values, packed in one for each, or of all
/// three.
pub(super) const POOL_IN: &str = "attn_pool.in_proj.";
pub(super) const POOL_Q: &str = "attn_pool.q.";
pub(super) const POOL_KV: &str = "attn_pool.kv.";
pub(super) const POOL_APART: [&str; 2] = ["attn_pool.k.", "attn_pool.v."];
/// Key of attention pooling's query.
pub(super) const POOL_LATENT: &str = "attn_pool.latent";

impl Family {
    /// The one name of a weight: timm's in a ViT, with `attn.q`, `attn.k` and `attn.v` where they are apart. `None` for
    /// what such a model does not have, and for a merging of a Swin without its shape.
    pub(super) fn key(self, name: &str, shape: Option<&[usize]>) -> Option<String> {
        match self {
            Self::Vit => forms::key(name),
            Self::Swin => {
                let name = &swin_name(name);
                let (module, leaf) = name.rsplit_once('.').unwrap_or(("", name));
                if let Some((stage, merging)) = module.strip_prefix("layers.").and_then(|rest| rest.split_once('.')) {
                    stage.parse::<usize>().ok()?;
                    // timm counts the merging to the next stage. Its width tells which one it is.
                    let Some(part) = merging.strip_prefix("downsample.") else {
                        return Some(name.to_string());
                    };
                    return Some(format!("downsample.{}.{part}.{leaf}", shape?.last()?));
                }
                match module {
                    "head" | "head.fc" => Some(format!("{HEAD}{leaf}")),
                    "norm" | "patch_embed.proj" | "patch_embed.norm" => Some(name.to_string()),
                    _ => (name == "mask_token").then(|| name.to_string()),
                }
            }
            Self::ConvNeXt => convnext_key(name),
            Self::ResNet => {
                let name = &resnet_name(name);
                let (module, leaf) = name.rsplit_once('.')?;
                let stages = ["layer1.", "layer2.", "layer3.", "layer4."];
                match module {
                    "fc" => Some(format!("{HEAD}{leaf}")),
                    "conv1" | "bn1" => Some(name.to_string()),
                    _ => stages
                        .iter()
                        .any(|stage| module.starts_with(stage))
                        .then(|| name.to_string()),
                }
            }
        }
    }

    /// The other architecture that a weight belongs to, where that is beyond doubt: it is one of its blocks.
    pub(super) fn other(self, name: &str, shape: Option<&[usize]>) -> Option<Self> {
        let mut others = Self::ALL.into_iter().filter(|family| *family != self);
        others.find(|family| family.key(name, shape).is_some_and(|key| is_of_block(&key)))
    }
}

/// Hugging Face's and facebookresearch's names of a ConvNeXt's layers, and timm's; below a stage's block, those of its
/// parts.
const CONVNEXT: [(&str, &str); 6] = [
    ("embeddings.patch_embeddings.", "stem.0."),
    ("embeddings.layernorm.", "stem.1."),
    ("layernorm.", "norm."),
    ("classifier.", "head."),
    ("downsample_layers.0.", "stem."),
    ("encoder.stages.", "stages."),
];
const CONVNEXT_PARTS: [(&str, &str); 7] = [
    ("dwconv.", "conv_dw."),
    ("layernorm.", "norm."),
    ("pwconv1.", "mlp.fc1."),
    ("pwconv2.", "mlp.fc2."),
    ("grn.gamma", "mlp.grn.weight"),
    ("grn.beta", "mlp.grn.bias"),
    ("grn.", "mlp.grn."),
];

/// timm's name of a ConvNeXt's weight, but for the final norm and the head, which are `norm` and `head`.
fn convnext_key(name: &str) -> Option<String> {
    let renamed = |name: &str, pairs: &[(&str, &str)]| {
        let renamed = |(from, to): &(&str, &str)| Some(format!("{to}{}", name.strip_prefix(from)?));
        pairs.iter().find_map(renamed).unwrap_or_else(|| name.to_string())
    };
    let bare = ["convnext.", "convnextv2."]
        .iter()
        .find_map(|whole| name.strip_prefix(whole));
    let name = renamed(bare.unwrap_or(name), &CONVNEXT);
    let name = match name
        .strip_prefix("downsample_layers.")
        .and_then(|rest| rest.split_once('.'))
    {
        Some((stage, layer)) => format!("stages.{stage}.downsample.{layer}"),
        None => renamed(&name, &[("head.norm.", "norm."), ("head.fc.", "head.")]),
    };
    let Some((stage, below)) = name.strip_prefix("stages.").and_then(|rest| rest.split_once('.')) else {
        let known = ["stem.", "norm.", "head."].iter().any(|start| name.starts_with(start));
        return known.then_some(name);
    };
    stage.parse::<usize>().ok()?;
    let below = renamed(
        below,
        &[("downsampling_layer.", "downsample."), ("layers.", ""), ("blocks.", "")],
    );
    match below.split_once('.') {
        Some(("downsample", layer)) => Some(format!("stages.{stage}.downsample.{layer}")),
        Some((block, part)) => {
            block.parse::<usize>().ok()?;
            let part = if part == "layer_scale_parameter" {
                "gamma".into()
            } else {
                renamed(part, &CONVNEXT_PARTS)
            };
            Some(format!("stages.{stage}.blocks.{block}.{part}"))
        }
        None => None,
    }
}

/// CLIP's final norm, to a model that averages the patch tokens.
const CLASS_NORM: &str = "the norm of the class token, which the head does not read";

/// SigLIP's own pooling, to a model that averages the patch tokens.
const ATTENTION_POOL: &str = "the attention pooling, in whose place the mean of the patch tokens is read";

/// Group of a tensor that belongs to the format and not to a classifier, for a line that says so. `None` for a tensor
/// that nobody knows.
pub(super) fn known_leftover(format: Format, name: &str) -> Option<&'static str> {
    let starts = |starts: &[&str]| starts.iter().any(|start| name.starts_with(start));
    if name == "n_averaged" {
        return Some("the count of averaged weights");
    }
    if is_buffer(name) || name.ends_with("position_ids") {
        return Some("buffers that follow from the configuration");
    }
    match format {
        Format::MaePretrained if starts(&["decoder_", "mask_token"]) => Some("the decoder"),
        Format::MaePretrained if starts(&["norm."]) => Some("the norm that mean pooling replaces by fc_norm"),
        Format::HfVit if starts(&["vit.pooler.", "pooler."]) => Some("the pooler"),
        Format::HfDinov2 | Format::HfDinov3 if name.ends_with("embeddings.mask_token") => {
            Some("the mask token of pre-training")
        }
        Format::HfDeit if starts(&["deit.pooler.", "pooler."]) => Some("the pooler"),
        Format::BigVision if starts(&["txt.", "params.txt.", "params.t", "params.b"]) => Some("the text tower"),
        Format::HfSiglip if name.contains("vision_model.head.") => Some(ATTENTION_POOL),
        Format::HfSiglip if starts(&["text_model.", "logit_scale", "logit_bias"]) => Some("the text tower"),
        Format::HfVit if name == "vit.embeddings.mask_token" || name == "embeddings.mask_token" => {
            Some("the mask token of pre-training")
        }
        Format::HfMaePretrained if starts(&["decoder."]) => Some("the decoder"),
        Format::HfMaePretrained if starts(&["vit.layernorm.", "layernorm."]) => {
            Some("the norm that mean pooling replaces by fc_norm")
        }
        Format::HfClip | Format::HfClipClassifier if name.contains("vision_model.post_layernorm.") => Some(CLASS_NORM),
        Format::OpenClip if starts(&["visual.ln_post."]) => Some(CLASS_NORM),
        Format::TimmClip if starts(&["norm."]) => Some(CLASS_NORM),
        Format::HfClip if starts(&["text_model.", "text_projection."]) => Some("the text tower"),
        Format::HfClip if starts(&["visual_projection.", "logit_scale"]) => Some("the projection to the text tower"),
        Format::OpenClip if starts(&["visual.proj", "logit_scale", "logit_bias"]) => {
            Some("the projection to the text tower")
        }
        Format::OpenClip
            if starts(&[
                "transformer.",
                "token_embedding.",
                "positional_embedding",
                "ln_final.",
                "text_projection",
                "text.",
                "input_resolution",
                "context_length",
                "vocab_size",
            ]) =>
        {
            Some("the text tower")
        }
        _ => None,
    }
}

/// Tells whether the weight of this key is one that no checkpoint of the format has: it is drawn, and a line says so. A
/// head is missing after MAE's pre-training, in Hugging Face's towers of DINOv2, DINOv3 and SigLIP, and in CLIP, whose
/// towers project instead; anywhere else, a file without it has lost it.
pub(super) fn known_missing(format: Format, key: &str) -> bool {
    match format {
        Format::MaePretrained | Format::HfMaePretrained => key.starts_with(HEAD) || key.starts_with("fc_norm."),
        // What is published of these are towers without a head.
        Format::HfDinov2 | Format::HfDinov3 | Format::HfSiglip | Format::BigVision => key.starts_with(HEAD),
        // FT-CLIP's `fc_norm` is new, too.
        Format::HfClip | Format::OpenClip => key.starts_with(HEAD) || key.starts_with("fc_norm."),
        Format::TimmClip => key.starts_with("fc_norm."),
        Format::TimmSwin | Format::MicrosoftSwin | Format::HfSwin | Format::TorchvisionSwin => key == "mask_token",
        _ => false,
    }
}
