//! The progress bar of a run: both losses, accuracy and time left. Quiet where stderr is no terminal.

use crate::ranks;
use indicatif::{ProgressBar, ProgressStyle};
use std::io::IsTerminal;
use std::time::Duration;

const TEMPLATE: &str = "{wide_bar} step {pos} of {len}, {msg}, {elapsed} so far, {eta} to go";

pub struct Progress(ProgressBar);

impl Progress {
    pub fn new(total_steps: usize) -> Self {
        if !ranks::tells() || !std::io::stderr().is_terminal() {
            return Self(ProgressBar::hidden());
        }
        let bar = ProgressBar::new(total_steps as u64);
        let style = ProgressStyle::with_template(TEMPLATE);
        bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
        bar.enable_steady_tick(Duration::from_millis(250));
        Self(bar)
    }

    /// One step more. Accuracy in per cent; a loss that is not computed is NaN and is not shown.
    pub fn step(&self, epoch: usize, main_loss: f64, sub_loss: f64, top1: f64) {
        if !self.0.is_hidden() {
            self.0.set_message(message(epoch, main_loss, sub_loss, top1));
        }
        self.0.inc(1);
    }

    /// So many steps were done before.
    pub fn at(&self, step: usize) {
        self.0.set_position(step as u64);
        self.0.reset_eta();
    }

    pub fn finish(&self) {
        self.0.finish_and_clear();
    }
}

fn message(epoch: usize, main_loss: f64, sub_loss: f64, top1: f64) -> String {
    let sub = if sub_loss.is_nan() {
        String::new()
    } else {
        format!(" sub {sub_loss:.3}")
    };
    format!("epoch {epoch} main {main_loss:.3}{sub} top-1 {top1:.1} %")
}

#[cfg(test)]
mod tests {
    use super::message;

    #[test]
    fn shows_the_losses_that_there_are() {
        assert_eq!(
            message(3, 0.5, 0.25, 91.25),
            "epoch 3 main 0.500 sub 0.250 top-1 91.2 %"
        );
        assert_eq!(message(3, 0.5, f64::NAN, 91.25), "epoch 3 main 0.500 top-1 91.2 %");
    }
}
