//! Checkpoints and what is recorded of them, a line each, in Markdown.

use std::collections::BTreeMap;
use std::fmt;

use crate::report::{Group, Report};

/// What a checkpoint is compared in, by the heading of its column.
const COLUMNS: [&str; 5] = [
    "its own size",
    "another square",
    "no square",
    "gradients",
    "dropped tokens",
];

/// The largest error of each checkpoint in each column.
#[derive(Default)]
pub struct Table(BTreeMap<String, Row>);

#[derive(Default)]
struct Row {
    format: String,
    cells: [Cell; COLUMNS.len()],
}

#[derive(Clone, Default)]
enum Cell {
    #[default]
    NotRecorded,
    /// Its writer's code has none, for this reason.
    None(String),
    Error {
        largest: f64,
        is_small: bool,
    },
}

impl Table {
    /// Adds what was compared of one recorded file. Several may be of the same checkpoint.
    pub fn add(&mut self, report: &Report) {
        for (file, format) in &report.formats {
            self.0.entry(file.clone()).or_default().format.clone_from(format);
        }
        for (group, tensor, error) in &report.errors {
            let (file, tensor) = tensor.split_once(' ').unwrap_or((&report.checkpoint, tensor));
            if let (Some(row), Some(column)) = (self.0.get_mut(file), column(*group, tensor)) {
                row.cells[column].take(*error, *error <= group.tolerance());
            }
        }
        let Some(row) = self.0.get_mut(&report.checkpoint) else {
            return;
        };
        for (tensor, reason) in &report.not_recorded {
            if let Some(column) = column(Group::Main, tensor) {
                row.cells[column] = Cell::None(reason.clone());
            }
        }
    }
}

/// The column of what was compared; `None` for a loss, which stands behind its gradients.
fn column(group: Group, tensor: &str) -> Option<usize> {
    match group {
        Group::Main if tensor.ends_with("_resized") => Some(1),
        Group::Main if tensor.ends_with("_rectangular") => Some(2),
        Group::Main => Some(0),
        Group::Grad => Some(3),
        Group::Sub => Some(4),
        Group::Loss => None,
    }
}

impl Cell {
    /// Takes another error of the same kind: the largest stays, NaN above all.
    fn take(&mut self, error: f64, is_small: bool) {
        let (before, was_small) = match self {
            Self::Error { largest, is_small } => (*largest, *is_small),
            _ => (0.0, true),
        };
        *self = Self::Error {
            largest: if error > before || error.is_nan() {
                error
            } else {
                before
            },
            is_small: is_small && was_small,
        };
    }
}

impl fmt::Display for Cell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotRecorded => f.write_str("no reference"),
            Self::None(reason) => f.write_str(reason),
            Self::Error { largest, is_small } => {
                write!(f, "{largest:.1e}{}", if *is_small { "" } else { " **FAIL**" })
            }
        }
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "| checkpoint | format | {} |", COLUMNS.join(" | "))?;
        writeln!(f, "|---|---|{}", "---|".repeat(COLUMNS.len()))?;
        for (file, Row { format, cells }) in &self.0 {
            let cells = cells.each_ref().map(Cell::to_string);
            writeln!(f, "| {file} | {format} | {} |", cells.join(" | "))?;
        }
        Ok(())
    }
}
