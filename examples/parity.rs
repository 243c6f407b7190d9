//! Compares the crate with values recorded from other implementations (the authors' PyTorch code among them).
//!
//!     cargo run --release --example parity -- tests/fixtures/*.safetensors
//!
//! A line for each file tells the largest error of its main and sub logits, losses and gradients, where the error of a
//! tensor is ||a - b|| / max(||b||, 1e-3): at most 1e-5, and 1e-4 for gradients; `-` stands where a file has nothing of the
//! kind. The exit code is 1 when a file fails and 2 when one cannot be read or is of an unknown kind.

#[path = "support/device.rs"]
mod device;
#[path = "support/parity.rs"]
mod parity;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;

#[derive(Parser)]
#[command(about = "Compare masksub with recorded values")]
struct Flags {
    /// Files of recorded values (safetensors with `config` in their metadata)
    #[arg(required = true)]
    files: Vec<PathBuf>,
    /// Where to compute: cpu, cuda, cuda:N or metal
    #[arg(long, default_value = "cpu", value_parser = device::parse)]
    device: candle_core::Device,
    /// Tell the error of every tensor
    #[arg(long)]
    verbose: bool,
}

fn main() -> ExitCode {
    let flags = Flags::parse();
    ExitCode::from(parity::run(&flags.files, &flags.device, flags.verbose))
}
