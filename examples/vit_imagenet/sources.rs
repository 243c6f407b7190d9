//! `--print-config=sources`: the recipe's and the network's values beside the place where each was read.

use crate::flags::Flags;
use crate::network::Network;
use crate::recipe::{Place, Preset, MASKSUB};
use anyhow::Result;
use masksub::models::{convnext, resnet, swin, vit, Source};
use std::fmt::Write;

const DEIT: Place = Place::of("facebookresearch/deit", "README_revenge.md");
const DEIT_MAIN: Place = Place::of("facebookresearch/deit", "main.py");
const DINOV2: Place = Place::of("facebookresearch/dinov2", "dinov2/data/transforms.py");
const DINOV3: Place = Place::of("transformers", "models/dinov3_vit/image_processing_dinov3_vit.py");
const TIMM_BEIT: Place = Place::of("timm", "models/beit.py");
const TIMM_EVA: Place = Place::of("timm", "models/eva.py");
const CONVNEXT: Place = Place::of("facebookresearch/ConvNeXt", "datasets.py");
const SIGLIP: Place = Place::of("transformers", "models/siglip/image_processing_siglip.py");
const MAE: Place = Place::of("facebookresearch/mae", "util/datasets.py");
const FT_CLIP: Place = Place::of("LightDXY/FT-CLIP", "datasets.py");
const CLIP: Place = Place::of("openai/CLIP", "clip/clip.py");
const HF_CLIP: Place = Place::of("transformers", "models/clip/image_processing_clip.py");
const HF_VIT: Place = Place::of("transformers", "models/vit/image_processing_vit.py");
const HF: Place = Place::of("transformers", "utils/constants.py");
const RSB: Place = Place::of("ResNet strikes back", "arXiv 2110.00476, table 2, A2");
const SWIN: Place = Place::of("microsoft/Swin-Transformer", "data/build.py");
const TIMM: Place = Place::of("timm", "data/constants.py");
const TRANSFORMS: Place = Place::of("timm", "data/transforms_factory.py");

const CLIP_MEAN: &str = "[0.48145466, 0.4578275, 0.40821073]";
const CLIP_STD: &str = "[0.26862954, 0.26130258, 0.27577711]";
const HALF: &str = "[0.5, 0.5, 0.5]";

/// A line for each value with its source, and one for each difference that is left.
pub fn print(flags: &Flags) -> Result<String> {
    let (network, recipes) = (flags.network(1)?, flags.presets());
    let networks = network_presets(flags.model(), network.input().image_size).into_iter();
    let networks = networks.filter(|preset| recipes.iter().all(|recipes| recipes.flag != preset.flag));
    let mut rows: Vec<[String; 3]> = vec![];
    let common = if recipes.is_empty() {
        vec![]
    } else {
        common_presets(&network)
    };
    for preset in networks.chain(recipes.iter().copied()).chain(common) {
        let given = flags.given.iter().any(|flag| flag == preset.flag);
        let value = if preset.value.is_empty() { "none" } else { preset.value };
        let replicas = flags.training.replicas.to_string();
        let (value, source) = if given {
            ("as given".into(), format!("not {value}, which is {preset}"))
        } else if preset.flag == "replicas" && value != replicas {
            (
                replicas,
                format!("for the --batch-size that is given; {value} for the recipe's is {preset}"),
            )
        } else {
            (value.into(), preset.to_string())
        };
        rows.push([preset.flag.into(), value, source]);
    }
    if let Some(Source { project, file, option }) = architecture(flags.model()) {
        rows.push([
            "model".into(),
            flags.model().into(),
            format!("{project} {file}: {option}"),
        ]);
    }
    let width = |column: usize| rows.iter().map(|row| row[column].len()).max().unwrap_or(0);
    let (name_width, value_width) = (width(0), width(1));
    let mut text = String::new();
    for [name, value, source] in &rows {
        writeln!(text, "{name:name_width$}  {value:value_width$}  {source}")?;
    }
    let differences = flags.recipe.differences();
    if !differences.is_empty() {
        writeln!(text, "\nWhat differs from the source:")?;
        differences
            .iter()
            .try_for_each(|difference| writeln!(text, "- {difference}"))?;
    }
    Ok(text)
}

/// Where the size was read.
fn architecture(model: &str) -> Option<Source> {
    let all = [
        vit::Config::SOURCES,
        swin::Config::SOURCES,
        convnext::Config::SOURCES,
        resnet::Config::SOURCES,
    ]
    .concat();
    all.into_iter()
        .find(|(name, _)| *name == model)
        .map(|(_, source)| source)
}

/// What all recipes have, of MaskSub and of whatever their images are cut by.
fn common_presets(network: &Network) -> Vec<Preset> {
    let mut presets = vec![
        TRANSFORMS.says(
            "augment",
            "resized-crop",
            "RandomResizedCropAndInterpolation(scale=(0.08, 1.0), ratio=(3/4, 4/3))",
        ),
        TRANSFORMS.says("flip", "0.5", "hflip=0.5"),
        MASKSUB.says("branch", "masksub", "mask ratio 50%, half weight on each branch"),
        MASKSUB.says("mask-ratio", "0.5", "mask ratio: 0.5"),
        MASKSUB.says("sub-weight", "0.5", "half weight on each branch: 0.5"),
    ];
    if !matches!(network, Network::Vit(_)) {
        presets.push(MASKSUB.says("mask-block", "32", "blocks of 32 x 32 pixels: 32"));
    }
    presets
}

/// What a network of that name asks of its input, in evaluation.
fn network_presets(model: &str, image_size: usize) -> Vec<Preset> {
    let crop = match model.split_once('-').map_or(model, |(family, _)| family) {
        "deit3" => DEIT.says("crop-pct", "1", "--eval-crop-ratio 1.0"),
        "deit" => DEIT_MAIN.says("crop-pct", "0.875", "--eval-crop-ratio default=0.875"),
        "dinov2" => DINOV2.says("crop-pct", "0.875", "crop_size and resize_size: 224 / 256"),
        "dinov3" => DINOV3.says("crop-pct", "1", "resize to the input's size, no crop: 1"),
        "beitv2" => TIMM_BEIT.says("crop-pct", "0.9", "_cfg: crop_pct=.9"),
        "eva02" => TIMM_EVA.says("crop-pct", "0.9", "_cfg: crop_pct=.9"),
        "convnext" | "convnextv2" => CONVNEXT.says("crop-pct", "0.875", "args.crop_pct = 224 / 256"),
        "siglip" => SIGLIP.says("crop-pct", "1", "resize to the input's size, no crop: 1"),
        "mae" if image_size <= 224 => MAE.says("crop-pct", "0.875", "crop_pct = 224 / 256"),
        "mae" => MAE.says("crop-pct", "1", "crop_pct = 1.0"),
        "ft" => FT_CLIP.says("crop-pct", "1", "args.crop_pct = 1.0"),
        "clip" => CLIP.says("crop-pct", "1", "Resize(n_px), CenterCrop(n_px): 1"),
        "hf" if model.starts_with("hf-clip") => HF_CLIP.says("crop-pct", "1", "size and crop_size: 224 / 224"),
        "hf" => HF_VIT.says("crop-pct", "1", "resize to the input's size, no crop: 1"),
        "swin" => SWIN.says(
            "crop-pct",
            "0.875",
            "(256 / 224) * IMG_SIZE, CenterCrop(IMG_SIZE): 224 / 256",
        ),
        family if family.starts_with("resnet") => RSB.says("crop-pct", "0.95", "Test crop ratio 0.95"),
        _ => return vec![],
    };
    let published = match model {
        "deit3-base" | "deit3-large" => Some(DEIT.says("image-size", "192", "--input-size 192")),
        "deit3-small" => Some(DEIT.says("image-size", "224", "--input-size 224")),
        "deit3-huge" => Some(DEIT.says("image-size", "160", "--input-size 160")),
        _ => None,
    };
    let [mean, std] = if model.starts_with("hf-clip") {
        [
            HF.says("mean", CLIP_MEAN, "OPENAI_CLIP_MEAN"),
            HF.says("std", CLIP_STD, "OPENAI_CLIP_STD"),
        ]
    } else if model.starts_with("hf-") || model.starts_with("siglip-") {
        [
            HF.says("mean", HALF, "IMAGENET_STANDARD_MEAN"),
            HF.says("std", HALF, "IMAGENET_STANDARD_STD"),
        ]
    } else if model.starts_with("eva02-") {
        [
            TIMM.says("mean", CLIP_MEAN, "OPENAI_CLIP_MEAN"),
            TIMM.says("std", CLIP_STD, "OPENAI_CLIP_STD"),
        ]
    } else if model.contains("clip") {
        [
            FT_CLIP.says("mean", CLIP_MEAN, "mean"),
            FT_CLIP.says("std", CLIP_STD, "std"),
        ]
    } else {
        let [mean, std] = ["[0.485, 0.456, 0.406]", "[0.229, 0.224, 0.225]"];
        [
            TIMM.says("mean", mean, "IMAGENET_DEFAULT_MEAN"),
            TIMM.says("std", std, "IMAGENET_DEFAULT_STD"),
        ]
    };
    published.into_iter().chain([crop, mean, std]).collect()
}

#[cfg(test)]
mod tests;
