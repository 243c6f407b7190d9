//! Names and sizes of published checkpoints, and the mask token that they do not have.

use std::collections::BTreeMap;

use candle_core::{DType, Tensor};
use candle_nn::ModuleT;
use masksub::models::swin::{Config, SwinTransformer, WeightNames};
use masksub::{Error, Seed, Weights};

use crate::common::{count_params, numbers, randn, random_values, shapes_of, small_swin, CPU};
use crate::millions;

/// The tensors of a published checkpoint of Swin-T, less the buffers that follow from the sizes.
fn published(merging: fn(usize) -> usize, head: &str) -> BTreeMap<String, Vec<usize>> {
    let mut shapes = BTreeMap::new();
    let mut add = |name: String, weight: &[usize], bias: bool| {
        if bias {
            shapes.insert(format!("{name}.bias"), vec![weight[0]]);
        }
        shapes.insert(format!("{name}.weight"), weight.to_vec());
    };
    add("patch_embed.proj".into(), &[96, 3, 4, 4], true);
    add("patch_embed.norm".into(), &[96], true);
    for (stage, (d, depth)) in [(96, 2), (192, 2), (384, 6), (768, 2)].into_iter().enumerate() {
        for block in 0..depth {
            let name = |part| format!("layers.{stage}.blocks.{block}.{part}");
            add(name("norm1"), &[d], true);
            add(name("attn.qkv"), &[3 * d, d], true);
            add(name("attn.proj"), &[d, d], true);
            add(name("norm2"), &[d], true);
            add(name("mlp.fc1"), &[4 * d, d], true);
            add(name("mlp.fc2"), &[d, 4 * d], true);
        }
        if stage < 3 {
            let name = |part| format!("layers.{}.downsample.{part}", merging(stage));
            add(name("norm"), &[4 * d], true);
            add(name("reduction"), &[2 * d, 4 * d], false);
        }
    }
    add("norm".into(), &[768], true);
    add(head.into(), &[1000, 768], true);
    for (stage, (heads, depth)) in [(3, 2), (6, 2), (12, 6), (24, 2)].into_iter().enumerate() {
        for block in 0..depth {
            let name = format!("layers.{stage}.blocks.{block}.attn.relative_position_bias_table");
            shapes.insert(name, vec![169, heads]);
        }
    }
    shapes
}

#[test]
fn are_those_of_the_published_checkpoints() {
    let with = |weight_names| Config {
        weight_names,
        ..Config::tiny(1000)
    };
    let ours = |weight_names| shapes_of(|vb| SwinTransformer::new(&with(weight_names), vb));
    for (weight_names, mut expected) in [
        // https://github.com/microsoft/Swin-Transformer: a stage ends with its merging.
        (WeightNames::Microsoft, published(|stage| stage, "head")),
        // timm from 0.9 on: a stage starts with it (its `checkpoint_filter_fn` adds the 1), the head has a pooling.
        (WeightNames::Timm, published(|stage| stage + 1, "head.fc")),
    ] {
        assert_eq!(
            expected
                .values()
                .map(|shape| shape.iter().product::<usize>())
                .sum::<usize>(),
            28_288_354
        );
        expected.insert("mask_token".into(), vec![1, 1, 96]);
        assert_eq!(ours(weight_names), expected);
    }
    let timm = ours(WeightNames::Timm);
    assert_eq!(timm["layers.1.downsample.norm.weight"], [384]);
    assert_eq!(timm["head.fc.weight"], [1000, 768]);
    assert!(!timm.contains_key("layers.0.downsample.norm.weight") && !timm.contains_key("head.weight"));
    // As torchvision publishes the number, with the mask token's.
    assert_eq!(
        count_params(|vb| SwinTransformer::new(&Config::tiny(1000), vb)),
        28_288_354 + 96
    );
}

// The paper's table.
#[test]
fn parameter_counts_are_the_papers() {
    for &(name, size) in Config::SIZES {
        let count = millions(count_params(|vb| SwinTransformer::new(&size(1000), vb)));
        let expected = match name {
            "swin-tiny" => 28.3,
            "swin-small" => 49.6,
            "swin-base" => 87.8,
            other => panic!("{other}"),
        };
        assert_eq!(count, expected, "{name}");
    }
}

#[test]
fn a_checkpoint_without_a_mask_token_loads_and_one_is_drawn() {
    let cfg = small_swin();
    let mut values = random_values(|vb| SwinTransformer::new(&cfg, vb));
    values.remove("mask_token").unwrap();
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("swin.safetensors");
    candle_core::safetensors::save(&values.clone().into_iter().collect(), &path).unwrap();

    let refused = SwinTransformer::new(
        &cfg,
        Weights::from_safetensors(&path).unwrap().var_builder(DType::F32, &CPU),
    );
    let refused = refused.map(drop).map_err(Error::from);
    assert!(matches!(refused, Err(Error::MissingWeight { path, .. }) if path == "mask_token"));

    let weights = Weights::from_safetensors_or_seed(&path, Seed::new(1)).unwrap();
    let swin = SwinTransformer::new(&cfg, weights.var_builder(DType::F32, &CPU)).unwrap();
    assert_eq!(weights.drawn(), ["mask_token"]);
    assert!(weights.left_over().is_empty());
    // It is used by the sub-branch alone.
    let xs = randn((1, 3, 32, 64), "checkpoint");
    values.insert("mask_token".into(), Tensor::zeros((1, 1, 8), DType::F32, &CPU).unwrap());
    let zero = SwinTransformer::new(&cfg, Weights::from_tensors(values).var_builder(DType::F32, &CPU)).unwrap();
    assert_eq!(
        numbers(&swin.forward_t(&xs, false).unwrap()),
        numbers(&zero.forward_t(&xs, false).unwrap())
    );
}
