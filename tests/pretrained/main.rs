//! Checkpoints of other projects in the crate's models: whose they are, what is resized, missing or left over.

mod any_size;
mod channels;
mod clip;
#[path = "../common/mod.rs"]
mod common;
mod files;
mod formats;
mod names;
mod of_candle_transformers;
mod positions;
mod saved;
mod saved_and_opened;
mod shards;
mod the_head;
mod what_differs;
mod wrappings;

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use candle_core::{DType, Tensor};
use candle_nn::VarBuilder;
use common::CPU;
use masksub::models::vit::{Config, Pool, VisionTransformer};
use masksub::pretrained::Pretrained;
use masksub::{Error, Seed, Weights};

type Tensors = BTreeMap<String, Tensor>;

/// A checkpoint as a peer wrote it.
fn checkpoint(name: &str) -> PathBuf {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/checkpoints");
    let file = |ending: &str| directory.join(format!("{name}.{ending}"));
    if file("pth").exists() {
        file("pth")
    } else {
        file("safetensors")
    }
}

/// A file of `tests/fixtures/models`, as a peer wrote it.
fn model_file(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/fixtures/models")
        .join(name)
}

fn recorded(name: &str) -> HashMap<String, Tensor> {
    candle_core::safetensors::load(
        checkpoint("").with_file_name(format!("{name}.expect.safetensors")),
        &CPU,
    )
    .unwrap()
}

/// A checkpoint of these tensors.
fn saved(directory: &Path, tensors: &Tensors) -> PathBuf {
    let path = directory.join("model.safetensors");
    candle_core::safetensors::save(&tensors.clone().into_iter().collect(), &path).unwrap();
    path
}

/// The tensors of a safetensors checkpoint.
fn tensors(name: &str) -> Tensors {
    candle_core::safetensors::load(checkpoint(name), &CPU)
        .unwrap()
        .into_iter()
        .collect()
}

/// The ViT of the recorded checkpoints.
fn small(form: Config) -> Config {
    Config {
        embed_dim: 48,
        depth: 2,
        num_heads: 3,
        mlp_dim: 192,
        ..form.with_input(32, 8, 3)
    }
}

/// A ViT like timm's, with the class token.
fn timm_vit(num_classes: usize) -> Config {
    Config {
        pool: Pool::ClassToken,
        ..small(Config::mae_base(num_classes))
    }
}

fn weights(name: &str) -> Weights {
    Pretrained::open(checkpoint(name)).unwrap().weights(Seed::new(0))
}

fn vb(weights: &Weights) -> VarBuilder<'static> {
    weights.var_builder(DType::F32, &CPU)
}

fn vit(cfg: &Config, weights: &Weights) -> VisionTransformer {
    VisionTransformer::new(cfg, vb(weights)).unwrap()
}

fn refusal(cfg: &Config, weights: &Weights) -> Error {
    Error::from(VisionTransformer::new(cfg, vb(weights)).unwrap_err())
}

/// The variable of that name.
fn var(weights: &Weights, name: &str) -> Tensor {
    weights.varmap().data().lock().unwrap()[name].as_tensor().clone()
}
