//! Configurations as peers have them (timm's arguments, transformers' `config.json`), in the words of the other files.

use anyhow::{bail, Context, Result};
use serde_json::{json, Map, Value};

use crate::published;

/// What `config` says of a model in its peer's words, said in those of [`Recorded`](crate::recorded::Recorded) as well.
///
/// # Errors
/// For a model that is not known here.
pub fn described(config: Value) -> Result<Value> {
    let Some(peer) = config["peer"].as_str() else {
        return Ok(config);
    };
    let model = config["model"]
        .as_str()
        .or(config["class"].as_str())
        .unwrap_or_default();
    let words = match (peer, model) {
        ("timm", "vit_small_patch16_224") | ("google", "ViT") => timm_vit(&config["arguments"]),
        ("timm", "swin") => timm_swin(&config["arguments"]),
        ("transformers", "ViTForImageClassification" | "ViTMAEForPreTraining" | "CLIPVisionModel")
        | ("transformers", "CLIPForImageClassification") => hugging_face_vit(&config["config"]),
        ("transformers", "SwinForImageClassification") => swin(&config["config"]),
        ("transformers", "ResNetForImageClassification") => resnet(&config["config"]),
        ("torchvision", "VisionTransformer") => torchvision_vit(&config),
        ("torchvision", "SwinTransformer") => swin(&config),
        ("timm" | "transformers", _) if published::is_vit(model) => match config.get("arguments") {
            Some(arguments) => timm_vit(arguments),
            None => published_vit(&config["config"]),
        },
        ("timm" | "transformers", _) if published::is_convnext(model) => convnext(&config),
        _ => bail!("this release has no {peer} {model}"),
    };
    let words = words.with_context(|| format!("of {peer}'s {model}"))?;
    let mut described = config.as_object().cloned().unwrap_or_default();
    described.extend(words);
    Ok(Value::Object(described))
}

/// The words of a configuration, some of another name there.
fn renamed(config: &Value, names: &[(&str, &str)]) -> Result<Map<String, Value>> {
    let renamed = |(to, from): &(&str, &str)| {
        let value = config
            .get(*from)
            .with_context(|| format!("its configuration has no {from}"))?;
        Ok((to.to_string(), value.clone()))
    };
    names.iter().map(renamed).collect()
}

fn with(mut words: Map<String, Value>, others: Value) -> Map<String, Value> {
    words.extend(others.as_object().cloned().unwrap_or_default());
    words
}

/// timm's `VisionTransformer`.
fn timm_vit(arguments: &Value) -> Result<Map<String, Value>> {
    let names = [
        ("image_size", "img_size"),
        ("patch_size", "patch_size"),
        ("embed_dim", "embed_dim"),
        ("depth", "depth"),
        ("num_heads", "num_heads"),
    ];
    let others = json!({ "mlp_ratio": 4, "norm_eps": 1e-6, "activation": "gelu_erf" });
    Ok(with(renamed(arguments, &names)?, others))
}

/// torchvision's `VisionTransformer`, whose MLP was recorded with four times the width.
fn torchvision_vit(config: &Value) -> Result<Map<String, Value>> {
    let own = ["image_size", "patch_size", "embed_dim", "depth", "num_heads"].map(|name| (name, name));
    let others = json!({ "mlp_ratio": 4, "norm_eps": 1e-6, "activation": "gelu_erf" });
    Ok(with(renamed(config, &own)?, others))
}

/// transformers' ViT, ViT-MAE, and the vision tower of CLIP.
fn hugging_face_vit(config: &Value) -> Result<Map<String, Value>> {
    let config = config.get("vision_config").unwrap_or(config);
    let names = [
        ("image_size", "image_size"),
        ("patch_size", "patch_size"),
        ("embed_dim", "hidden_size"),
        ("depth", "num_hidden_layers"),
        ("num_heads", "num_attention_heads"),
        ("norm_eps", "layer_norm_eps"),
    ];
    let words = renamed(config, &names)?;
    let count = |name: &str| {
        config[name]
            .as_u64()
            .with_context(|| format!("its configuration has no {name}"))
    };
    let activation = match config["hidden_act"].as_str() {
        Some("gelu") => "gelu_erf",
        Some(other) => other,
        None => bail!("its configuration has no hidden_act"),
    };
    let ratio = count("intermediate_size")? / count("hidden_size")?;
    Ok(with(words, json!({ "mlp_ratio": ratio, "activation": activation })))
}

/// transformers' ViTs that have more of their own than sizes: those are the published model's.
fn published_vit(config: &Value) -> Result<Map<String, Value>> {
    let config = config.get("vision_config").unwrap_or(config);
    let names = [
        ("image_size", "image_size"),
        ("patch_size", "patch_size"),
        ("embed_dim", "hidden_size"),
        ("depth", "num_hidden_layers"),
        ("num_heads", "num_attention_heads"),
        ("layer_norm_eps", "layer_norm_eps"),
    ];
    renamed(config, &names)
}

/// timm's and transformers' ConvNeXt.
fn convnext(config: &Value) -> Result<Map<String, Value>> {
    match config.get("arguments") {
        Some(arguments) => renamed(arguments, &[("depths", "depths"), ("dims", "dims")]),
        None => renamed(&config["config"], &[("depths", "depths"), ("dims", "hidden_sizes")]),
    }
}

/// timm's `SwinTransformer`.
fn timm_swin(arguments: &Value) -> Result<Map<String, Value>> {
    let size = renamed(
        arguments,
        &[
            ("image_size", "img_size"),
            ("resized_window_size", "resized_window_size"),
        ],
    )?;
    let arguments = with(arguments.as_object().cloned().unwrap_or_default(), Value::Object(size));
    Ok(with(swin(&Value::Object(arguments.clone()))?, Value::Object(arguments)))
}

/// transformers' and torchvision's Swin: Swin's own patches, MLP and eps.
fn swin(config: &Value) -> Result<Map<String, Value>> {
    let own = ["image_size", "embed_dim", "depths", "num_heads", "window_size"].map(|name| (name, name));
    let others = json!({ "patch_size": 4, "mlp_ratio": 4, "norm_eps": 1e-5 });
    Ok(with(renamed(config, &own)?, others))
}

/// transformers' ResNet, which counts a bottleneck's width behind it.
fn resnet(config: &Value) -> Result<Map<String, Value>> {
    let words = renamed(config, &[("layers", "depths"), ("stem_channels", "embedding_size")])?;
    let (block, expansion) = match config["layer_type"].as_str() {
        Some("bottleneck") => ("Bottleneck", 4),
        _ => ("BasicBlock", 1),
    };
    let widths = config["hidden_sizes"]
        .as_array()
        .context("its configuration has no hidden_sizes")?;
    let channels: Vec<_> = widths
        .iter()
        .filter_map(Value::as_u64)
        .map(|width| width / expansion)
        .collect();
    Ok(with(
        words,
        json!({ "block": block, "channels": channels, "norm_eps": 1e-5 }),
    ))
}
