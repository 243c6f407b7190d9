//! Multiply-additions of a forward pass over one image: those of matrix products and convolutions, as papers count them
//! ("FLOPs").

use crate::network::Network;
use masksub::models::resnet::BlockKind;
use masksub::models::vit::Pool;
use masksub::models::{convnext, resnet, swin, vit};

/// Of `network`; `kept` is how many positions a sub-branch keeps that leaves tokens out.
pub fn forward(network: &Network, kept: Option<usize>) -> u64 {
    let operations = match network {
        Network::Vit(cfg) => of_vit(cfg, kept),
        Network::ResNet(cfg, input) => of_resnet(cfg, input.image_size),
        Network::ConvNeXt(cfg, input) => of_convnext(cfg, input.image_size),
        Network::Swin(cfg) => of_swin(cfg),
    };
    operations as u64
}

/// Positions of a ViT, of which its sub-branch keeps some.
pub fn positions(cfg: &vit::Config) -> usize {
    let (height, width) = cfg.image_size;
    (height / cfg.patch_size) * (width / cfg.patch_size)
}

fn of_vit(cfg: &vit::Config, kept: Option<usize>) -> usize {
    let (width, hidden) = (cfg.embed_dim, cfg.mlp_dim);
    let kept = kept.unwrap_or(positions(cfg));
    let tokens = kept + cfg.num_prefix_tokens();
    let products = if cfg.gate.is_some() { 3 } else { 2 };
    let patches = kept * cfg.in_channels * cfg.patch_size.pow(2) * width;
    let block = attention(tokens, width, tokens) + products * tokens * width * hidden;
    let (pool, read) = match cfg.pool {
        Pool::Attention => {
            let keys_and_values = 2 * tokens * width * (width + 1);
            (keys_and_values + 2 * width * (width + hidden), width)
        }
        Pool::ClassAndDistillation | Pool::ClassAndMean => (0, 2 * width),
        _ => (0, width),
    };
    patches + cfg.depth * block + pool + read * cfg.num_classes
}

/// Projections of `tokens` to queries, keys, values and back, and of each the scores of `keys` and their sum.
fn attention(tokens: usize, width: usize, keys: usize) -> usize {
    4 * tokens * width * width + 2 * tokens * keys * width
}

fn of_swin(cfg: &swin::Config) -> usize {
    let (mut height, mut width) = (cfg.image_size.0 / cfg.patch_size, cfg.image_size.1 / cfg.patch_size);
    let mut dim = cfg.embed_dim;
    let mut sum = height * width * dim * cfg.in_channels * cfg.patch_size.pow(2);
    for (stage, depth) in cfg.depths.iter().enumerate() {
        if stage > 0 {
            (height, width) = (height / 2, width / 2);
            sum += height * width * 4 * dim * 2 * dim;
            dim *= 2;
        }
        // A grid that is no larger is one window; one that is no multiple is filled up for the attention.
        let window = cfg.window_size.min(height).min(width);
        let filled = height.next_multiple_of(window) * width.next_multiple_of(window);
        let mlp = 2 * height * width * dim * cfg.mlp_ratio * dim;
        sum += depth * (attention(filled, dim, window * window) + mlp);
    }
    sum + dim * cfg.num_classes
}

fn of_resnet(cfg: &resnet::Config, image_size: usize) -> usize {
    let mut side = image_size.div_ceil(2);
    let mut sum = side * side * cfg.stem_channels * cfg.in_channels * 7 * 7;
    side = side.div_ceil(2);
    let mut from = cfg.stem_channels;
    for (stage, (&depth, &width)) in cfg.depths.iter().zip(&cfg.channels).enumerate() {
        for block in 0..depth {
            let stride = if stage > 0 && block == 0 { 2 } else { 1 };
            let (before, after) = (side, side.div_ceil(stride));
            let (to, convolutions) = match cfg.block {
                BlockKind::Basic => (width, after * after * 9 * (from * width + width * width)),
                BlockKind::Bottleneck => {
                    let reduce = before * before * from * width;
                    (
                        4 * width,
                        reduce + after * after * (9 * width * width + width * 4 * width),
                    )
                }
            };
            let shortcut = if stride > 1 || from != to {
                after * after * from * to
            } else {
                0
            };
            sum += convolutions + shortcut;
            (side, from) = (after, to);
        }
    }
    sum + from * cfg.num_classes
}

fn of_convnext(cfg: &convnext::Config, image_size: usize) -> usize {
    let (mut side, mut from, mut sum) = (image_size, cfg.in_channels, 0);
    for (stage, (&depth, &dim)) in cfg.depths.iter().zip(&cfg.dims).enumerate() {
        let merged = if stage == 0 { 4 } else { 2 };
        side /= merged;
        let positions = side * side;
        sum += positions * from * merged * merged * dim;
        sum += depth * positions * (7 * 7 * dim + 2 * 4 * dim * dim);
        from = dim;
    }
    sum + from * cfg.num_classes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flags::Flags;

    fn network(arguments: &str) -> Network {
        let arguments = arguments.split_whitespace().map(Into::into).collect();
        Flags::from_arguments(arguments).unwrap().network(1000).unwrap()
    }

    /// In units of 10^9 for 224 x 224 pixels, and where they were read.
    const PUBLISHED: &[(&str, f64, &str)] = &[
        ("deit3-small", 4.6, DEIT),
        ("deit3-base", 17.5, DEIT),
        ("deit3-large", 61.6, DEIT),
        ("deit3-huge", 167.4, DEIT),
        ("resnet18", 1.814, TORCHVISION),
        ("resnet34", 3.664, TORCHVISION),
        ("resnet50", 4.089, TORCHVISION),
        ("resnet101", 7.801, TORCHVISION),
        ("resnet152", 11.514, TORCHVISION),
        ("swin-tiny", 4.5, SWIN),
        ("swin-small", 8.7, SWIN),
        ("swin-base", 15.4, SWIN),
        ("convnext-tiny", 4.5, CONVNEXT),
        ("convnext-small", 8.7, CONVNEXT),
        ("convnext-base", 15.4, CONVNEXT),
        ("convnext-large", 34.4, CONVNEXT),
    ];
    const DEIT: &str = "facebookresearch/deit, README_revenge.md, GFLOPs";
    const TORCHVISION: &str = "pytorch/vision, torchvision/models/resnet.py, _ops";
    const SWIN: &str = "microsoft/Swin-Transformer, README.md, FLOPs";
    const CONVNEXT: &str = "facebookresearch/ConvNeXt, README.md, FLOPs";

    #[test]
    fn counts_are_as_published() {
        for &(model, published, place) in PUBLISHED {
            let ours = forward(&network(&format!("--data d --model {model} --image-size 224")), None) as f64 / 1e9;
            // Most are rounded to a decimal; some count a few elementwise operations, too.
            let off = (ours - published).abs();
            assert!(
                off < 0.05 + 2e-3 * published,
                "{model}: {ours:.3}, {place}: {published}"
            );
        }
    }

    // By hand: of 4 x 4 patches of 2 x 2 pixels and a class token, half dropped.
    #[test]
    fn a_sub_branch_counts_what_it_keeps() {
        let network = network("--model digits");
        let (kept, tokens, width, hidden) = (8, 9, 64, 256);
        let block = tokens * width * (4 * width + 2 * hidden) + 2 * tokens * tokens * width;
        let by_hand = kept * 4 * width + 6 * block + width * 1000;
        assert_eq!(forward(&network, Some(kept)), by_hand as u64);
        assert!(forward(&network, None) as f64 > 1.7 * by_hand as f64);
    }
}
