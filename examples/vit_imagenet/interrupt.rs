//! Ctrl-C, seen between two steps.

use anyhow::{Context, Result};
use std::sync::atomic::{AtomicBool, Ordering};

static ASKED: AtomicBool = AtomicBool::new(false);

/// What a shell expects of a program that SIGINT ended: 128 + 2.
pub const EXIT_CODE: u8 = 130;

/// From now on SIGINT is remembered; who is in no mood to wait for the step sends it twice.
pub fn watch() -> Result<()> {
    let handler = || {
        if ASKED.swap(true, Ordering::SeqCst) {
            std::process::exit(EXIT_CODE.into());
        }
        eprintln!("\ninterrupted: finishing this step and writing a checkpoint; again ends at once");
    };
    ctrlc::set_handler(handler).context("cannot watch for SIGINT")
}

pub fn asked() -> bool {
    ASKED.load(Ordering::SeqCst)
}
