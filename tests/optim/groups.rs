//! Groups: what decays, what is frozen, which layer a parameter is of.

use candle_core::DType;
use masksub::models::{swin, vit};
use masksub::train::optim::{Lamb, LambConfig, ParamGroups};
use masksub::{Params, Seed, Weights};

use super::{grads, params};
use crate::common::{self, bits, CPU};

#[test]
fn a_scale_of_0_freezes() {
    let (frozen, filtered) = (params(DType::F32), params(DType::F32));
    let groups = ParamGroups::new(&frozen).with_lr_scale(|name| if name == "b.weight" { 0.0 } else { 1.0 });
    let mut by_scale = Lamb::new(groups.unwrap(), LambConfig::default()).unwrap();
    let rest = ParamGroups::new(&filtered.clone().filter(|name| name != "b.weight"));
    let mut by_filter = Lamb::new(rest, LambConfig::default()).unwrap();
    for step in 0..3 {
        by_scale.step(&grads(&frozen, step)).unwrap();
        by_filter.step(&grads(&filtered, step)).unwrap();
    }
    for ((name, a), (_, b)) in frozen.iter().zip(filtered.iter()) {
        assert_eq!(bits(a), bits(b), "{name}");
    }
}

/// The names of the weights that a model makes.
fn names(make: impl FnOnce(candle_nn::VarBuilder<'static>)) -> Params {
    let weights = Weights::seeded(Seed::new(0));
    make(weights.var_builder(DType::F32, &CPU));
    Params::from_varmap(weights.varmap())
}

#[test]
fn what_the_recipes_exempt_from_decay() {
    for cfg in [
        vit::Config::deit3_tiny(3),
        vit::Config::hf_base(3),
        vit::Config::clip_base(3),
    ] {
        let cfg = vit::Config {
            embed_dim: 8,
            num_heads: 2,
            mlp_dim: 16,
            depth: 2,
            ..cfg.with_input(16, 8, 3)
        };
        let params = names(|vb| drop(vit::VisionTransformer::new(&cfg, vb).unwrap()));
        let groups = ParamGroups::new(&params).without_decay(ParamGroups::usually_without_decay);
        for (name, _, decays) in groups.iter() {
            let matrix = name.ends_with(".weight") && !name.contains("norm") && !name.contains("position_embedding");
            assert_eq!(decays, matrix, "{name}");
        }
    }
    let params = names(|vb| drop(swin::SwinTransformer::new(&common::small_swin(), vb).unwrap()));
    let groups = ParamGroups::new(&params).without_decay(ParamGroups::usually_without_decay);
    for (name, _, decays) in groups.iter() {
        let exempt =
            name.contains("norm") || name.ends_with(".bias") || name.ends_with("table") || name == "mask_token";
        assert_eq!(decays, !exempt, "{name}");
    }
}

#[test]
fn layers_are_counted_in_all_forms() {
    for cfg in [
        vit::Config::deit3_tiny(3),
        vit::Config::hf_base(3),
        vit::Config::clip_base(3),
        vit::Config::mae_base(3),
    ] {
        let cfg = vit::Config {
            embed_dim: 8,
            num_heads: 2,
            mlp_dim: 16,
            depth: 2,
            ..cfg.with_input(16, 8, 3)
        };
        // Below another path, too.
        let params = names(|vb| drop(vit::VisionTransformer::new(&cfg, vb.pp("model")).unwrap()));
        let groups = ParamGroups::new(&params);
        let groups = groups
            .with_layer_decay(0.5, cfg.depth, |name| cfg.layer_of(name))
            .unwrap();
        for (name, scale, _) in groups.iter() {
            let block = ["blocks", "layer", "layers"].iter().find_map(|part| {
                let (_, rest) = name.split_once(&format!(".{part}."))?;
                rest.split('.').next()?.parse::<i32>().ok()
            });
            let first = ["patch", "cls_token", "class_embedding", "pos", "pre_"];
            let expected = match block {
                Some(block) => 0.5f64.powi(2 - block),
                None if first.iter().any(|part| name.contains(part) && !name.contains("post")) => 0.125,
                None => 1.0,
            };
            assert_eq!(scale, expected, "{name}");
        }
    }
    let cfg = swin::Config {
        depths: vec![2, 3, 1],
        ..swin::Config::tiny(10)
    };
    let timm = swin::Config {
        weight_names: swin::WeightNames::Timm,
        ..cfg.clone()
    };
    for (name, layer) in [
        ("mask_token", 0),
        ("patch_embed.norm.weight", 0),
        ("layers.0.blocks.1.attn.qkv.bias", 2),
        ("layers.1.blocks.0.norm1.weight", 3),
        ("layers.2.blocks.0.mlp.fc1.weight", 6),
        ("norm.weight", 7),
        ("head.weight", 7),
    ] {
        assert_eq!((cfg.layer_of(name), timm.layer_of(name)), (layer, layer), "{name}");
    }
    assert_eq!(cfg.layer_of("layers.0.downsample.reduction.weight"), 2);
    assert_eq!(cfg.layer_of("layers.1.downsample.norm.bias"), 5);
    assert_eq!(timm.layer_of("layers.1.downsample.reduction.weight"), 2);
    assert_eq!(timm.layer_of("layers.2.downsample.norm.bias"), 5);
}
