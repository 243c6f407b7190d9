//! The Vision Transformer: gradients, sizes, image shapes, dropout and drop path, dtypes, dropped tokens.

mod dropped_tokens;
mod dropping;
mod dtypes;
mod features;
mod gradients;
mod image_shapes;
mod parts;
mod peers;
mod sizes;
mod training;

use std::collections::BTreeMap;

use crate::common::{randn, vit, CPU};
use candle_core::{DType, Tensor};
use masksub::models::vit::{Config, VisionTransformer};
use masksub::{Params, RandomMasking, Seed, StepKey, Weights};

fn key(step: usize) -> StepKey {
    Seed::new(3).at(step)
}

fn half() -> RandomMasking {
    RandomMasking::new(0.5).unwrap()
}

/// A model from given values, in some dtype.
fn from_values(cfg: &Config, values: &BTreeMap<String, Tensor>, dtype: DType) -> (VisionTransformer, Params) {
    let weights = Weights::from_tensors(values.clone());
    let vit = VisionTransformer::new(cfg, weights.var_builder(dtype, &CPU)).unwrap();
    assert!(weights.left_over().is_empty());
    (vit, Params::from_varmap(weights.varmap()))
}

/// The shapes of a configuration's weights by name.
fn shapes(cfg: &Config) -> BTreeMap<String, Vec<usize>> {
    let (_, params) = vit(cfg, 0);
    params
        .iter()
        .map(|(name, var)| (name.to_string(), var.dims().to_vec()))
        .collect()
}

/// Random values for every weight, norms and biases too, so that none is without effect.
fn random_values(cfg: &Config) -> BTreeMap<String, Tensor> {
    let value = |(name, shape): (String, Vec<usize>)| {
        let value = (randn(shape, &name) * 0.3).unwrap();
        (name, value)
    };
    shapes(cfg).into_iter().map(value).collect()
}
