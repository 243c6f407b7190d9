//! Weights drawn from a seed: their distribution, and what they depend on.

use std::collections::BTreeMap;

use candle_core::{DType, Shape};
use candle_nn::init::{FanInOut, NonLinearity, NormalOrUniform};
use candle_nn::{Init, Module, Optimizer, SGD};
use masksub::models::vit::VisionTransformer;
use masksub::{Params, Seed, Weights};
use statrs::distribution::{ContinuousCDF, Normal};

use super::{seeded, NORMAL};
use crate::common::{bits, numbers, p_value, randn, tiny_forms, CPU};

fn draw(seed: u64, names: &[&str]) -> BTreeMap<String, Vec<u32>> {
    let (_, vb) = seeded(seed);
    let get = |name: &&str| {
        (
            name.to_string(),
            bits(&vb.get_with_hints((5, 3), name, NORMAL).unwrap()),
        )
    };
    names.iter().map(get).collect()
}

#[test]
fn depend_on_seed_and_name_alone() {
    let names = ["a", "b", "blocks.0.fc.weight", "blocks.1.fc.weight"];
    let drawn = draw(7, &names);
    assert_eq!(draw(7, &names), drawn);
    // In another order, and with others between.
    let reordered = draw(
        7,
        &["other", "blocks.1.fc.weight", "b", "more", "a", "blocks.0.fc.weight"],
    );
    for name in names {
        assert_eq!(reordered[name], drawn[name], "{name}");
        assert_ne!(draw(8, &names)[name], drawn[name], "{name}");
    }
    let distinct: std::collections::BTreeSet<_> = drawn.values().collect();
    assert_eq!(distinct.len(), names.len());
    // However the path is put together.
    let (_, vb) = seeded(7);
    let by_parts = vb
        .pp("blocks")
        .pp(1)
        .get_with_hints((5, 3), "fc.weight", NORMAL)
        .unwrap();
    assert_eq!(bits(&by_parts), drawn["blocks.1.fc.weight"]);
}

#[test]
fn make_models_bit_for_bit() {
    for (name, cfg) in tiny_forms(5) {
        let make = |seed| {
            let (weights, vb) = seeded(seed);
            VisionTransformer::new(&cfg, vb).unwrap();
            let data = weights.varmap().data().lock().unwrap();
            data.iter()
                .map(|(name, var)| (name.clone(), bits(var)))
                .collect::<BTreeMap<_, _>>()
        };
        assert_eq!(make(3), make(3), "{name}");
        assert_ne!(make(3), make(4), "{name}");
    }
}

#[test]
fn are_the_same_in_every_dtype_but_for_rounding() {
    let reference = seeded(1).1.get_with_hints(1000, "w", NORMAL).unwrap();
    for dtype in [DType::BF16, DType::F16, DType::F64] {
        let vb = Weights::seeded(Seed::new(1)).var_builder(dtype, &CPU);
        let drawn = vb.get_with_hints(1000, "w", NORMAL).unwrap();
        assert_eq!(drawn.dtype(), dtype);
        assert_eq!(numbers(&drawn), numbers(&reference.to_dtype(dtype).unwrap()));
    }
}

const COUNT: usize = 40_000;

/// Chi-square of the values in 40 bins that are equally likely under `cdf`.
fn assert_follows(what: &str, values: &[f64], cdf: impl Fn(f64) -> f64) {
    let bins = 40;
    let mut counts = vec![0f64; bins];
    for &value in values {
        counts[((cdf(value) * bins as f64) as usize).min(bins - 1)] += 1.0;
    }
    let expected = values.len() as f64 / bins as f64;
    let statistic = counts.iter().map(|count| (count - expected).powi(2) / expected).sum();
    let p = p_value(statistic, bins - 1);
    assert!((1e-4..1.0 - 1e-4).contains(&p), "{what}: p = {p:.1e}");
}

fn values(init: Init, shape: impl Into<Shape>) -> Vec<f64> {
    numbers(&seeded(5).1.get_with_hints(shape, "w", init).unwrap())
}

fn assert_normal(what: &str, values: &[f64], mean: f64, std: f64) {
    let normal = Normal::new(mean, std).unwrap();
    assert_follows(what, values, |x| normal.cdf(x));
}

fn assert_uniform(what: &str, values: &[f64], low: f64, high: f64) {
    assert!(values.iter().all(|x| (low..=high).contains(x)), "{what}");
    assert_follows(what, values, |x| (x - low) / (high - low));
}

#[test]
fn follow_their_distribution() {
    assert!(values(Init::Const(0.25), 100).iter().all(|&x| x == 0.25));
    let normal = Init::Randn { mean: 0.5, stdev: 0.02 };
    assert_normal("normal", &values(normal, COUNT), 0.5, 0.02);
    let uniform = Init::Uniform { lo: -0.3, up: 0.1 };
    assert_uniform("uniform", &values(uniform, COUNT), -0.3, 0.1);
    // No init said: zero, as candle has it.
    assert!(numbers(&seeded(5).1.get(10, "w").unwrap()).iter().all(|&x| x == 0.0));
}

#[test]
fn follow_kaiming_initialisation() {
    let kaiming = |dist, fan, non_linearity| Init::Kaiming {
        dist,
        fan,
        non_linearity,
    };
    // [out, in] and [out, in, k, k]: gain / sqrt(fan).
    let (linear, conv) = ((200, 200), (40, 40, 5, 5));
    let fan_in = kaiming(NormalOrUniform::Normal, FanInOut::FanIn, NonLinearity::ReLU);
    assert_normal("linear", &values(fan_in, linear), 0.0, (2f64 / 200.0).sqrt());
    assert_normal("conv", &values(fan_in, conv), 0.0, (2f64 / 1000.0).sqrt());
    let wide = kaiming(NormalOrUniform::Normal, FanInOut::FanOut, NonLinearity::Linear);
    assert_normal("fan out", &values(wide, (100, 400)), 0.0, (1f64 / 100.0).sqrt());
    let bound = (3f64 * 2.0 / 200.0).sqrt();
    let uniform = kaiming(NormalOrUniform::Uniform, FanInOut::FanIn, NonLinearity::ReLU);
    assert_uniform("uniform", &values(uniform, linear), -bound, bound);
    assert_uniform(
        "candle's default",
        &values(candle_nn::init::DEFAULT_KAIMING_UNIFORM, linear),
        -bound,
        bound,
    );
}

#[test]
fn are_variables_of_the_varmap() {
    let (weights, vb) = seeded(0);
    let layer = candle_nn::linear(4, 2, vb.pp("fc")).unwrap();
    assert_eq!(weights.drawn(), ["fc.bias", "fc.weight"]);
    assert!(weights.left_over().is_empty());
    let params = Params::from_varmap(weights.varmap());
    let xs = randn((3, 4), "xs");
    let loss = |layer: &candle_nn::Linear| layer.forward(&xs).unwrap().sqr().unwrap().sum_all().unwrap();
    let before = numbers(&loss(&layer))[0];
    let grads = loss(&layer).backward().unwrap();
    SGD::new(params.vars(), 0.01).unwrap().step(&grads).unwrap();
    // The layer sees the step.
    assert!(numbers(&loss(&layer))[0] < before);
}
