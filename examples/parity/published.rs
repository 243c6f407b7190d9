//! Published models by the names that their peers give them: what a file of weights cannot tell.

use anyhow::{Context, Result};
use masksub::models::convnext;
use masksub::models::vit::{Activation, Config, Gate, Pool, QkvBias, Rotary};

use crate::recorded::Recorded;

type Form = (&'static str, fn(usize) -> Config);

/// timm's names of models, and transformers' of classes.
const VITS: [Form; 17] = [
    ("vit_small_patch14_reg4_dinov2", |classes| Config {
        pool: Pool::ClassToken,
        ..Config::dinov2_reg4_small(classes)
    }),
    ("deit_tiny_distilled_patch16_224", Config::deit_tiny_distilled),
    ("DeiTForImageClassificationWithTeacher", Config::deit_tiny_distilled),
    ("DeiTForImageClassification", |classes| Config {
        pool: Pool::ClassToken,
        ..Config::deit_tiny_distilled(classes)
    }),
    ("Dinov2ForImageClassification", Config::dinov2_small),
    ("Dinov2WithRegistersForImageClassification", |classes| Config {
        num_registers: 4,
        ..Config::dinov2_small(classes)
    }),
    ("vit_base_patch16_siglip_224", |classes| Config {
        activation: Activation::Gelu,
        ..Config::siglip_base(classes)
    }),
    ("vit_base_patch16_siglip_gap_224", |classes| Config {
        activation: Activation::Gelu,
        pool: Pool::FinalNormThenMean,
        ..Config::siglip_base(classes)
    }),
    ("SiglipForImageClassification", |classes| Config {
        pool: Pool::FinalNormThenMean,
        ..Config::siglip_base(classes)
    }),
    ("beit_base_patch16_224", Config::beitv2_base),
    ("beitv2_base_patch16_224", Config::beitv2_base),
    ("eva02_tiny_patch14_224", Config::eva02_tiny),
    ("eva02_base_patch14_224", Config::eva02_base),
    ("vit_giant_patch14_dinov2", |classes| Config {
        pool: Pool::ClassToken,
        ..Config::dinov2_giant(classes)
    }),
    ("SiglipVisionModel", Config::siglip_base),
    ("vit_small_patch16_dinov3", |classes| Config {
        pool: Pool::FinalNormThenMean,
        ..Config::dinov3_small(classes)
    }),
    ("DINOv3ViTModel", |classes| Config {
        qkv_bias: QkvBias::QueryAndValue,
        ..Config::dinov3_small(classes)
    }),
];

type ConvNeXtForm = (&'static str, fn(usize) -> convnext::Config);

const CONVNEXTS: [ConvNeXtForm; 3] = [
    ("convnext_tiny", convnext::Config::tiny),
    ("convnextv2_tiny", convnext::Config::v2_tiny),
    ("ConvNextForImageClassification", convnext::Config::tiny),
];

/// Tells whether a ViT has more of its own than sizes.
pub fn is_vit(model: &str) -> bool {
    VITS.iter().any(|(name, _)| *name == model)
}

/// Tells whether this is a ConvNeXt.
pub fn is_convnext(model: &str) -> bool {
    CONVNEXTS.iter().any(|(name, _)| *name == model)
}

/// The name of what was recorded.
fn name(file: &Recorded) -> &str {
    file.text("model").or(file.text("class")).unwrap_or_default()
}

/// The ViT of the file's name, in the file's size; `None` where that has none of its own.
///
/// # Errors
/// When the file does not tell its size.
pub fn vit(file: &Recorded) -> Result<Option<Config>> {
    let Some((_, form)) = VITS.iter().find(|(model, _)| *model == name(file)) else {
        return Ok(None);
    };
    let form = match form(file.count("num_classes")?) {
        form if file.config["config"]["use_swiglu_ffn"] == true => Config {
            gate: Some(Gate::Packed),
            mlp_dim: form.embed_dim * 8 / 3,
            ..form
        },
        form => form,
    };
    let embed_dim = file.count("embed_dim")?;
    let (side, patch_size) = (file.count("image_size")?, file.count("patch_size")?);
    let rotary = match form.rotary {
        // Angles are those of the grid that it was pre-trained with.
        Some(Rotary::Eva { .. }) => Some(Rotary::Eva {
            grid: side / patch_size,
        }),
        other => other,
    };
    Ok(Some(Config {
        embed_dim,
        depth: file.count("depth")?,
        num_heads: file.count("num_heads")?,
        mlp_dim: embed_dim * form.mlp_dim / form.embed_dim,
        norm_eps: file.number("layer_norm_eps").unwrap_or(form.norm_eps),
        rotary,
        ..form.with_input(side, patch_size, file.count("in_channels")?)
    }))
}

/// The ConvNeXt of the file's name, in the file's size.
///
/// # Errors
/// When the file is of another model, or does not tell its size.
pub fn convnext(file: &Recorded) -> Result<convnext::Config> {
    let form = CONVNEXTS.iter().find(|(model, _)| *model == name(file));
    let (_, form) = form.with_context(|| format!("{} is no ConvNeXt", name(file)))?;
    let four = |key: &str| -> Result<[usize; 4]> {
        let counts = file.counts(key)?;
        counts.try_into().map_err(|_| anyhow::anyhow!("{key} are not four"))
    };
    Ok(convnext::Config {
        depths: four("depths")?,
        dims: four("dims")?,
        ..form(file.count("num_classes")?)
    })
}
