//! The training recipes of the paper, as flags: what each sets for a model, and where each value was read.
//!
//! MaskSub (arXiv 2306.11339) keeps each recipe as it is published and adds the sub-branch. The values are those of the
//! published code of DeiT-III (arXiv 2204.07118), MAE (2111.06377), FT-CLIP (2212.06138), ResNet strikes back (A2 of
//! 2110.00476) and Swin (2103.14030), file by file. What input each model takes, its normalisation and the share that
//! evaluation crops are the model's, not the recipe's: see [`network`](crate::network).

mod deit3;
mod ft_clip;
mod mae;
mod rsb;
mod source;
mod swin;
#[cfg(test)]
mod tests;

use clap::ValueEnum;
pub use source::{Place, Preset, MASKSUB};

/// Whose settings are the defaults.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Recipe {
    /// AdamW on plain images: what the digits are trained by
    Plain,
    /// DeiT-III on ImageNet-1k for 400 epochs; with --epochs 800 its longer version
    Deit3,
    /// DeiT-III's fine-tuning at 224 pixels
    Deit3Finetune,
    /// MAE's fine-tuning
    MaeFinetune,
    /// FT-CLIP's fine-tuning
    ClipFinetune,
    /// ResNet strikes back, A2
    ResnetRsb,
    /// Swin on ImageNet-1k
    Swin,
}

/// The models of the recipes, smallest first: where a value differs by model, values stand in this order.
const DEIT3: [&str; 4] = ["deit3-small", "deit3-base", "deit3-large", "deit3-huge"];
const MAE: [&str; 3] = ["mae-base", "mae-large", "mae-huge"];
const FT_CLIP: [&str; 4] = ["ft-clip-base", "ft-clip-base-384", "ft-clip-large", "ft-clip-large-336"];
const RESNET: [&str; 3] = ["resnet50", "resnet101", "resnet152"];
const SWIN: [&str; 3] = ["swin-tiny", "swin-small", "swin-base"];

/// What is asked for beside the recipe, where its presets depend on it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Asked {
    pub epochs: Option<usize>,
    pub batch_size: Option<usize>,
}

impl Recipe {
    /// The networks that somebody has trained by it and published, the smallest first.
    pub fn models(self) -> &'static [&'static str] {
        match self {
            Self::Plain => &[],
            Self::Deit3 => &DEIT3,
            // S is trained at 224 pixels from the start.
            Self::Deit3Finetune => &DEIT3[1..],
            Self::MaeFinetune => &MAE,
            Self::ClipFinetune => &FT_CLIP,
            Self::ResnetRsb => &RESNET,
            Self::Swin => &SWIN,
        }
    }

    /// A warning where nobody has published such a model trained by it.
    pub fn warning(self, model: &str) -> Option<String> {
        let first = self.models().first()?;
        (!self.models().contains(&model))
            .then(|| format!("nobody has published {model} trained by this recipe: it gets the settings of {first}"))
    }

    /// What the recipe sets, with `model`, for as many epochs as are asked for. A model that nobody trained by it has the
    /// values of the smallest that somebody did.
    pub fn presets(self, model: &str, epochs: Option<usize>) -> Vec<Preset> {
        let known = self.models().iter().position(|name| *name == model);
        let size = known.unwrap_or(0);
        match self {
            Self::Plain => vec![],
            Self::Deit3 => deit3::training(size, epochs.is_some_and(|epochs| epochs >= 800)),
            Self::Deit3Finetune => deit3::finetuning(size, DEIT3.contains(&model)),
            Self::MaeFinetune => mae::finetuning(size),
            Self::ClipFinetune => ft_clip::finetuning(known),
            Self::ResnetRsb => rsb::A2.to_vec(),
            Self::Swin => swin::training(size),
        }
    }

    /// In what a run by it still differs from its source, whatever the model.
    pub fn differences(self) -> &'static [&'static str] {
        match self {
            Self::Plain => &[],
            Self::Deit3 => &deit3::DIFFERENCES,
            Self::Deit3Finetune => &deit3::FINETUNE_DIFFERENCES,
            Self::MaeFinetune => &mae::DIFFERENCES,
            Self::ClipFinetune => &ft_clip::DIFFERENCES,
            Self::ResnetRsb => &rsb::DIFFERENCES,
            Self::Swin => &swin::DIFFERENCES,
        }
    }

    /// The flags that it stands for.
    pub fn flags(self, model: &str, asked: Asked) -> Vec<String> {
        let presets = self.presets(model, asked.epochs);
        let flag = |preset: &Preset| [format!("--{}", preset.flag), preset.value.to_string()];
        let mut flags: Vec<String> = presets.iter().flat_map(flag).filter(|word| !word.is_empty()).collect();
        if let Some(replicas) = asked.batch_size.and_then(|batch| replicas_of(&presets, batch)) {
            flags.extend(["--replicas".to_string(), replicas.to_string()]);
        }
        flags
    }
}

/// With another batch than the recipe's, as many replicas as make each of them as large as there; one where that cannot be.
fn replicas_of(presets: &[Preset], batch: usize) -> Option<usize> {
    let value = |flag: &str| -> Option<usize> {
        let preset = presets.iter().find(|preset| preset.flag == flag)?;
        preset.value.parse().ok()
    };
    let each = value("batch-size")? / value("replicas")?;
    Some(if batch.is_multiple_of(each) {
        (batch / each).max(1)
    } else {
        1
    })
}
