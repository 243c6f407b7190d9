//! Weights from a seed and from files: what is drawn, what is read, what is said about the rest.

mod candles_constructors;
#[path = "../common/mod.rs"]
mod common;
mod exactly_those_of_the_file;
mod from_a_file;
mod from_a_seed;
mod from_tensors;
mod shared;
mod without_gradients;

use std::collections::HashMap;
use std::path::PathBuf;

use candle_core::{DType, Tensor};
use candle_nn::{Init, VarBuilder};
use common::{randn, CPU};
use masksub::{Seed, Weights};

fn seeded(seed: u64) -> (Weights, VarBuilder<'static>) {
    builder(Weights::seeded(Seed::new(seed)))
}

fn builder(weights: Weights) -> (Weights, VarBuilder<'static>) {
    let vb = weights.var_builder(DType::F32, &CPU);
    (weights, vb)
}

const NORMAL: Init = Init::Randn { mean: 0.0, stdev: 1.0 };

/// A safetensors file of tensors in a directory that lives as long as it.
struct Stored {
    _directory: tempfile::TempDir,
    path: PathBuf,
}

impl Stored {
    fn new(tensors: &[(&str, Tensor)]) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("weights.safetensors");
        let tensors: HashMap<&str, Tensor> = tensors.iter().cloned().collect();
        candle_core::safetensors::save(&tensors, &path).unwrap();
        Self {
            _directory: directory,
            path,
        }
    }

    fn linear() -> Self {
        Self::new(&[
            ("fc.weight", randn((2, 4), "weight")),
            ("fc.bias", randn(2, "bias")),
            ("old_head.weight", randn((9, 2), "old head")),
            ("step", Tensor::new(&[7i64], &CPU).unwrap()),
        ])
    }

    fn load(&self) -> (Weights, VarBuilder<'static>) {
        builder(Weights::from_safetensors(&self.path).unwrap())
    }
}
