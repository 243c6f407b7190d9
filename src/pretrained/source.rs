//! The weights of a peer's checkpoint as a model asks for them: under its own names, in its own shapes.

use std::collections::{BTreeMap, BTreeSet};

use candle_core::{Shape, Tensor};

use super::file::TensorFile;
use super::format::Format;
use super::names::{known_leftover, known_missing, APART, HEAD, NORM, POSITION_TABLE, POS_EMBED, QKV};
use super::stored::Stored;
use super::{resize, square};
use crate::error::{listed, Error, Result};
use crate::grid::Grid;
use crate::weights::Source;

/// A checkpoint, and what was done with it so far.
pub(super) struct PeerSource {
    file: TensorFile,
    format: Format,
    /// The positions of the model's images, where the user said.
    grid: Option<Grid>,
    /// The file's name of each weight.
    names: BTreeMap<String, String>,
    /// Tensors that were taken, by the file's names.
    taken: BTreeSet<String>,
    /// The weight that `find` gave last, and the file's names of it.
    given: Option<(String, Vec<String>)>,
    /// Weights that were drawn though the file might have had them, by keys.
    drawn: BTreeSet<String>,
    /// Classes of the head that was replaced, before and after.
    head: Option<(usize, usize)>,
    positions: Option<(Grid, Grid)>,
    /// Number of tables of relative positions that were resized from one side to another.
    tables: BTreeMap<(usize, usize), usize>,
}

/// A weight put together from tensors of the file: one of them, a part of it, or three.
enum Found<'a> {
    Whole(&'a Stored),
    /// The first, second or third part of a packed projection.
    Third(&'a Stored, usize),
    Packed([&'a Stored; 3]),
}

impl Found<'_> {
    /// The shape, without reading.
    fn shape(&self) -> Vec<usize> {
        match self {
            Self::Whole(stored) => stored.shape.clone(),
            Self::Third(stored, _) => {
                let mut shape = stored.shape.clone();
                if let Some(rows) = shape.first_mut().filter(|rows| rows.is_multiple_of(3)) {
                    *rows /= 3;
                }
                shape
            }
            Self::Packed([first, others @ ..]) => {
                let rest = |stored: &Stored| stored.shape.iter().skip(1).copied().collect::<Vec<_>>();
                // Parts that cannot be packed have the shape of the odd one, which no packed projection has.
                if let Some(odd) = others.iter().find(|other| rest(other) != rest(first)) {
                    return odd.shape.clone();
                }
                let mut shape = first.shape.clone();
                if let Some(rows) = shape.first_mut() {
                    *rows += others.iter().filter_map(|other| other.shape.first()).sum::<usize>();
                }
                shape
            }
        }
    }

    fn read(&self, file: &TensorFile) -> Result<Tensor> {
        match self {
            Self::Whole(stored) => file.read(stored),
            Self::Third(stored, part) => {
                let tensor = file.read(stored)?;
                let rows = tensor.dim(0)? / 3;
                Ok(tensor.narrow(0, part * rows, rows)?)
            }
            Self::Packed(parts) => {
                let parts = parts
                    .iter()
                    .map(|stored| file.read(stored))
                    .collect::<Result<Vec<_>>>()?;
                Ok(Tensor::cat(&parts, 0)?)
            }
        }
    }
}

impl PeerSource {
    pub(super) fn new(file: TensorFile, format: Format, grid: Option<Grid>) -> Self {
        let mut names = BTreeMap::new();
        for (name, stored) in &file.tensors {
            if let Some(key) = format.family().key(name, Some(&stored.shape)) {
                // A second tensor for the same weight stays behind, and is told as left over.
                names.entry(key).or_insert_with(|| name.clone());
            }
        }
        Self {
            file,
            format,
            grid,
            names,
            taken: BTreeSet::new(),
            given: None,
            drawn: BTreeSet::new(),
            head: None,
            positions: None,
            tables: BTreeMap::new(),
        }
    }

    /// Without a shape, that of the file's tensor of this name: Swin's mergings need one.
    fn key(&self, name: &str, shape: Option<&[usize]>) -> Option<String> {
        let shape = shape.or_else(|| Some(&self.file.tensors.get(name)?.shape[..]));
        self.format.family().key(name, shape)
    }

    /// The file's tensors for a key, and their names.
    fn found(&self, key: &str) -> Option<(Found<'_>, Vec<String>)> {
        let stored = |key: &str| {
            let name = self.names.get(key)?;
            Some((self.file.tensors.get(name)?, name.clone()))
        };
        if let Some((whole, name)) = stored(key) {
            return Some((Found::Whole(whole), vec![name]));
        }
        if key.contains(QKV) {
            let [q, k, v] = APART.map(|part| stored(&key.replace(QKV, part)));
            let ((q, q_name), (k, k_name), (v, v_name)) = (q?, k?, v?);
            return Some((Found::Packed([q, k, v]), vec![q_name, k_name, v_name]));
        }
        let part = APART.iter().position(|part| key.contains(part))?;
        let (packed, name) = stored(&key.replace(APART.get(part)?, QKV))?;
        Some((Found::Third(packed, part), vec![name]))
    }

    /// The grids of the file's and of the model's positions, where they differ and both are known.
    fn positions(&self, from: &[usize], to: &[usize]) -> Result<Option<(Grid, Grid)>> {
        let ([lead @ .., n, d], [.., m, to_d]) = (from, to) else {
            return Ok(None);
        };
        // Positions of their own for the class token, and for a distillation token, leave a square.
        let class = (1..=2)
            .find(|class| n > class && square(n - class).is_some())
            .unwrap_or(0);
        let one_table = lead.iter().all(|n| *n == 1) && d == to_d && *m > class;
        let (Some(side), true) = (square(n - class), one_table) else {
            return Ok(None);
        };
        let wanted = m - class;
        let to = match (self.grid, square(wanted)) {
            (Some(grid), _) if grid.len() == wanted => grid,
            (Some(grid), _) => {
                let allowed = format!("of the {wanted} positions that the model has");
                return Err(Error::invalid("grid", grid, allowed));
            }
            (None, Some(side)) => Grid::new(side, side),
            // As many as in the file, however they lie.
            (None, None) if n == m => return Ok(None),
            // A model of the other sort would have a square.
            (None, None) if (0..=2).any(|other| *m > other && square(m - other).is_some()) => return Ok(None),
            (None, None) => {
                let allowed = format!(
                    "said by Pretrained::with_grid: the model's {wanted} positions are no square, so that {} of {} cannot \
                     be resized to them",
                    POS_EMBED, self.file.path
                );
                return Err(Error::invalid("grid", "not known", allowed));
            }
        };
        let from = Grid::new(side, side);
        Ok((from != to).then_some((from, to)))
    }

    /// Refuses the head of a classifier that reads no norm for a model that has taken the file's: its logits would be
    /// others, and no weight missing or left over.
    fn check_pooling(&self, key: &str) -> Result<()> {
        let norm = self.names.get(NORM).is_some_and(|name| self.taken.contains(name));
        if self.format != Format::HfClipClassifier || !key.starts_with(HEAD) || !norm {
            return Ok(());
        }
        let allowed = format!(
            "vit::Pool::MeanOnly: the classifier of {} ({}) reads the mean of the patch tokens, and no norm",
            self.file.path, self.format
        );
        Err(Error::invalid("pool", "one with a final norm", allowed))
    }

    /// The weight in the shape asked for, or `None` where the head is to be drawn anew.
    fn fitted(&mut self, name: &str, key: &str, shape: &[usize]) -> Result<Option<(Tensor, Vec<String>)>> {
        let Some((found, names)) = self.found(key) else {
            return Ok(None);
        };
        let got = found.shape();
        let misshapen = || Error::MisshapenWeight {
            path: name.to_string(),
            got: got.clone(),
            expected: shape.to_vec(),
            source_name: format!("{} (as {})", self.file.path, names.join(", ")),
        };
        if key == POS_EMBED {
            if let Some((from, to)) = self.positions(&got, shape)? {
                let dim = shape.last().copied().unwrap_or(1);
                // What stands before them, of the class token, stays as it is.
                let positions = found.read(&self.file)?.reshape(((), dim))?;
                let resized = resize::bicubic(&positions, from, to)?.reshape(shape)?;
                self.positions = Some((from, to));
                return Ok(Some((resized, names)));
            }
        }
        // [1, 1, D] and `[D]` are the same to those who write them.
        let filled = |shape: &[usize]| shape.iter().copied().skip_while(|n| *n == 1).collect::<Vec<_>>();
        if filled(&got) == filled(shape) {
            self.check_pooling(key)?;
            return Ok(Some((found.read(&self.file)?.reshape(shape)?, names)));
        }
        match (&got[..], shape) {
            ([offsets, heads], [to_offsets, to_heads]) if key.ends_with(POSITION_TABLE) && heads == to_heads => {
                let (Some(side), Some(to_side)) = (square(*offsets), square(*to_offsets)) else {
                    return Err(misshapen());
                };
                let table = found.read(&self.file)?;
                let [from, to] = [side, to_side].map(|side| Grid::new(side, side));
                let resized = resize::bicubic(&table, from, to)?.reshape(shape)?;
                *self.tables.entry((side, to_side)).or_default() += 1;
                Ok(Some((resized, names)))
            }
            ([classes, dim @ ..], [to_classes, to_dim @ ..]) if key.starts_with(HEAD) && dim == to_dim => {
                self.head = Some((*classes, *to_classes));
                self.taken.extend(names);
                Ok(None)
            }
            _ => Err(misshapen()),
        }
    }
}

impl Source for PeerSource {
    fn find(&mut self, name: &str, shape: Option<&Shape>) -> Result<Option<Tensor>> {
        let shape = shape.map(Shape::dims);
        let Some(key) = self.key(name, shape) else {
            return match self.format.family().other(name, shape) {
                None => Ok(None),
                Some(other) => Err(Error::OtherArchitecture {
                    path: self.file.path.clone(),
                    family: self.format.family().name(),
                    format: self.format.name(),
                    weight: name.to_string(),
                    other: other.name(),
                }),
            };
        };
        let found = match (shape, self.found(&key)) {
            (Some(shape), _) => self.fitted(name, &key, shape)?,
            (None, Some((found, names))) => Some((found.read(&self.file)?, names)),
            (None, None) => None,
        };
        Ok(match found {
            Some((tensor, names)) => {
                self.given = Some((name.to_string(), names));
                Some(tensor)
            }
            None => {
                self.drawn.insert(key);
                None
            }
        })
    }

    fn has(&self, name: &str) -> bool {
        self.key(name, None).is_some_and(|key| self.found(&key).is_some())
    }

    fn taken(&mut self, name: &str) {
        if let Some((_, names)) = self.given.take().filter(|(given, _)| given == name) {
            self.taken.extend(names);
        }
    }

    fn left_over(&self) -> Vec<String> {
        let names = self.file.tensors.keys();
        names.filter(|name| !self.taken.contains(*name)).cloned().collect()
    }

    fn may_lack(&self, name: &str) -> bool {
        // A head for other classes is drawn although the file has one.
        let replaced = |key: &str| key.starts_with(HEAD) && self.found(key).is_some();
        self.key(name, None)
            .is_some_and(|key| known_missing(self.format, &key) || replaced(&key))
    }

    fn may_leave(&self, name: &str) -> bool {
        known_leftover(self.format, name).is_some()
    }

    fn notes(&self) -> Vec<String> {
        let below = self.file.key.as_ref();
        let below = below.map(|key| format!(", below `{key}`")).unwrap_or_default();
        let mut notes = vec![format!(
            "format {}, {} tensors{below}",
            self.format,
            self.file.tensors.len()
        )];
        if self.taken.is_empty() {
            notes.push(format!(
                "nothing of the file was used: no weight was asked for by a {}'s name, which starts at the root of the \
                 builder, without a prefix",
                self.format.family().name()
            ));
        }
        if let Some((from, to)) = self.positions {
            notes.push(format!("{POS_EMBED}: {from} -> {to} positions, bicubic"));
        }
        for ((from, to), count) in &self.tables {
            let (table, tables) = (
                POSITION_TABLE.trim_start_matches('.'),
                if *count == 1 { "table" } else { "tables" },
            );
            notes.push(format!(
                "{table}: {from} x {from} -> {to} x {to} offsets, bicubic, {count} {tables}"
            ));
        }
        if let Some((from, to)) = self.head {
            notes.push(format!("head: {from} -> {to} classes, drawn anew"));
        }
        let known = |key: &&String| known_missing(self.format, key) && !(self.head.is_some() && key.starts_with(HEAD));
        let drawn: Vec<_> = self.drawn.iter().filter(known).map(String::as_str).collect();
        if !drawn.is_empty() {
            notes.push(format!("not in the file, so drawn: {}", drawn.join(", ")));
        }
        let mut groups = BTreeMap::<_, usize>::new();
        for name in self.left_over() {
            if let Some(group) = known_leftover(self.format, &name) {
                *groups.entry(group).or_default() += 1;
            }
        }
        for (group, count) in groups {
            let tensors = if count == 1 { "tensor" } else { "tensors" };
            notes.push(format!("left out: {group}, {count} {tensors}"));
        }
        if !self.file.beside.is_empty() {
            notes.push(format!("left out: {}, beside the weights", listed(&self.file.beside)));
        }
        notes
    }
}
