//! Models that the crate has not, told by the names of their weights: a refusal says what they are.

/// What names tell: a part of one, and the model that has it.
const PARTS: [(&str, &str); 23] = [
    (".attn.cpb_mlp.", SWIN_V2),
    (".attn.meta_mlp.", SWIN_V2),
    (".continuous_position_bias_mlp.", SWIN_V2),
    (
        "patch_embed.backbone.",
        "a hybrid ViT, whose patches are a convolutional network's",
    ),
    (
        "embeddings.patch_embeddings.backbone.",
        "a hybrid ViT, whose patches are a convolutional network's",
    ),
    ("blocks_token_only.", "a CaiT"),
    (".local_mp.", "an XCiT"),
    (".attention_biases", "a LeViT"),
    (".attn_grid.", "a MaxViT"),
    (".attn.sr.", "a PVT or Twins"),
    (".attention.self.sr.", "a PVT or SegFormer"),
    (".attn.pool_q.", "an MViT"),
    (".attn.rel_pos_h", "an image encoder of SAM or ViTDet"),
    (".factoratt_crpe.", "a CoaT"),
    (".transformer_encoder.", "a NesT"),
    (".modulation.focal_layers.", "a FocalNet"),
    ("pixel_embed.", "a TNT"),
    (".attn.gating_param", "a ConViT"),
    (
        ".attn.rel_pos.",
        "a model with relative positions of timm's `rel_pos` (ViT-relpos, CoAtNet, GC ViT)",
    ),
    (
        "shared_rel_pos.",
        "a model with relative positions of timm's `rel_pos` (ViT-srelpos)",
    ),
    (".attn.w_msa.", "a Swin in mmpretrain's names"),
    (".attn.norm.weight", "a BEiT-3 or timm's EVA-02-CLIP (`eva02_*_clip_*`)"),
    (".lambda_1", "Hugging Face's BEiT or Data2Vec"),
];
const SWIN_V2: &str = "a Swin V2";
/// Told by where a name's parts stand.
const HIERA: &str = "a Hiera";
/// Told by the end of a name: EVA-02 of BAAI's has buffers `rope.freqs_cos` and `rope.freqs_sin`.
const LEARNED_ROTATIONS: &str = "a ViT with learned frequencies of rotary positions (timm's `rope_mixed`)";

/// The model that has such names, where the crate has none such.
pub(super) fn model<'a>(names: impl Iterator<Item = &'a String>) -> Option<&'static str> {
    let mut found: Option<usize> = None;
    let (mut is_hiera, mut learns_rotations) = (false, false);
    for name in names {
        let first = found.unwrap_or(PARTS.len());
        found = PARTS
            .iter()
            .take(first)
            .position(|(part, _)| name.contains(part))
            .or(found);
        is_hiera |= widens(name);
        learns_rotations |= name.ends_with("rope.freqs");
    }
    let told = found.and_then(|index| PARTS.get(index)).map(|(_, model)| *model);
    told.or(learns_rotations.then_some(LEARNED_ROTATIONS))
        .or(is_hiera.then_some(HIERA))
}

/// Tells whether this is a projection that stands in a block itself, `blocks.N.proj.weight`: Hiera's, to the next
/// width.
fn widens(name: &str) -> bool {
    let block = name
        .strip_suffix(".proj.weight")
        .and_then(|block| block.rsplit_once('.'));
    block.is_some_and(|(before, index)| {
        let is_block = before == "blocks" || before.ends_with(".blocks");
        is_block && index.parse::<usize>().is_ok()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn models_are_told_by_what_others_have_not() {
        // Names of timm 1.0.31 and transformers 5.24.
        for (name, told) in [
            ("layers.0.blocks.0.attn.cpb_mlp.0.weight", "Swin V2"),
            (
                "swinv2.encoder.layers.0.blocks.0.attention.self.continuous_position_bias_mlp.0.weight",
                "Swin V2",
            ),
            ("module.patch_embed.backbone.stem.conv.weight", "hybrid"),
            ("blocks.1.proj.weight", "Hiera"),
            ("model.blocks.12.proj.weight", "Hiera"),
            ("blocks_token_only.0.norm1.weight", "CaiT"),
            ("blocks.0.local_mp.conv1.weight", "XCiT"),
            ("stages.0.blocks.0.attn.attention_biases", "LeViT"),
            ("stages.0.blocks.0.attn_grid.attn.qkv.weight", "MaxViT"),
            ("stages.0.blocks.0.attn.sr.weight", "PVT"),
            ("stages.0.blocks.0.attn.pool_q.weight", "MViT"),
            ("blocks.0.attn.rel_pos_h", "SAM"),
            ("rope.freqs", "rope_mixed"),
            ("blocks.0.attn.norm.weight", "EVA-02-CLIP"),
        ] {
            let model = model([name.to_string(), "norm.weight".to_string()].iter());
            assert!(model.is_some_and(|model| model.contains(told)), "{name}: {model:?}");
        }
        // MViT has SAM's, too, and is told first.
        let both = [
            "stages.0.blocks.0.attn.rel_pos_h",
            "stages.0.blocks.0.attn.pool_q.weight",
        ]
        .map(String::from);
        assert_eq!(model(both.iter()), Some("an MViT"));
        for name in [
            "blocks.0.attn.proj.weight",
            "patch_embed.proj.weight",
            "blocks.0.norm1.weight",
            "blocks.proj.weight",
            "rope.freqs_cos",
            "blocks.0.attn.rope.freqs_sin",
        ] {
            assert_eq!(model([name.to_string()].iter()), None, "{name}");
        }
    }
}
