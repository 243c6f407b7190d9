//! Published sizes and names.

use std::collections::BTreeMap;

use masksub::models::vit::{Config, VisionTransformer};

use super::shapes;
use crate::common::{count_params, tiny};

fn count(cfg: &Config) -> usize {
    count_params(|vb| VisionTransformer::new(cfg, vb))
}

/// As published (timm, MAE, CLIP's vision tower without its projection, `google/vit-base-patch16-224`), each with
/// a head of 1000 classes at its own size, in millions. (DINOv2's as timm counts them at 224 pixels, with a head that
/// reads twice the width.)
#[test]
fn are_the_published_ones() {
    let published: BTreeMap<&str, f64> = [
        ("deit3-tiny", 5.7),
        ("deit3-small", 22.1),
        ("deit3-base", 86.6),
        ("deit3-large", 304.4),
        ("deit3-huge", 632.1),
        ("mae-base", 86.6),
        ("mae-large", 304.3),
        ("mae-huge", 632.0),
        ("clip-base", 86.6),
        ("clip-large", 304.2),
        ("ft-clip-base", 86.6),
        ("ft-clip-base-384", 86.9),
        ("ft-clip-large", 304.2),
        ("ft-clip-large-336", 304.5),
        ("hf-clip-base", 86.6),
        ("hf-clip-large", 304.2),
        ("hf-base", 86.6),
        ("deit-tiny-distilled", 5.9),
        ("deit-small-distilled", 22.4),
        ("deit-base-distilled", 87.3),
        ("dinov2-small", 22.4),
        ("dinov2-base", 87.3),
        ("dinov2-large", 305.3),
        ("dinov2-giant", 1137.8),
        ("dinov2-reg4-small", 22.4),
        ("dinov2-reg4-base", 87.3),
        ("dinov2-reg4-large", 305.3),
        ("dinov2-reg4-giant", 1137.8),
        ("siglip-base", 93.7),
        ("siglip-large", 317.0),
        ("siglip-so400m", 428.8),
        ("beitv2-base", 86.5),
        ("beitv2-large", 304.4),
        ("eva02-tiny", 5.7),
        ("eva02-small", 22.0),
        ("eva02-base", 86.5),
        ("eva02-large", 304.3),
        ("dinov3-small", 22.0),
        ("dinov3-base", 86.4),
        ("dinov3-large", 304.1),
    ]
    .into();
    assert_eq!(Config::SIZES.len(), published.len());
    for &(name, constructor) in Config::SIZES {
        let millions = count(&constructor(1000)) as f64 / 1e6;
        assert!((millions - published[name]).abs() <= 0.05, "{name}: {millions:.2}");
    }
    // Exactly, where the number itself is published.
    assert_eq!(count(&Config::hf_base(1000)), 86_567_656);
    // timm's own counts.
    assert_eq!(count(&Config::deit_small_distilled(1000)), 22_436_432);
    assert_eq!(count(&Config::siglip_base(1000)), 93_653_224);
    // With a head on the mean of the patches, too, as the authors' linear classifier has it.
    assert_eq!(count(&Config::dinov2_giant(1000)), 1_136_306_664 + 1536 * 1000);
    assert_eq!(count(&Config::beitv2_base(1000)), 86_530_984);
    assert_eq!(count(&Config::eva02_tiny(1000)), 5_695_144);
    assert_eq!(count(&Config::eva02_large(1000)), 304_293_800);
    assert_eq!(count(&Config::dinov3_large(1000)), 304_104_424);
    assert_eq!(count(&Config::siglip_so400m(1000)), 428_833_704);
}

#[test]
fn have_the_names_of_their_checkpoints() {
    let has = |cfg: Config, expected: &[(&str, &[usize])]| {
        let shapes = shapes(&cfg);
        for (name, shape) in expected {
            assert_eq!(shapes.get(*name).map(Vec::as_slice), Some(*shape), "{name}");
        }
    };
    has(
        tiny(Config::deit3_tiny(5)),
        &[
            ("cls_token", &[1, 1, 24]),
            ("pos_embed", &[1, 16, 24]),
            ("patch_embed.proj.weight", &[24, 3, 4, 4]),
            ("blocks.1.attn.qkv.weight", &[72, 24]),
            ("blocks.1.gamma_1", &[24]),
            ("head.weight", &[5, 24]),
        ],
    );
    has(
        tiny(Config::mae_base(5)),
        &[("pos_embed", &[1, 17, 24]), ("fc_norm.weight", &[24])],
    );
    has(
        tiny(Config::clip_base(5)),
        &[
            ("clip.vision_model.embeddings.class_embedding", &[24]),
            ("clip.vision_model.embeddings.position_embedding.weight", &[17, 24]),
            ("clip.vision_model.pre_layrnorm.bias", &[24]),
            (
                "clip.vision_model.encoder.layers.0.self_attn.out_proj.weight",
                &[24, 24],
            ),
        ],
    );
    has(
        tiny(Config::deit_tiny_distilled(5)),
        &[
            ("dist_token", &[1, 1, 24]),
            ("pos_embed", &[1, 18, 24]),
            ("head_dist.weight", &[5, 24]),
        ],
    );
    has(
        tiny(Config::dinov2_reg4_small(5)),
        &[
            ("reg_token", &[1, 4, 24]),
            ("pos_embed", &[1, 16, 24]),
            ("head.weight", &[5, 48]),
        ],
    );
    has(
        tiny(Config::siglip_base(5)),
        &[("attn_pool.latent", &[1, 1, 24]), ("attn_pool.kv.weight", &[48, 24])],
    );
    assert!(!shapes(&tiny(Config::siglip_base(5))).contains_key("cls_token"));
    let ft_clip = tiny(Config::ft_clip_base(5));
    has(ft_clip.clone(), &[("fc_norm.weight", &[24]), ("head.weight", &[5, 24])]);
    for cfg in [ft_clip, tiny(Config::hf_clip_base(5))] {
        assert!(!shapes(&cfg).keys().any(|name| name.contains("post_layernorm")));
    }
    assert!(!shapes(&tiny(Config::hf_clip_base(5))).contains_key("fc_norm.weight"));
    let mean = shapes(&tiny(Config::mae_base(5)));
    assert!(!mean.contains_key("norm.weight") && !mean.contains_key("blocks.0.gamma_1"));
    assert!(!shapes(&tiny(Config::clip_base(5)))
        .keys()
        .any(|name| name.ends_with("patch_embedding.bias")));
}
