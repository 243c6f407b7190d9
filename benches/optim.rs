//! Time of an optimizer's step over all parameters of a model, weights and state in f32.
//!
//!     cargo bench --bench optim -- --model deit3-base --optimizer lamb --iters 10
//!
//! Prints one JSON object. `benches/peer/optim.py` is the same in PyTorch, and runs both in turn with `--alternate`.

use std::time::Instant;

use anyhow::{Context, Result};
use candle_core::backprop::GradStore;
use candle_core::{DType, Device, Tensor};
use clap::{value_parser, Parser, ValueEnum};
use masksub::models::vit::{Config, VisionTransformer};
use masksub::train::ema::Ema;
use masksub::train::optim::{AdamWConfig, GroupOptimizer, LambConfig, ParamGroups, Rule, SgdConfig};
use masksub::{grad, Params, Seed, Weights};
use serde_json::json;

#[derive(Parser)]
struct Flags {
    /// A published size of ViT
    #[arg(long, default_value = "deit3-base")]
    model: String,
    #[arg(long, value_enum, default_value = "adamw")]
    optimizer: Kind,
    /// Measured repetitions, after one that is not
    #[arg(long, default_value_t = 10, value_parser = value_parser!(u32).range(1..))]
    iters: u32,
    /// Given by `cargo bench`
    #[arg(long, hide = true)]
    bench: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Kind {
    Adamw,
    Lamb,
    Sgd,
    /// Clipping to a global norm, which here always has to scale
    Clip,
    /// The moving average of the weights
    Ema,
}

fn main() -> Result<()> {
    let flags = Flags::parse();
    let size = Config::SIZES.iter().find(|size| size.0 == flags.model);
    let size = size.with_context(|| format!("--model is {}, but must be a published ViT", flags.model))?;
    let weights = Weights::seeded(Seed::new(0));
    VisionTransformer::new(&(size.1)(1000), weights.var_builder(DType::F32, &Device::Cpu))?;
    let params = Params::from_varmap(weights.varmap());
    let mut grads = GradStore::default();
    for (_, var) in params.iter() {
        grads.insert(var, Tensor::randn(0f32, 1.0, var.shape(), var.device())?);
    }
    let groups = ParamGroups::new(&params).without_decay(ParamGroups::usually_without_decay);
    let optimizer = |rule: Box<dyn Rule>| GroupOptimizer::new(groups.clone(), rule);
    let mut step: Box<dyn FnMut() -> Result<()>> = match flags.optimizer {
        Kind::Clip => Box::new(|| {
            grad::clip_grad_norm(&mut grads, &params, 1e-9)?;
            Ok(())
        }),
        Kind::Ema => {
            let mut ema = Ema::of(weights.varmap(), 0.9998)?;
            Box::new(move || Ok(ema.update()?))
        }
        kind => {
            let mut opt = optimizer(match kind {
                Kind::Lamb => Box::new(LambConfig::default()),
                Kind::Sgd => Box::new(SgdConfig::default()),
                _ => Box::new(AdamWConfig::default()),
            })?;
            Box::new(move || Ok(opt.step(&grads)?))
        }
    };
    let mut seconds = Vec::new();
    for _ in 0..=flags.iters {
        let start = Instant::now();
        step()?;
        seconds.push(start.elapsed().as_secs_f64());
    }
    seconds.remove(0);
    seconds.sort_by(f64::total_cmp);
    let name = flags
        .optimizer
        .to_possible_value()
        .context("every variant has a name")?;
    let line = json!({
        "optimizer": name.get_name(),
        "model": flags.model,
        "parameters": params.num_elements(),
        "median_s": seconds[seconds.len() / 2],
        "min_s": seconds[0],
    });
    println!("{line}");
    Ok(())
}
