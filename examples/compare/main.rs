//! Compares ways to train, over seeds: plain training, masks alone, MaskSub at several ratios, other losses and targets.
//!
//!     cargo run --release --features augment --example compare -- --quick
//!     cargo run --release --features augment --example compare -- --study ratios
//!
//! Each run is a process of the example `vit_imagenet`, whose flags a method consists of. Runs of one seed have the same
//! images in the same order, initial weights, steps and settings. `--help` explains the flags.

#[path = "../vit_imagenet/run/chart.rs"]
mod chart;
#[path = "../vit_imagenet/exit_code.rs"]
mod exit_code;
mod flags;
#[path = "../vit_imagenet/interrupt.rs"]
mod interrupt;
mod machine;
mod outcome;
mod pictures;
mod process;
mod program;
mod report;
mod runs;
mod statistics;
mod study;
mod sweep;
mod table;
#[cfg(test)]
mod tests;

use std::fs;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::Parser;
use flags::Flags;
use outcome::Outcome;
use program::Program;
use runs::{Interrupted, Pool, Run};
use study::Method;

fn main() -> ExitCode {
    match compare(Flags::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if error.is::<Interrupted>() => {
            eprintln!("{error}");
            interrupt::exit_code().into()
        }
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// A method and what became of it, seed by seed.
struct Compared {
    method: Method,
    outcomes: Vec<Outcome>,
}

impl Compared {
    /// What it is compared with: the first of its group.
    fn base<'a>(&'a self, all: &'a [Self]) -> &'a Self {
        let first = all.iter().find(|one| one.method.group == self.method.group);
        first.unwrap_or(self)
    }
}

fn compare(flags: Flags) -> Result<()> {
    let mut study = flags.study()?;
    let out = flags.out(&study);
    let program = Program::find()?;
    interrupt::watch()?;
    let pool = |name: &str| Pool::new(program.clone(), out.join(name), flags.jobs());
    fs::create_dir_all(&out).with_context(|| format!("cannot create {}", out.display()))?;
    if flags.sweep {
        study.methods = sweep::best(&study, flags.seeds_to_choose, &pool("choosing").letting_diverge())?;
    }

    let common = [&study.flags[..], &study.reporting].concat();
    let compared = train(&study.methods, &common, study.seeds, &pool("runs"))?;
    let table = table::markdown(&compared)?;
    let write = |name: &str, text: &str| {
        let path = out.join(name);
        fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))
    };
    let csv = table::csv(&compared)?;
    write("runs.csv", &csv)?;
    write("table.md", &table)?;
    let pictures = pictures::all(&compared)?;
    for (name, svg) in &pictures {
        write(&format!("{name}.svg"), svg)?;
    }
    if let Some(file) = &flags.report {
        report::update(file, &study, &table, &csv, &pictures)?;
    }
    println!("{table}");
    let names = pictures
        .iter()
        .map(|(name, _)| format!(", {name}.svg"))
        .collect::<String>();
    println!("in {}: runs.csv, table.md{names}", out.display());
    Ok(())
}

/// Trains each method with each of the seeds from 0 on.
fn train(methods: &[Method], common: &[String], seeds: u64, pool: &Pool) -> Result<Vec<Compared>> {
    // Runs of a seed stand together: what else the machine does in that time, it does to all methods.
    let run = |seed| methods.iter().map(move |method| Run::new(method, common, seed));
    let runs: Vec<Run> = (0..seeds).flat_map(run).collect();
    pool.run(&runs)?;
    let compared = methods.iter().enumerate().map(|(i, method)| {
        let runs = runs.iter().skip(i).step_by(methods.len());
        Ok(Compared {
            method: method.clone(),
            outcomes: runs
                .map(|run| match pool.has_diverged(run) {
                    true => Ok(Outcome::diverged(run)),
                    false => Outcome::read(run, &pool.dir(run)),
                })
                .collect::<Result<_>>()?,
        })
    });
    let mut compared = compared.collect::<Result<Vec<_>>>()?;
    outcome::by_one_clock(compared.iter_mut().flat_map(|one| &mut one.outcomes));
    Ok(compared)
}
