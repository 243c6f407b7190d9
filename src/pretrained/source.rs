//! The weights of a peer's checkpoint as a model asks for them: under its own names, in its own shapes.

use std::collections::{BTreeMap, BTreeSet};

use candle_core::{DType, Shape, Tensor};

use super::file::TensorFile;
use super::format::Format;
use super::layout::Place;
use super::names::{
    is_head, known_leftover, known_missing, APART, FC_NORM, FINAL_NORM, POOL_APART, POOL_IN, POOL_KV, POOL_Q, QKV,
};
use super::notes;
use super::resize::Resize;
use super::stored::Stored;
use crate::error::{Error, Result};
use crate::grid::Grid;
use crate::weights::{PositionRows, Source, Value};

/// A checkpoint, and what was done with it so far.
pub(super) struct PeerSource {
    pub(super) file: TensorFile,
    pub(super) format: Format,
    /// Start of the format's names that the file's lack.
    lacks: &'static str,
    pub(super) fitting: Fitting,
    /// How positions lie that models have told of, by keys.
    pub(super) told: BTreeMap<String, PositionRows>,
    /// The file's name of each weight.
    names: BTreeMap<String, String>,
    /// Tensors that were taken, by the file's names.
    pub(super) taken: BTreeSet<String>,
    /// The weight that `find` gave last, and the file's names of it.
    given: Option<(String, Vec<String>)>,
    /// Weights that were drawn though the file might have had them, by keys.
    pub(super) drawn: BTreeSet<String>,
    pub(super) done: Done,
}

/// Ways of fitting that the user has chosen.
#[derive(Clone, Copy, Default)]
pub(super) struct Fitting {
    /// The positions of the model's images.
    pub(super) grid: Option<Grid>,
    /// In the place of the format's own.
    pub(super) resize: Option<Resize>,
}

/// Changes that weights went through.
#[derive(Default)]
pub(super) struct Done {
    /// Classes of the head that was replaced, before and after.
    pub(super) head: Option<(usize, usize)>,
    /// Lines about positions and channels.
    pub(super) lines: Vec<String>,
    /// Number of tables of relative positions that were resized from a square to another grid of offsets.
    pub(super) tables: BTreeMap<(usize, (usize, usize), Resize), usize>,
}

/// A weight put together from tensors of the file: one of them, a part of it, or several.
pub(super) enum Found<'a> {
    Whole(&'a Stored),
    /// Of a packed projection, so many thirds behind the first ones.
    Thirds {
        packed: &'a Stored,
        before: usize,
        count: usize,
    },
    Packed(Vec<&'a Stored>),
}

impl Found<'_> {
    /// The shape, without reading.
    pub(super) fn shape(&self) -> Vec<usize> {
        match self {
            Self::Whole(stored) => stored.shape.clone(),
            Self::Thirds { packed, count, .. } => {
                let mut shape = packed.shape.clone();
                if let Some(rows) = shape.first_mut().filter(|rows| rows.is_multiple_of(3)) {
                    *rows = *rows / 3 * count;
                }
                shape
            }
            Self::Packed(parts) => {
                let [first, others @ ..] = &parts[..] else {
                    return vec![];
                };
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

    /// Returns `false` for a part of what cannot be cut in three: it would have the right shape where the whole is as large
    /// as a part should be.
    pub(super) fn is_there(&self) -> bool {
        match self {
            Self::Thirds { packed, .. } => packed.shape.first().is_some_and(|rows| rows.is_multiple_of(3)),
            Self::Whole(_) | Self::Packed(_) => true,
        }
    }

    /// The places of its tensors in the file, of which it has the rows one after another.
    fn places(&self) -> Vec<Stored> {
        match self {
            Self::Whole(stored) => vec![(*stored).clone()],
            Self::Thirds { packed, before, .. } => {
                let third = packed.shape.first().map_or(0, |rows| rows / 3);
                // (Strides of no elements may be anything.)
                let elements = (before * third).saturating_mul(packed.strides.first().copied().unwrap_or(0));
                let bytes = elements.saturating_mul(packed.dtype.size_in_bytes());
                vec![Stored {
                    shape: self.shape(),
                    start: packed.start.saturating_add(bytes as u64),
                    ..(*packed).clone()
                }]
            }
            Self::Packed(parts) => parts.iter().map(|part| (*part).clone()).collect(),
        }
    }

    /// The weight as the file has it.
    pub(super) fn read(&self, file: &TensorFile) -> Result<Tensor> {
        let parts = self.places();
        let parts: Vec<_> = parts.iter().map(|part| file.read(part)).collect::<Result<_>>()?;
        match &parts[..] {
            [whole] => Ok(whole.clone()),
            parts => Ok(Tensor::cat(parts, 0)?),
        }
    }

    /// The weight in another shape of as many elements, for a variable of that dtype.
    pub(super) fn value(&self, file: &TensorFile, shape: &[usize], dtype: DType) -> Result<Value> {
        match dtype {
            DType::F32 => Ok(Value::Own(file.read_var(&self.places(), shape)?)),
            _ => Ok(Value::Shared(self.read(file)?.reshape(shape)?)),
        }
    }
}

impl PeerSource {
    pub(super) fn new(file: TensorFile, layout: &Place, fitting: Fitting) -> Self {
        let mut source = Self {
            file,
            format: layout.format,
            lacks: layout.lacks,
            fitting,
            told: BTreeMap::new(),
            names: BTreeMap::new(),
            taken: BTreeSet::new(),
            given: None,
            drawn: BTreeSet::new(),
            done: Done::default(),
        };
        let mut names = BTreeMap::new();
        for (name, stored) in &source.file.tensors {
            if let Some(key) = source.key_in_file(name, stored) {
                // A second tensor for the same weight stays behind, and is told as left over.
                names.entry(key).or_insert_with(|| name.clone());
            }
        }
        source.names = names;
        source
    }

    /// The whole name of one of the file's tensors, as its format is read here.
    fn whole_name(&self, name: &str) -> String {
        match (self.format, name.strip_prefix("backbone.")) {
            (Format::MmpretrainVit, Some(below)) => format!("mmpretrain.{below}"),
            _ => format!("{}{name}", self.lacks),
        }
    }

    /// Without a shape, that of the file's tensor of this name: Swin's mergings need one.
    pub(super) fn key(&self, name: &str, shape: Option<&[usize]>) -> Option<String> {
        let shape = shape.or_else(|| Some(&self.file.tensors.get(name)?.shape[..]));
        Some(self.of_one_norm(self.format.family().key(name, shape)?))
    }

    /// The key, where the file says that its final norm is one before a mean: in it they are the same.
    fn of_one_norm(&self, key: String) -> String {
        match key.strip_prefix(FINAL_NORM) {
            Some(leaf) if self.file.one_norm => format!("{FC_NORM}{leaf}"),
            _ => key,
        }
    }

    /// The key of one of the file's tensors.
    pub(super) fn key_in_file(&self, name: &str, stored: &Stored) -> Option<String> {
        self.key(&self.whole_name(name), Some(&stored.shape))
    }

    /// The file's tensors for a key, and their names.
    pub(super) fn found(&self, key: &str) -> Option<(Found<'_>, Vec<String>)> {
        let stored = |key: &str| {
            let name = self.names.get(key)?;
            Some((self.file.tensors.get(name)?, name.clone()))
        };
        if let Some((whole, name)) = stored(key) {
            return Some((Found::Whole(whole), vec![name]));
        }
        if let Some((packed, name, before, count)) = packed_in(key)
            .and_then(|(whole, before, count)| stored(&whole).map(|(packed, name)| (packed, name, before, count)))
        {
            let part = Found::Thirds { packed, before, count };
            return Some((part, vec![name]));
        }
        let parts: Vec<_> = parts_of(key)?.iter().map(|part| stored(part)).collect::<Option<_>>()?;
        let (parts, names) = parts.into_iter().unzip();
        Some((Found::Packed(parts), names))
    }

    /// Tells whether the file's weight of a key was taken.
    pub(super) fn has_taken(&self, key: &str) -> bool {
        self.names.get(key).is_some_and(|name| self.taken.contains(name))
    }

    /// The group of a tensor that may be left over.
    pub(super) fn leftover(&self, name: &str) -> Option<&'static str> {
        known_leftover(self.format, &self.whole_name(name)).or(known_leftover(self.format, name))
    }
}

/// The packed projection that a weight may be a part of: its key, how many thirds of it come before, and how many they
/// are.
fn packed_in(key: &str) -> Option<(String, usize, usize)> {
    let part = |(part, (whole, before, count)): (&str, (&str, usize, usize))| {
        key.contains(part).then(|| (key.replace(part, whole), before, count))
    };
    let [q, k, v] = APART;
    let parts = [(q, (QKV, 0, 1)), (k, (QKV, 1, 1)), (v, (QKV, 2, 1))];
    let pooled = [(POOL_Q, (POOL_IN, 0, 1)), (POOL_KV, (POOL_IN, 1, 2))];
    parts.into_iter().chain(pooled).find_map(part)
}

/// The keys of those that a packed projection may be in.
fn parts_of(key: &str) -> Option<Vec<String>> {
    if key.contains(QKV) {
        return Some(APART.map(|part| key.replace(QKV, part)).to_vec());
    }
    let is_pool = key.starts_with(POOL_KV);
    is_pool.then(|| POOL_APART.map(|part| key.replace(POOL_KV, part)).to_vec())
}

impl Source for PeerSource {
    fn find(&mut self, name: &str, shape: Option<&Shape>, dtype: DType) -> Result<Option<Value>> {
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
            (Some(shape), _) => self.fitted(name, &key, shape, dtype)?,
            (None, Some((found, names))) => Some((found.value(&self.file, &found.shape(), dtype)?, names)),
            (None, None) => None,
        };
        Ok(match found {
            Some((value, names)) => {
                self.given = Some((name.to_string(), names));
                Some(value)
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
        let names = self.file.tensors.keys().filter(|name| !self.taken.contains(*name));
        let mut names: Vec<_> = names.chain(&self.file.outside).cloned().collect();
        names.sort();
        names
    }

    fn may_lack(&self, name: &str) -> bool {
        // A head for other classes is drawn although the file has one.
        let replaced = |key: &str| is_head(key) && self.found(key).is_some();
        self.key(name, None)
            .is_some_and(|key| known_missing(self.format, &key) || replaced(&key))
    }

    fn may_leave(&self, name: &str) -> bool {
        self.leftover(name).is_some()
    }

    fn tell_positions(&mut self, name: &str, positions: PositionRows) {
        if let Some(key) = self.key(name, None) {
            self.told.insert(key, positions);
        }
    }

    fn notes(&self) -> Vec<String> {
        notes::of(self)
    }
}
