//! What the published ViTs have in common, recipe by recipe.

use super::config::{Config, DropPathSchedule, Gate, Pool, QkvBias, Rotary, WeightNames};
use super::Activation;
use crate::models::Recompute;

/// D, blocks and heads. Tiny and small are DeiT's (arXiv 2012.12877, table 1), the others the ViT's (arXiv 2010.11929,
/// table 1).
pub(super) type Size = [usize; 3];

pub(super) const TINY: Size = [192, 12, 3];
pub(super) const SMALL: Size = [384, 12, 6];
pub(super) const BASE: Size = [768, 12, 12];
pub(super) const LARGE: Size = [1024, 24, 16];
pub(super) const HUGE: Size = [1280, 32, 16];
/// DINOv2's (timm/models/vision_transformer.py, `vit_giant_patch14_dinov2`).
pub(super) const GIANT: Size = [1536, 40, 24];

/// The recipes.
impl Config {
    /// A DeiT-III (arXiv 2204.07118) at 224 pixels: no position for the class token, LayerScale 1e-4, constant drop
    /// path.
    pub(super) fn deit3([embed_dim, depth, num_heads]: Size, patch_size: usize, num_classes: usize) -> Self {
        Self {
            weight_names: WeightNames::Timm,
            image_size: (224, 224),
            patch_size,
            dynamic_image_size: false,
            crop_remainder: false,
            in_channels: 3,
            num_classes,
            embed_dim,
            depth,
            num_heads,
            mlp_dim: 4 * embed_dim,
            activation: Activation::Gelu,
            gate: None,
            qkv_bias: QkvBias::All,
            norm_eps: 1e-6,
            layer_scale: Some(1e-4),
            class_token: true,
            absolute_positions: true,
            rotary: None,
            relative_positions: false,
            distillation_token: false,
            num_registers: 0,
            class_token_position: false,
            patch_bias: true,
            pre_norm: false,
            pool: Pool::ClassToken,
            head_init_std: 0.02,
            head_bias_bound: 0.0,
            dropout: 0.0,
            drop_path: 0.0,
            drop_path_schedule: DropPathSchedule::Constant,
            recompute: Recompute::Never,
            compute_dtype: None,
        }
    }

    /// MAE's fine-tuning model (arXiv 2111.06377): a position for the class token, mean pooling with `fc_norm`, a head
    /// that starts near 0, linear drop path.
    pub(super) fn mae(size: Size, patch_size: usize, num_classes: usize) -> Self {
        Self {
            layer_scale: None,
            class_token_position: true,
            pool: Pool::Mean,
            head_init_std: 2e-5,
            drop_path_schedule: DropPathSchedule::Linear,
            ..Self::deit3(size, patch_size, num_classes)
        }
    }

    /// CLIP's vision tower (arXiv 2103.00020) with a classifier head on the class token.
    pub(super) fn clip(size: Size, patch_size: usize, num_classes: usize) -> Self {
        Self {
            weight_names: WeightNames::Clip,
            activation: Activation::QuickGelu,
            norm_eps: 1e-5,
            patch_bias: false,
            pre_norm: true,
            pool: Pool::ClassToken,
            head_init_std: 0.02,
            ..Self::mae(size, patch_size, num_classes)
        }
    }

    /// FT-CLIP's fine-tuning model (arXiv 2212.06138): CLIP's tower without `post_layernorm`, a new `fc_norm` on every
    /// patch token, the mean of those, and a head whose initial weights and biases (PyTorch's, of std .02 and within
    /// ± 1/√D) are multiplied by .001. `models/finetune_clip.py`, `VisualTransformer`.
    pub(super) fn ft_clip(size: Size, image_size: usize, patch_size: usize, num_classes: usize) -> Self {
        const INIT_SCALE: f64 = 1e-3;
        Self {
            image_size: (image_size, image_size),
            pool: Pool::NormThenMean,
            head_init_std: 0.02 * INIT_SCALE,
            head_bias_bound: INIT_SCALE / (size[0] as f64).sqrt(),
            ..Self::clip(size, patch_size, num_classes)
        }
    }

    /// Hugging Face's `CLIPForImageClassification`: CLIP's tower without `post_layernorm`, the mean of the patch
    /// tokens.
    pub(super) fn hf_clip(size: Size, patch_size: usize, num_classes: usize) -> Self {
        Self {
            pool: Pool::MeanOnly,
            ..Self::clip(size, patch_size, num_classes)
        }
    }

    /// Hugging Face's ViT: a position for the class token, which the head reads, and norms with a tiny eps.
    pub(super) fn hugging_face(size: Size, patch_size: usize, num_classes: usize) -> Self {
        Self {
            weight_names: WeightNames::HuggingFace,
            norm_eps: 1e-12,
            pool: Pool::ClassToken,
            head_init_std: 0.02,
            ..Self::mae(size, patch_size, num_classes)
        }
    }

    /// DeiT with distillation (arXiv 2012.12877) at 224 pixels: a second token with a head of its own.
    pub(super) fn deit_distilled(size: Size, num_classes: usize) -> Self {
        Self {
            distillation_token: true,
            pool: Pool::ClassAndDistillation,
            head_init_std: 0.02,
            ..Self::mae(size, 16, num_classes)
        }
    }

    /// DINOv2 (arXiv 2304.07193) in patches of 14 pixels, here at 224 pixels (its checkpoints have positions for 518):
    /// LayerScale, and a head that reads the class token beside the mean of the patches, as its linear classifiers do.
    pub(super) fn dinov2(size: Size, num_classes: usize) -> Self {
        Self {
            layer_scale: Some(1e-5),
            pool: Pool::ClassAndMean,
            head_init_std: 0.02,
            ..Self::mae(size, 14, num_classes)
        }
    }

    /// With four registers, and positions for the patches only (timm's `no_embed_class`, to which it adds the class
    /// token's position in the published weights).
    pub(super) fn with_registers(self) -> Self {
        Self {
            num_registers: 4,
            class_token_position: false,
            ..self
        }
    }

    /// SigLIP's vision tower (arXiv 2303.15343, 2502.14786) at 224 pixels with a classifier head on its attention
    /// pooling: no class token, GELU by tanh.
    pub(super) fn siglip(size: Size, patch_size: usize, num_classes: usize) -> Self {
        Self {
            class_token: false,
            class_token_position: false,
            activation: Activation::GeluTanh,
            pool: Pool::Attention,
            head_init_std: 0.02,
            ..Self::mae(size, patch_size, num_classes)
        }
    }

    /// BEiT v2's fine-tuning model, and BEiT's (arXiv 2106.08254, 2208.06366) at 224 pixels in patches of 16: relative
    /// positions in every block and no others, LayerScale, the mean of the patch tokens.
    pub(super) fn beit(size: Size, num_classes: usize) -> Self {
        Self {
            layer_scale: Some(1e-5),
            absolute_positions: false,
            relative_positions: true,
            qkv_bias: QkvBias::QueryAndValue,
            ..Self::mae(size, 16, num_classes)
        }
    }

    /// EVA-02 (arXiv 2303.11331) at 224 pixels in patches of 14: rotary positions beside the learned ones, a gated MLP
    /// of 8/3 the width, the mean of the patch tokens.
    pub(super) fn eva02(size: Size, gate: Gate, num_classes: usize) -> Self {
        Self {
            rotary: Some(Rotary::Eva { grid: 16 }),
            gate: Some(gate),
            mlp_dim: size[0] * 8 / 3,
            qkv_bias: QkvBias::QueryAndValue,
            head_init_std: 0.02,
            ..Self::mae(size, 14, num_classes)
        }
    }

    /// DINOv3 (arXiv 2508.10104) at 224 pixels in patches of 16, with the class token's head: rotary positions and no
    /// others, four registers, LayerScale.
    pub(super) fn dinov3(size: Size, num_classes: usize) -> Self {
        Self {
            layer_scale: Some(1e-5),
            norm_eps: 1e-5,
            num_registers: 4,
            absolute_positions: false,
            rotary: Some(Rotary::DinoV3),
            qkv_bias: QkvBias::Absent,
            pool: Pool::ClassToken,
            head_init_std: 0.02,
            ..Self::mae(size, 16, num_classes)
        }
    }
}
