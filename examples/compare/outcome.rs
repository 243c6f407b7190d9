//! What a run gave: its last scores, its curve, and how long its steps took.

use crate::runs::Run;
use anyhow::{Context, Result};
use serde::{Deserialize, Deserializer};
use std::path::Path;

/// A row of a run's `metrics.csv`, as far as it is looked at here.
#[derive(Clone, Debug, Deserialize)]
pub struct Epoch {
    pub step: usize,
    #[serde(deserialize_with = "or_nan")]
    pub test_loss: f64,
    #[serde(deserialize_with = "or_nan")]
    pub test_top1: f64,
    #[serde(deserialize_with = "or_nan")]
    pub test_top5: f64,
    pub train_seconds: f64,
}

/// An empty field is what was not finite, or of an epoch that was not evaluated.
fn or_nan<'de, D: Deserializer<'de>>(field: D) -> Result<f64, D::Error> {
    Ok(Option::deserialize(field)?.unwrap_or(f64::NAN))
}

/// A run that is done.
#[derive(Clone, Debug)]
pub struct Outcome {
    pub seed: u64,
    /// Its flags, in one line.
    pub flags: String,
    pub epochs: Vec<Epoch>,
    /// The last of them.
    pub last: Epoch,
}

impl Outcome {
    /// Of the run in the directory `dir`.
    pub fn read(run: &Run, dir: &Path) -> Result<Self> {
        let path = dir.join("metrics.csv");
        let read =
            || -> Result<Vec<Epoch>> { Ok(csv::Reader::from_path(&path)?.deserialize().collect::<Result<_, _>>()?) };
        let epochs = read().with_context(|| format!("cannot read {}", path.display()))?;
        let last = epochs
            .last()
            .with_context(|| format!("{} has no epoch", path.display()))?
            .clone();
        Ok(Self {
            seed: run.seed,
            flags: run.arguments.join(" "),
            epochs,
            last,
        })
    }

    /// Of a run that diverged: nothing is known of it.
    pub fn diverged(run: &Run) -> Self {
        let last = Epoch {
            step: 0,
            test_loss: f64::NAN,
            test_top1: f64::NAN,
            test_top5: f64::NAN,
            train_seconds: 0.0,
        };
        Self {
            seed: run.seed,
            flags: run.arguments.join(" "),
            epochs: vec![],
            last,
        }
    }

    /// The time of a step in milliseconds: the median of the epochs' means, which a pause of the machine does not move.
    pub fn step_ms(&self) -> f64 {
        let mut before = 0;
        let times = self.epochs.iter().map(|epoch| {
            let steps = epoch.step - std::mem::replace(&mut before, epoch.step);
            1e3 * epoch.train_seconds / steps as f64
        });
        crate::statistics::median(times.collect())
    }

    /// Steps, seconds in training and test loss at the end of each epoch; the loss is NaN where it is not known.
    pub fn curve(&self) -> impl Iterator<Item = [f64; 3]> + '_ {
        let mut seconds = 0.0;
        self.epochs.iter().map(move |epoch| {
            seconds += epoch.train_seconds;
            [epoch.step as f64, seconds, epoch.test_loss]
        })
    }
}
