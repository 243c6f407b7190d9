//! Where the published sizes were read.

use super::config::Config;
use crate::models::Source;

const fn deit3(option: &'static str) -> Source {
    Source::new("facebookresearch/deit", "models_v2.py", option)
}

const fn mae(option: &'static str) -> Source {
    Source::new("facebookresearch/mae", "models_vit.py, main_finetune.py", option)
}

const fn clip(option: &'static str) -> Source {
    Source::new("openai/CLIP", "clip/model.py; arXiv 2103.00020, table 20", option)
}

const fn ft_clip(option: &'static str) -> Source {
    Source::new("LightDXY/FT-CLIP", "models/finetune_clip.py", option)
}

const fn deit(option: &'static str) -> Source {
    Source::new("facebookresearch/deit", "models.py", option)
}

/// timm's EVA-02 and DINOv3, and its BEiT.
const fn timm_eva(option: &'static str) -> Source {
    Source::new("huggingface/pytorch-image-models", "timm/models/eva.py", option)
}

const fn timm_beit(option: &'static str) -> Source {
    Source::new("huggingface/pytorch-image-models", "timm/models/beit.py", option)
}

const fn timm(option: &'static str) -> Source {
    Source::new(
        "huggingface/pytorch-image-models",
        "timm/models/vision_transformer.py",
        option,
    )
}

const fn transformers(option: &'static str) -> Source {
    Source::new(
        "huggingface/transformers",
        "the configuration's defaults, or of the published model",
        option,
    )
}

impl Config {
    /// Names as in [`SIZES`](Self::SIZES), in their order, each with the place where its values were read.
    pub const SOURCES: &'static [(&'static str, Source)] = &[
        ("deit3-tiny", deit3("deit_tiny_patch16_LS: patch_size=16 embed_dim=192 depth=12 num_heads=3 mlp_ratio=4 eps=1e-6 init_values=1e-4")),
        ("deit3-small", deit3("deit_small_patch16_LS: patch_size=16 embed_dim=384 depth=12 num_heads=6 mlp_ratio=4 eps=1e-6 init_values=1e-4")),
        ("deit3-base", deit3("deit_base_patch16_LS: patch_size=16 embed_dim=768 depth=12 num_heads=12 mlp_ratio=4 eps=1e-6 init_values=1e-4")),
        ("deit3-large", deit3("deit_large_patch16_LS: patch_size=16 embed_dim=1024 depth=24 num_heads=16 mlp_ratio=4 eps=1e-6 init_values=1e-4")),
        ("deit3-huge", deit3("deit_huge_patch14_LS: patch_size=14 embed_dim=1280 depth=32 num_heads=16 mlp_ratio=4 eps=1e-6 init_values=1e-4")),
        ("mae-base", mae("vit_base_patch16: patch_size=16 embed_dim=768 depth=12 num_heads=12 mlp_ratio=4 eps=1e-6 head_std=2e-5")),
        ("mae-large", mae("vit_large_patch16: patch_size=16 embed_dim=1024 depth=24 num_heads=16 mlp_ratio=4 eps=1e-6 head_std=2e-5")),
        ("mae-huge", mae("vit_huge_patch14: patch_size=14 embed_dim=1280 depth=32 num_heads=16 mlp_ratio=4 eps=1e-6 head_std=2e-5")),
        ("clip-base", clip("ViT-B/16: image_size=224 patch_size=16 width=768 layers=12 heads=12 mlp_ratio=4 eps=1e-5")),
        ("clip-large", clip("ViT-L/14: image_size=224 patch_size=14 width=1024 layers=24 heads=16 mlp_ratio=4 eps=1e-5")),
        ("ft-clip-base", ft_clip("CLIP_B16: input_resolution=224 patch_size=16 width=768 layers=12 heads=12 head_std=2e-5")),
        ("ft-clip-base-384", ft_clip("CLIP_B16_384: input_resolution=384 patch_size=16 width=768 layers=12 heads=12 head_std=2e-5")),
        ("ft-clip-large", ft_clip("CLIP_L14: input_resolution=224 patch_size=14 width=1024 layers=24 heads=16 head_std=2e-5")),
        ("ft-clip-large-336", ft_clip("CLIP_L14_336: input_resolution=336 patch_size=14 width=1024 layers=24 heads=16 head_std=2e-5")),
        ("hf-clip-base", transformers("openai/clip-vit-base-patch16: image_size=224 patch_size=16 hidden_size=768 num_hidden_layers=12 num_attention_heads=12 intermediate_size=3072 layer_norm_eps=1e-5")),
        ("hf-clip-large", transformers("openai/clip-vit-large-patch14: image_size=224 patch_size=14 hidden_size=1024 num_hidden_layers=24 num_attention_heads=16 intermediate_size=4096 layer_norm_eps=1e-5")),
        ("hf-base", transformers("ViTConfig: image_size=224 patch_size=16 hidden_size=768 num_hidden_layers=12 num_attention_heads=12 intermediate_size=3072 layer_norm_eps=1e-12")),
        ("deit-tiny-distilled", deit("deit_tiny_distilled_patch16_224: patch_size=16 embed_dim=192 depth=12 num_heads=3 mlp_ratio=4 eps=1e-6")),
        ("deit-small-distilled", deit("deit_small_distilled_patch16_224: patch_size=16 embed_dim=384 depth=12 num_heads=6 mlp_ratio=4 eps=1e-6")),
        ("deit-base-distilled", deit("deit_base_distilled_patch16_224: patch_size=16 embed_dim=768 depth=12 num_heads=12 mlp_ratio=4 eps=1e-6")),
        ("dinov2-small", timm("vit_small_patch14_dinov2: patch_size=14 embed_dim=384 depth=12 num_heads=6 init_values=1e-5")),
        ("dinov2-base", timm("vit_base_patch14_dinov2: patch_size=14 embed_dim=768 depth=12 num_heads=12 init_values=1e-5")),
        ("dinov2-large", timm("vit_large_patch14_dinov2: patch_size=14 embed_dim=1024 depth=24 num_heads=16 init_values=1e-5")),
        ("dinov2-giant", timm("vit_giant_patch14_dinov2: patch_size=14 embed_dim=1536 depth=40 num_heads=24 mlp_ratio=2.66667*2 init_values=1e-5")),
        ("dinov2-reg4-small", timm("vit_small_patch14_reg4_dinov2: patch_size=14 embed_dim=384 depth=12 num_heads=6 init_values=1e-5 reg_tokens=4")),
        ("dinov2-reg4-base", timm("vit_base_patch14_reg4_dinov2: patch_size=14 embed_dim=768 depth=12 num_heads=12 init_values=1e-5 reg_tokens=4")),
        ("dinov2-reg4-large", timm("vit_large_patch14_reg4_dinov2: patch_size=14 embed_dim=1024 depth=24 num_heads=16 init_values=1e-5 reg_tokens=4")),
        ("dinov2-reg4-giant", timm("vit_giant_patch14_reg4_dinov2: patch_size=14 embed_dim=1536 depth=40 num_heads=24 mlp_ratio=2.66667*2 init_values=1e-5 reg_tokens=4")),
        ("siglip-base", transformers("google/siglip-base-patch16-224: image_size=224 patch_size=16 hidden_size=768 num_hidden_layers=12 num_attention_heads=12 intermediate_size=3072 layer_norm_eps=1e-6")),
        ("siglip-large", transformers("google/siglip-large-patch16-256: image_size=256 patch_size=16 hidden_size=1024 num_hidden_layers=24 num_attention_heads=16 intermediate_size=4096 layer_norm_eps=1e-6")),
        ("siglip-so400m", transformers("google/siglip-so400m-patch14-224: image_size=224 patch_size=14 hidden_size=1152 num_hidden_layers=27 num_attention_heads=16 intermediate_size=4304 layer_norm_eps=1e-6")),
        ("beitv2-base", timm_beit("beitv2_base_patch16_224: patch_size=16 embed_dim=768 depth=12 num_heads=12 init_values=1e-5")),
        ("beitv2-large", timm_beit("beitv2_large_patch16_224: patch_size=16 embed_dim=1024 depth=24 num_heads=16 init_values=1e-5")),
        ("eva02-tiny", timm_eva("eva02_tiny_patch14_224: image_size=224 patch_size=14 embed_dim=192 depth=12 num_heads=3 ref_feat_shape=16")),
        ("eva02-small", timm_eva("eva02_small_patch14_224: image_size=224 patch_size=14 embed_dim=384 depth=12 num_heads=6 ref_feat_shape=16")),
        ("eva02-base", timm_eva("eva02_base_patch14_224: image_size=224 patch_size=14 embed_dim=768 depth=12 num_heads=12 ref_feat_shape=16")),
        ("eva02-large", timm_eva("eva02_large_patch14_224: image_size=224 patch_size=14 embed_dim=1024 depth=24 num_heads=16 ref_feat_shape=16")),
        ("dinov3-small", timm_eva("vit_small_patch16_dinov3: patch_size=16 embed_dim=384 depth=12 num_heads=6 init_values=1e-5 num_reg_tokens=4 eps=1e-5")),
        ("dinov3-base", timm_eva("vit_base_patch16_dinov3: patch_size=16 embed_dim=768 depth=12 num_heads=12 init_values=1e-5 num_reg_tokens=4 eps=1e-5")),
        ("dinov3-large", timm_eva("vit_large_patch16_dinov3: patch_size=16 embed_dim=1024 depth=24 num_heads=16 init_values=1e-5 num_reg_tokens=4 eps=1e-5")),
    ];
}
