//! Compares the crate with values recorded from other implementations (the authors' PyTorch code among them).
//!
//!     cargo run --release --example parity -- tests/fixtures/*.safetensors
//!
//! A line for each file tells the largest error of its main and sub logits, losses and gradients, where the error of a
//! tensor is ||a - b|| / max(||b||, 1e-3): at most 1e-5, and 1e-4 for gradients; `-` stands where a file has nothing of the
//! kind. `--table` prints one line for each file of weights instead, in Markdown, over all files that are recorded of it:
//!
//!     cargo run --release --features augment --example parity -- --table \
//!         tests/fixtures/{checkpoints,models,sizes}/*.expect.safetensors
//!
//! The exit code is 1 when a file fails and 2 when one cannot be read or is of an unknown kind.

mod augment;
mod checkpoint;
mod losses;
mod model;
mod optim;
mod peer;
mod published;
mod recorded;
mod report;
mod saved;
mod table;
#[cfg(test)]
mod tests;
mod trajectory;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{bail, Result};
use candle_core::Device;
use clap::Parser;
use recorded::Recorded;
use report::Report;
use table::Table;

#[derive(Parser)]
#[command(about = "Compare masksub with recorded values")]
struct Flags {
    /// Files of recorded values (safetensors with `config` in their metadata)
    #[arg(required = true)]
    files: Vec<PathBuf>,
    /// Where to compute: cpu, cuda, cuda:N or metal
    #[arg(long, default_value = "cpu", value_parser = device)]
    device: Device,
    /// Tell the error of every tensor
    #[arg(long)]
    verbose: bool,
    /// Print a table in Markdown of the checkpoints: each at its own image size and at others, gradients, dropped tokens
    #[arg(long, conflicts_with = "verbose")]
    table: bool,
    /// Write the weights of each recorded checkpoint here as well, under its peers' names: benches/peer/saved.py loads them
    #[arg(long, value_name = "DIR")]
    save: Option<PathBuf>,
}

fn main() -> ExitCode {
    let flags = Flags::parse();
    let code = if flags.table {
        let (table, code) = tabulate(&flags.files, &flags.device);
        print!("{table}");
        code
    } else {
        compare_all(&flags.files, &flags.device, flags.verbose)
    };
    match flags
        .save
        .map(|directory| saved::save_all(&flags.files, &directory, &flags.device))
    {
        None | Some(Ok(())) => code.into(),
        Some(Err(error)) => {
            eprintln!("{error:#}");
            ExitCode::from(2)
        }
    }
}

fn device(name: &str) -> Result<Device> {
    let (kind, number) = name.split_once(':').unwrap_or((name, "0"));
    Ok(match kind {
        "cpu" => Device::Cpu,
        "cuda" => Device::new_cuda(number.parse()?)?,
        "metal" => Device::new_metal(number.parse()?)?,
        _ => bail!("must be cpu, cuda, cuda:N or metal"),
    })
}

/// Compares files, prints a line for each, and returns the exit code: 1 when a file fails, 2 when one cannot be read or
/// is of an unknown kind.
fn compare_all(files: &[PathBuf], device: &Device, verbose: bool) -> u8 {
    let mut code = 0;
    for file in files {
        match compare(file, device) {
            Ok(report) => {
                println!("{report}");
                if verbose {
                    print!("{}", report.verbose());
                }
                code = code.max(u8::from(!report.is_ok()));
            }
            Err(error) => {
                eprintln!("{}: {error:#}", file.display());
                code = 2;
            }
        }
    }
    code
}

/// Compares files, and returns the table of their checkpoints and the exit code; of those that fail a line is written to
/// the standard error.
fn tabulate(files: &[PathBuf], device: &Device) -> (Table, u8) {
    let (mut table, mut code) = (Table::default(), 0);
    for file in files {
        match compare(file, device) {
            Ok(report) => {
                if !report.is_ok() {
                    eprintln!("{report}");
                    code = code.max(1);
                }
                table.add(&report);
            }
            Err(error) => {
                eprintln!("{}: {error:#}", file.display());
                code = 2;
            }
        }
    }
    (table, code)
}

/// Reads a file of recorded values and runs the crate on the same weights, inputs and masks.
///
/// # Errors
/// When the file cannot be read, or its kind is not known here. An error of the crate is a failure of the report: what was
/// recorded did not fail.
fn compare(path: &Path, device: &Device) -> Result<Report> {
    let file = Recorded::open(path, device)?;
    let mut report = Report {
        name: path.file_stem().unwrap_or_default().to_string_lossy().into_owned(),
        ..Default::default()
    };
    let compared = match (file.text("kind")?, file.config["model"].as_str()) {
        ("losses", _) => losses::compare(&file, &mut report),
        ("model", Some("deit3" | "mae_finetune" | "hf_vit" | "clip_vision" | "ft_clip" | "resnet" | "swin")) => {
            model::compare(&file, &mut report)
        }
        ("checkpoint", _) => checkpoint::compare(path, &file, &mut report),
        ("trajectory", Some("deit3")) => trajectory::compare(&file, &mut report),
        ("optim", _) => optim::compare(&file, &mut report),
        ("augment", _) => augment::compare(&file.config, |name| file.get(name)).map(|cases| report.images = cases),
        ("model" | "trajectory", Some(model)) => bail!("this release has no model of kind {model}"),
        (kind, _) => bail!("this release cannot compare files of kind {kind}"),
    };
    if let Err(error) = compared {
        let error = error.downcast::<candle_core::Error>().map(masksub::Error::from);
        let error = error.or_else(|other| other.downcast::<masksub::Error>())?;
        report.failures.push(format!("{error:?}"));
    }
    Ok(report)
}
