//! Windows, shifts and rates of the blocks, read off a model; and the operations one by one against the fused ones.

use candle_core::{DType, Device};

use super::{Config, SwinTransformer};
use crate::key::Seed;
use crate::model::Forward;
use crate::ops::testing::{random, relative};
use crate::pass::Pass;
use crate::weights::Weights;

fn build(cfg: &Config) -> SwinTransformer {
    SwinTransformer::new(cfg, Weights::seeded(Seed::new(0)).var_builder(DType::F32, &Device::Cpu)).unwrap()
}

fn small(image_size: (usize, usize), window_size: usize) -> Config {
    Config {
        image_size,
        patch_size: 1,
        embed_dim: 2,
        depths: vec![2, 2],
        num_heads: vec![1, 2],
        window_size,
        drop_path: 0.3,
        ..Config::tiny(2)
    }
}

/// Window and shift of each block, and true where it has a mask.
fn windows(cfg: &Config) -> Vec<(usize, usize, bool)> {
    let blocks = build(cfg).stages.into_iter().flat_map(|stage| stage.blocks);
    blocks
        .map(|block| block.attention)
        .map(|attention| (attention.shape.window, attention.shift, attention.mask.is_some()))
        .collect()
}

#[test]
fn every_second_block_is_shifted_unless_a_side_is_one_window() {
    assert_eq!(
        windows(&small((8, 16), 4)),
        [(4, 0, false), (4, 2, true), (4, 0, false), (4, 0, false)]
    );
    assert_eq!(
        windows(&small((6, 12), 7)),
        [(6, 0, false), (6, 0, false), (3, 0, false), (3, 0, false)]
    );
    assert_eq!(
        windows(&small((12, 12), 3)),
        [(3, 0, false), (3, 1, true), (3, 0, false), (3, 1, true)]
    );
}

#[test]
fn drop_path_grows_over_the_blocks_of_all_stages() {
    let stages = build(&small((8, 8), 4)).stages;
    let rates = stages
        .iter()
        .flat_map(|stage| &stage.blocks)
        .map(|block| block.attention.regime.drop_path);
    for (rate, expected) in rates.zip([0.0, 0.1, 0.2, 0.3]) {
        assert!((rate - expected).abs() < 1e-12, "{rate} instead of {expected}");
    }
}

/// A rate that no draw falls below takes the operations one by one, as every dropout does, and drops nothing.
#[test]
fn dropout_leaves_the_rest_as_it_is() {
    // Wide enough for norms that leave more than a sign.
    let swin = build(&Config {
        embed_dim: 16,
        ..small((8, 16), 4)
    });
    let xs = random(&[3, 3, 8, 16], 0).to_dtype(DType::F32).unwrap();
    let logits = |rate: f64| {
        let mut pass = Pass::train(Seed::new(1).at(0));
        pass.impose_dropout(rate).unwrap();
        let logits = swin.forward_pass(&xs, &mut pass).unwrap();
        (logits, pass.drop_path_sites(), pass.dropout_sites())
    };
    let ((one, paths, sites), (composed, same_paths, same_sites)) = (logits(0.0), logits(1e-12));
    assert_eq!((paths, sites), (same_paths, same_sites));
    let error = relative(&composed, &one);
    assert!(error < 2e-6, "off by {error:e}");
}
