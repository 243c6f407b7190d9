//! Where the program is that makes the runs.

use anyhow::{ensure, Context, Result};
use std::env;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;

const NAME: &str = "vit_imagenet";

/// `vit_imagenet`, or whatever stands in for it in a test.
#[derive(Clone, Debug)]
pub struct Program(pub PathBuf);

impl Program {
    /// Beside this program, where cargo puts both. If cargo runs this one, it builds the other: as it is now, with the same
    /// features.
    pub fn find() -> Result<Self> {
        let this = env::current_exe().context("cannot find out where this program is")?;
        let other = this.with_file_name(format!("{NAME}{}", env::consts::EXE_SUFFIX));
        if let (Some(cargo), Some(package)) = (env::var_os("CARGO"), env::var_os("CARGO_MANIFEST_DIR")) {
            build(&cargo, Path::new(&package), &this)?;
        }
        let build = format!("cargo build --release --features augment --example {NAME}");
        ensure!(other.exists(), "{} is not there: {build}", other.display());
        Ok(Self(other))
    }
}

fn build(cargo: &OsStr, package: &Path, this: &Path) -> Result<()> {
    // target/PROFILE/examples/compare
    let profile = this
        .ancestors()
        .nth(2)
        .and_then(Path::file_name)
        .and_then(OsStr::to_str);
    let profile = match profile {
        Some("debug") | None => "dev",
        Some(name) => name,
    };
    let devices = [
        ("cuda", cfg!(feature = "cuda")),
        ("cudnn", cfg!(feature = "cudnn")),
        ("metal", cfg!(feature = "metal")),
        ("accelerate", cfg!(feature = "accelerate")),
        ("mkl", cfg!(feature = "mkl")),
    ];
    let features = devices.iter().filter(|(_, on)| *on).map(|(name, _)| *name);
    let features: Vec<&str> = std::iter::once("augment").chain(features).collect();
    let mut command = Command::new(cargo);
    command.args(["build", "--quiet", "--example", NAME, "--profile", profile]);
    command.args(["--features", &features.join(",")]);
    command.arg("--manifest-path").arg(package.join("Cargo.toml"));
    if let Some(target) = this.ancestors().nth(3) {
        command.arg("--target-dir").arg(target);
    }
    let status = command.status().context("cannot start cargo")?;
    ensure!(status.success(), "cargo cannot build {NAME}: {status}");
    Ok(())
}
