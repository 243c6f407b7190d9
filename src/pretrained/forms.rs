//! Names of a ViT's weights in each project's form, and timm's for the same.

use super::respelled::replaced;
use crate::models::vit::names::{Names, Qkv, CLIP, HUGGING_FACE, TIMM};

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

/// big_vision's (JAX), where parts of a block are counted each for itself.
const BIG_VISION: Names = Names {
    pos_embed: "pos_embedding",
    qkv: Qkv::Apart([
        "MultiHeadDotProductAttention_0.query",
        "MultiHeadDotProductAttention_0.key",
        "MultiHeadDotProductAttention_0.value",
    ]),
    proj: "MultiHeadDotProductAttention_0.out",
    norm2: "LayerNorm_1",
    fc1: "MlpBlock_0.Dense_0",
    fc2: "MlpBlock_0.Dense_1",
    ..GOOGLE
};

/// mmpretrain's (`mmpretrain/models/backbones/vision_transformer.py`), whose files have `backbone` for `mmpretrain`, as
/// anyone's model may.
const MMPRETRAIN: Names = Names {
    patch_embed: "mmpretrain.patch_embed.projection",
    cls_token: "mmpretrain.cls_token",
    dist_token: "mmpretrain.dist_token",
    pos_embed: "mmpretrain.pos_embed",
    pre_norm: "mmpretrain.pre_norm",
    blocks: "mmpretrain.layers",
    norm1: "ln1",
    gamma1: "attn.gamma1.weight",
    norm2: "ln2",
    fc1: "ffn.layers.0.0",
    fc2: "ffn.layers.1",
    gamma2: "ffn.gamma2.weight",
    norm: "mmpretrain.ln1",
    fc_norm: "mmpretrain.ln2",
    head: "head.layers.head",
    head_dist: "head.layers.head_dist",
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
pub(super) const HF_DINOV2: Names = Names {
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

const FORMS: [&Names; 12] = [
    &TIMM,
    &HUGGING_FACE,
    &HUGGING_FACE_5,
    &CLIP,
    &OPEN_CLIP,
    &TORCHVISION,
    &OLD_TORCHVISION,
    &GOOGLE,
    &BIG_VISION,
    &MMPRETRAIN,
    &HF_DINOV2,
    &HF_DINOV3,
];
/// Prefixes that whole models have before the names of towers that are saved alone.
const PREFIXES: [&str; 5] = ["", "vit.", "clip.", "dinov2.", "dinov3."];
/// What some models of a form call otherwise: the whole model by its own name, DeiT's two heads, mmpretrain's head
/// behind a mean, and big_vision's attention pooling.
const STARTS: [(&str, &str); 6] = [
    ("deit.", "vit."),
    ("dinov2_with_registers.", "dinov2."),
    ("cls_classifier.", "classifier."),
    ("head.fc.", "head."),
    ("MAPHead_0.", POOL),
    ("vision_model.head.", POOL),
];
const POOL: &str = "attn_pool.";
/// Parts of the attention pooling, in big_vision's names and Hugging Face's.
const POOL_PARTS: [(&str, &str); 11] = [
    ("probe", "latent"),
    ("MultiHeadDotProductAttention_0.query.", "q."),
    ("MultiHeadDotProductAttention_0.key.", "k."),
    ("MultiHeadDotProductAttention_0.value.", "v."),
    ("MultiHeadDotProductAttention_0.out.", "proj."),
    ("LayerNorm_0.", "norm."),
    ("MlpBlock_0.Dense_0.", "mlp.fc1."),
    ("MlpBlock_0.Dense_1.", "mlp.fc2."),
    ("attention.in_proj_", "in_proj."),
    ("attention.out_proj.", "proj."),
    ("layernorm.", "norm."),
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

/// timm's name of a weight, with `attn.q`, `attn.k` and `attn.v` where they are apart. `None` for what no ViT has.
pub(super) fn key(name: &str) -> Option<String> {
    let of_form = |(from, to): &(&str, &str)| Some(format!("{to}{}", name.strip_prefix(from)?));
    let spelled = STARTS.iter().find_map(of_form).unwrap_or_else(|| name.to_string());
    let spelled = match spelled.strip_prefix(POOL) {
        Some(part) => format!("{POOL}{}", replaced(part, &POOL_PARTS)),
        None => spelled,
    };
    let spelled = replaced(&spelled, &SPELLINGS);
    let whole = PREFIXES.map(|prefix| format!("{prefix}{spelled}"));
    let mut keys = whole.iter().flat_map(|name| FORMS.map(|form| timm_name(form, name)));
    keys.find_map(|key| key)
}

/// Pairs of a form's name and timm's.
type Pair = (&'static str, &'static str);

/// Pairs of tensors, and of modules, that stand outside of the blocks.
fn tensors(form: &Names) -> [Pair; 4] {
    [
        (form.cls_token, TIMM.cls_token),
        (form.dist_token, TIMM.dist_token),
        (form.reg_token, TIMM.reg_token),
        (form.pos_embed, TIMM.pos_embed),
    ]
}

fn modules(form: &Names) -> [Pair; 6] {
    [
        (form.patch_embed, TIMM.patch_embed),
        (form.pre_norm, TIMM.pre_norm),
        (form.norm, TIMM.norm),
        (form.fc_norm, TIMM.fc_norm),
        (form.head, TIMM.head),
        (form.head_dist, TIMM.head_dist),
    ]
}

/// The same of a block.
fn block_tensors(form: &Names) -> [Pair; 3] {
    [
        (form.gamma1, TIMM.gamma1),
        (form.gamma2, TIMM.gamma2),
        (form.position_table, TIMM.position_table),
    ]
}

fn block_modules(form: &Names) -> Vec<Pair> {
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
    modules
}

/// timm's name of what `form` calls `name`.
fn timm_name(form: &Names, name: &str) -> Option<String> {
    let find = |pairs: &[Pair], own: &str| pairs.iter().find(|(name, _)| *name == own).map(|(_, timm)| *timm);
    if let Some(timm) = find(&tensors(form), name) {
        return Some(timm.to_string());
    }
    if let Some(part) = below(name, form.attn_pool) {
        return Some(format!("{}.{part}", TIMM.attn_pool));
    }
    if let Some((index, part)) = below(name, form.blocks).and_then(|rest| rest.split_once('.')) {
        index.parse::<usize>().ok()?;
        if let Some(timm) = find(&block_tensors(form), part) {
            return Some(format!("{}.{index}.{timm}", TIMM.blocks));
        }
        let (module, leaf) = part.rsplit_once('.')?;
        let timm = find(&block_modules(form), module)?;
        return Some(format!("{}.{index}.{timm}.{leaf}", TIMM.blocks));
    }
    let (module, leaf) = name.rsplit_once('.')?;
    find(&modules(form), module).map(|timm| format!("{timm}.{leaf}"))
}

/// What `form` calls the weight that timm calls `key`.
pub(super) fn form_name(form: &Names, key: &str) -> Option<String> {
    let find = |pairs: &[Pair], key: &str| pairs.iter().find(|(_, timm)| *timm == key).map(|(name, _)| *name);
    if let Some(name) = find(&tensors(form), key) {
        return Some(name.to_string());
    }
    if let Some(part) = below(key, TIMM.attn_pool) {
        return Some(format!("{}.{part}", form.attn_pool));
    }
    if let Some((index, part)) = below(key, TIMM.blocks).and_then(|rest| rest.split_once('.')) {
        if let Some(name) = find(&block_tensors(form), part) {
            return Some(format!("{}.{index}.{name}", form.blocks));
        }
        let (module, leaf) = part.rsplit_once('.')?;
        let name = find(&block_modules(form), module)?;
        return Some(format!("{}.{index}.{name}.{leaf}", form.blocks));
    }
    let (module, leaf) = key.rsplit_once('.')?;
    find(&modules(form), module).map(|name| format!("{name}.{leaf}"))
}

/// The rest of a name that lies below a module.
fn below<'a>(name: &'a str, module: &str) -> Option<&'a str> {
    name.strip_prefix(module)?.strip_prefix('.')
}
