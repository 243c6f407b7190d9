//! Time and peak memory of making a model from a checkpoint.
//!
//!     cargo bench --bench load -- --file vit_large.pth --model mae-large
//!
//! Prints one JSON object: `seconds` to the model, `read_seconds` until each of its weights was read once as well.
//! `benches/peer/load.py` writes such files, of random weights in timm's names, and runs it in turn with PyTorch.

use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context, Result};
use candle_core::{DType, Device};
use clap::Parser;
use masksub::models::vit::{Config, Pool, VisionTransformer};
use masksub::pretrained::Pretrained;
use masksub::Seed;
use serde_json::json;

#[derive(Parser)]
struct Flags {
    /// A checkpoint of a ViT with a class token's head
    #[arg(long)]
    file: PathBuf,
    /// A published size of ViT
    #[arg(long, default_value = "mae-large")]
    model: String,
    /// Given by `cargo bench`
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> Result<()> {
    let flags = Flags::parse();
    let size = Config::SIZES.iter().find(|(name, _)| *name == flags.model);
    let (_, size) = size.with_context(|| format!("there is no model {}", flags.model))?;
    let cfg = Config {
        pool: Pool::ClassToken,
        ..size(1000)
    };
    let start = Instant::now();
    let weights = Pretrained::open(&flags.file)?.weights(Seed::new(0));
    let _model = VisionTransformer::new(&cfg, weights.var_builder(DType::F32, &Device::Cpu))?;
    weights.check_exact(|_| false)?;
    let seconds = start.elapsed().as_secs_f64();
    for weight in weights.state().values() {
        weight.sum_all()?.to_scalar::<f32>()?;
    }
    let read_seconds = start.elapsed().as_secs_f64();
    let bytes = std::fs::metadata(&flags.file)?.len();
    println!(
        "{}",
        json!({ "seconds": seconds, "read_seconds": read_seconds, "peak_bytes": peak_bytes(), "file_bytes": bytes })
    );
    Ok(())
}

/// The most memory that the process has had, where the system tells.
fn peak_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    Some(1024 * line.trim().strip_suffix(" kB")?.parse::<u64>().ok()?)
}
