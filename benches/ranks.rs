//! A MaskSub step of a ViT on the ranks of `mpirun`, or on one: all of it, and what is for the ranks alone.
//!
//!     cargo bench --features mpi --bench ranks --no-run
//!     mpirun -n 2 target/release/deps/ranks-... --model deit3-tiny --batch 8 --iters 5
//!
//! `benches/peer/ranks.py` is the same step under PyTorch's DistributedDataParallel.

use std::time::Instant;

use anyhow::{Context, Result};
use candle_core::backprop::GradStore;
use candle_core::{DType, Device, Tensor};
use clap::Parser;
use masksub::models::vit::{self, VisionTransformer};
use masksub::train::distributed::mpi::Mpi;
use masksub::train::distributed::{self, Communicator, Share};
use masksub::train::replicas::{Combine, Replicas, RunningStatistics};
use masksub::{Criterion, DropToken, MaskSub, Params, RandomMasking, Seed, Weights};

#[derive(Parser)]
struct Flags {
    /// A published size of ViT
    #[arg(long, default_value = "deit3-tiny")]
    model: String,
    /// Images in a batch of all ranks
    #[arg(long, default_value_t = 8)]
    batch: usize,
    /// Measured repetitions, after one that is not
    #[arg(long, default_value_t = 5)]
    iters: usize,
    /// Given by `cargo bench`
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> Result<()> {
    if std::env::var_os("CANDLE_NUM_THREADS").is_none() {
        std::env::set_var("CANDLE_NUM_THREADS", "1"); // as README recommends
    }
    let flags = Flags::parse();
    let ranks = Mpi::init()?;
    let size = vit::Config::SIZES.iter().find(|size| size.0 == flags.model);
    let cfg = size.context("--model must be a published size of ViT")?.1(1000);
    let (weights, seed) = (Weights::seeded(Seed::new(0)), Seed::new(0));
    let vit = VisionTransformer::new(&cfg, weights.var_builder(DType::F32, &Device::Cpu))?;
    distributed::synchronize(&ranks, weights.varmap())?;
    let params = Params::from_varmap(weights.varmap());
    let statistics = RunningStatistics::of(weights.varmap());
    let model = MaskSub::new(vit, DropToken::new(RandomMasking::new(0.5)?), &params);
    let share = Share::of(&ranks, Replicas::new(ranks.size())?)?;
    let batch = share.of_rank().samples_of(flags.batch)?;
    let (height, width) = cfg.image_size;
    let images = Tensor::rand(-1f32, 1.0, (batch, 3, height, width), &Device::Cpu)?;
    let labels = Tensor::arange(0u32, batch as u32, &Device::Cpu)?;
    let criterion = Criterion::cross_entropy();

    let (mut whole, mut ours) = (vec![], vec![]);
    for step in 0..=flags.iters {
        // All begin together.
        distributed::sum(&ranks, &mut [0.0])?;
        let start = Instant::now();
        let (grads, _) = share.run(&params, &statistics, Combine::First, |local| {
            let key = seed.at(step).with_replica(share.number(local));
            let step = model.backward(&images, key, |logits| criterion.forward(logits, &labels))?;
            anyhow::Ok((step.grads, ()))
        })?;
        whole.push(start.elapsed().as_secs_f64());
        // The same, with gradients that are there already.
        let mut ready = GradStore::default();
        for (_, var) in params.iter() {
            ready.insert(var, grads.get(var).context("a gradient")?.clone());
        }
        let mut ready = Some(ready);
        distributed::sum(&ranks, &mut [0.0])?;
        let start = Instant::now();
        share.run(&params, &statistics, Combine::First, |_| {
            anyhow::Ok((ready.take().context("run once")?, ()))
        })?;
        ours.push(start.elapsed().as_secs_f64());
    }
    if ranks.rank() == 0 {
        let [whole, ours] = [whole, ours].map(|mut seconds| {
            seconds.remove(0);
            seconds.sort_by(f64::total_cmp);
            seconds[seconds.len() / 2]
        });
        println!(
            "{} batch {} on {} ranks: median {whole:.4} s a step, of which for the ranks {:.3} ms, {:.3} %",
            flags.model,
            flags.batch,
            ranks.size(),
            1e3 * ours,
            100.0 * ours / whole
        );
    }
    ranks.finish();
    Ok(())
}
