//! Names that each published form of the ViT gives its weights.

use crate::models::path;

/// The names of one form. Those of a block's parts, `norm1` to `gamma2`, stand below `blocks` and the block's number;
/// all others below the `VarBuilder` that the model is made from.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Names {
    pub patch_embed: &'static str,
    pub cls_token: &'static str,
    pub dist_token: &'static str,
    pub reg_token: &'static str,
    pub pos_embed: &'static str,
    pub pre_norm: &'static str,
    pub blocks: &'static str,
    pub norm1: &'static str,
    pub qkv: Qkv,
    /// Biases of queries and values, where keys have none and the projection is packed.
    pub qv_bias: [&'static str; 2],
    pub position_table: &'static str,
    pub proj: &'static str,
    pub gamma1: &'static str,
    pub norm2: &'static str,
    pub fc1: &'static str,
    /// Gate and value of a gated MLP, where they are apart, and its inner norm.
    pub fc1_apart: [&'static str; 2],
    pub mlp_norm: &'static str,
    pub fc2: &'static str,
    pub gamma2: &'static str,
    pub norm: &'static str,
    pub fc_norm: &'static str,
    /// Below it, the parts have timm's names in every form.
    pub attn_pool: &'static str,
    pub head: &'static str,
    pub head_dist: &'static str,
    /// True where class token and positions are parameters of shape [1, ., D], as PyTorch modules have them, or `[D]`
    /// and [., D].
    pub batched_embeddings: bool,
}

/// Query, key and value: one packed projection, or three.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Qkv {
    Packed(&'static str),
    Apart([&'static str; 3]),
}

/// timm and facebookresearch (DeiT-III, MAE).
pub(crate) const TIMM: Names = Names {
    patch_embed: "patch_embed.proj",
    cls_token: "cls_token",
    dist_token: "dist_token",
    reg_token: "reg_token",
    pos_embed: "pos_embed",
    pre_norm: "norm_pre",
    blocks: "blocks",
    norm1: "norm1",
    qkv: Qkv::Packed("attn.qkv"),
    qv_bias: ["attn.q_bias", "attn.v_bias"],
    position_table: "attn.relative_position_bias_table",
    proj: "attn.proj",
    gamma1: "gamma_1",
    norm2: "norm2",
    fc1: "mlp.fc1",
    fc1_apart: ["mlp.fc1_g", "mlp.fc1_x"],
    mlp_norm: "mlp.norm",
    fc2: "mlp.fc2",
    gamma2: "gamma_2",
    norm: "norm",
    fc_norm: "fc_norm",
    attn_pool: "attn_pool",
    head: "head",
    head_dist: "head_dist",
    batched_embeddings: true,
};

/// Hugging Face's `ViTForImageClassification` (and DeiT's below `deit`), and with it candle-transformers' ViT.
pub(crate) const HUGGING_FACE: Names = Names {
    patch_embed: "vit.embeddings.patch_embeddings.projection",
    cls_token: "vit.embeddings.cls_token",
    dist_token: "vit.embeddings.distillation_token",
    pos_embed: "vit.embeddings.position_embeddings",
    blocks: "vit.encoder.layer",
    norm1: "layernorm_before",
    qkv: Qkv::Apart([
        "attention.attention.query",
        "attention.attention.key",
        "attention.attention.value",
    ]),
    proj: "attention.output.dense",
    norm2: "layernorm_after",
    fc1: "intermediate.dense",
    fc2: "output.dense",
    norm: "vit.layernorm",
    head: "classifier",
    head_dist: "distillation_classifier",
    ..TIMM
};

/// Hugging Face's CLIP vision tower, as FT-CLIP fine-tunes it, with a classifier head.
pub(crate) const CLIP: Names = Names {
    patch_embed: "clip.vision_model.embeddings.patch_embedding",
    cls_token: "clip.vision_model.embeddings.class_embedding",
    pos_embed: "clip.vision_model.embeddings.position_embedding.weight",
    // The published checkpoints have this spelling.
    pre_norm: "clip.vision_model.pre_layrnorm",
    blocks: "clip.vision_model.encoder.layers",
    norm1: "layer_norm1",
    qkv: Qkv::Apart(["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"]),
    proj: "self_attn.out_proj",
    norm2: "layer_norm2",
    fc1: "mlp.fc1",
    fc2: "mlp.fc2",
    norm: "clip.vision_model.post_layernorm",
    head: "head",
    batched_embeddings: false,
    ..TIMM
};

impl Names {
    /// Of n = `depth` blocks, the number of the one that weight `name` belongs to, from 1; 0 for embeddings, n + 1 for
    /// what follows the blocks.
    pub fn layer_of(&self, name: &str, depth: usize) -> usize {
        let tokens = [self.cls_token, self.dist_token, self.reg_token, self.pos_embed];
        let first = tokens.into_iter().chain([self.patch_embed, self.pre_norm]);
        if let Some(below) = path::below(name, self.blocks) {
            return path::leading_number(below).map_or(depth + 1, |block| block + 1);
        }
        if { first }.any(|part| path::below(name, part).is_some()) {
            0
        } else {
            depth + 1
        }
    }
}
