//! Files that `torch.save` writes: the zip archives of today, and the format before PyTorch 1.6.

use std::collections::{HashMap, HashSet};
use std::io::{BufReader, ErrorKind, Read, Seek, SeekFrom};

use candle_core::DType;

use super::archive::{Archive, Run};
use super::layout;
use super::part::Part;
use super::pickle::{Id, Pickle, Value, MOST_BYTES};
use super::stored::{Contents, Dictionary, Stored};
use crate::error::{Error, Fault, Result};

/// The number that a legacy file starts with, as a pickled integer (torch/serialization.py).
const LEGACY_MAGIC: [u8; 10] = [0x6c, 0xfc, 0x9c, 0x46, 0xf9, 0x20, 0x6a, 0xa8, 0x50, 0x19];
/// Most dimensions of a tensor: those of checkpoints have 4.
const MOST_DIMS: usize = 8;
/// Most of one tensor's wrappings: a parameter of a subclass is two.
const MOST_WRAPPINGS: usize = 4;
/// Most dictionaries of tensors that are read of one pickle: scripts save a model, its average, and little else.
const MOST_DICTIONARIES: usize = 64;
/// Longest name and key, in bytes, and most that all of them take together: a pickle has a text once, and may recall it
/// in every dictionary.
const MOST_NAME: usize = 4096;
const MOST_NAMES: usize = 64 << 20;

/// Errors of one file.
struct Path<'a>(&'a std::path::Path);

impl Path<'_> {
    fn fail(&self, fault: impl Into<Fault>) -> Error {
        fault.into().of_file(self.0)
    }

    fn code(&self, what: impl ToString) -> Error {
        Error::CodeInCheckpoint {
            path: self.0.display().to_string(),
            what: what.to_string(),
        }
    }

    fn pickle(&self, input: &mut impl Read) -> Result<Pickle> {
        Pickle::read(input).map_err(|fault| self.fail(fault.of_part("its pickle is damaged")))
    }
}

/// The folder of an archive that all of `torch.save`'s entries lie in, called as the file was when it was saved.
fn folder(archive: &Archive) -> Option<&str> {
    let mut pickles = archive.entries.keys().filter_map(|name| name.strip_suffix("data.pkl"));
    pickles.find(|folder| folder.matches('/').count() <= 1)
}

/// Reads what a zip archive says of its tensors; `None` for one that `torch.save` did not write.
pub(super) fn read_zip(part: &Part, archive: &Archive, key: Option<&str>) -> Result<Option<Contents>> {
    let path = Path(&part.path);
    let Some(folder) = folder(archive) else { return Ok(None) };
    let entries = &archive.entries;
    if entries.keys().any(|name| name.starts_with(&format!("{folder}code/"))) {
        return Err(path.code("it is a TorchScript archive"));
    }
    if let Some(name) = &archive.compressed {
        return Err(path.fail(format!("{name} is compressed in it, which torch.save never does")));
    }
    let read = |name: &str, most: u64| -> Result<Option<Vec<u8>>> {
        let entry = entries.get(&format!("{folder}{name}"));
        let bytes = entry.map(|entry| part.bytes(entry.start, entry.bytes.min(most)));
        bytes.transpose().map_err(|error| path.fail(error))
    };
    if read("byteorder", 8)?.is_some_and(|order| order != b"little") {
        return Err(path.fail("its numbers are big-endian: save it on a little-endian machine"));
    }
    let bytes = read("data.pkl", MOST_BYTES)?.unwrap_or_default();
    let pickle = path.pickle(&mut &bytes[..])?;
    let find = |storage: &str, _| Ok(entries.get(&format!("{folder}data/{storage}")).copied());
    contents(&path, &pickle, key, find).map(Some)
}

/// Reads what a file of the format before PyTorch 1.6 says of its tensors: pickles of a magic number, of a version, of
/// the machine, of the object, of the storages' keys; then each storage's length and numbers. A single pickle without
/// all that starts with the same byte, and can hold no tensor.
pub(super) fn read_legacy(part: &Part, wanted: Option<&str>) -> Result<Contents> {
    let path = Path(&part.path);
    let mut input = BufReader::new(part.reader());
    let mut start = [0; 14];
    input.seek(SeekFrom::Start(0)).map_err(|error| path.fail(error))?;
    let has_magic = input.read_exact(&mut start).is_ok() && start[4..] == LEGACY_MAGIC;
    input.seek(SeekFrom::Start(0)).map_err(|error| path.fail(error))?;
    let mut object = path.pickle(&mut input)?;
    if !has_magic {
        return contents(&path, &object, wanted, |_, _| Ok(None));
    }
    for _version_and_machine in 0..2 {
        path.pickle(&mut input)?;
    }
    object = path.pickle(&mut input)?;
    let keys = path.pickle(&mut input)?;
    // The object tells how wide each storage's elements are, which is needed to find the next one.
    let widths: HashMap<_, _> = object
        .values()
        .iter()
        .filter_map(|value| storage_of(&object, value))
        .collect();
    let mut storages = HashMap::new();
    let mut at = input.stream_position().map_err(|error| path.fail(error))?;
    for key in keys.sequence(keys.root()).unwrap_or_default() {
        let key = keys.text(*key).unwrap_or_default();
        let mut count = [0; 8];
        let cut_off = || path.fail("it is cut off: a storage is missing");
        input.seek(SeekFrom::Start(at)).map_err(|error| path.fail(error))?;
        input.read_exact(&mut count).map_err(|error| match error.kind() {
            ErrorKind::UnexpectedEof => cut_off(),
            _ => path.fail(error),
        })?;
        let dtype = widths.get(key).copied().flatten();
        let width = dtype.ok_or_else(|| path.fail(format!("storage {key} has elements of an unknown kind")))?;
        let bytes = u64::from_le_bytes(count).checked_mul(width.size_in_bytes() as u64);
        let (bytes, start) = (bytes.ok_or_else(cut_off)?, at + 8);
        at = start
            .checked_add(bytes)
            .filter(|end| *end <= part.len)
            .ok_or_else(cut_off)?;
        storages.insert(key, Run { start, bytes });
    }
    contents(&path, &object, wanted, |key, is_view| {
        if is_view {
            let fault = format!("storage {key} is a view of another one, as PyTorch before 0.4 saved them");
            return Err(path.fail(fault));
        }
        Ok(storages.get(key).copied())
    })
}

/// The key and the element type of a storage, where a value is a reference to one.
fn storage_of<'a>(pickle: &'a Pickle, value: &Value) -> Option<(&'a str, Option<DType>)> {
    let Value::Persistent(id) = value else { return None };
    match pickle.sequence(*id)? {
        [kind, class, key, ..] if pickle.text(*kind)? == "storage" => {
            let key = pickle.text(*key).filter(|key| key.len() <= MOST_NAME)?;
            Some((key, pickle.global(*class).and_then(dtype)))
        }
        _ => None,
    }
}

fn dtype(storage: &str) -> Option<DType> {
    Some(match storage {
        "torch.FloatStorage" => DType::F32,
        "torch.DoubleStorage" => DType::F64,
        "torch.HalfStorage" => DType::F16,
        "torch.BFloat16Storage" => DType::BF16,
        "torch.LongStorage" => DType::I64,
        "torch.IntStorage" => DType::I32,
        "torch.ShortStorage" => DType::I16,
        "torch.ByteStorage" | "torch.BoolStorage" => DType::U8,
        _ => return None,
    })
}

/// The dictionaries of the pickled object: itself, and those below its keys, of which `wanted` may name one. `find`
/// gives a storage by its key, and is told whether it is a view.
fn contents(
    path: &Path,
    pickle: &Pickle,
    wanted: Option<&str>,
    find: impl Fn(&str, bool) -> Result<Option<Run>>,
) -> Result<Contents> {
    let root = pickle.root();
    if let Some((callable, _)) = pickle.call(root) {
        return Err(path.code(format!("it is an object that {callable} would make")));
    }
    let Some(items) = pickle.dict(root) else {
        return Err(path.fail("it holds no dictionary of weights"));
    };
    // A name that the file has once may stand in many places.
    let mut seen = HashSet::new();
    let keys = items.iter().filter(|(name, _)| seen.insert(*name));
    let keys: Vec<&str> = keys.filter_map(|(name, _)| pickle.text(*name)).collect();
    keys.iter().try_for_each(|key| check_name(path, key))?;
    let places = places(path, pickle, wanted)?;
    // With the key that is said before each.
    let lengths = places.iter().flat_map(|(key, items)| {
        let names = items.iter().filter_map(|(name, _)| pickle.text(*name));
        names.map(|name| key.map_or(0, str::len) + name.len())
    });
    if lengths.sum::<usize>() > MOST_NAMES {
        return Err(path.fail(format!("the names in it have more than {MOST_NAMES} bytes in all")));
    }
    let (mut dictionaries, mut fault) = (vec![], None);
    for (key, items) in places {
        match dictionary(path, pickle, key, items, &find) {
            Ok(read) => dictionaries.push(read),
            // Of the weights it is told, of what lies beside them it does not matter.
            Err(error) if key.is_some_and(layout::is_key) => return Err(error),
            Err(error) => fault = fault.or(Some(error)),
        }
    }
    let fault = match fault {
        Some(fault) if dictionaries.is_empty() => return Err(fault),
        other => other,
    };
    if dictionaries.iter().all(|read| read.tensors.is_empty()) {
        return Err(path.fail(format!(
            "it holds no weights, neither itself nor below a key; its keys are [{}]",
            crate::error::listed(&keys)
        )));
    }
    let keys = keys.into_iter().map(str::to_string).collect();
    Ok(Contents {
        dictionaries,
        keys,
        fault,
        ..Default::default()
    })
}

/// A key, and the items of the dictionary below it.
type Place<'a> = (Option<&'a str>, &'a [(Id, Id)]);

/// Dictionaries in which tensors are, the likeliest to be the weights first, each once: below the keys that scripts
/// save weights below, the object itself (PyTorch's own example saves its best accuracy as a tensor beside the
/// weights), and those below other keys. Of one that is `wanted`, it alone.
fn places<'a>(path: &Path, pickle: &'a Pickle, wanted: Option<&str>) -> Result<Vec<Place<'a>>> {
    let tensors = |value: Id| {
        let items = pickle.dict(value)?;
        let is_tensor = |(_, value): &(Id, Id)| as_tensor(pickle, *value).is_some();
        items.iter().any(is_tensor).then_some(items)
    };
    let root = pickle.dict(pickle.root()).unwrap_or_default();
    let mut seen = HashSet::new();
    let below = root.iter().filter_map(|(name, value)| {
        let key = pickle.text(*name)?;
        // Before it is looked at: it may stand below very many keys.
        let items = seen.insert(*value).then(|| tensors(*value))??;
        Some((Some(key), items))
    });
    let mut places: Vec<Place> = below.collect();
    if let Some(place) = places.iter().find(|(key, _)| key.is_some() && *key == wanted) {
        return Ok(vec![*place]);
    }
    if places.is_empty() || tensors(pickle.root()).is_some() {
        places.push((None, root));
    }
    if places.len() > MOST_DICTIONARIES {
        let count = places.len();
        return Err(path.fail(format!(
            "it holds {count} dictionaries of tensors, of which at most {MOST_DICTIONARIES} are read: give the key of one \
             to Pretrained::open_key"
        )));
    }
    let mut keys = HashSet::new();
    if let Some((Some(twice), _)) = places.iter().find(|(key, _)| !keys.insert(*key)) {
        return Err(path.fail(format!("it holds two dictionaries below one key, {twice}")));
    }
    places.sort_by_key(|(key, _)| key.map_or(layout::rank_of_none(), layout::rank));
    Ok(places)
}

fn check_name(path: &Path, name: &str) -> Result<()> {
    if name.len() <= MOST_NAME {
        return Ok(());
    }
    let len = name.len();
    Err(path.fail(format!(
        "a name in it has {len} bytes, and a weight's at most {MOST_NAME}"
    )))
}

fn dictionary(
    path: &Path,
    pickle: &Pickle,
    key: Option<&str>,
    items: &[(Id, Id)],
    find: impl Fn(&str, bool) -> Result<Option<Run>>,
) -> Result<Dictionary> {
    let mut read = Dictionary {
        key: key.map(str::to_string),
        ..Default::default()
    };
    let mut seen = HashSet::new();
    for (name_id, value) in items {
        let Some(name) = pickle.text(*name_id) else { continue };
        check_name(path, name)?;
        if let Some(args) = as_tensor(pickle, *value) {
            read.tensors
                .insert(name.to_string(), stored(path, pickle, name, args, &find)?);
        } else if let Some((callable, _)) = pickle.call(*value) {
            return Err(path.code(format!("{name} is an object that {callable} would make")));
        } else if seen.insert(*name_id) {
            read.others.push(name.to_string());
        }
    }
    Ok(read)
}

/// The arguments a tensor is rebuilt from (storage, offset, size, strides), below what it is wrapped in.
fn as_tensor(pickle: &Pickle, mut id: Id) -> Option<&[Id]> {
    for _ in 0..MOST_WRAPPINGS {
        let (callable, args) = pickle.call(id)?;
        match (callable, args) {
            // v3 is of element types that have no storage of their own, of which none is read here.
            (
                "torch._utils._rebuild_tensor" | "torch._utils._rebuild_tensor_v2" | "torch._utils._rebuild_tensor_v3",
                [_, _, _, _, ..],
            ) => return Some(args),
            ("torch._utils._rebuild_parameter" | "torch._utils._rebuild_parameter_with_state", [inner, ..]) => {
                id = *inner;
            }
            // A subclass of a tensor: how it is rebuilt, its class, and with what.
            ("torch._tensor._rebuild_from_type_v2", [function, _, inner, ..]) => {
                match (pickle.global(*function)?, pickle.sequence(*inner)?) {
                    ("torch._utils._rebuild_tensor_v2", args @ [_, _, _, _, ..]) => return Some(args),
                    _ => return None,
                }
            }
            _ => return None,
        }
    }
    None
}

fn stored(
    path: &Path,
    pickle: &Pickle,
    name: &str,
    args: &[Id],
    find: impl Fn(&str, bool) -> Result<Option<Run>>,
) -> Result<Stored> {
    let damaged = || path.fail(format!("tensor {name} is described as no tensor is"));
    // Before it is copied: all tensors of a file may share one size.
    let counts = |id: Id| -> Option<Vec<usize>> {
        let counts = pickle.sequence(id).filter(|counts| counts.len() <= MOST_DIMS)?;
        counts.iter().map(|item| pickle.count(*item)).collect()
    };
    let [storage, offset, size, strides, ..] = args else {
        return Err(damaged());
    };
    let (key, dtype) = storage_of(pickle, pickle.get(*storage)).ok_or_else(damaged)?;
    let dtype =
        dtype.ok_or_else(|| path.fail(format!("tensor {name} has elements of a kind that is not read here")))?;
    let is_view = match pickle.get(*storage) {
        // The sixth element, of legacy files alone, is where in another storage it lies.
        Value::Persistent(id) => {
            let parts = pickle.sequence(*id).unwrap_or_default();
            parts.get(5).is_some_and(|view| pickle.sequence(*view).is_some())
        }
        _ => false,
    };
    let found = find(key, is_view)?;
    let storage = found.ok_or_else(|| path.fail(format!("the numbers of tensor {name} are missing: storage {key}")))?;
    let offset = pickle
        .count(*offset)
        .and_then(|offset| (offset as u64).checked_mul(dtype.size_in_bytes() as u64));
    let offset = offset.ok_or_else(damaged)?;
    let stored = Stored {
        part: 0,
        dtype,
        shape: counts(*size).ok_or_else(damaged)?,
        strides: counts(*strides).ok_or_else(damaged)?,
        start: storage.start.checked_add(offset).ok_or_else(damaged)?,
    };
    if stored.shape.len() != stored.strides.len() {
        return Err(damaged());
    }
    let available = storage.bytes.checked_sub(offset).ok_or_else(damaged)?;
    stored.check(name, available).map_err(|fault| path.fail(fault))?;
    Ok(stored)
}

#[cfg(test)]
mod tests;
