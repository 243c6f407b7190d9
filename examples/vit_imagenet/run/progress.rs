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
        let bar = in_words(ProgressBar::new(total_steps as u64));
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

fn in_words(bar: ProgressBar) -> ProgressBar {
    let style = ProgressStyle::with_template(TEMPLATE);
    bar.with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
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
    use super::*;
    use indicatif::{ProgressDrawTarget, TermLike};
    use std::io;
    use std::sync::{Arc, Mutex};

    #[test]
    fn shows_the_losses_that_there_are() {
        assert_eq!(
            message(3, 0.5, 0.25, 91.25),
            "epoch 3 main 0.500 sub 0.250 top-1 91.2 %"
        );
        assert_eq!(message(3, 0.5, f64::NAN, 91.25), "epoch 3 main 0.500 top-1 91.2 %");
    }

    /// A terminal that keeps what is written to it.
    #[derive(Clone, Debug, Default)]
    struct Terminal(Arc<Mutex<String>>);

    impl TermLike for Terminal {
        fn width(&self) -> u16 {
            120
        }
        fn move_cursor_up(&self, _: usize) -> io::Result<()> {
            Ok(())
        }
        fn move_cursor_down(&self, _: usize) -> io::Result<()> {
            Ok(())
        }
        fn move_cursor_right(&self, _: usize) -> io::Result<()> {
            Ok(())
        }
        fn move_cursor_left(&self, _: usize) -> io::Result<()> {
            Ok(())
        }
        fn write_line(&self, text: &str) -> io::Result<()> {
            self.write_str(text)
        }
        fn write_str(&self, text: &str) -> io::Result<()> {
            self.0.lock().unwrap().push_str(text);
            Ok(())
        }
        fn clear_line(&self) -> io::Result<()> {
            Ok(())
        }
        fn flush(&self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn says_which_time_is_which() {
        let terminal = Terminal::default();
        let target = ProgressDrawTarget::term_like(Box::new(terminal.clone()));
        let progress = Progress(in_words(ProgressBar::with_draw_target(Some(8), target)));
        progress.at(2);
        progress.step(1, 0.5, f64::NAN, 12.5);
        progress.0.abandon(); // drawn, whenever the last time was
        let shown = terminal.0.lock().unwrap().clone();
        let (_, times) = shown
            .rsplit_once("step 3 of 8, epoch 1 main 0.500 top-1 12.5 %, ")
            .unwrap();
        let (so_far, to_go) = times.trim_end().split_once(", ").unwrap();
        assert!(so_far.ends_with("s so far") && to_go.ends_with("s to go"), "{shown}");
    }
}
