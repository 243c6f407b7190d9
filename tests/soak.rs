//! A long run: memory stays where it is after the first steps, and every loss is a number.
//!
//! ```text
//! MASKSUB_SOAK_STEPS=20000 cargo test --release --test soak -- --nocapture
//! ```

mod common;

use candle_core::{DType, Tensor};
use candle_nn::ModuleT;
use common::{numbers, randn, CPU};
use masksub::models::vit::{Config, VisionTransformer};
use masksub::train::checkpoint::Checkpoint;
use masksub::train::ema::Ema;
use masksub::train::mix::Mix;
use masksub::train::optim::{AdamW, AdamWConfig, ParamGroups};
use masksub::train::schedule::{Cosine, Schedule};
use masksub::{grad, Criterion, DropToken, MaskSub, Params, RandomMasking, Seed, Weights};

/// Steps of the test suite.
const STEPS: usize = 300;
/// Reports, evaluations and checkpoints of a run.
const REPORTS: usize = 20;
/// Memory that may come on top of what is there after a fifth of the run, in MiB: the allocator's, not a step's, of
/// which there are thousands.
const MOST_GROWTH: f64 = 4.0;
const CLASSES: usize = 4;

/// The memory of this process that is in use, in MiB, where the system tells.
fn resident() -> Option<f64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kib: f64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib / 1024.0)
}

/// Noise with a bright quarter, which is the class.
fn batch(step: usize) -> (Tensor, Tensor) {
    let labels: Vec<u32> = (0..8).map(|sample| ((sample * 7 + step) % CLASSES) as u32).collect();
    // As many different batches as anybody remembers.
    let mut pixels = numbers(&randn((8, 1, 16, 16), &format!("batch {}", step % 97)));
    for (sample, label) in labels.iter().enumerate() {
        for at in 0..64 {
            let (row, column) = (at / 8 + 8 * (*label as usize / 2), at % 8 + 8 * (*label as usize % 2));
            pixels[sample * 256 + row * 16 + column] += 2.0;
        }
    }
    let images = Tensor::from_vec(pixels, (8, 1, 16, 16), &CPU)
        .unwrap()
        .to_dtype(DType::F32);
    (images.unwrap(), Tensor::new(labels, &CPU).unwrap())
}

fn accuracy(model: &VisionTransformer) -> f64 {
    let right = |step| {
        let (images, labels) = batch(step);
        let predicted = model.forward_t(&images, false).unwrap().argmax(1).unwrap();
        numbers(&predicted.eq(&labels).unwrap()).iter().sum::<f64>()
    };
    (100..110).map(right).sum::<f64>() / 80.0
}

#[test]
fn memory_stays_and_losses_are_numbers() {
    let steps = std::env::var("MASKSUB_SOAK_STEPS").map_or(STEPS, |steps| steps.parse().unwrap());
    let cfg = Config {
        embed_dim: 64,
        depth: 2,
        num_heads: 4,
        mlp_dim: 128,
        dropout: 0.1,
        drop_path: 0.1,
        layer_scale: None,
        ..Config::deit3_tiny(CLASSES)
    };
    let (cfg, seed) = (cfg.with_input(16, 4, 1), Seed::new(0));
    let weights = Weights::seeded(seed);
    let vit = VisionTransformer::new(&cfg, weights.var_builder(DType::F32, &CPU)).unwrap();
    let predictor = VisionTransformer::new(&cfg, weights.no_grad_builder(DType::F32, &CPU)).unwrap();
    let params = Params::from_varmap(weights.varmap());
    let groups = ParamGroups::new(&params).without_decay(ParamGroups::usually_without_decay);
    let mut opt = AdamW::new(groups, AdamWConfig::default()).unwrap();
    let mut ema = Ema::of(weights.varmap(), 0.99).unwrap();
    let model = MaskSub::new(vit, DropToken::new(RandomMasking::new(0.5).unwrap()), &params);
    let schedule = Cosine::new(3e-3, steps).unwrap().with_warmup(steps / 10, 0.0).unwrap();
    let mix = Mix::new(CLASSES, 0.2, 0.0).unwrap();
    let criterion = Criterion::cross_entropy().with_label_smoothing(0.1).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("run.safetensors");

    let mut settled = None;
    for step in 0..steps {
        let (images, labels) = batch(step);
        let mixed = mix.apply(&images, &labels, seed.at(step)).unwrap();
        opt.set_learning_rate(schedule.at(step));
        // A loss that is none is an error.
        let done = model.backward(&mixed.images, seed.at(step), |logits| {
            criterion.forward(logits, &mixed.targets)
        });
        let mut done = done.unwrap();
        let norm = grad::clip_grad_norm(&mut done.grads, &params, 1.0).unwrap();
        opt.step(&done.grads).unwrap();
        ema.update().unwrap();
        if (step + 1) % (steps / REPORTS).max(1) != 0 {
            continue;
        }
        let averaged = ema.averaged(|| accuracy(&predictor)).unwrap();
        let checkpoint = Checkpoint::new(step + 1, seed).with_section("model", weights.state());
        let checkpoint = checkpoint.with_section("optim", opt.state().unwrap());
        checkpoint
            .with_section("ema", ema.state().unwrap())
            .save(&path)
            .unwrap();
        let found = Checkpoint::load(&path).unwrap();
        opt.load_state(found.section("optim").unwrap()).unwrap();
        ema.load_state(found.section("ema").unwrap()).unwrap();
        drop(found);
        let memory = resident();
        println!(
            "step {:6}: main {:.3}, sub {:.3}, gradient {norm:.2}, right {:.2}, averaged {averaged:.2}, {:.1} MiB",
            step + 1,
            done.main_loss,
            done.sub_loss.unwrap(),
            accuracy(&predictor),
            memory.unwrap_or(f64::NAN),
        );
        if let (Some(memory), true) = (memory, step + 1 >= steps / 5) {
            let settled = *settled.get_or_insert(memory);
            let growth = memory - settled;
            assert!(
                growth < MOST_GROWTH,
                "{growth:.1} MiB more than after a fifth of the run"
            );
        }
    }
    // A quarter would be chance.
    assert!(accuracy(&predictor) > 0.4, "nothing was learnt");
}
