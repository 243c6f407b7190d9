//! The errors of one file: what is printed of them, and whether they are small enough.

use std::collections::BTreeMap;
use std::fmt;

use anyhow::Result;
use candle_core::{DType, Device, Tensor};

use crate::augment::Case;

/// Largest error of values (logits, losses), and of gradients.
const VALUE_TOLERANCE: f64 = 1e-5;
const GRAD_TOLERANCE: f64 = 1e-4;

/// What is compared: a column of the report.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Group {
    Main,
    Sub,
    Loss,
    Grad,
}

impl Group {
    pub const ALL: [(Self, &'static str); 4] = [
        (Self::Main, "main"),
        (Self::Sub, "sub"),
        (Self::Loss, "loss"),
        (Self::Grad, "grad"),
    ];

    pub fn tolerance(self) -> f64 {
        match self {
            Self::Grad => GRAD_TOLERANCE,
            _ => VALUE_TOLERANCE,
        }
    }
}

/// The errors of one file, tensor by tensor.
#[derive(Default)]
pub struct Report {
    pub name: String,
    pub errors: Vec<(Group, String, f64)>,
    /// Images, which have tolerances of their own.
    pub images: Vec<Case>,
    /// What could not be compared because it is not the same thing: a sentence each.
    pub failures: Vec<String>,
    /// What was done to the weights of a checkpoint: a line each.
    pub notes: Vec<String>,
    /// The file that a checkpoint's errors are of, where their names do not begin with another's.
    pub checkpoint: String,
    /// What each file of weights was recognised as.
    pub formats: BTreeMap<String, String>,
    /// Why a tensor is not recorded, where its writer's code has none.
    pub not_recorded: BTreeMap<String, String>,
}

impl Report {
    /// The largest error of a group, NaN where one is NaN; `None` if nothing of it was compared.
    pub fn largest(&self, group: Group) -> Option<f64> {
        let of_group = self.errors.iter().filter(|(g, _, _)| *g == group);
        let larger = |max: f64, error: f64| if error > max || error.is_nan() { error } else { max };
        of_group.map(|(_, _, error)| *error).reduce(larger)
    }

    /// Whether everything could be compared and every error is within its tolerance. NaN is not.
    pub fn is_ok(&self) -> bool {
        let within = |(group, _, error): &(Group, String, f64)| *error <= group.tolerance();
        let compared = !self.errors.is_empty() || !self.images.is_empty();
        let close = self.errors.iter().all(within) && self.images.iter().all(Case::is_ok);
        self.failures.is_empty() && compared && close
    }

    /// Every tensor's error and every note, a line each.
    pub fn verbose(&self) -> String {
        let line = |(group, tensor, error): &(Group, String, f64)| {
            let mark = if *error <= group.tolerance() { "" } else { "  <-" };
            format!("    {error:9.2e}  {tensor}{mark}\n")
        };
        let notes = self.notes.iter().map(|note| format!("    {note}\n"));
        let images = self.images.iter().map(|case| format!("    {case}\n"));
        self.errors.iter().map(line).chain(images).chain(notes).collect()
    }

    pub fn compare(&mut self, group: Group, tensor: impl Into<String>, ours: &Tensor, theirs: &Tensor) -> Result<()> {
        let tensor = tensor.into();
        if ours.dims() != theirs.dims() {
            let (ours, theirs) = (ours.dims(), theirs.dims());
            self.failures
                .push(format!("{tensor} has shape {ours:?} here, {theirs:?} recorded"));
            return Ok(());
        }
        let (ours, theirs) = (to_host(ours)?, to_host(theirs)?);
        let norm = |values: &mut dyn Iterator<Item = f64>| values.map(|v| v * v).sum::<f64>().sqrt();
        let difference = norm(&mut ours.iter().zip(&theirs).map(|(a, b)| a - b));
        let size = norm(&mut theirs.iter().copied());
        self.errors.push((group, tensor, difference / size.max(1e-3)));
        Ok(())
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.name)?;
        if !self.images.is_empty() {
            let wrong: Vec<&str> = self
                .images
                .iter()
                .filter(|c| !c.is_ok())
                .map(|c| c.name.as_str())
                .collect();
            write!(f, " images={}", self.images.len())?;
            return if wrong.is_empty() {
                write!(f, " ok")
            } else {
                write!(f, " FAIL: {}", wrong.join(", "))
            };
        }
        for (group, name) in Group::ALL {
            match self.largest(group) {
                Some(error) => write!(f, " {name}={error:.1e}")?,
                None => write!(f, " {name}=-")?,
            }
        }
        match (self.is_ok(), self.failures.is_empty()) {
            (true, _) => write!(f, " ok"),
            (false, true) => write!(f, " FAIL"),
            (false, false) => write!(f, " FAIL: {}", self.failures.join("; ")),
        }
    }
}

/// A number as a tensor.
pub fn scalar(value: f64) -> Result<Tensor> {
    Ok(Tensor::new(value, &Device::Cpu)?)
}

/// All numbers of a tensor.
pub fn to_host(tensor: &Tensor) -> Result<Vec<f64>> {
    Ok(tensor
        .to_device(&Device::Cpu)?
        .to_dtype(DType::F64)?
        .flatten_all()?
        .to_vec1()?)
}
