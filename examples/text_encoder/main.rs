//! MaskSub for text: a small encoder that tells what messages are about, plain and with a sub-branch that drops words.
//!
//!     cargo run --release --example text_encoder
//!
//! The messages are made up (`messages.rs`): a few sentences each, of different lengths, in which words of other topics
//! occur, too. Separators stay whatever is dropped; padding is never looked at. Flags: `--seeds N`, `--epochs N`,
//! `--train-size N`, `--mask-ratio R`.

mod encoder;
mod messages;

use std::time::Instant;

use anyhow::{ensure, Result};
use candle_core::{DType, Device, D};
use candle_nn::ModuleT;
use clap::Parser;
use encoder::Encoder;
use masksub::train::optim::{AdamW, AdamWConfig};
use masksub::train::schedule::{Cosine, Schedule};
use masksub::{Criterion, MaskSub, Params, RandomMasking, Seed, SequenceDrop, SubBranch, Weights};
use messages::Messages;

/// Trains a small text encoder, plain and with MaskSub, and prints what each gets right of messages it has not seen
#[derive(Parser)]
struct Flags {
    /// Runs of each kind, from seed 0 on: of messages, weights and masks
    #[arg(long, default_value_t = 5)]
    seeds: u64,
    /// Passes over the training messages
    #[arg(long, default_value_t = 40)]
    epochs: usize,
    /// Messages to train on
    #[arg(long, default_value_t = 320)]
    train_size: usize,
    /// Share of each message's words that the sub-branch does not see
    #[arg(long, default_value_t = 0.5)]
    mask_ratio: f64,
}

const BATCH: usize = 32;
const TEST_SIZE: usize = 2000;

fn main() -> Result<()> {
    if std::env::var_os("CANDLE_NUM_THREADS").is_none() {
        std::env::set_var("CANDLE_NUM_THREADS", "1"); // as README recommends
    }
    let flags = Flags::parse();
    ensure!(
        flags.seeds > 0 && flags.epochs > 0,
        "--seeds and --epochs must be at least 1"
    );
    ensure!(flags.train_size >= BATCH, "--train-size must be at least {BATCH}");
    println!("a message: {}", Messages::draw(Seed::new(0), "shown", 1).text(0));
    println!(
        "{} messages to train on, {TEST_SIZE} to test, in {} topics",
        flags.train_size,
        messages::TOPICS
    );
    let kinds = [("plain", 0.0), ("MaskSub", 0.5)];
    let mut runs = [vec![], vec![]];
    // In turn, so that a machine that is busy for a while slows both kinds down.
    for seed in 0..flags.seeds {
        for (runs, (_, weight)) in runs.iter_mut().zip(kinds) {
            runs.push(train(&flags, Seed::new(seed), weight)?);
        }
    }
    for (runs, (name, _)) in runs.iter().zip(kinds) {
        let (accuracies, times): (Vec<f64>, Vec<f64>) = runs.iter().copied().unzip();
        let each: Vec<_> = accuracies.iter().map(|accuracy| format!("{accuracy:.1}")).collect();
        let ((mean, deviation), each) = (spread(&accuracies), each.join(", "));
        println!(
            "{name:8} {mean:.1} ± {deviation:.1} % right ({each}), {:.2} ms a step",
            median(times)
        );
    }
    Ok(())
}

/// The share of the test messages that is right after training, in per cent, and the time of a step in milliseconds.
fn train(flags: &Flags, seed: Seed, weight: f64) -> Result<(f64, f64)> {
    let (train, test) = (
        Messages::draw(seed, "train", flags.train_size),
        Messages::draw(seed, "test", TEST_SIZE),
    );
    let weights = Weights::seeded(seed);
    let encoder = Encoder::new(messages::TOPICS, weights.var_builder(DType::F32, &Device::Cpu))?;
    let params = Params::from_varmap(weights.varmap());
    let model = MaskSub::new(
        encoder,
        SequenceDrop::new(RandomMasking::new(flags.mask_ratio)?),
        &params,
    );
    let model = model.with_weight(weight)?;
    let criterion = Criterion::cross_entropy();
    let mut opt = AdamW::new(&params, AdamWConfig::default())?;
    let steps_per_epoch = flags.train_size / BATCH;
    let total = flags.epochs * steps_per_epoch;
    let schedule = Cosine::new(3e-3, total)?.with_warmup(total / 20, 0.0)?;
    let mut times = Vec::with_capacity(total);
    for epoch in 0..flags.epochs {
        let order = train.shuffled(seed, epoch);
        for (i, samples) in order.chunks_exact(BATCH).enumerate() {
            let t = epoch * steps_per_epoch + i;
            let (ids, topics) = train.batch(samples)?;
            let start = Instant::now();
            let step = model.backward(&ids, seed.at(t), |logits| criterion.forward(logits, &topics))?;
            opt.set_learning_rate(schedule.at(t));
            opt.step(&step.grads)?;
            times.push(1e3 * start.elapsed().as_secs_f64());
        }
    }
    Ok((evaluate(&model, &test)?, median(times)))
}

fn evaluate<S: SubBranch<Encoder>>(model: &MaskSub<Encoder, S>, test: &Messages) -> Result<f64> {
    let mut right = 0.0;
    let samples: Vec<usize> = (0..TEST_SIZE).collect();
    for samples in samples.chunks(200) {
        let (ids, topics) = test.batch(samples)?;
        let logits = model.forward_t(&ids, false)?;
        let hits = logits.argmax(D::Minus1)?.eq(&topics)?.to_dtype(DType::F32)?;
        right += f64::from(hits.sum_all()?.to_scalar::<f32>()?);
    }
    Ok(100.0 * right / TEST_SIZE as f64)
}

/// The middle one; of an even number of values the upper one of both.
fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

/// Mean and standard deviation.
fn spread(values: &[f64]) -> (f64, f64) {
    let n = values.len() as f64;
    let mean = values.iter().sum::<f64>() / n;
    let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
    (mean, (squares / (n - 1.0).max(1.0)).sqrt())
}
