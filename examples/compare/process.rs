//! A process that is waited for, and asked to end when this one is.

use crate::interrupt;
use anyhow::{anyhow, Result};
use std::io::Read;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

/// Between two looks at whether the process has ended or is to be ended.
const PAUSE: Duration = Duration::from_millis(20);

/// How a process ended, and what it said on its standard error.
pub struct Ended {
    pub status: ExitStatus,
    pub said: String,
}

/// Runs `command` to its end. A signal that asks this process to end is passed on, once; the other may then take its time,
/// and no one is left that nobody waits for.
pub fn run(mut command: Command) -> Result<Ended> {
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    let mut child = command.spawn()?;
    let stderr = child.stderr.take();
    // Read while it runs: a pipe that is full would stop it.
    let reader = std::thread::spawn(move || {
        let mut said = vec![];
        stderr.map_or(Ok(0), |mut stderr| stderr.read_to_end(&mut said))?;
        std::io::Result::Ok(String::from_utf8_lossy(&said).into_owned())
    });
    let status = end_of(&mut child);
    if status.is_err() {
        // It runs on, and is waited for all the same. The first error says more than any other.
        let _ = child.wait();
    }
    let said = reader.join().map_err(|_| anyhow!("its messages cannot be read"));
    let status = status?;
    Ok(Ended { status, said: said?? })
}

/// Waits for the end of `child`, and asks for it once where a signal asks this process to end.
fn end_of(child: &mut Child) -> Result<ExitStatus> {
    let mut told = false;
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(status);
        }
        if interrupt::asked() && !told {
            ask_to_end(child)?;
            told = true;
        }
        std::thread::sleep(PAUSE);
    }
}

/// SIGTERM, whatever signal this process got: of Ctrl-C a terminal tells the other process itself, and twice would end it
/// before its checkpoint. It has not been waited for, so its number is nobody else's.
#[cfg(unix)]
fn ask_to_end(child: &Child) -> Result<()> {
    use nix::sys::signal::{kill, Signal};
    let pid = nix::unistd::Pid::from_raw(i32::try_from(child.id())?);
    Ok(kill(pid, Signal::SIGTERM)?)
}

/// There is Ctrl-C alone, which a terminal tells all its processes.
#[cfg(not(unix))]
fn ask_to_end(_: &Child) -> Result<()> {
    Ok(())
}
