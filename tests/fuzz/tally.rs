//! Counts of what became of the cases.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Instant;

use crate::KINDS;

pub enum Outcome {
    Accepted,
    /// By an error of the crate, or in candle's words.
    Refused(String),
    Fault(String),
}

#[derive(Clone, Copy, Default)]
struct Counts {
    cases: u64,
    accepted: u64,
    typed: u64,
    in_candles_words: u64,
    faults: u64,
    seconds: f64,
}

#[derive(Default)]
pub struct Tally {
    counts: BTreeMap<usize, Counts>,
    /// What candle said instead of us, and the first case of each.
    candles: BTreeMap<String, u64>,
    pub faults: Vec<String>,
    /// When the last outcome was counted.
    last: Option<Instant>,
}

impl Tally {
    pub fn count(&mut self, case: u64, outcome: Outcome) {
        let kind = (case % KINDS.len() as u64) as usize;
        let counts = self.counts.entry(kind).or_default();
        counts.cases += 1;
        let now = Instant::now();
        let started = self.last.replace(now).unwrap_or(now);
        counts.seconds += (now - started).as_secs_f64();
        match outcome {
            Outcome::Accepted => counts.accepted += 1,
            Outcome::Refused(by) if by == "typed" => counts.typed += 1,
            Outcome::Refused(by) => {
                counts.in_candles_words += 1;
                // Sizes differ, the words do not.
                let words = by.replace(|c: char| c.is_ascii_digit(), "");
                self.candles
                    .entry(format!("{}: {words}", KINDS[kind].0))
                    .or_insert(case);
            }
            Outcome::Fault(what) => {
                counts.faults += 1;
                let fault = format!("case {case}, {}: {what}", KINDS[kind].0);
                println!("{fault}");
                self.faults.push(fault);
            }
        }
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if std::env::var_os("MASKSUB_FUZZ_CANDLE").is_some() {
            for (words, case) in &self.candles {
                writeln!(f, "case {case}, {words}")?;
            }
        }
        let mut all = Counts::default();
        for (kind, counts) in &self.counts {
            line(f, KINDS[*kind].0, *counts)?;
            all.cases += counts.cases;
            all.accepted += counts.accepted;
            all.typed += counts.typed;
            all.in_candles_words += counts.in_candles_words;
            all.faults += counts.faults;
            all.seconds += counts.seconds;
        }
        line(f, "all", all)
    }
}

fn line(f: &mut fmt::Formatter<'_>, name: &str, counts: Counts) -> fmt::Result {
    let Counts {
        cases,
        accepted,
        typed,
        in_candles_words,
        faults,
        seconds,
    } = counts;
    writeln!(
        f,
        "{name:31} {cases:8} cases, {accepted:8} accepted, {typed:8} refused, {in_candles_words:6} in candle's words, \
         {faults} faults, {seconds:.1} s"
    )
}
