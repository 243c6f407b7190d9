//! The results as a table: CSV of every run, Markdown of every method.

use crate::outcome::{Epoch, Outcome};
use crate::statistics::{half_width, mean_std, median};
use crate::Compared;
use anyhow::Result;

/// A line for each run.
pub fn csv(compared: &[Compared]) -> Result<String> {
    let mut writer = csv::Writer::from_writer(vec![]);
    writer.write_record([
        "method", "seed", "top1", "top5", "loss", "steps", "step_ms", "seconds", "flags",
    ])?;
    for Compared { method, outcomes } in compared {
        for outcome in outcomes {
            let Outcome {
                seed,
                flags,
                epochs,
                last,
            } = outcome;
            let seconds: f64 = epochs.iter().map(Epoch::seconds).sum();
            writer.write_record([
                method.to_string(),
                seed.to_string(),
                format!("{:.3}", last.test_top1),
                format!("{:.3}", last.test_top5),
                format!("{:.5}", last.test_loss),
                last.step.to_string(),
                format!("{:.3}", outcome.step_ms()),
                format!("{seconds:.1}"),
                flags.clone(),
            ])?;
        }
    }
    Ok(String::from_utf8(writer.into_inner()?)?)
}

/// A line for each method, compared with the first, or the first of its group.
pub fn markdown(compared: &[Compared]) -> Result<String> {
    let Some(first) = compared.first() else {
        return Ok(String::new());
    };
    // A sweep finds settings for each, which its name says.
    let is_alike = |one: &Compared| {
        let base = one.base(compared);
        std::ptr::eq(one, base) || base.method.name == first.method.name
    };
    let base = if compared.iter().all(is_alike) {
        &first.method.name
    } else {
        "the first of each group"
    };
    let mut table = format!(
        "| method | flags | top-1, % | difference to {base} [95 %] | loss | time of a step |\n|---|---|---|---|---|---|\n"
    );
    for one in compared {
        let base = one.base(compared);
        let (mean, std) = mean_std(&one.all(top1));
        let (loss, _) = mean_std(&one.all(|outcome| outcome.last.test_loss));
        let difference = if std::ptr::eq(one, base) {
            String::new()
        } else {
            interval(&one.difference(base))
        };
        let std = if std.is_nan() {
            String::new()
        } else {
            format!(" ± {std:.1}")
        };
        table += &format!(
            "| {} | `{}` | {mean:.1}{std} | {difference} | {loss:.3} | {:.2} |\n",
            one.method,
            one.method.flags.join(" "),
            one.time_beside(base)
        );
    }
    Ok(table)
}

fn top1(outcome: &Outcome) -> f64 {
    outcome.last.test_top1
}

/// The mean, and where it lies with 95 % confidence.
fn interval(differences: &[f64]) -> String {
    let (mean, _) = mean_std(differences);
    match half_width(differences) {
        Some(half) => format!("{mean:+.1} [{:+.1}, {:+.1}]", mean - half, mean + half),
        None => format!("{mean:+.1}"),
    }
}

impl Compared {
    fn all(&self, value: impl Fn(&Outcome) -> f64) -> Vec<f64> {
        self.outcomes.iter().map(value).collect()
    }

    /// Accuracies in per cent.
    pub fn top1s(&self) -> Vec<f64> {
        self.all(top1)
    }

    /// Whether a run ended without a finite loss.
    pub fn diverged(&self) -> bool {
        self.outcomes.iter().any(|one| !one.last.test_loss.is_finite())
    }

    /// Of the accuracies, seed by seed.
    fn difference(&self, base: &Self) -> Vec<f64> {
        let pairs = self.outcomes.iter().zip(&base.outcomes);
        pairs.map(|(one, base)| top1(one) - top1(base)).collect()
    }

    /// How many times as long as `base` a step takes: the median over the seeds.
    fn time_beside(&self, base: &Self) -> f64 {
        let pairs = self.outcomes.iter().zip(&base.outcomes);
        median(pairs.map(|(one, base)| one.step_ms() / base.step_ms()).collect())
    }
}
