//! Formats of checkpoints, told from the names and shapes of their tensors.

use std::collections::BTreeMap;
use std::fmt;

use super::stored::Stored;

/// A project's names and shapes, as a checkpoint has them.
///
/// `Display` gives the names in brackets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Format {
    /// timm's `VisionTransformer` (`timm-vit`), and facebookresearch's DeiT, which has the same names.
    TimmVit,
    /// timm's DeiT-III (`timm-deit3`): LayerScale as `ls1.gamma`, no position for the class token.
    TimmDeit3,
    /// timm's CLIP vision tower (`timm-clip`): `norm_pre`.
    TimmClip,
    /// timm's Swin (`timm-swin`): the merging stands in front of its stage.
    TimmSwin,
    /// timm's BEiT and BEiT v2 (`timm-beit`), and Microsoft's: relative positions in every block.
    TimmBeit,
    /// timm's EVA-02 and DINOv3 (`timm-eva`), which have rotary positions.
    TimmEva,
    /// facebookresearch's DeiT-III (`facebook-deit3`): LayerScale as `gamma_1`.
    FacebookDeit3,
    /// facebookresearch's MAE after pre-training (`mae-pretrained`), with its decoder or without: there is no head.
    MaePretrained,
    /// facebookresearch's MAE after fine-tuning with mean pooling (`mae-finetuned`): `fc_norm`. (With the class token,
    /// it is a `timm-vit`.)
    MaeFinetuned,
    /// Hugging Face's ViT (`hf-vit`), and candle-transformers'.
    HfVit,
    /// Hugging Face's DeiT with a distillation token (`hf-deit`), with one head or both.
    HfDeit,
    /// Hugging Face's DINOv2 (`hf-dinov2`), with registers or without.
    HfDinov2,
    /// Hugging Face's DINOv3 ViT (`hf-dinov3`).
    HfDinov3,
    /// Hugging Face's SigLIP (`hf-siglip`), all of it, the vision tower, or `SiglipForImageClassification`, whose
    /// `classifier` reads the mean of the patch tokens
    /// ([`Pool::FinalNormThenMean`](crate::models::vit::Pool::FinalNormThenMean)).
    HfSiglip,
    /// Hugging Face's CLIP (`hf-clip`), all of it or the vision tower, and candle-transformers'.
    HfClip,
    /// Hugging Face's `CLIPForImageClassification` (`hf-clip-classifier`): its `classifier` reads the mean of the patch
    /// tokens without a norm ([`Pool::MeanOnly`](crate::models::vit::Pool::MeanOnly)), though the file has
    /// `post_layernorm`.
    HfClipClassifier,
    /// OpenCLIP's and OpenAI's CLIP (`open-clip`). Names do not tell OpenAI's quick GELU: say it in the configuration.
    OpenClip,
    /// Microsoft's Swin (`microsoft-swin`), and timm's before 0.9.
    MicrosoftSwin,
    /// timm's ConvNeXt and ConvNeXt V2 (`timm-convnext`).
    TimmConvNeXt,
    /// facebookresearch's ConvNeXt and ConvNeXt V2 (`facebook-convnext`).
    FacebookConvNeXt,
    /// Hugging Face's ConvNeXt and ConvNeXt V2 (`hf-convnext`).
    HfConvNeXt,
    /// timm's and torchvision's ResNet (`resnet`), and candle-transformers'.
    ResNet,
}

/// An architecture. Within it, checkpoint and model may have different names for the same weight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Family {
    Vit,
    Swin,
    ConvNeXt,
    ResNet,
}

impl Family {
    pub(super) const ALL: [Self; 4] = [Self::Vit, Self::Swin, Self::ConvNeXt, Self::ResNet];

    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Vit => "ViT",
            Self::Swin => "Swin",
            Self::ConvNeXt => "ConvNeXt",
            Self::ResNet => "ResNet",
        }
    }
}

impl Format {
    pub(super) const ALL: [Self; 22] = [
        Self::TimmVit,
        Self::TimmDeit3,
        Self::TimmClip,
        Self::TimmSwin,
        Self::TimmBeit,
        Self::TimmEva,
        Self::FacebookDeit3,
        Self::MaePretrained,
        Self::MaeFinetuned,
        Self::HfVit,
        Self::HfDeit,
        Self::HfDinov2,
        Self::HfDinov3,
        Self::HfSiglip,
        Self::HfClip,
        Self::HfClipClassifier,
        Self::OpenClip,
        Self::MicrosoftSwin,
        Self::TimmConvNeXt,
        Self::FacebookConvNeXt,
        Self::HfConvNeXt,
        Self::ResNet,
    ];

    /// The name, as `Display` gives it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::TimmVit => "timm-vit",
            Self::TimmDeit3 => "timm-deit3",
            Self::TimmClip => "timm-clip",
            Self::TimmSwin => "timm-swin",
            Self::TimmBeit => "timm-beit",
            Self::TimmEva => "timm-eva",
            Self::FacebookDeit3 => "facebook-deit3",
            Self::MaePretrained => "mae-pretrained",
            Self::MaeFinetuned => "mae-finetuned",
            Self::HfVit => "hf-vit",
            Self::HfDeit => "hf-deit",
            Self::HfDinov2 => "hf-dinov2",
            Self::HfDinov3 => "hf-dinov3",
            Self::HfSiglip => "hf-siglip",
            Self::HfClip => "hf-clip",
            Self::HfClipClassifier => "hf-clip-classifier",
            Self::OpenClip => "open-clip",
            Self::MicrosoftSwin => "microsoft-swin",
            Self::TimmConvNeXt => "timm-convnext",
            Self::FacebookConvNeXt => "facebook-convnext",
            Self::HfConvNeXt => "hf-convnext",
            Self::ResNet => "resnet",
        }
    }

    pub(super) const fn family(self) -> Family {
        match self {
            Self::TimmSwin | Self::MicrosoftSwin => Family::Swin,
            Self::TimmConvNeXt | Self::FacebookConvNeXt | Self::HfConvNeXt => Family::ConvNeXt,
            Self::ResNet => Family::ResNet,
            _ => Family::Vit,
        }
    }

    /// The format of these tensors, which lie below `key` in their file; `None` for one that is not known.
    pub(super) fn recognise(tensors: &BTreeMap<String, Stored>, key: Option<&str>) -> Option<Self> {
        let has = |name: &str| tensors.contains_key(name);
        let has_below = |prefix: &str| tensors.keys().any(|name| name.starts_with(prefix));
        // Each is told by weights that its relatives (SwinV2, ResNets with a deep stem) do not have.
        if has("visual.conv1.weight") && has_below("visual.transformer.resblocks.0.") {
            return Some(Self::OpenClip);
        }
        if ["", "clip."]
            .iter()
            .any(|prefix| has(&format!("{prefix}vision_model.pre_layrnorm.weight")))
        {
            let classifies = has("classifier.weight");
            return Some(if classifies {
                Self::HfClipClassifier
            } else {
                Self::HfClip
            });
        }
        let has_in = |wholes: &[&str], name: &str| wholes.iter().any(|whole| has(&format!("{whole}{name}")));
        if has_in(&["", "deit."], "embeddings.distillation_token") {
            return Some(Self::HfDeit);
        }
        if has_in(&["", "vit."], "encoder.layer.0.layernorm_before.weight") {
            return Some(Self::HfVit);
        }
        if has_in(
            &["", "dinov2.", "dinov2_with_registers."],
            "encoder.layer.0.layer_scale1.lambda1",
        ) {
            return Some(Self::HfDinov2);
        }
        if has("embeddings.register_tokens") && has("layer.0.layer_scale1.lambda1") {
            return Some(Self::HfDinov3);
        }
        if has("vision_model.encoder.layers.0.layer_norm1.weight")
            && has("vision_model.embeddings.patch_embedding.bias")
        {
            return Some(Self::HfSiglip);
        }
        if has("patch_embed.proj.weight") && has("layers.0.blocks.0.attn.relative_position_bias_table") {
            let is_timm =
                has_below("head.fc.") || has_below("layers.1.downsample.") && !has_below("layers.0.downsample.");
            return Some(if is_timm { Self::TimmSwin } else { Self::MicrosoftSwin });
        }
        if has("stem.0.weight") && has("stages.0.blocks.0.conv_dw.weight") {
            return Some(Self::TimmConvNeXt);
        }
        if has("downsample_layers.0.0.weight") && has("stages.0.0.dwconv.weight") {
            return Some(Self::FacebookConvNeXt);
        }
        if has_in(
            &["", "convnext.", "convnextv2."],
            "encoder.stages.0.layers.0.dwconv.weight",
        ) {
            return Some(Self::HfConvNeXt);
        }
        let projects = has("blocks.0.attn.qkv.weight") || has("blocks.0.attn.q_proj.weight");
        if has("patch_embed.proj.weight") && projects {
            return Some(Self::in_timms_names(tensors, key));
        }
        (has("conv1.weight") && has("bn1.running_mean") && has("layer1.0.conv1.weight")).then_some(Self::ResNet)
    }

    /// The format of a ViT that has timm's names.
    fn in_timms_names(tensors: &BTreeMap<String, Stored>, key: Option<&str>) -> Self {
        let has = |name: &str| tensors.contains_key(name);
        let has_below = |prefix: &str| tensors.keys().any(|name| name.starts_with(prefix));
        let positions = tensors
            .get("pos_embed")
            .and_then(|stored| stored.shape.iter().rev().nth(1));
        let square = positions.is_some_and(|count| super::square(*count).is_some());
        // What facebookresearch publishes of MAE's pre-training has no decoder, and lies below `model`.
        let encoder = key == Some("model") && !has_below("head.");
        match () {
            _ if has("blocks.0.attn.relative_position_bias_table") => Self::TimmBeit,
            _ if has("blocks.0.attn.q_bias") || has("blocks.0.attn.q_proj.weight") => Self::TimmEva,
            _ if has("reg_token") && positions.is_none() => Self::TimmEva,
            _ if has_below("decoder_") => Self::MaePretrained,
            _ if has("fc_norm.weight") && !has("norm.weight") => Self::MaeFinetuned,
            _ if has("norm_pre.weight") => Self::TimmClip,
            _ if has("blocks.0.gamma_1") => Self::FacebookDeit3,
            _ if has("blocks.0.ls1.gamma") && square && !has("reg_token") => Self::TimmDeit3,
            _ if encoder => Self::MaePretrained,
            _ => Self::TimmVit,
        }
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}
