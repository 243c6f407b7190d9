//! The models: sizes and names, gradients, what their sub-branches hide, and what is dropped.

#[path = "../common/mod.rs"]
mod common;
mod convnext;
mod mixed;
mod mixed_training;
mod recompute;
mod resnet;
mod sources;
mod swin;
mod vit;

use std::collections::BTreeMap;

use candle_core::{DType, Tensor};
use candle_nn::loss::cross_entropy;
use candle_nn::{ModuleT, VarBuilder};
use common::{distance, labels, randn, CPU};
use masksub::{grad, Error, Forward, Mask, MaskSub, Params, RandomMasking, Seed, SubBranch, SubModelLoss, Weights};

fn random(ratio: f64) -> RandomMasking {
    RandomMasking::new(ratio).unwrap()
}

fn millions(count: usize) -> f64 {
    (count as f64 / 1e5).round() / 10.0
}

/// The two halves, of which the second is added to the first as it comes, are one backward through both branches.
fn check_joint_loss<M: Forward, S: SubBranch<M>>(weights: &Weights, model: M, branch: S) {
    let (xs, ys) = (randn((3, 3, 64, 64), "joint"), labels(3, 4));
    let key = Seed::new(2).at(0);
    let params = Params::from_varmap(weights.varmap());
    let model = MaskSub::new(model, branch, &params);
    let step = model.backward(&xs, key, |logits| cross_entropy(logits, &ys)).unwrap();
    let pair = model.forward_pair(&xs, key).unwrap();
    let main = cross_entropy(&pair.main, &ys).unwrap();
    let sub = SubModelLoss::default().forward(&pair.sub, &pair.main).unwrap();
    let joint = grad::backward(&((main + sub).unwrap() / 2.0).unwrap(), &params).unwrap();
    for (param, var) in params.iter() {
        let [got, expected] = [&step.grads, &joint].map(|grads| grads.get(var).unwrap());
        let error = distance(got, expected);
        assert!(error < 1e-5, "{param} is off by {error:.1e}");
    }
}

/// The blocks that a mask keeps, of which the ratio hides so many in every sample.
fn kept_of(mask: Option<Mask>, hidden: usize) -> Vec<Vec<f32>> {
    let blocks: Vec<Vec<f32>> = mask.unwrap().to_dense(DType::F32, &CPU).unwrap().to_vec2().unwrap();
    for row in &blocks {
        assert_eq!(row.iter().filter(|&&kept| kept == 0.0).count(), hidden);
    }
    blocks
}

/// [B, 4 * side, 4 * side], the number of each of 4 x 4 blocks wherever that block is.
fn enlarged(blocks: &[Vec<f32>], side: usize) -> Tensor {
    let of_sample = |blocks: &Vec<f32>| -> Vec<f32> {
        let width = 4 * side;
        (0..width * width)
            .map(|at| blocks[at / width / side * 4 + at % width / side])
            .collect()
    };
    let values: Vec<f32> = blocks.iter().flat_map(of_sample).collect();
    Tensor::from_vec(values, (blocks.len(), 4 * side, 4 * side), &CPU).unwrap()
}

fn message(result: candle_core::Result<impl Sized>) -> String {
    match result {
        Ok(_) => panic!("accepted"),
        Err(error) => Error::from(error).to_string(),
    }
}

/// The argument that an error names.
fn named(result: candle_core::Result<impl Sized>) -> &'static str {
    match result.map(drop).map_err(Error::from) {
        Err(Error::InvalidArgument { argument, .. }) => argument,
        Err(other) => panic!("{other}"),
        Ok(()) => panic!("accepted"),
    }
}

/// A model of these values.
fn from_values<M>(
    values: &BTreeMap<String, Tensor>,
    dtype: DType,
    build: impl FnOnce(VarBuilder) -> candle_core::Result<M>,
) -> M {
    let weights = Weights::from_tensors(values.clone());
    build(weights.var_builder(dtype, &CPU)).unwrap()
}

/// The values with those named set to 0.
fn silenced(values: &BTreeMap<String, Tensor>, silent: impl Fn(&str) -> bool) -> BTreeMap<String, Tensor> {
    let value = |(name, value): (&String, &Tensor)| {
        if silent(name) {
            (name.clone(), value.zeros_like().unwrap())
        } else {
            (name.clone(), value.clone())
        }
    };
    values.iter().map(value).collect()
}

/// A rate at which nothing is kept.
const ALL: f64 = 1.0 - 1e-9;

/// Values rounded to a dtype.
fn rounded(values: &BTreeMap<String, Tensor>, dtype: DType) -> BTreeMap<String, Tensor> {
    let round = |(name, value): (&String, &Tensor)| (name.clone(), value.to_dtype(dtype).unwrap());
    values.iter().map(round).collect()
}

/// The heads read the mean of 196 positions, which half precision cannot add up.
fn check_half_precision<M: ModuleT>(
    values: &BTreeMap<String, Tensor>,
    images: &Tensor,
    build: impl Fn(VarBuilder) -> candle_core::Result<M>,
) {
    for (dtype, tolerance) in [(DType::BF16, 4e-3), (DType::F16, 6e-4)] {
        let run = |to: DType| {
            let model = from_values(&rounded(values, dtype), to, &build);
            let images = images.to_dtype(dtype).unwrap().to_dtype(to).unwrap();
            model.forward_t(&images, false).unwrap()
        };
        let (ours, exact) = (run(dtype), run(DType::F64));
        assert_eq!(ours.dtype(), dtype);
        let error = distance(&ours, &exact);
        assert!(error < tolerance, "{dtype:?}: {error:e}");
    }
}
