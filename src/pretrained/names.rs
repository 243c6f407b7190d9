//! One name for each weight, whatever a checkpoint or a model calls it; and what a checkpoint may leave over.

use super::format::{Family, Format};
use super::respelled::{replaced, resnet_name, swin_name};
use crate::models::vit::names::{Names, Qkv, CLIP, HUGGING_FACE, TIMM};
use crate::weights::is_buffer;

/// The names of OpenCLIP's and OpenAI's vision tower. Their packed projection is a bare parameter, `in_proj_weight`.
const OPEN_CLIP: Names = Names {
    patch_embed: "visual.conv1",
    cls_token: "visual.class_embedding",
    pos_embed: "visual.positional_embedding",
    pre_norm: "visual.ln_pre",
    blocks: "visual.transformer.resblocks",
    norm1: "ln_1",
    qkv: Qkv::Packed("attn.in_proj"),
    proj: "attn.out_proj",
    norm2: "ln_2",
    fc1: "mlp.c_fc",
    fc2: "mlp.c_proj",
    norm: "visual.ln_post",
    ..TIMM
};

/// The names that transformers has in memory from 5 on, and so in what `torch.save` makes of its `state_dict()`.
const HUGGING_FACE_5: Names = Names {
    blocks: "vit.layers",
    qkv: Qkv::Apart(["attention.q_proj", "attention.k_proj", "attention.v_proj"]),
    proj: "attention.o_proj",
    fc1: "mlp.fc1",
    fc2: "mlp.fc2",
    ..HUGGING_FACE
};

const TORCHVISION: Names = Names {
    patch_embed: "conv_proj",
    cls_token: "class_token",
    pos_embed: "encoder.pos_embedding",
    blocks: "encoder.layers",
    norm1: "ln_1",
    qkv: Qkv::Packed("self_attention.in_proj"),
    proj: "self_attention.out_proj",
    norm2: "ln_2",
    fc1: "mlp.0",
    fc2: "mlp.3",
    norm: "encoder.ln",
    head: "heads.head",
    ..TIMM
};

/// torchvision's before 0.13.
const OLD_TORCHVISION: Names = Names {
    fc1: "mlp.linear_1",
    fc2: "mlp.linear_2",
    ..TORCHVISION
};

/// Google's `vision_transformer` (JAX), with dots for slashes.
const GOOGLE: Names = Names {
    patch_embed: "embedding",
    cls_token: "cls",
    pos_embed: "Transformer.posembed_input.pos_embedding",
    blocks: "Transformer.encoderblock",
    norm1: "LayerNorm_0",
    qkv: Qkv::Apart([
        "MultiHeadDotProductAttention_1.query",
        "MultiHeadDotProductAttention_1.key",
        "MultiHeadDotProductAttention_1.value",
    ]),
    proj: "MultiHeadDotProductAttention_1.out",
    norm2: "LayerNorm_2",
    fc1: "MlpBlock_3.Dense_0",
    fc2: "MlpBlock_3.Dense_1",
    norm: "Transformer.encoder_norm",
    ..TIMM
};

/// The names of Hugging Face's DINOv3, which are saved without a prefix.
const HF_DINOV3: Names = Names {
    patch_embed: "dinov3.embeddings.patch_embeddings",
    cls_token: "dinov3.embeddings.cls_token",
    reg_token: "dinov3.embeddings.register_tokens",
    blocks: "dinov3.layer",
    norm1: "norm1",
    qkv: Qkv::Apart(["attention.q_proj", "attention.k_proj", "attention.v_proj"]),
    proj: "attention.o_proj",
    gamma1: "layer_scale1.lambda1",
    norm2: "norm2",
    fc1: "mlp.up_proj",
    fc2: "mlp.down_proj",
    gamma2: "layer_scale2.lambda1",
    norm: "dinov3.norm",
    ..TIMM
};

/// The names of Hugging Face's DINOv2.
const HF_DINOV2: Names = Names {
    patch_embed: "dinov2.embeddings.patch_embeddings.projection",
    cls_token: "dinov2.embeddings.cls_token",
    reg_token: "dinov2.embeddings.register_tokens",
    pos_embed: "dinov2.embeddings.position_embeddings",
    blocks: "dinov2.encoder.layer",
    norm1: "norm1",
    gamma1: "layer_scale1.lambda1",
    norm2: "norm2",
    fc1: "mlp.fc1",
    fc2: "mlp.fc2",
    gamma2: "layer_scale2.lambda1",
    norm: "dinov2.layernorm",
    ..HUGGING_FACE
};

const FORMS: [&Names; 10] = [
    &TIMM,
    &HUGGING_FACE,
    &HUGGING_FACE_5,
    &CLIP,
    &OPEN_CLIP,
    &TORCHVISION,
    &OLD_TORCHVISION,
    &GOOGLE,
    &HF_DINOV2,
    &HF_DINOV3,
];
/// Prefixes that whole models have before the names of towers that are saved alone.
const PREFIXES: [&str; 5] = ["", "vit.", "clip.", "dinov2.", "dinov3."];
/// What some models of a form call otherwise: the whole model by its own name, and DeiT's two heads.
const STARTS: [(&str, &str); 3] = [
    ("deit.", "vit."),
    ("dinov2_with_registers.", "dinov2."),
    ("cls_classifier.", "classifier."),
];
/// Spellings as if a weight were no module's, or, as timm's LayerScale, a module's own; EVA's projections apart, and
/// DINOv2's gated MLP; numbers behind a name; and what JAX calls a weight.
const SPELLINGS: [(&str, &str); 17] = [
    (".attn.q_bias", ".attn.q.bias"),
    (".attn.v_bias", ".attn.v.bias"),
    (".attn.q_proj.", ".attn.q."),
    (".attn.k_proj.", ".attn.k."),
    (".attn.v_proj.", ".attn.v."),
    (".mlp.weights_in.", ".mlp.fc1."),
    (".mlp.weights_out.", ".mlp.fc2."),
    (".mlp.w12.", ".mlp.fc1."),
    (".mlp.w3.", ".mlp.fc2."),
    (".attn.in_proj_", ".attn.in_proj."),
    (".self_attention.in_proj_", ".self_attention.in_proj."),
    (".ls1.gamma", ".gamma_1"),
    (".ls2.gamma", ".gamma_2"),
    (".encoder_layer_", "."),
    (".encoderblock_", ".encoderblock."),
    (".kernel", ".weight"),
    (".scale", ".weight"),
];

/// Key of the position embedding.
pub(super) const POS_EMBED: &str = "pos_embed";
/// Key of the register tokens.
pub(super) const REG_TOKEN: &str = "reg_token";
/// Last part of the keys of Swin's relative positions.
pub(super) const POSITION_TABLE: &str = ".relative_position_bias_table";
/// Start of the head's keys.
pub(super) const HEAD: &str = "head.";
/// Key of the final norm's weight.
pub(super) const NORM: &str = "norm.weight";
/// Keys of the kernels that read an image's channels.
pub(super) const INPUT_KERNELS: [&str; 3] = ["patch_embed.proj.weight", "conv1.weight", "stem.0.weight"];
/// Query, key and value, packed and apart, in their order.
pub(super) const QKV: &str = ".attn.qkv.";
pub(super) const APART: [&str; 3] = [".attn.q.", ".attn.k.", ".attn.v."];

impl Family {
    /// The one name of a weight: timm's in a ViT, with `attn.q`, `attn.k` and `attn.v` where they are apart. `None` for
    /// what such a model does not have, and for a merging of a Swin without its shape.
    pub(super) fn key(self, name: &str, shape: Option<&[usize]>) -> Option<String> {
        match self {
            Self::Vit => {
                let of_form = |(from, to): &(&str, &str)| Some(format!("{to}{}", name.strip_prefix(from)?));
                let spelled = STARTS.iter().find_map(of_form).unwrap_or_else(|| name.to_string());
                let spelled = replaced(&spelled, &SPELLINGS);
                let whole = PREFIXES.map(|prefix| format!("{prefix}{spelled}"));
                let mut keys = whole.iter().flat_map(|name| FORMS.map(|form| timm_name(form, name)));
                keys.find_map(|key| key)
            }
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
        let of_block = |key: String| {
            ["blocks.", "layers.", "layer1.", "stages."]
                .iter()
                .any(|start| key.starts_with(start))
        };
        let mut others = Self::ALL.into_iter().filter(|family| *family != self);
        others.find(|family| family.key(name, shape).is_some_and(of_block))
    }
}

/// Pairs of a form's name and timm's.
type Pairs<'a> = [(&'a str, &'static str)];

fn find(pairs: &Pairs, own: &str) -> Option<&'static str> {
    pairs.iter().find(|(name, _)| *name == own).map(|(_, timm)| *timm)
}

/// timm's name of what `form` calls `name`.
fn timm_name(form: &Names, name: &str) -> Option<String> {
    let embeddings = [
        (form.cls_token, TIMM.cls_token),
        (form.dist_token, TIMM.dist_token),
        (form.reg_token, TIMM.reg_token),
        (form.pos_embed, TIMM.pos_embed),
    ];
    if let Some(timm) = find(&embeddings, name) {
        return Some(timm.to_string());
    }
    let pool = name
        .strip_prefix(form.attn_pool)
        .and_then(|rest| rest.strip_prefix('.'));
    if let Some(part) = pool {
        return Some(format!("{}.{part}", TIMM.attn_pool));
    }
    let below = name.strip_prefix(form.blocks).and_then(|rest| rest.strip_prefix('.'));
    if let Some((index, part)) = below.and_then(|rest| rest.split_once('.')) {
        index.parse::<usize>().ok()?;
        let scales = [
            (form.gamma1, TIMM.gamma1),
            (form.gamma2, TIMM.gamma2),
            (form.position_table, TIMM.position_table),
        ];
        if let Some(timm) = find(&scales, part) {
            return Some(format!("{}.{index}.{timm}", TIMM.blocks));
        }
        let (module, leaf) = part.rsplit_once('.')?;
        let mut modules = vec![
            (form.norm1, TIMM.norm1),
            (form.proj, TIMM.proj),
            (form.norm2, TIMM.norm2),
            (form.fc1, TIMM.fc1),
            (form.fc2, TIMM.fc2),
            (form.mlp_norm, TIMM.mlp_norm),
        ];
        modules.extend(form.fc1_apart.into_iter().zip(TIMM.fc1_apart));
        let parts = ["attn.q", "attn.k", "attn.v"];
        match form.qkv {
            Qkv::Packed(name) => {
                modules.push((name, "attn.qkv"));
                modules.extend(parts.map(|part| (part, part)));
            }
            Qkv::Apart(names) => modules.extend(names.into_iter().zip(parts)),
        }
        return find(&modules, module).map(|timm| format!("{}.{index}.{timm}.{leaf}", TIMM.blocks));
    }
    let (module, leaf) = name.rsplit_once('.')?;
    let modules = [
        (form.patch_embed, TIMM.patch_embed),
        (form.pre_norm, TIMM.pre_norm),
        (form.norm, TIMM.norm),
        (form.fc_norm, TIMM.fc_norm),
        (form.head, TIMM.head),
        (form.head_dist, TIMM.head_dist),
    ];
    find(&modules, module).map(|timm| format!("{timm}.{leaf}"))
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
        Format::HfDinov2 | Format::HfDinov3 | Format::HfSiglip => key.starts_with(HEAD),
        // FT-CLIP's `fc_norm` is new, too.
        Format::HfClip | Format::OpenClip => key.starts_with(HEAD) || key.starts_with("fc_norm."),
        Format::TimmClip => key.starts_with("fc_norm."),
        Format::TimmSwin | Format::MicrosoftSwin | Format::HfSwin | Format::TorchvisionSwin => key == "mask_token",
        _ => false,
    }
}
