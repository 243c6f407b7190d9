//! The training step: what it computes, what it leaves alone, and whose models and optimizers fit.

mod acceptance;
mod any_module;
#[path = "../common/mod.rs"]
mod common;
mod difficulty;
mod errors_of_others;
mod evaluation;
mod graph;
mod optimizers;
mod other_branches;
mod parameters;
mod probe;
mod sequences;
mod targets;
mod tasks;
mod token_models;
mod two_halves;
mod weight;

use candle_core::{DType, Tensor, D};
use candle_nn::{AdamW, Optimizer, ParamsAdamW};
use common::{labels, randn, tiny, CPU};
use masksub::models::vit::Config;
use masksub::{DropToken, Params, RandomMasking, Seed, StepKey};

fn key() -> StepKey {
    Seed::new(5).at(3)
}

fn half() -> RandomMasking {
    RandomMasking::new(0.5).unwrap()
}

fn drop_token() -> DropToken<RandomMasking> {
    DropToken::new(half())
}

/// A ViT whose passes draw at every place they can.
fn dropping(form: Config) -> Config {
    Config {
        dropout: 0.2,
        drop_path: 0.3,
        ..tiny(form)
    }
}

fn adam(params: &Params, lr: f64) -> AdamW {
    let adam = ParamsAdamW {
        lr,
        weight_decay: 0.0,
        ..Default::default()
    };
    AdamW::new(params.vars(), adam).unwrap()
}

/// Mean over rows of the cross-entropy between softmax(target) and softmax(sub), rows the last but one dimensions.
fn soft(sub: &Tensor, target: &Tensor) -> candle_core::Result<Tensor> {
    let log_softmax = |xs: &Tensor| candle_nn::ops::log_softmax(xs, D::Minus1);
    let target = log_softmax(&target.detach())?.exp()?;
    let rows = (target.elem_count() / target.dim(D::Minus1)?) as f64;
    (target * log_softmax(sub)?)?.sum_all()? / -rows
}

/// Images [B, 1, 8, 8] of three classes that are told apart by the brightness of their rows, with noise.
fn separable(batch: usize, name: &str) -> (Tensor, Tensor) {
    let ys = labels(batch, 3);
    let rows = Tensor::arange(0f32, 8.0, &CPU).unwrap().reshape((1, 1, 8, 1)).unwrap();
    let phase = ys.to_dtype(DType::F32).unwrap().reshape((batch, 1, 1, 1)).unwrap();
    let pattern = rows.broadcast_add(&(phase * 2.1).unwrap()).unwrap().sin().unwrap();
    let noise = (randn((batch, 1, 8, 8), name) * 0.3).unwrap();
    (pattern.broadcast_add(&noise).unwrap(), ys)
}
