//! Signals that ask a run to end, seen between two steps.

use anyhow::{Context, Result};
use std::sync::atomic::{AtomicI32, Ordering};

/// The signal, or 0.
pub static ASKED: AtomicI32 = AtomicI32::new(0);

const SAID: &str = "\ninterrupted: finishing this step and writing a checkpoint; Ctrl-C again ends at once\n";

/// From now on Ctrl-C and, on Unix, SIGTERM and SIGHUP are remembered, but for a SIGHUP that `nohup` has them ignore. Who is
/// in no mood to wait for the step presses Ctrl-C twice. The other two may come twice unasked, of a terminal that closes.
pub fn watch() -> Result<()> {
    system::watch().context("cannot watch for signals")
}

pub fn asked() -> bool {
    signal() != 0
}

/// The signal that asked, or 0.
pub fn signal() -> i32 {
    ASKED.load(Ordering::SeqCst)
}

/// What a shell expects of a program that a signal ended: 128 and its number.
pub fn exit_code() -> u8 {
    128 + signal() as u8
}

#[cfg(unix)]
mod system {
    use super::{Ordering, ASKED, SAID};
    use nix::errno::Errno;
    use nix::libc::{self, c_int, SIGINT};
    use nix::sys::signal::{sigaction, SaFlags, SigAction, SigHandler, SigSet, Signal};

    pub fn watch() -> nix::Result<()> {
        let action = SigAction::new(SigHandler::Handler(remember), SaFlags::SA_RESTART, SigSet::empty());
        for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
            // SAFETY: `remember` does nothing that a signal handler may not do.
            let before = unsafe { sigaction(signal, &action) }?;
            if signal == Signal::SIGHUP && matches!(before.handler(), SigHandler::SigIgn) {
                // SAFETY: it is what was there.
                unsafe { sigaction(signal, &before) }?;
            }
        }
        Ok(())
    }

    extern "C" fn remember(signal: c_int) {
        let errno = Errno::last_raw();
        let again = ASKED.swap(signal, Ordering::SeqCst) != 0;
        // SAFETY: both may be called in a signal handler, and the text outlives the call.
        unsafe {
            if again && signal == SIGINT {
                libc::_exit(128 + signal);
            }
            if !again {
                libc::write(libc::STDERR_FILENO, SAID.as_ptr().cast(), SAID.len());
            }
        }
        Errno::set_raw(errno);
    }
}

#[cfg(not(unix))]
mod system {
    use super::{exit_code, Ordering, ASKED, SAID};

    pub fn watch() -> Result<(), ctrlc::Error> {
        const SIGINT: i32 = 2;
        ctrlc::set_handler(|| {
            if ASKED.swap(SIGINT, Ordering::SeqCst) != 0 {
                std::process::exit(exit_code().into());
            }
            eprint!("{SAID}");
        })
    }
}
