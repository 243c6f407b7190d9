//! Everything that reads a file or takes an argument, on input that nobody means well: nothing panics, aborts or hangs.
//!
//! A process of its own runs the cases and says which one it is at. This one waits for it, no longer than a case may
//! take, and starts another one behind a case that was its last. A case depends on the seed and its number alone:
//!
//! ```text
//! MASKSUB_FUZZ_SEED=7 MASKSUB_FUZZ_CASES=1000000 cargo test --release --test fuzz -- --nocapture
//! MASKSUB_FUZZ_SEED=7 MASKSUB_FUZZ_CASE=12345 cargo test --release --test fuzz -- --nocapture
//! ```

mod attention;
#[path = "../common/mod.rs"]
mod common;
mod draw;
mod images;
mod memory;
mod models;
mod mutate;
mod operations;
mod readers;
mod settings;
mod steps;
mod tally;
mod worker;
mod wrapped;

use std::path::PathBuf;

use masksub::{KeyedRng, Result};

use tally::Tally;
use worker::Worker;

#[global_allocator]
static LIMITED: memory::Limited = memory::Limited;

/// A kind of case: it is accepted, or refused by an error. A panic is a fault.
type Run = fn(&mut KeyedRng, &Scratch) -> Result<()>;

const KINDS: [(&str, Run); 33] = [
    ("weights of a file", readers::weights),
    ("pretrained", readers::pretrained),
    ("shards", wrapped::shards),
    ("directories", wrapped::directory),
    ("every format", wrapped::every_format),
    ("archives of arrays", wrapped::arrays),
    ("gzip", wrapped::gzip),
    ("checkpoint", readers::checkpoint),
    ("saved and loaded", settings::saved),
    ("masks", settings::masks),
    ("losses", settings::losses),
    ("mixing", settings::mixing),
    ("schedules", settings::schedules),
    ("optimizers", settings::optimizers),
    ("averages", settings::averages),
    ("drawn weights", settings::weights),
    ("crops", images::crops),
    ("image operations", images::operations),
    ("pixels", images::numbers),
    ("plain operations", operations::plain),
    ("spatial operations", operations::spatial),
    ("convolutions and interpolation", operations::resampled),
    ("fused operations", operations::fused),
    ("residual blocks", operations::residual),
    ("layers", operations::layers),
    ("attention", attention::attention),
    ("sequences", steps::sequences),
    ("mask ratios", steps::ratios),
    ("replicas", steps::replicas),
    ("steps", steps::steps),
    ("vit", models::vit),
    ("swin", models::swin),
    ("resnet, convnext", models::convolutional),
];

/// Cases of the test suite: less than a minute.
const CASES: u64 = 11_000;
/// Faults after which it is enough.
const MOST_FAULTS: usize = 30;

/// A place for files, and valid ones to change.
pub struct Scratch {
    dir: tempfile::TempDir,
    pub files: Vec<Vec<u8>>,
    /// The recorded checkpoints of every format.
    pub recorded: Vec<PathBuf>,
}

impl Scratch {
    fn new() -> Self {
        Self {
            dir: tempfile::tempdir().unwrap(),
            files: readers::valid_files(),
            recorded: readers::recorded(),
        }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn write(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.path(name);
        std::fs::write(&path, bytes).unwrap();
        path
    }
}

/// A number that the environment sets.
fn setting(name: &str) -> Option<u64> {
    let value = std::env::var(name).ok()?;
    Some(
        value
            .parse()
            .unwrap_or_else(|_| panic!("{name} is {value}, but must be a number")),
    )
}

#[test]
fn nothing_panics_aborts_or_hangs() {
    let seed = setting("MASKSUB_FUZZ_SEED").unwrap_or(0);
    let cases = match setting("MASKSUB_FUZZ_CASE") {
        Some(case) => case..case + 1,
        None => 0..setting("MASKSUB_FUZZ_CASES").unwrap_or(CASES),
    };
    let mut tally = Tally::default();
    let mut next = cases.start;
    while next < cases.end && tally.faults.len() < MOST_FAULTS {
        next = Worker::start(seed, next..cases.end).watch(&mut tally);
    }
    print!("{tally}");
    assert!(
        tally.faults.is_empty(),
        "{} faults with seed {seed}",
        tally.faults.len()
    );
}
