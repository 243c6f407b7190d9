//! Tensors that lie oddly: one number for many elements, and none behind the end of a storage.

use candle_core::backprop::GradStore;
use candle_core::{DType, Tensor, Var};
use masksub::train::accumulate::Accumulator;
use masksub::train::checkpoint::Checkpoint;
use masksub::train::ema::Ema;
use masksub::train::mix::Mix;
use masksub::train::optim::{AdamW, AdamWConfig};
use masksub::{grad, Params, Seed};

use super::key;
use crate::common::{numbers, randn, CPU};

/// An empty tensor whose numbers would begin behind its storage's last one.
fn behind_the_end() -> Tensor {
    let empty = Tensor::zeros((2, 0), DType::F32, &CPU).unwrap();
    empty.pad_with_zeros(1, 1, 1).unwrap().narrow(1, 2, 0).unwrap()
}

#[test]
fn empty_parameters_are_passed_over() {
    let var = Var::zeros((2, 0), DType::F32, &CPU).unwrap();
    let full = Var::zeros(2, DType::F32, &CPU).unwrap();
    let params = Params::new([("empty".to_string(), var.clone()), ("full".to_string(), full.clone())]);
    let mut grads = GradStore::default();
    grads.insert(&var, behind_the_end());
    // One number for both elements.
    grads.insert(&full, Tensor::new(&[3f32], &CPU).unwrap().broadcast_as(2).unwrap());
    let mut accumulator = Accumulator::new(&params);
    accumulator.add(&grads, 1).unwrap();
    accumulator.add(&grads, 1).unwrap();
    let mut grads = accumulator.take().unwrap();
    assert_eq!(numbers(grads.get(&full).unwrap()), [3.0; 2]);
    assert!(grad::audit(&grads, &params).unwrap().is_ok());
    let norm = grad::clip_grad_norm(&mut grads, &params, 1.0).unwrap();
    assert!((norm - 18f64.sqrt()).abs() < 1e-6, "{norm}");
    let vars = params.iter().map(|(name, var)| (name.to_string(), var.clone()));
    let mut ema = Ema::new(vars.collect::<Vec<_>>(), 0.5).unwrap();
    AdamW::new(&params, AdamWConfig::default())
        .unwrap()
        .step(&grads)
        .unwrap();
    ema.update().unwrap();
    ema.averaged(|| assert!(numbers(&full).iter().all(|weight| *weight < 0.0)))
        .unwrap();
}

#[test]
fn empty_tensors_are_saved() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("run.safetensors");
    let section = [("empty".to_string(), behind_the_end())];
    Checkpoint::new(1, Seed::new(0))
        .with_section("model", section)
        .save(&path)
        .unwrap();
    let again = Checkpoint::load(&path).unwrap();
    assert_eq!(again.section("model").unwrap()["empty"].dims(), [2, 0]);
}

#[test]
fn images_may_be_transposed_to_be_mixed() {
    let images = randn((3, 2, 4, 4), "images");
    let strided = images
        .transpose(2, 3)
        .unwrap()
        .contiguous()
        .unwrap()
        .transpose(2, 3)
        .unwrap();
    let labels = Tensor::new(&[0u32, 1, 2], &CPU).unwrap();
    for mix in [Mix::new(3, 1.0, 0.0).unwrap(), Mix::new(3, 0.0, 1.0).unwrap()] {
        let [mixed, expected] = [&strided, &images].map(|images| mix.apply(images, &labels, key()).unwrap());
        assert_eq!(numbers(&mixed.images), numbers(&expected.images));
    }
}
