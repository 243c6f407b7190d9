//! Networks of convolutions and attention.

use candle_transformers::models::{efficientvit, fastvit, segment_anything};

use super::{model, Entry, FROZEN, FUSED, OWN_BRANCHES, OWN_COPY, OWN_TRAIN, PLAIN};

pub fn entries() -> Vec<Entry> {
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
