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
    /// Of steps on the CPU.
    train_cpu_seconds: Option<f64>,
    train_seconds: f64,
}

impl Epoch {
    /// What its steps took, of the clock that [`by_one_clock`] chose.
    pub fn seconds(&self) -> f64 {
        self.train_cpu_seconds.unwrap_or(self.train_seconds)
    }
}

/// Has all of them count the processors' seconds, which what else the machine does hardly changes, or, where one of them does
/// not know these, all of them the wall's.
pub fn by_one_clock<'a>(outcomes: impl IntoIterator<Item = &'a mut Outcome>) {
    let mut epochs: Vec<_> = outcomes.into_iter().flat_map(|outcome| &mut outcome.epochs).collect();
    if epochs.iter().any(|epoch| epoch.train_cpu_seconds.is_none()) {
        epochs.iter_mut().for_each(|epoch| epoch.train_cpu_seconds = None);
    }
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
            train_cpu_seconds: None,
            train_seconds: 0.0,
        };
        Self {
            seed: run.seed,
            flags: run.arguments.join(" "),
            epochs: vec![],
            last,
        }
    }

    /// The time of a step in milliseconds, the median of the epochs' means.
    pub fn step_ms(&self) -> f64 {
        let mut before = 0;
        let times = self.epochs.iter().map(|epoch| {
            let steps = epoch.step - std::mem::replace(&mut before, epoch.step);
            1e3 * epoch.seconds() / steps as f64
        });
        crate::statistics::median(times.collect())
    }

    /// Steps, seconds in training and test loss at the end of each epoch; the loss is NaN where it is not known.
    pub fn curve(&self) -> impl Iterator<Item = [f64; 3]> + '_ {
        let mut seconds = 0.0;
        self.epochs.iter().map(move |epoch| {
            seconds += epoch.seconds();
            [epoch.step as f64, seconds, epoch.test_loss]
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_processors_time_counts_where_all_have_it() {
        let header = "step,test_loss,test_top1,test_top5,train_cpu_seconds,train_seconds\n";
        let outcome = |rows: &str| {
            let text = format!("{header}{rows}");
            let epochs: Vec<Epoch> = csv::Reader::from_reader(text.as_bytes())
                .deserialize()
                .collect::<Result<_, _>>()
                .unwrap();
            let last = epochs[0].clone();
            Outcome {
                seed: 0,
                flags: String::new(),
                epochs,
                last,
            }
        };
        let seconds = |outcome: &Outcome| outcome.epochs.iter().map(Epoch::seconds).collect::<Vec<_>>();
        let (mut new, mut old) = (
            outcome("5,2,50,90,0.5,0.8\n10,,,,0.5,4\n"),
            outcome("5,1,70,90,,0.75\n"),
        );
        assert!(new.epochs[1].test_loss.is_nan());
        by_one_clock([&mut new]);
        assert_eq!(seconds(&new), [0.5, 0.5]);
        by_one_clock([&mut new, &mut old]);
        assert_eq!((seconds(&new), seconds(&old)), (vec![0.8, 4.0], vec![0.75]));
    }
}
