//! Mixed precision in training: the same course as in f32, for what seeds make of that.

use candle_core::{DType, Tensor};
use masksub::models::vit::{Config, VisionTransformer};
use masksub::train::optim::{AdamW, AdamWConfig};
use masksub::train::schedule::{Cosine, Schedule};
use masksub::{Criterion, DropToken, MaskSub, Params, Seed, Weights};
use rand::Rng as _;

use super::random;
use crate::common::CPU;

const STEPS: usize = 200;
const BATCH: usize = 16;
/// Steps at the end whose losses count.
const LAST: usize = 40;

/// A DeiT-III with its LayerScale of 1e-4, for the digits.
fn config(compute_dtype: Option<DType>) -> Config {
    let small = Config {
        embed_dim: 48,
        depth: 3,
        num_heads: 3,
        mlp_dim: 192,
        compute_dtype,
        ..Config::deit3_tiny(10)
    };
    assert_eq!(small.layer_scale, Some(1e-4));
    small.with_input(8, 2, 1)
}

/// The handwritten digits: images [N, 1, 8, 8] within -1 and 1, and their labels `[N]`.
fn digits() -> (Tensor, Tensor) {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/data/digits.safetensors");
    let file = candle_core::safetensors::load(path, &CPU).unwrap();
    let images = file["images"].to_dtype(DType::F32).unwrap();
    let images = ((images / 8.0).unwrap() - 1.0).unwrap().reshape(((), 1, 8, 8)).unwrap();
    (images, file["labels"].to_dtype(DType::U32).unwrap())
}

/// The mean of the main branch's last losses, of weights in `weights`.
fn last_loss(seed: u64, weights_dtype: DType, compute_dtype: Option<DType>) -> f64 {
    let (images, labels) = digits();
    let count = images.dim(0).unwrap() as u32;
    let seed = Seed::new(seed);
    let weights = Weights::seeded(seed);
    let vit = VisionTransformer::new(&config(compute_dtype), weights.var_builder(weights_dtype, &CPU)).unwrap();
    let params = Params::from_varmap(weights.varmap());
    let config = AdamWConfig {
        weight_decay: 0.05,
        ..Default::default()
    };
    let mut opt = AdamW::new(&params, config).unwrap();
    let schedule = Cosine::new(2e-3, STEPS).unwrap().with_warmup(STEPS / 10, 1e-5).unwrap();
    let model = MaskSub::new(vit, DropToken::new(random(0.5)), &params);
    let criterion = Criterion::cross_entropy();
    let mut order = seed.rng_for("order");
    let losses = (0..STEPS).map(|t| {
        let batch: Vec<u32> = (0..BATCH).map(|_| order.random_range(0..count)).collect();
        let batch = Tensor::new(batch, &CPU).unwrap();
        let xs = images.index_select(&batch, 0).unwrap().to_dtype(weights_dtype).unwrap();
        let ys = labels.index_select(&batch, 0).unwrap();
        let step = model
            .backward(&xs, seed.at(t), |logits| criterion.forward(logits, &ys))
            .unwrap();
        opt.set_learning_rate(schedule.at(t));
        opt.step(&step.grads).unwrap();
        step.main_loss
    });
    let losses: Vec<f64> = losses.collect();
    losses[STEPS - LAST..].iter().sum::<f64>() / LAST as f64
}

#[test]
fn products_in_bf16_change_the_loss_by_less_than_a_seed_does() {
    const SEEDS: u64 = 4;
    let run = |compute_dtype| -> Vec<f64> {
        (0..SEEDS)
            .map(|seed| last_loss(seed, DType::F32, compute_dtype))
            .collect()
    };
    let (f32, bf16) = (run(None), run(Some(DType::BF16)));
    let mean = |losses: &[f64]| losses.iter().sum::<f64>() / losses.len() as f64;
    let deviation = {
        let squares: Vec<f64> = f32.iter().map(|loss| (loss - mean(&f32)).powi(2)).collect();
        (squares.iter().sum::<f64>() / (SEEDS - 1) as f64).sqrt()
    };
    let changed = mean(&bf16) - mean(&f32);
    println!("f32 {f32:.4?}, bf16 {bf16:.4?}: {changed:.4} of a seed's {deviation:.4}");
    println!("weights and stream in bf16: {:.4}", last_loss(0, DType::BF16, None));
    // It has learnt something: ten classes are ln 10 at first, 2.3.
    assert!(mean(&f32) < 2.0, "{f32:?}");
    // Means of four that had no seeds in common would be .7 of a seed's deviation apart.
    assert!(changed.abs() < 2.0 * deviation, "{f32:?}, {bf16:?}");
}
