//! Runs as processes, several at a time. One that is done is not run again; one that was interrupted goes on.

use crate::exit_code;
use crate::interrupt;
use crate::process;
use crate::program::Program;
use crate::study::Method;
use anyhow::{bail, ensure, Context, Result};
use indicatif::{ProgressBar, ProgressStyle};
use std::collections::VecDeque;
use std::fs;
use std::io::{ErrorKind, IsTerminal};
use std::path::PathBuf;
use std::process::Command;
use std::sync::Mutex;
use std::time::Duration;

/// Ends of the names of the file beside a run's directory that holds its arguments.
const STARTED: &str = "started";
const DONE: &str = "done";
const DIVERGED: &str = "diverged";
/// What a run leaves that can go on.
const CHECKPOINTS: [&str; 2] = ["checkpoint.safetensors", "checkpoint.previous.safetensors"];

/// A method with a seed.
pub struct Run {
    pub method: String,
    slug: String,
    pub seed: u64,
    /// Without where it writes.
    pub arguments: Vec<String>,
}

impl Run {
    /// The method's flags stand behind those of all runs, and so count where both give one: a sweep's settings are the method's.
    pub fn new(method: &Method, common: &[String], seed: u64) -> Self {
        let mut arguments = [common, &method.flags[..]].concat();
        arguments.extend(["--seed".into(), seed.to_string()]);
        Self {
            method: method.to_string(),
            slug: method.slug(),
            seed,
            arguments,
        }
    }

    fn title(&self) -> String {
        format!("{}, seed {}", self.method, self.seed)
    }
}

/// A signal asked to end before all runs were done.
#[derive(Debug, thiserror::Error)]
#[error("interrupted: the same command goes on with the runs that are left")]
pub struct Interrupted;

/// How a process ended that was not interrupted.
#[derive(PartialEq)]
enum End {
    Done,
    Diverged,
}

/// Processes that run at the same time and share the cores.
pub struct Pool {
    program: Program,
    root: PathBuf,
    jobs: usize,
    lets_diverge: bool,
}

impl Pool {
    /// Runs write to directories in `root`.
    pub fn new(program: Program, root: PathBuf, jobs: usize) -> Self {
        Self {
            program,
            root,
            jobs,
            lets_diverge: false,
        }
    }

    /// A run whose loss becomes infinite or NaN is done with that: for settings that are only tried. Whatever else ends a
    /// run ends all.
    pub fn letting_diverge(self) -> Self {
        Self {
            lets_diverge: true,
            ..self
        }
    }

    /// Whether a run was let diverge.
    pub fn has_diverged(&self, run: &Run) -> bool {
        self.lets_diverge && self.mark(run, DIVERGED).exists()
    }

    /// Where a run writes.
    pub fn dir(&self, run: &Run) -> PathBuf {
        self.root.join(&run.slug).join(format!("seed-{}", run.seed))
    }

    /// Makes all runs that are not done.
    ///
    /// # Errors
    /// When one cannot be made, after those that run beside it have ended; when a directory holds another run;
    /// [`Interrupted`], after those that run have written their checkpoints.
    pub fn run(&self, runs: &[Run]) -> Result<()> {
        let mut left = VecDeque::new();
        for run in runs {
            if !self.is_done(run)? {
                left.push_back(run);
            }
        }
        let bar = bar(runs.len(), runs.len() - left.len());
        let (left, failure) = (Mutex::new(left), Mutex::new(None));
        std::thread::scope(|scope| {
            for _ in 0..self.jobs {
                scope.spawn(|| {
                    while let Some(run) = next(&left) {
                        bar.set_message(run.title());
                        match self.make(run) {
                            Err(error) => {
                                lock(&left).clear();
                                lock(&failure).get_or_insert(error);
                            }
                            Ok(End::Diverged) => {
                                bar.suspend(|| eprintln!("{} diverged: counts as the worst", run.title()));
                            }
                            Ok(End::Done) => {}
                        }
                        bar.inc(1);
                    }
                });
            }
        });
        bar.finish_and_clear();
        match failure.into_inner().unwrap_or_else(|poisoned| poisoned.into_inner()) {
            Some(error) => Err(error),
            None if interrupt::asked() => Err(Interrupted.into()),
            None => Ok(()),
        }
    }

    /// The file that says how far a run has come.
    fn mark(&self, run: &Run, state: &str) -> PathBuf {
        self.dir(run).with_extension(state)
    }

    fn is_done(&self, run: &Run) -> Result<bool> {
        let ended: &[&str] = if self.lets_diverge { &[DONE, DIVERGED] } else { &[DONE] };
        for &state in ended.iter().chain(&[STARTED]) {
            let path = self.mark(run, state);
            let was = match fs::read_to_string(&path) {
                Err(error) if error.kind() == ErrorKind::NotFound => continue,
                read => read.with_context(|| format!("cannot read {}", path.display()))?,
            };
            let now = text(&run.arguments);
            let words = |text: &str| text.trim().replace('\n', " ");
            ensure!(
                was == now,
                "{} is a run with other flags ({}, now {}): choose another --out",
                self.dir(run).display(),
                words(&was),
                words(&now)
            );
            return Ok(state != STARTED);
        }
        Ok(false)
    }

    fn make(&self, run: &Run) -> Result<End> {
        let (dir, started) = (self.dir(run), self.mark(run, STARTED));
        let cannot = || format!("cannot write {}", started.display());
        fs::create_dir_all(self.root.join(&run.slug)).with_context(cannot)?;
        fs::write(&started, text(&run.arguments)).with_context(cannot)?;

        let mut command = Command::new(&self.program.0);
        if CHECKPOINTS.iter().any(|name| dir.join(name).exists()) {
            command.arg("--resume"); // which knows its flags
        } else {
            command.args(&run.arguments);
        }
        command.arg("--out").arg(&dir);
        const THREADS: &str = "RAYON_NUM_THREADS";
        if std::env::var_os(THREADS).is_none() {
            let cores = std::thread::available_parallelism().map_or(1, usize::from);
            command.env(THREADS, (cores / self.jobs).max(1).to_string());
        }
        let ended = process::run(command).with_context(|| format!("cannot run {}", self.program.0.display()))?;
        let end = match ended.status.code() {
            Some(0) => End::Done,
            _ if interrupt::asked() => return Err(Interrupted.into()),
            Some(code) if self.lets_diverge && code == i32::from(exit_code::DIVERGED) => End::Diverged,
            _ => {
                let last = ended.said.lines().rev().find(|line| !line.trim().is_empty());
                let last = last.unwrap_or("it said nothing");
                bail!("{}: {last} ({})", run.title(), ended.status);
            }
        };
        let mark = if end == End::Done { DONE } else { DIVERGED };
        fs::rename(&started, self.mark(run, mark)).with_context(cannot)?;
        // What only a run needs that goes on.
        for name in CHECKPOINTS {
            let _ = fs::remove_file(dir.join(name));
        }
        Ok(end)
    }
}

fn text(arguments: &[String]) -> String {
    arguments.iter().map(|argument| format!("{argument}\n")).collect()
}

fn next<'a>(left: &Mutex<VecDeque<&'a Run>>) -> Option<&'a Run> {
    lock(left).pop_front().filter(|_| !interrupt::asked())
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

fn bar(runs: usize, done: usize) -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::new(runs as u64).with_position(done as u64);
    bar.reset_eta();
    let style = ProgressStyle::with_template("{wide_bar} run {pos} of {len}, {msg}, {elapsed} so far, {eta} to go");
    bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
    bar.enable_steady_tick(Duration::from_millis(250));
    bar
}
