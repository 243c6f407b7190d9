//! Formats of checkpoints, told from the names and shapes of their tensors.

use std::collections::BTreeMap;
use std::fmt;

use super::names::POSITION_TABLE;
use super::resize::Resize;
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
    /// Hugging Face's ViT-MAE after pre-training (`hf-mae-pretrained`), with its decoder: there is no head.
    HfMaePretrained,
    /// Hugging Face's Swin (`hf-swin`).
    HfSwin,
    /// Hugging Face's ResNet (`hf-resnet`).
    HfResNet,
    /// torchvision's ViT (`torchvision-vit`).
    TorchvisionVit,
    /// torchvision's Swin (`torchvision-swin`).
    TorchvisionSwin,
    /// Google's ViT (`google-vit`), in the `.npz` archives of `vision_transformer`.
    GoogleVit,
    /// Google's ViT and SigLIP (`big-vision`), in the `.npz` archives of `big_vision`.
    BigVision,
    /// mmpretrain's ViT (`mmpretrain-vit`), with its head or the backbone alone.
    MmpretrainVit,
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
    pub(super) const ALL: [Self; 30] = [
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
        Self::HfMaePretrained,
        Self::HfSwin,
        Self::HfResNet,
        Self::TorchvisionVit,
        Self::TorchvisionSwin,
        Self::GoogleVit,
        Self::BigVision,
        Self::MmpretrainVit,
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
            Self::HfMaePretrained => "hf-mae-pretrained",
            Self::HfSwin => "hf-swin",
            Self::HfResNet => "hf-resnet",
            Self::TorchvisionVit => "torchvision-vit",
            Self::TorchvisionSwin => "torchvision-swin",
            Self::GoogleVit => "google-vit",
            Self::BigVision => "big-vision",
            Self::MmpretrainVit => "mmpretrain-vit",
        }
    }

    pub(super) const fn family(self) -> Family {
        match self {
            Self::TimmSwin | Self::MicrosoftSwin | Self::HfSwin | Self::TorchvisionSwin => Family::Swin,
            Self::TimmConvNeXt | Self::FacebookConvNeXt | Self::HfConvNeXt => Family::ConvNeXt,
            Self::ResNet | Self::HfResNet => Family::ResNet,
            _ => Family::Vit,
        }
    }

    /// How its writer resizes positions, or tables of relative ones, when it loads them for another grid: those of a
    /// model with registers or without.
    pub(super) fn resize(self, key: &str, registers: bool) -> Resize {
        match self {
            Self::TimmSwin | Self::TimmBeit if key.ends_with(POSITION_TABLE) => Resize::Geometric,
            // timm/layers/pos_embed.py, open_clip/model.py (resize_pos_embed)
            Self::TimmVit | Self::TimmDeit3 | Self::TimmClip | Self::TimmEva | Self::OpenClip => {
                Resize::AntialiasedBicubic
            }
            // transformers/models/dinov2_with_registers/modeling_dinov2_with_registers.py (interpolate_pos_encoding)
            // says antialias=True, which that of plain DINOv2 does not.
            Self::HfDinov2 if registers => Resize::AntialiasedBicubic,
            // torchvision/models/vision_transformer.py (interpolate_embeddings)
            Self::TorchvisionVit => Resize::AlignedBicubic,
            // vit_jax/checkpoint.py (interpolate_posembed), big_vision/models/vit.py (resample_posemb):
            // scipy.ndimage.zoom of order 1
            Self::GoogleVit | Self::BigVision => Resize::AlignedLinear,
            _ => Resize::Bicubic,
        }
    }

    /// The format of the tensors behind `prefix`, which lie below `key` in their file, and the start of its names that
    /// these lack; `None` for one that is not known.
    pub(super) fn recognise(
        tensors: &BTreeMap<String, Stored>,
        prefix: &str,
        key: Option<&str>,
    ) -> Option<(Self, &'static str)> {
        let names = Behind { tensors, prefix };
        // Each is told by weights that its relatives (SwinV2, ResNets with a deep stem) do not have.
        if names.has("visual.conv1.weight") && names.any_below("visual.transformer.resblocks.0.") {
            return Some((Self::OpenClip, ""));
        }
        if names.has("class_embedding") && names.has("ln_pre.weight") && names.any_below("transformer.resblocks.0.") {
            return Some((Self::OpenClip, "visual."));
        }
        let of_vit = names.hugging_faces().or_else(|| names.timms(key));
        of_vit.or_else(|| names.swins()).or_else(|| names.others())
    }
}

/// The names behind a prefix.
struct Behind<'a> {
    tensors: &'a BTreeMap<String, Stored>,
    prefix: &'a str,
}

impl Behind<'_> {
    fn get(&self, name: &str) -> Option<&Stored> {
        self.tensors.get(&format!("{}{name}", self.prefix))
    }

    fn has(&self, name: &str) -> bool {
        self.get(name).is_some()
    }

    /// Whether there is a name that begins so.
    fn any_below(&self, start: &str) -> bool {
        let start = format!("{}{start}", self.prefix);
        let next = self.tensors.range(start.clone()..).next();
        next.is_some_and(|(name, _)| name.starts_with(&start))
    }

    /// Hugging Face's ViTs.
    fn hugging_faces(&self) -> Option<(Format, &'static str)> {
        let starts = |starts: &[&str], name: &str| starts.iter().any(|start| self.has(&format!("{start}{name}")));
        if starts(&["", "clip."], "vision_model.pre_layrnorm.weight") {
            let classifies = self.has("classifier.weight");
            return Some(if classifies {
                (Format::HfClipClassifier, "")
            } else {
                (Format::HfClip, "")
            });
        }
        if self.has("pre_layrnorm.weight") && self.has("embeddings.class_embedding") {
            return Some((Format::HfClip, "vision_model."));
        }
        if starts(&["", "deit."], "embeddings.distillation_token") {
            return Some((Format::HfDeit, ""));
        }
        if starts(
            &["", "dinov2.", "dinov2_with_registers."],
            "encoder.layer.0.layer_scale1.lambda1",
        ) {
            return Some((Format::HfDinov2, ""));
        }
        if self.has("embeddings.register_tokens") && self.has("layer.0.layer_scale1.lambda1") {
            return Some((Format::HfDinov3, ""));
        }
        if self.has("vision_model.encoder.layers.0.layer_norm1.weight")
            && self.has("vision_model.embeddings.patch_embedding.bias")
        {
            return Some((Format::HfSiglip, ""));
        }
        // The tower in the names of transformers 5.
        if self.has("encoder.layers.0.layer_norm1.weight") && self.has("embeddings.patch_embedding.bias") {
            return Some((Format::HfSiglip, "vision_model."));
        }
        let vit = |name: &str| starts(&["", "vit."], name);
        let block = vit("encoder.layer.0.layernorm_before.weight") || vit("layers.0.layernorm_before.weight");
        // BEiT and Data2Vec have scales.
        if !block || vit("encoder.layer.0.lambda_1") || !vit("embeddings.cls_token") {
            return None;
        }
        let pretrained = self.any_below("decoder.decoder_");
        Some(if pretrained {
            (Format::HfMaePretrained, "")
        } else {
            (Format::HfVit, "")
        })
    }

    /// The ViTs with timm's names.
    fn timms(&self, key: Option<&str>) -> Option<(Format, &'static str)> {
        let projects = self.has("blocks.0.attn.qkv.weight") || self.has("blocks.0.attn.q_proj.weight");
        if !self.has("patch_embed.proj.weight") || !projects {
            return None;
        }
        let positions = self
            .get("pos_embed")
            .and_then(|stored| stored.shape.iter().rev().nth(1));
        let square = positions.is_some_and(|count| super::square(*count).is_some());
        let registers = self.has("reg_token");
        // What facebookresearch publishes of MAE's pre-training has no decoder, and lies below `model`.
        let encoder = key == Some("model") && !self.any_below("head.");
        let format = match () {
            _ if self.has("blocks.0.attn.relative_position_bias_table") => Format::TimmBeit,
            _ if self.has("blocks.0.attn.q_bias") || self.has("blocks.0.attn.q_proj.weight") => Format::TimmEva,
            _ if registers && positions.is_none() => Format::TimmEva,
            _ if self.any_below("decoder_") => Format::MaePretrained,
            _ if self.has("fc_norm.weight") && !self.has("norm.weight") => Format::MaeFinetuned,
            _ if self.has("norm_pre.weight") => Format::TimmClip,
            _ if self.has("blocks.0.gamma_1") => Format::FacebookDeit3,
            _ if self.has("blocks.0.ls1.gamma") && square && !registers => Format::TimmDeit3,
            _ if encoder => Format::MaePretrained,
            _ => Format::TimmVit,
        };
        Some((format, ""))
    }

    fn swins(&self) -> Option<(Format, &'static str)> {
        if self.has("patch_embed.proj.weight") && self.has("layers.0.blocks.0.attn.relative_position_bias_table") {
            let is_timm = self.any_below("head.fc.")
                || self.any_below("layers.1.downsample.") && !self.any_below("layers.0.downsample.");
            return Some((
                if is_timm {
                    Format::TimmSwin
                } else {
                    Format::MicrosoftSwin
                },
                "",
            ));
        }
        if self.has("features.0.0.weight") && self.has("features.1.0.attn.relative_position_bias_table") {
            return Some((Format::TorchvisionSwin, ""));
        }
        let tables = ["self", "relative_position_bias"].iter().any(|part| {
            let table = format!("encoder.layers.0.blocks.0.attention.{part}.relative_position_bias_table");
            self.has(&table) || self.has(&format!("swin.{table}"))
        });
        tables.then_some((Format::HfSwin, ""))
    }

    fn convnexts(&self) -> Option<Format> {
        let hugging_faces = ["", "convnext.", "convnextv2."];
        match () {
            _ if self.has("stem.0.weight") && self.has("stages.0.blocks.0.conv_dw.weight") => {
                Some(Format::TimmConvNeXt)
            }
            _ if self.has("downsample_layers.0.0.weight") && self.has("stages.0.0.dwconv.weight") => {
                Some(Format::FacebookConvNeXt)
            }
            _ => hugging_faces
                .iter()
                .any(|start| self.has(&format!("{start}encoder.stages.0.layers.0.dwconv.weight")))
                .then_some(Format::HfConvNeXt),
        }
    }

    /// ConvNeXts, ResNets, and ViTs of those who train nothing else here.
    fn others(&self) -> Option<(Format, &'static str)> {
        if let Some(format) = self.convnexts() {
            return Some((format, ""));
        }
        let all = |names: [&str; 3]| names.iter().all(|name| self.has(name));
        if all(["conv1.weight", "bn1.running_mean", "layer1.0.conv1.weight"]) {
            return Some((Format::ResNet, ""));
        }
        if ["", "resnet."].iter().any(|start| {
            self.has(&format!("{start}embedder.embedder.convolution.weight"))
                && self.has(&format!("{start}encoder.stages.0.layers.0.layer.0.convolution.weight"))
        }) {
            return Some((Format::HfResNet, ""));
        }
        if self.has("conv_proj.weight") && self.has("encoder.layers.encoder_layer_0.self_attention.in_proj_weight") {
            return Some((Format::TorchvisionVit, ""));
        }
        if self.has("backbone.patch_embed.projection.weight") && self.has("backbone.layers.0.attn.qkv.weight") {
            return Some((Format::MmpretrainVit, ""));
        }
        if self.has("patch_embed.projection.weight") && self.has("layers.0.attn.qkv.weight") {
            return Some((Format::MmpretrainVit, "mmpretrain."));
        }
        let block = |number: usize| {
            let attention = format!("Transformer.encoderblock_0.MultiHeadDotProductAttention_{number}.");
            self.has("embedding.kernel") && self.any_below(&attention)
        };
        match () {
            _ if block(1) && self.has("cls") => Some((Format::GoogleVit, "")),
            _ if block(0) && self.has("pos_embedding") => Some((Format::BigVision, "")),
            _ => None,
        }
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}
