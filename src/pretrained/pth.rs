//! Files that `torch.save` writes: the zip archives of today, and the format before PyTorch 1.6.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs::File;
use std::io::{BufReader, ErrorKind, Read, Seek, SeekFrom};

use candle_core::DType;
use zip::{CompressionMethod, ZipArchive};

use super::pickle::{Id, Pickle, Value, MOST_BYTES};
use super::stored::{Contents, Stored};
use crate::error::{Error, Fault, Result};

/// The number that a legacy file starts with, as a pickled integer (torch/serialization.py).
const LEGACY_MAGIC: [u8; 10] = [0x6c, 0xfc, 0x9c, 0x46, 0xf9, 0x20, 0x6a, 0xa8, 0x50, 0x19];
/// Keys below which training scripts save the weights: facebookresearch and Microsoft `model`, timm and Lightning
/// `state_dict`.
const KEYS: [&str; 2] = ["model", "state_dict"];
/// Most dimensions of a tensor: those of checkpoints have 4.
const MOST_DIMS: usize = 8;
/// Most of one tensor's wrappings: a parameter of a subclass is two.
const MOST_WRAPPINGS: usize = 4;

/// A run of elements in the file.
#[derive(Clone, Copy)]
struct Storage {
    start: u64,
    bytes: u64,
}

/// Errors of one file.
struct Path<'a>(&'a str);

impl Path<'_> {
    fn fail(&self, fault: impl Into<Fault>) -> Error {
        fault.into().of_file(self.0.as_ref())
    }

    fn code(&self, what: impl ToString) -> Error {
        Error::CodeInCheckpoint {
            path: self.0.to_string(),
            what: what.to_string(),
        }
    }

    fn pickle(&self, input: &mut impl Read) -> Result<Pickle> {
        Pickle::read(input).map_err(|fault| self.fail(fault.of_part("its pickle is damaged")))
    }
}

/// Reads what a zip archive says of its tensors.
pub(super) fn read_zip(path: &str, file: &File, len: u64) -> Result<Contents> {
    let path = Path(path);
    let damaged = |error: zip::result::ZipError| path.fail(Fault::caused_by("it is cut off, or no zip archive", error));
    let mut archive = ZipArchive::new(BufReader::new(file)).map_err(damaged)?;
    let (mut entries, mut compressed) = (BTreeMap::new(), None);
    for index in 0..archive.len() {
        let entry = archive.by_index_raw(index).map_err(damaged)?;
        let name = entry.name().map_err(damaged)?.into_owned();
        if entry.compression() != CompressionMethod::Stored || entry.encrypted() {
            compressed = Some(name.clone());
        }
        if let Some(start) = entry.data_start() {
            // What it announces, and no more than there is.
            let bytes = entry.size().min(len.saturating_sub(start));
            entries.insert(name, Storage { start, bytes });
        }
    }
    // All entries lie in one folder, called as the file was when it was saved.
    let pickles = entries.keys().filter_map(|name| name.strip_suffix("data.pkl"));
    let mut folders = pickles.filter(|folder| folder.matches('/').count() <= 1);
    let folder = folders
        .next()
        .ok_or_else(|| path.fail("it is a zip archive, but not one of torch.save"))?;
    if entries.keys().any(|name| name.starts_with(&format!("{folder}code/"))) {
        return Err(path.code("it is a TorchScript archive"));
    }
    if let Some(name) = compressed {
        return Err(path.fail(format!("{name} is compressed in it, which torch.save never does")));
    }
    let read = |name: &str, most: u64| -> Result<Option<Vec<u8>>> {
        let Some(entry) = entries.get(&format!("{folder}{name}")) else {
            return Ok(None);
        };
        let mut bytes = vec![];
        let mut file = file;
        file.seek(SeekFrom::Start(entry.start))
            .map_err(|error| path.fail(error))?;
        let read = file.take(entry.bytes.min(most)).read_to_end(&mut bytes);
        read.map_err(|error| path.fail(error))?;
        Ok(Some(bytes))
    };
    if read("byteorder", 8)?.is_some_and(|order| order != b"little") {
        return Err(path.fail("its numbers are big-endian: save it on a little-endian machine"));
    }
    let bytes = read("data.pkl", MOST_BYTES)?.unwrap_or_default();
    let pickle = path.pickle(&mut &bytes[..])?;
    contents(&path, &pickle, |key, _| {
        Ok(entries.get(&format!("{folder}data/{key}")).copied())
    })
}

/// Reads what a file of the format before PyTorch 1.6 says of its tensors: pickles of a magic number, of a version, of
/// the machine, of the object, of the storages' keys; then each storage's length and numbers. A single pickle without
/// all that starts with the same byte, and can hold no tensor.
pub(super) fn read_legacy(path: &str, file: &File, len: u64) -> Result<Contents> {
    let path = Path(path);
    let mut input = BufReader::new(file);
    let mut start = [0; 14];
    let has_magic = input.read_exact(&mut start).is_ok() && start[4..] == LEGACY_MAGIC;
    input.seek(SeekFrom::Start(0)).map_err(|error| path.fail(error))?;
    let mut object = path.pickle(&mut input)?;
    if !has_magic {
        return contents(&path, &object, |_, _| Ok(None));
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
        at = start.checked_add(bytes).filter(|end| *end <= len).ok_or_else(cut_off)?;
        storages.insert(key, Storage { start, bytes });
    }
    contents(&path, &object, |key, is_view| {
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
            Some((pickle.text(*key)?, pickle.global(*class).and_then(dtype)))
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

/// The tensors of the pickled object: its own, or those below one of its keys. `find` gives a storage by its key, and
/// is told whether it is a view.
fn contents(path: &Path, pickle: &Pickle, find: impl Fn(&str, bool) -> Result<Option<Storage>>) -> Result<Contents> {
    let root = pickle.root();
    if let Some((callable, _)) = pickle.call(root) {
        return Err(path.code(format!("it is an object that {callable} would make")));
    }
    let Some(items) = pickle.dict(root) else {
        return Err(path.fail("it holds no dictionary of weights"));
    };
    let below = |wanted: &str| {
        let mut named = items.iter().filter(|(key, _)| pickle.text(*key) == Some(wanted));
        named.find_map(|(_, value)| pickle.dict(*value))
    };
    // Whatever else lies beside it: PyTorch's own example saves its best accuracy as a tensor.
    let key = KEYS.into_iter().find(|key| below(key).is_some());
    let weights = key.and_then(below).unwrap_or(items);

    let mut tensors = BTreeMap::new();
    let mut beside = vec![];
    // A name that the file has once may stand in many places.
    let mut seen = HashSet::new();
    for (name_id, value) in weights {
        let Some(name) = pickle.text(*name_id) else { continue };
        if let Some(args) = as_tensor(pickle, *value) {
            tensors.insert(name.to_string(), stored(path, pickle, name, args, &find)?);
        } else if let Some((callable, _)) = pickle.call(*value) {
            return Err(path.code(format!("{name} is an object that {callable} would make")));
        } else if seen.insert(*name_id) {
            beside.push(key.map_or(name.to_string(), |key| format!("{key}.{name}")));
        }
    }
    if let Some(key) = key {
        seen.clear();
        let others = items.iter().filter(|(name_id, _)| seen.insert(*name_id));
        let others = others.filter_map(|(name_id, _)| pickle.text(*name_id));
        beside.extend(others.filter(|other| *other != key).map(str::to_string));
    }
    if tensors.is_empty() {
        let keys: Vec<_> = items.iter().filter_map(|(name, _)| pickle.text(*name)).collect();
        let where_to = KEYS.join("` nor below `");
        return Err(path.fail(format!(
            "it holds no weights, neither itself nor below `{where_to}`; its keys are [{}]",
            crate::error::listed(&keys)
        )));
    }
    Ok(Contents {
        tensors,
        key: key.map(str::to_string),
        beside,
    })
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
    find: impl Fn(&str, bool) -> Result<Option<Storage>>,
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
mod tests {
    use super::*;

    /// The object of a pickle, where every storage is one number.
    fn of_pickle(bytes: &[u8]) -> Result<Contents> {
        let path = Path("w.pth");
        let pickle = path.pickle(&mut { bytes })?;
        contents(&path, &pickle, |_, _| Ok(Some(Storage { start: 0, bytes: 4 })))
    }

    #[test]
    fn a_tensor_has_few_dimensions() {
        let of_ones = |dims: usize| {
            let start = b"}X\x01\0\0\0wctorch._utils\n_rebuild_tensor_v2\n(\
                (X\x07\0\0\0storagectorch\nFloatStorage\nX\x01\0\0\x000X\x03\0\0\0cpuK\x01tQK\x00(";
            of_pickle(&[&start[..], &b"K\x01".repeat(dims), b"tq\x00h\x00tRs."].concat())
        };
        assert_eq!(of_ones(MOST_DIMS).unwrap().tensors["w"].shape, [1; MOST_DIMS]);
        let error = of_ones(MOST_DIMS + 1).map(drop).unwrap_err().to_string();
        assert!(error.contains("tensor w is described as no tensor is"), "{error}");
    }

    #[test]
    fn what_lies_beside_the_weights_is_named_once() {
        let tensor = b"X\x01\0\0\0wctorch._utils\n_rebuild_tensor_v2\n(\
            (X\x07\0\0\0storagectorch\nFloatStorage\nX\x01\0\0\x000X\x03\0\0\0cpuK\x01tQK\x00))tRs";
        let beside = |name: &[u8]| [&b"X\x01\0\0\0"[..], name, b"q\x00K\x01sh\x00K\x01s"].concat();
        let model = [
            &b"}X\x05\0\0\0model}"[..],
            tensor,
            &beside(b"a"),
            b"s",
            &beside(b"b"),
            b".",
        ]
        .concat();
        let contents = of_pickle(&model).unwrap();
        assert_eq!(contents.beside, ["model.a", "b"]);
        let bare = [&b"}"[..], tensor, &beside(b"a"), b"."].concat();
        assert_eq!(of_pickle(&bare).unwrap().beside, ["a"]);
    }
}
