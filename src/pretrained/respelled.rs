//! Names of a Swin's and a ResNet's weights in the spelling of those who published them first.

/// Parts of Hugging Face's names of a Swin, and Microsoft's: as in its files, and as in memory from transformers 5 on.
const SWIN_PARTS: [(&str, &str); 19] = [
    ("swin.", ""),
    ("embeddings.patch_embeddings.projection.", "patch_embed.proj."),
    ("embeddings.norm.", "patch_embed.norm."),
    ("encoder.layers.", "layers."),
    (".layernorm_before.", ".norm1."),
    (".layernorm_after.", ".norm2."),
    (".attention.self.query.", ".attn.q."),
    (".attention.self.key.", ".attn.k."),
    (".attention.self.value.", ".attn.v."),
    (".attention.self.", ".attn."),
    (".attention.output.dense.", ".attn.proj."),
    (".attention.q_proj.", ".attn.q."),
    (".attention.k_proj.", ".attn.k."),
    (".attention.v_proj.", ".attn.v."),
    (".attention.o_proj.", ".attn.proj."),
    (".attention.relative_position_bias.", ".attn."),
    (".intermediate.dense.", ".mlp.fc1."),
    (".output.dense.", ".mlp.fc2."),
    ("classifier.", "head."),
];

/// Microsoft's name of a Swin's weight.
pub(super) fn swin_name(name: &str) -> String {
    if let Some(below) = name.strip_prefix("features.") {
        return torchvision_swin_name(below).unwrap_or_else(|| name.to_string());
    }
    match name.strip_prefix("layernorm.").or(name.strip_prefix("swin.layernorm.")) {
        Some(leaf) => format!("norm.{leaf}"),
        None => replaced(name, &SWIN_PARTS),
    }
}

/// Microsoft's name of what torchvision has below `features`: the embedding, then in turns a stage and a merging.
fn torchvision_swin_name(below: &str) -> Option<String> {
    let (number, rest) = below.split_once('.')?;
    let number: usize = number.parse().ok()?;
    let embedding = |leaf: &str, part: &str| Some(format!("patch_embed.{part}.{leaf}"));
    match (number, number % 2) {
        (0, _) => match rest.split_once('.')? {
            ("0", leaf) => embedding(leaf, "proj"),
            ("2", leaf) => embedding(leaf, "norm"),
            _ => None,
        },
        (stage, 1) => {
            let rest = replaced(rest, &[(".mlp.0.", ".mlp.fc1."), (".mlp.3.", ".mlp.fc2.")]);
            Some(format!("layers.{}.blocks.{rest}", stage / 2))
        }
        (merging, _) => Some(format!("layers.{}.downsample.{rest}", merging / 2 - 1)),
    }
}

/// torchvision's name of a ResNet's weight that Hugging Face has: of `stages.S.layers.B.layer.C`, stage, block and
/// convolution, of which the latter two count from 0 there and the former and the last from 1 here.
pub(super) fn resnet_name(name: &str) -> String {
    let known = |name: &str| {
        let bare = name.strip_prefix("resnet.").unwrap_or(name);
        let unit = |unit: &str, conv: String, norm: String| match unit.split_once('.')? {
            ("convolution", leaf) => Some(format!("{conv}.{leaf}")),
            ("normalization", leaf) => Some(format!("{norm}.{leaf}")),
            _ => None,
        };
        if let Some(leaf) = bare.strip_prefix("classifier.1.") {
            return Some(format!("fc.{leaf}"));
        }
        if let Some(stem) = bare.strip_prefix("embedder.embedder.") {
            return unit(stem, "conv1".into(), "bn1".into());
        }
        let (stage, rest) = bare.strip_prefix("encoder.stages.")?.split_once('.')?;
        let (block, rest) = rest.strip_prefix("layers.")?.split_once('.')?;
        let start = format!("layer{}.{block}", stage.parse::<u8>().ok()?.checked_add(1)?);
        match rest.strip_prefix("shortcut.") {
            Some(rest) => unit(rest, format!("{start}.downsample.0"), format!("{start}.downsample.1")),
            None => {
                let (conv, rest) = rest.strip_prefix("layer.")?.split_once('.')?;
                let conv = conv.parse::<u8>().ok()?.checked_add(1)?;
                unit(rest, format!("{start}.conv{conv}"), format!("{start}.bn{conv}"))
            }
        }
    };
    known(name).unwrap_or_else(|| name.to_string())
}

/// The name with each of the parts replaced, in their order.
pub(super) fn replaced(name: &str, parts: &[(&str, &str)]) -> String {
    parts
        .iter()
        .fold(name.to_string(), |name, (from, to)| name.replace(from, to))
}

/// Hugging Face's name of what Microsoft calls a Swin's weight, with `attn.q`, `attn.k` and `attn.v` apart.
pub(super) fn hugging_faces_swin_name(name: &str) -> String {
    const PARTS: [(&str, &str); 10] = [
        ("patch_embed.proj.", "embeddings.patch_embeddings.projection."),
        ("patch_embed.norm.", "embeddings.norm."),
        (".norm1.", ".layernorm_before."),
        (".norm2.", ".layernorm_after."),
        (".attn.q.", ".attention.self.query."),
        (".attn.k.", ".attention.self.key."),
        (".attn.v.", ".attention.self.value."),
        (".attn.proj.", ".attention.output.dense."),
        (".attn.", ".attention.self."),
        (".mlp.fc2.", ".output.dense."),
    ];
    if let Some(leaf) = name.strip_prefix("head.") {
        return format!("classifier.{leaf}");
    }
    if let Some(leaf) = name.strip_prefix("norm.") {
        return format!("swin.layernorm.{leaf}");
    }
    let name = replaced(name, &PARTS).replace(".mlp.fc1.", ".intermediate.dense.");
    match name.strip_prefix("layers.") {
        Some(below) => format!("swin.encoder.layers.{below}"),
        None => format!("swin.{name}"),
    }
}

/// Hugging Face's name of what torchvision calls a ResNet's weight.
pub(super) fn hugging_faces_resnet_name(name: &str) -> String {
    let known = |name: &str| {
        let number = |text: &str| text.parse::<usize>().ok()?.checked_sub(1);
        let unit = |place: String, part: &str, leaf: &str| match part {
            "conv" => Some(format!("resnet.{place}.convolution.{leaf}")),
            "bn" => Some(format!("resnet.{place}.normalization.{leaf}")),
            _ => None,
        };
        let (module, rest) = name.split_once('.')?;
        match module {
            "fc" => return Some(format!("classifier.1.{rest}")),
            "conv1" | "bn1" => return unit("embedder.embedder".into(), module.trim_end_matches('1'), rest),
            _ => {}
        }
        let stage = number(module.strip_prefix("layer")?)?;
        let (block, rest) = rest.split_once('.')?;
        let place = format!("encoder.stages.{stage}.layers.{block}");
        let (module, leaf) = rest.rsplit_once('.')?;
        match module {
            "downsample.0" => unit(format!("{place}.shortcut"), "conv", leaf),
            "downsample.1" => unit(format!("{place}.shortcut"), "bn", leaf),
            _ => {
                let part = module.trim_end_matches(|char: char| char.is_ascii_digit());
                let layer = number(module.strip_prefix(part)?)?;
                unit(format!("{place}.layer.{layer}"), part, leaf)
            }
        }
    };
    known(name).unwrap_or_else(|| name.to_string())
}

/// Hugging Face's name of a ConvNeXt's weight of that key, of the second version or the first.
pub(super) fn hugging_faces_convnext_name(key: &str, second: bool) -> String {
    const PARTS: [(&str, &str); 9] = [
        ("stem.0.", "embeddings.patch_embeddings."),
        ("stem.1.", "embeddings.layernorm."),
        (".downsample.", ".downsampling_layer."),
        (".blocks.", ".layers."),
        (".conv_dw.", ".dwconv."),
        (".norm.", ".layernorm."),
        (".mlp.fc1.", ".pwconv1."),
        (".mlp.fc2.", ".pwconv2."),
        (".mlp.grn.", ".grn."),
    ];
    let whole = if second { "convnextv2" } else { "convnext" };
    if let Some(leaf) = key.strip_prefix("head.") {
        return format!("classifier.{leaf}");
    }
    if let Some(leaf) = key.strip_prefix("norm.") {
        return format!("{whole}.layernorm.{leaf}");
    }
    let name = replaced(key, &PARTS);
    let name = match name.strip_suffix(".gamma") {
        Some(block) => format!("{block}.layer_scale_parameter"),
        None => name,
    };
    match name.strip_prefix("stages.") {
        Some(below) => format!("{whole}.encoder.stages.{below}"),
        None => format!("{whole}.{name}"),
    }
}
