//! Dropout and drop path.
//!
//! The model is one in which every residual branch, where it is kept, adds a unit vector of its own to the class token,
//! and the head shows them: what is dropped can be read off the logits.

use std::collections::BTreeMap;

use candle_core::{DType, Tensor};
use candle_nn::ModuleT;
use masksub::models::vit::{Config, DropPathSchedule, Pool, VisionTransformer};
use masksub::{Forward, Pass};

use super::{from_values, key, shapes};
use crate::common::{bits, CPU};

const DEPTH: usize = 4;
const WIDTH: usize = 16;
/// A direction that nothing is added to.
const UNUSED: usize = WIDTH - 1;

fn config() -> Config {
    Config {
        embed_dim: WIDTH,
        depth: DEPTH,
        num_heads: 2,
        mlp_dim: 3,
        layer_scale: None,
        pool: Pool::ClassToken,
        ..Config::mae_base(WIDTH).with_input(4, 4, 1)
    }
}

fn unit(at: usize) -> Tensor {
    let values = (0..WIDTH).map(|i| if i == at { 1f32 } else { 0.0 });
    Tensor::from_iter(values, &CPU).unwrap()
}

fn visible(cfg: &Config) -> VisionTransformer {
    let mut values: BTreeMap<String, Tensor> = shapes(cfg)
        .into_iter()
        .map(|(name, shape)| (name, Tensor::zeros(shape, DType::F32, &CPU).unwrap()))
        .collect();
    values.insert("cls_token".into(), unit(0).reshape((1, 1, WIDTH)).unwrap());
    values.insert("norm.weight".into(), Tensor::ones(WIDTH, DType::F32, &CPU).unwrap());
    values.insert("head.weight".into(), Tensor::eye(WIDTH, DType::F32, &CPU).unwrap());
    for block in 0..DEPTH {
        values.insert(format!("blocks.{block}.attn.proj.bias"), unit(1 + 2 * block));
        values.insert(format!("blocks.{block}.mlp.fc2.bias"), unit(2 + 2 * block));
    }
    from_values(cfg, &values, DType::F32).0
}

/// What each branch added in each sample, in units of the class token: 0 where it was dropped.
fn added(vit: &VisionTransformer, pass: &mut Pass, samples: usize) -> Vec<Vec<f64>> {
    let xs = Tensor::zeros((samples, 1, 4, 4), DType::F32, &CPU).unwrap();
    let logits = vit.forward_pass(&xs, pass).unwrap().to_vec2::<f32>().unwrap();
    let of_sample = |row: &Vec<f32>| {
        // The final norm shifts and scales all directions alike.
        let (zero, one) = (row[UNUSED], row[0]);
        row[1..=2 * DEPTH]
            .iter()
            .map(|x| ((x - zero) / (one - zero)) as f64)
            .collect()
    };
    logits.iter().map(of_sample).collect()
}

const SAMPLES: usize = 4000;

/// Each branch is dropped at its rate and scaled to keep its mean otherwise.
fn assert_rates(cfg: &Config, rates: [f64; 2 * DEPTH]) {
    let added = added(&visible(cfg), &mut Pass::train(key(0)), SAMPLES);
    for (branch, rate) in rates.into_iter().enumerate() {
        let kept: Vec<f64> = added
            .iter()
            .map(|sample| sample[branch])
            .filter(|x| x.abs() > 0.5)
            .collect();
        let deviation = (SAMPLES as f64 * rate * (1.0 - rate)).sqrt();
        let error = kept.len() as f64 - SAMPLES as f64 * (1.0 - rate);
        assert!(
            error.abs() <= 4.5 * deviation,
            "branch {branch}: {} of {SAMPLES} at {rate}",
            kept.len()
        );
        assert!(
            kept.iter().all(|x| (x - 1.0 / (1.0 - rate)).abs() < 1e-3),
            "branch {branch}: {:?}",
            &kept[..3]
        );
    }
}

#[test]
fn paths_at_a_linear_or_constant_rate() {
    let cfg = |drop_path_schedule| Config {
        drop_path: 0.6,
        drop_path_schedule,
        ..config()
    };
    assert_rates(&cfg(DropPathSchedule::Linear), [0.0, 0.0, 0.2, 0.2, 0.4, 0.4, 0.6, 0.6]);
    assert_rates(&cfg(DropPathSchedule::Constant), [0.6; 8]);
    // The published forms' own.
    assert_eq!(Config::deit3_small(5).drop_path_schedule, DropPathSchedule::Constant);
    for cfg in [Config::mae_base(5), Config::clip_base(5), Config::hf_base(5)] {
        assert_eq!(cfg.drop_path_schedule, DropPathSchedule::Linear);
    }
}

#[test]
fn activations_on_attention_and_mlp_outputs() {
    let cfg = Config {
        dropout: 0.3,
        ..config()
    };
    assert_rates(&cfg, [0.3; 8]);
}

#[test]
fn activations_after_gelu_too() {
    // The MLP's output is fc2 of one hidden unit, so it is dropped at either place.
    let cfg = Config {
        dropout: 0.3,
        depth: 1,
        mlp_dim: 1,
        ..config()
    };
    let mut values: BTreeMap<String, Tensor> = shapes(&cfg)
        .into_iter()
        .map(|(name, shape)| (name, Tensor::zeros(shape, DType::F32, &CPU).unwrap()))
        .collect();
    values.insert("cls_token".into(), unit(0).reshape((1, 1, WIDTH)).unwrap());
    values.insert("norm.weight".into(), Tensor::ones(WIDTH, DType::F32, &CPU).unwrap());
    values.insert("head.weight".into(), Tensor::eye(WIDTH, DType::F32, &CPU).unwrap());
    values.insert("blocks.0.mlp.fc1.bias".into(), Tensor::new(&[10f32], &CPU).unwrap());
    values.insert(
        "blocks.0.mlp.fc2.weight".into(),
        (unit(2) * 0.1).unwrap().reshape((WIDTH, 1)).unwrap(),
    );
    let (vit, _) = from_values(&cfg, &values, DType::F32);
    let added = added(&vit, &mut Pass::train(key(0)), SAMPLES);
    let kept: Vec<f64> = added.iter().map(|sample| sample[1]).filter(|x| x.abs() > 0.5).collect();
    let share = 0.7 * 0.7;
    let deviation = (SAMPLES as f64 * share * (1.0 - share)).sqrt();
    assert!(
        (kept.len() as f64 - SAMPLES as f64 * share).abs() < 4.5 * deviation,
        "{}",
        kept.len()
    );
    assert!(kept.iter().all(|x| (x - 1.0 / share).abs() < 1e-2), "{:?}", &kept[..3]);
}

#[test]
fn nothing_outside_training() {
    let cfg = Config {
        dropout: 0.3,
        drop_path: 0.6,
        ..config()
    };
    let vit = visible(&cfg);
    for sample in added(&vit, &mut Pass::eval(), 50) {
        assert!(sample.iter().all(|x| (x - 1.0).abs() < 1e-4), "{sample:?}");
    }
    let xs = Tensor::zeros((2, 1, 4, 4), DType::F32, &CPU).unwrap();
    let quiet = visible(&config()).forward_t(&xs, true).unwrap();
    assert_eq!(bits(&vit.forward_t(&xs, false).unwrap()), bits(&quiet));
}

#[test]
fn at_every_place_it_says() {
    let mut pass = Pass::train(key(0));
    added(&visible(&config()), &mut pass, 2);
    assert_eq!((pass.dropout_sites(), pass.drop_path_sites()), (3 * DEPTH, 2 * DEPTH));
    // A sub-branch's rates hold in every block, whatever the recipe has.
    let mut pass = Pass::train(key(0));
    pass.impose_drop_path(0.5).unwrap();
    let added = added(&visible(&config()), &mut pass, SAMPLES);
    for branch in 0..2 * DEPTH {
        let dropped = added.iter().filter(|sample| sample[branch].abs() < 0.5).count();
        assert!(
            (dropped as f64 - 2000.0).abs() < 4.5 * 1000f64.sqrt(),
            "branch {branch}: {dropped}"
        );
    }
}
