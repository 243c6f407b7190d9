//! The published ViTs: four recipes in the sizes of their papers.

use super::config::{Config, DropPathSchedule, Pool, WeightNames};
use super::Activation;
use crate::models::Constructor;

/// D, blocks and heads. Tiny and small are DeiT's (arXiv 2012.12877, table 1), the others the ViT's (arXiv 2010.11929,
/// table 1).
type Size = [usize; 3];

const TINY: Size = [192, 12, 3];
const SMALL: Size = [384, 12, 6];
const BASE: Size = [768, 12, 12];
const LARGE: Size = [1024, 24, 16];
const HUGE: Size = [1280, 32, 16];

/// The recipes.
impl Config {
    /// A DeiT-III (arXiv 2204.07118) at 224 pixels: no position for the class token, LayerScale 1e-4, constant drop
    /// path.
    fn deit3([embed_dim, depth, num_heads]: Size, patch_size: usize, num_classes: usize) -> Self {
        Self {
            weight_names: WeightNames::Timm,
            image_size: (224, 224),
            patch_size,
            crop_remainder: false,
            in_channels: 3,
            num_classes,
            embed_dim,
            depth,
            num_heads,
            mlp_dim: 4 * embed_dim,
            activation: Activation::Gelu,
            norm_eps: 1e-6,
            layer_scale: Some(1e-4),
            class_token_position: false,
            patch_bias: true,
            pre_norm: false,
            pool: Pool::ClassToken,
            head_init_std: 0.02,
            head_bias_bound: 0.0,
            dropout: 0.0,
            drop_path: 0.0,
            drop_path_schedule: DropPathSchedule::Constant,
        }
    }

    /// MAE's fine-tuning model (arXiv 2111.06377): a position for the class token, mean pooling with `fc_norm`, a head
    /// that starts near 0, linear drop path.
    fn mae(size: Size, patch_size: usize, num_classes: usize) -> Self {
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
    fn clip(size: Size, patch_size: usize, num_classes: usize) -> Self {
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
    fn ft_clip(size: Size, image_size: usize, patch_size: usize, num_classes: usize) -> Self {
        const INIT_SCALE: f64 = 1e-3;
        Self {
            image_size: (image_size, image_size),
            pool: Pool::NormThenMean,
            head_init_std: 0.02 * INIT_SCALE,
            head_bias_bound: INIT_SCALE / (size[0] as f64).sqrt(),
            ..Self::clip(size, patch_size, num_classes)
        }
    }

    /// Hugging Face's `CLIPForImageClassification`: CLIP's tower without `post_layernorm`, the mean of the patch tokens.
    fn hf_clip(size: Size, patch_size: usize, num_classes: usize) -> Self {
        Self {
            pool: Pool::MeanOnly,
            ..Self::clip(size, patch_size, num_classes)
        }
    }

    /// Hugging Face's ViT: a position for the class token, which the head reads, and norms with a tiny eps.
    fn hugging_face(size: Size, patch_size: usize, num_classes: usize) -> Self {
        Self {
            weight_names: WeightNames::HuggingFace,
            norm_eps: 1e-12,
            pool: Pool::ClassToken,
            head_init_std: 0.02,
            ..Self::mae(size, patch_size, num_classes)
        }
    }
}

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
}
