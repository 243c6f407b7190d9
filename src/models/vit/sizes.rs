//! The published ViTs: recipes in the sizes of their papers.

use super::config::{Config, Gate};
use super::recipes::{BASE, GIANT, HUGE, LARGE, SMALL, TINY};
use crate::models::Constructor;

/// The published sizes.
impl Config {
    /// The published sizes by name, with the constructor of each: values that a `--model` flag offers.
    pub const SIZES: &'static [(&'static str, Constructor<Self>)] = &[
        ("deit3-tiny", Self::deit3_tiny),
        ("deit3-small", Self::deit3_small),
        ("deit3-base", Self::deit3_base),
        ("deit3-large", Self::deit3_large),
        ("deit3-huge", Self::deit3_huge),
        ("mae-base", Self::mae_base),
        ("mae-large", Self::mae_large),
        ("mae-huge", Self::mae_huge),
        ("clip-base", Self::clip_base),
        ("clip-large", Self::clip_large),
        ("ft-clip-base", Self::ft_clip_base),
        ("ft-clip-base-384", Self::ft_clip_base_384),
        ("ft-clip-large", Self::ft_clip_large),
        ("ft-clip-large-336", Self::ft_clip_large_336),
        ("hf-clip-base", Self::hf_clip_base),
        ("hf-clip-large", Self::hf_clip_large),
        ("hf-base", Self::hf_base),
        ("deit-tiny-distilled", Self::deit_tiny_distilled),
        ("deit-small-distilled", Self::deit_small_distilled),
        ("deit-base-distilled", Self::deit_base_distilled),
        ("dinov2-small", Self::dinov2_small),
        ("dinov2-base", Self::dinov2_base),
        ("dinov2-large", Self::dinov2_large),
        ("dinov2-giant", Self::dinov2_giant),
        ("dinov2-reg4-small", Self::dinov2_reg4_small),
        ("dinov2-reg4-base", Self::dinov2_reg4_base),
        ("dinov2-reg4-large", Self::dinov2_reg4_large),
        ("dinov2-reg4-giant", Self::dinov2_reg4_giant),
        ("siglip-base", Self::siglip_base),
        ("siglip-large", Self::siglip_large),
        ("siglip-so400m", Self::siglip_so400m),
        ("beitv2-base", Self::beitv2_base),
        ("beitv2-large", Self::beitv2_large),
        ("eva02-tiny", Self::eva02_tiny),
        ("eva02-small", Self::eva02_small),
        ("eva02-base", Self::eva02_base),
        ("eva02-large", Self::eva02_large),
        ("dinov3-small", Self::dinov3_small),
        ("dinov3-base", Self::dinov3_base),
        ("dinov3-large", Self::dinov3_large),
    ];

    /// DeiT-III with DeiT-tiny's width (192, 3 heads), 16-pixel patches.
    pub fn deit3_tiny(num_classes: usize) -> Self {
        Self::deit3(TINY, 16, num_classes)
    }
    /// DeiT-III ViT-S/16.
    pub fn deit3_small(num_classes: usize) -> Self {
        Self::deit3(SMALL, 16, num_classes)
    }
    /// DeiT-III ViT-B/16.
    pub fn deit3_base(num_classes: usize) -> Self {
        Self::deit3(BASE, 16, num_classes)
    }
    /// DeiT-III ViT-L/16.
    pub fn deit3_large(num_classes: usize) -> Self {
        Self::deit3(LARGE, 16, num_classes)
    }
    /// DeiT-III ViT-H/14.
    pub fn deit3_huge(num_classes: usize) -> Self {
        Self::deit3(HUGE, 14, num_classes)
    }
    /// MAE fine-tuning, ViT-B/16.
    pub fn mae_base(num_classes: usize) -> Self {
        Self::mae(BASE, 16, num_classes)
    }
    /// MAE fine-tuning, ViT-L/16.
    pub fn mae_large(num_classes: usize) -> Self {
        Self::mae(LARGE, 16, num_classes)
    }
    /// MAE fine-tuning, ViT-H/14.
    pub fn mae_huge(num_classes: usize) -> Self {
        Self::mae(HUGE, 14, num_classes)
    }
    /// CLIP ViT-B/16, with a head on the class token behind `post_layernorm`.
    pub fn clip_base(num_classes: usize) -> Self {
        Self::clip(BASE, 16, num_classes)
    }
    /// CLIP ViT-L/14, with a head on the class token behind `post_layernorm`.
    pub fn clip_large(num_classes: usize) -> Self {
        Self::clip(LARGE, 14, num_classes)
    }
    /// FT-CLIP ViT-B/16 at 224 pixels. Its authors freeze the patch convolution at this size, and at 224 pixels only:
    ///
    /// ```
    /// # use masksub::{models::vit::{Config, VisionTransformer}, Params, Weights};
    /// # let small = Config { embed_dim: 8, depth: 1, num_heads: 2, mlp_dim: 16, ..Config::ft_clip_base(10) };
    /// # let (cfg, weights) = (small.with_input(32, 16, 3), Weights::seeded(masksub::Seed::new(0)));
    /// # VisionTransformer::new(&cfg, weights.var_builder(candle_core::DType::F32, &candle_core::Device::Cpu))?;
    /// let params = Params::from_varmap(weights.varmap());
    /// let params = params.freeze(["clip.vision_model.embeddings.patch_embedding"])?;
    /// # assert!(params.get("clip.vision_model.embeddings.patch_embedding.weight").is_none());
    /// # Ok::<(), candle_core::Error>(())
    /// ```
    pub fn ft_clip_base(num_classes: usize) -> Self {
        Self::ft_clip(BASE, 224, 16, num_classes)
    }
    /// FT-CLIP ViT-B/16 at 384 pixels.
    pub fn ft_clip_base_384(num_classes: usize) -> Self {
        Self::ft_clip(BASE, 384, 16, num_classes)
    }
    /// FT-CLIP ViT-L/14 at 224 pixels, its patch convolution frozen as in [`ft_clip_base`](Self::ft_clip_base).
    pub fn ft_clip_large(num_classes: usize) -> Self {
        Self::ft_clip(LARGE, 224, 14, num_classes)
    }
    /// FT-CLIP ViT-L/14 at 336 pixels.
    pub fn ft_clip_large_336(num_classes: usize) -> Self {
        Self::ft_clip(LARGE, 336, 14, num_classes)
    }
    /// Hugging Face's `CLIPForImageClassification`, ViT-B/16.
    pub fn hf_clip_base(num_classes: usize) -> Self {
        Self::hf_clip(BASE, 16, num_classes)
    }
    /// Hugging Face's `CLIPForImageClassification`, ViT-L/14.
    pub fn hf_clip_large(num_classes: usize) -> Self {
        Self::hf_clip(LARGE, 14, num_classes)
    }
    /// Hugging Face's `google/vit-base-patch16-224`, and candle-transformers' `Config::vit_base_patch16_224`.
    pub fn hf_base(num_classes: usize) -> Self {
        Self::hugging_face(BASE, 16, num_classes)
    }
    /// DeiT-Ti/16 with a distillation token.
    pub fn deit_tiny_distilled(num_classes: usize) -> Self {
        Self::deit_distilled(TINY, num_classes)
    }
    /// DeiT-S/16 with a distillation token.
    pub fn deit_small_distilled(num_classes: usize) -> Self {
        Self::deit_distilled(SMALL, num_classes)
    }
    /// DeiT-B/16 with a distillation token.
    pub fn deit_base_distilled(num_classes: usize) -> Self {
        Self::deit_distilled(BASE, num_classes)
    }
    /// DINOv2 ViT-S/14.
    pub fn dinov2_small(num_classes: usize) -> Self {
        Self::dinov2(SMALL, num_classes)
    }
    /// DINOv2 ViT-B/14.
    pub fn dinov2_base(num_classes: usize) -> Self {
        Self::dinov2(BASE, num_classes)
    }
    /// DINOv2 ViT-L/14.
    pub fn dinov2_large(num_classes: usize) -> Self {
        Self::dinov2(LARGE, num_classes)
    }
    /// DINOv2 ViT-g/14, whose MLPs are gated.
    pub fn dinov2_giant(num_classes: usize) -> Self {
        Self {
            gate: Some(Gate::Packed),
            mlp_dim: 4096,
            ..Self::dinov2(GIANT, num_classes)
        }
    }
    /// DINOv2 ViT-S/14 with four registers.
    pub fn dinov2_reg4_small(num_classes: usize) -> Self {
        Self::dinov2_small(num_classes).with_registers()
    }
    /// DINOv2 ViT-B/14 with four registers.
    pub fn dinov2_reg4_base(num_classes: usize) -> Self {
        Self::dinov2_base(num_classes).with_registers()
    }
    /// DINOv2 ViT-L/14 with four registers.
    pub fn dinov2_reg4_large(num_classes: usize) -> Self {
        Self::dinov2_large(num_classes).with_registers()
    }
    /// DINOv2 ViT-g/14 with four registers.
    pub fn dinov2_reg4_giant(num_classes: usize) -> Self {
        Self::dinov2_giant(num_classes).with_registers()
    }
    /// SigLIP ViT-B/16 at 224 pixels, and SigLIP 2's, with the GELU by tanh of big_vision and Hugging Face. (timm's
    /// model of the same weights computes the exact one, `Activation::Gelu`.)
    pub fn siglip_base(num_classes: usize) -> Self {
        Self::siglip(BASE, 16, num_classes)
    }
    /// SigLIP ViT-L/16 at 256 pixels, and SigLIP 2's.
    pub fn siglip_large(num_classes: usize) -> Self {
        Self::siglip(LARGE, 16, num_classes).with_input(256, 16, 3)
    }
    /// SigLIP's shape-optimised ViT (So400m/14) at 224 pixels, and SigLIP 2's: an MLP of 4304.
    pub fn siglip_so400m(num_classes: usize) -> Self {
        Self {
            mlp_dim: 4304,
            ..Self::siglip([1152, 27, 16], 14, num_classes)
        }
    }
    /// BEiT v2 ViT-B/16, which the MaskSub paper fine-tunes.
    pub fn beitv2_base(num_classes: usize) -> Self {
        Self::beit(BASE, num_classes)
    }
    /// BEiT v2 ViT-L/16.
    pub fn beitv2_large(num_classes: usize) -> Self {
        Self::beit(LARGE, num_classes)
    }
    /// EVA-02 ViT-Ti/14.
    pub fn eva02_tiny(num_classes: usize) -> Self {
        Self::eva02(TINY, Gate::Packed, num_classes)
    }
    /// EVA-02 ViT-S/14.
    pub fn eva02_small(num_classes: usize) -> Self {
        Self::eva02(SMALL, Gate::Packed, num_classes)
    }
    /// EVA-02 ViT-B/14.
    pub fn eva02_base(num_classes: usize) -> Self {
        Self::eva02(BASE, Gate::Normed, num_classes)
    }
    /// EVA-02 ViT-L/14.
    pub fn eva02_large(num_classes: usize) -> Self {
        Self::eva02(LARGE, Gate::Normed, num_classes)
    }
    /// DINOv3 ViT-S/16.
    pub fn dinov3_small(num_classes: usize) -> Self {
        Self::dinov3(SMALL, num_classes)
    }
    /// DINOv3 ViT-B/16.
    pub fn dinov3_base(num_classes: usize) -> Self {
        Self::dinov3(BASE, num_classes)
    }
    /// DINOv3 ViT-L/16.
    pub fn dinov3_large(num_classes: usize) -> Self {
        Self::dinov3(LARGE, num_classes)
    }
}
