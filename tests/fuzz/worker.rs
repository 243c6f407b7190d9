//! The process that runs cases, and how it is watched.

use std::io::{BufRead as _, BufReader, Write as _};
use std::ops::Range;
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::Mutex;
use std::time::Duration;

use masksub::{ops, Error, Purpose, Seed};

use crate::tally::{Outcome, Tally};
use crate::{Scratch, KINDS};

/// Says that a process is a worker: its seed and its cases.
const WORK: &str = "MASKSUB_FUZZ_WORK";
/// Begins a line that is meant for who watches.
const MARK: &str = "fuzz: ";
/// Longest that a case may take, on a machine that has other work, too.
const LIMIT: Duration = Duration::from_secs(60);

pub struct Worker {
    child: Child,
    cases: Range<u64>,
}

impl Worker {
    pub fn start(seed: u64, cases: Range<u64>) -> Self {
        let child = Command::new(std::env::current_exe().unwrap())
            .args([
                "--exact",
                "worker::started_by_the_other_test_this_runs_cases",
                "--nocapture",
            ])
            .env(WORK, format!("{seed} {} {}", cases.start, cases.end))
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        Self { child, cases }
    }

    /// Counts what becomes of its cases until it ends; returns the first that it did not come to.
    pub fn watch(mut self, tally: &mut Tally) -> u64 {
        let (sender, lines) = mpsc::channel();
        let output = BufReader::new(self.child.stdout.take().unwrap());
        let reader = std::thread::spawn(move || {
            for line in output.lines().map_while(Result::ok) {
                // libtest's own words come before the first one.
                if let Some((_, line)) = line.split_once(MARK) {
                    let _ = sender.send(line.to_string());
                }
            }
        });
        let mut done = self.cases.start;
        let end = loop {
            match lines.recv_timeout(LIMIT) {
                Ok(line) => {
                    let (case, outcome) = parse(&line);
                    tally.count(case, outcome);
                    done = case + 1;
                }
                Err(RecvTimeoutError::Timeout) => {
                    self.child.kill().unwrap();
                    break Some(format!("hangs for {} seconds", LIMIT.as_secs()));
                }
                Err(RecvTimeoutError::Disconnected) => break None,
            }
        };
        let status = self.child.wait().unwrap();
        reader.join().unwrap();
        let fault = end.or_else(|| (!status.success()).then(|| format!("ends the process: {status}")));
        let Some(fault) = fault else {
            assert_eq!(done, self.cases.end, "the worker ended before its cases");
            return done;
        };
        tally.count(done, Outcome::Fault(fault));
        done + 1
    }
}

fn parse(line: &str) -> (u64, Outcome) {
    let (case, outcome) = line.split_once(' ').expect("a case and an outcome");
    let outcome = match outcome.split_once(' ') {
        None if outcome == "accepted" => Outcome::Accepted,
        Some(("refused", by)) => Outcome::Refused(by.to_string()),
        _ => Outcome::Fault(outcome.to_string()),
    };
    (case.parse().expect("the number of a case"), outcome)
}

/// Message and place of the last panic.
static PANIC: Mutex<String> = Mutex::new(String::new());

#[test]
fn started_by_the_other_test_this_runs_cases() {
    let Ok(work) = std::env::var(WORK) else { return };
    let work: Vec<u64> = work.split(' ').map(|number| number.parse().unwrap()).collect();
    let [seed, first, end] = work[..] else {
        panic!("{work:?}")
    };
    std::panic::set_hook(Box::new(|panic| {
        *PANIC.lock().unwrap() = panic.to_string().replace('\n', " ");
    }));
    let scratch = Scratch::new();
    for case in first..end {
        let (_, run) = KINDS[(case % KINDS.len() as u64) as usize];
        let mut rng = Seed::new(seed).at(case as usize).rng(0, Purpose::custom(0));
        let outcome = match catch_unwind(AssertUnwindSafe(|| run(&mut rng, &scratch))) {
            Ok(Ok(())) => "accepted".into(),
            Ok(Err(error)) => refusal(&error),
            Err(_) => format!("panics: {}", PANIC.lock().unwrap()),
        };
        // What one case left must not be what the next one lacks.
        ops::empty_cache();
        let mut stdout = std::io::stdout().lock();
        writeln!(stdout, "{MARK}{case} {outcome}")
            .and_then(|()| stdout.flush())
            .unwrap();
    }
}

/// Who refused it, unless it was said badly.
fn refusal(error: &Error) -> String {
    /// No sentence is longer.
    const MOST_BYTES: usize = 4000;
    let (text, whole) = (error.to_string(), format!("{error:?}"));
    match error {
        _ if whole.contains('\n') => format!("says it in more than one line: {}", whole.replace('\n', " ")),
        _ if whole.len() > MOST_BYTES || text.is_empty() => format!("says it in {} bytes", whole.len()),
        Error::Candle(_) => format!("refused candle: {text}"),
        _ => "refused typed".into(),
    }
}
