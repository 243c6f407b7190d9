//! Tensors of a checkpoint: which its files hold and where, each read when it is asked for.

use std::collections::BTreeMap;
use std::io::{Seek, SeekFrom};
use std::path::Path;

use candle_core::{DType, Device, Tensor, Var};

use super::archive::Archive;
use super::layout::{self, Place, Unclear};
use super::names::{ONE_NORM, POS_EMBED};
use super::part::Part;
use super::shards::{self, Index};
use super::stored::{Contents, Dictionary, Stored};
use super::{elements, npz, pth, strangers, Format};
use crate::error::{listed, Error, Fault, Result};
use crate::file;

/// A checkpoint's tensors. Nothing of them is in memory but names and sizes.
pub(super) struct TensorFile {
    /// As the user gave it.
    pub(super) path: String,
    parts: Vec<Part>,
    /// Those of the model, by their names behind `prefix`.
    pub(super) tensors: BTreeMap<String, Stored>,
    /// Names of tensors that are not behind it.
    pub(super) outside: Vec<String>,
    /// Start of the model's names.
    pub(super) prefix: String,
    /// The key that the tensors lie below, in a file that has others.
    pub(super) key: Option<String>,
    /// Keys of the file beside them.
    pub(super) beside: Vec<String>,
    /// Keys of which weights lie below, too.
    pub(super) alternatives: Vec<String>,
    /// It says that its `norm` is what a model calls `fc_norm`: see [`ONE_NORM`].
    pub(super) one_norm: bool,
}

impl TensorFile {
    /// Opens a checkpoint, and finds a known format in it: below the key or behind the start of names that is `wanted`,
    /// where one is. First bytes say what kind a file is: the endings of names differ (`.pth`, `.pt`, `.bin`).
    ///
    /// # Errors
    /// [`Error::File`] for one that cannot be read, is cut off, or is of no kind that is read;
    /// [`Error::CodeInCheckpoint`]; [`Error::UnknownFormat`]; [`Error::OtherModel`]; [`Error::InvalidArgument`] where nothing is `wanted`, or
    /// it must be said.
    pub(super) fn open(path: &Path, wanted: Option<&str>) -> Result<(Self, Place)> {
        let files = shards::files(path)?;
        let parts = files.paths.iter().map(|path| Part::open(path));
        let parts = parts.collect::<Result<Vec<_>>>()?;
        let contents = parts.iter().map(|part| contents(part, wanted));
        let contents = contents.collect::<Result<Vec<_>>>()?;
        if let Some(index) = &files.index {
            check_index(index, &parts, &contents)?;
        }
        let Contents {
            dictionaries,
            keys,
            fault,
            one_norm,
        } = merged(&parts, contents)?;
        let name = path.display().to_string();
        let found = layout::find(&dictionaries, wanted).map_err(|why| unclear(why, path))?;
        let Some((index, mut layout)) = found else {
            // What could not be read may have been the weights.
            return Err(fault.unwrap_or_else(|| unknown(name, wanted, dictionaries, &keys)));
        };
        let others = dictionaries.iter().enumerate().filter(|(other, _)| *other != index);
        let alternatives = others.filter_map(|(_, other)| other.key.clone()).collect();
        let Some(Dictionary { key, tensors, others }) = dictionaries.into_iter().nth(index) else {
            return Err(unknown(name, wanted, vec![], &keys));
        };
        let mut beside: Vec<_> = match &key {
            Some(key) => others.iter().map(|other| format!("{key}.{other}")).collect(),
            None => others,
        };
        if let Some(key) = &key {
            beside.extend(keys.into_iter().filter(|other| other != key));
        }
        let mut file = Self {
            path: name,
            parts,
            tensors: BTreeMap::new(),
            outside: vec![],
            prefix: layout.prefix.clone(),
            key,
            beside,
            alternatives,
            one_norm,
        };
        if let Some(model) = strangers::model(tensors.keys().filter(|name| name.starts_with(&layout.prefix))) {
            return Err(Error::OtherModel { path: file.path, model });
        }
        for (name, stored) in tensors {
            match name.strip_prefix(&layout.prefix) {
                Some(bare) => drop(file.tensors.insert(bare.to_string(), stored)),
                None => file.outside.push(name),
            }
        }
        if layout.format == Format::MaePretrained && !file.is_mae()? {
            layout.format = Format::TimmVit;
        }
        Ok((file, layout))
    }

    /// Tells whether an encoder of timm's names without a head is MAE's: what it was trained with are a decoder beside
    /// it, and fixed positions of sines and cosines, of which that of the class token is 0 (`util/pos_embed.py`).
    fn is_mae(&self) -> Result<bool> {
        let decoder = self.tensors.keys().any(|name| name.starts_with("decoder_"));
        let positions = self.tensors.get(POS_EMBED).filter(|stored| stored.elem_count() > 0);
        let (false, Some(positions)) = (decoder, positions) else {
            return Ok(decoder);
        };
        let first = |sides: &[usize]| sides.last().copied().into_iter().collect();
        let class_token = Stored {
            shape: first(&positions.shape),
            strides: first(&positions.strides),
            ..positions.clone()
        };
        let values = self.read(&class_token)?.to_dtype(DType::F64)?.to_vec1::<f64>()?;
        Ok(values.iter().all(|value| *value == 0.0))
    }

    /// A tensor as the file has it, on the CPU.
    ///
    /// # Errors
    /// [`Error::File`] when the file cannot be read any more.
    pub(super) fn read(&self, stored: &Stored) -> Result<Tensor> {
        let part = self.part(stored)?;
        let bytes = elements::read(part, stored).map_err(|fault| fault.of_file(&part.path))?;
        Ok(Tensor::from_raw_buffer(
            &bytes,
            stored.dtype,
            &stored.shape,
            &Device::Cpu,
        )?)
    }

    /// Tensors, the elements of one behind those of the other, as a variable of that shape in `f32` on the CPU: read into
    /// its memory.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub(super) fn read_var(&self, tensors: &[Stored], shape: &[usize]) -> Result<Var> {
        let count = tensors.iter().map(Stored::elem_count).sum();
        let mut numbers = elements::zeros(count).map_err(|fault| fault.of_file(Path::new(&self.path)))?;
        let mut rest = &mut numbers[..];
        for stored in tensors {
            let part = self.part(stored)?;
            let (own, others) = rest.split_at_mut(stored.elem_count());
            elements::read_f32(part, stored, own).map_err(|fault| fault.of_file(&part.path))?;
            rest = others;
        }
        Ok(Var::from_vec(numbers, shape, &Device::Cpu)?)
    }

    fn part(&self, stored: &Stored) -> Result<&Part> {
        let part = self.parts.get(stored.part);
        part.ok_or_else(|| Fault::from("a part of it is gone").of_file(Path::new(&self.path)))
    }
}

/// The error of a file in which no one start of names stands out.
fn unclear(why: Unclear, path: &Path) -> Error {
    match why {
        Unclear::TooManyStarts => {
            let fault = "its names begin in more ways than those of weights: give the start of the model's to \
                         Pretrained::open_key";
            Fault::from(fault).of_file(path)
        }
        Unclear::Ambiguous(prefixes) => {
            let starts: Vec<_> = prefixes.iter().map(|prefix| prefix.trim_end_matches('.')).collect();
            let (starts, path) = (listed(&starts), path.display());
            let allowed = format!("one of [{starts}], for Pretrained::open_key: {path} holds them all");
            Error::invalid("key", "not said", allowed)
        }
    }
}

/// Checkpoints whose names are of no known format, or not of the key that was asked for.
fn unknown(path: String, wanted: Option<&str>, dictionaries: Vec<Dictionary>, keys: &[String]) -> Error {
    if let Some(wanted) = wanted {
        let allowed = format!(
            "a key of {path}, or the start of its weights' names, where those of a known format lie; its keys are [{}]",
            listed(keys)
        );
        return Error::invalid("key", format!("{wanted:?}"), allowed);
    }
    let names = dictionaries.iter().flat_map(|dictionary| dictionary.tensors.keys());
    if let Some(model) = strangers::model(names) {
        return Error::OtherModel { path, model };
    }
    Error::UnknownFormat {
        path,
        names: dictionaries
            .into_iter()
            .next()
            .unwrap_or_default()
            .tensors
            .into_keys()
            .collect(),
        known: Format::ALL.map(Format::name).join(", "),
    }
}

/// What a file holds, whatever its kind.
fn contents(part: &Part, wanted: Option<&str>) -> Result<Contents> {
    let fail = |fault: Fault| fault.of_file(&part.path);
    let start = part.start().map_err(|error| fail(error.into()))?;
    let contents = match start[..] {
        [] => Err(fail("it is empty".into())),
        // A safetensors file starts with the length of its header, which may be any byte.
        [_, _, _, _, 0, 0, 0, 0, b'{', ..] => read_safetensors(part).map_err(fail),
        [b'P', b'K', ..] => {
            let archive = Archive::read(part).map_err(fail)?;
            match pth::read_zip(part, &archive, wanted)? {
                Some(contents) => Ok(contents),
                None => npz::read(part, &archive).map_err(fail),
            }
        }
        [0x80, ..] => pth::read_legacy(part, wanted),
        _ => Err(fail(foreign(&start).into())),
    }?;
    if contents.dictionaries.iter().all(|read| read.tensors.is_empty()) {
        return Err(fail("it holds no tensor".into()));
    }
    Ok(contents)
}

/// Tells what a file is that is not read, by its first bytes.
fn foreign(start: &[u8]) -> &'static str {
    if start.starts_with(b"\x89HDF") {
        return "it is an HDF5 file, as Keras writes it, which is not read: save the weights as .safetensors";
    }
    if start.starts_with(b"version https://git-lfs") {
        return "it stands for a file that Git LFS has not fetched yet: run git lfs pull";
    }
    if start.starts_with(b"GGUF") {
        return "it is a GGUF file, whose quantised weights cannot be trained: give the .safetensors it was made from";
    }
    "it is neither a safetensors nor a PyTorch file, nor an .npz archive"
}

/// Refuses shards that do not hold what their index says.
fn check_index(index: &Index, parts: &[Part], contents: &[Contents]) -> Result<()> {
    let holds = |number: usize, name: &str| {
        let dictionaries = contents.get(number).map(|contents| &contents.dictionaries);
        dictionaries.is_some_and(|all| all.iter().any(|dictionary| dictionary.tensors.contains_key(name)))
    };
    let missing = index.places.iter().find(|(name, number)| !holds(**number, name));
    let Some((name, number)) = missing else { return Ok(()) };
    let shard = parts
        .get(*number)
        .map(|part| part.path.display().to_string())
        .unwrap_or_default();
    Err(Fault::from(format!("{name} is not in {shard}, where it says that it is")).of_file(&index.path))
}

/// The dictionaries of all parts as those of one file.
fn merged(parts: &[Part], contents: Vec<Contents>) -> Result<Contents> {
    let mut all = Contents::default();
    for ((number, contents), part) in contents.into_iter().enumerate().zip(parts) {
        for mut read in contents.dictionaries {
            read.tensors.values_mut().for_each(|stored| stored.part = number);
            let Some(whole) = all.dictionaries.iter_mut().find(|whole| whole.key == read.key) else {
                all.dictionaries.push(read);
                continue;
            };
            if let Some(twice) = read.tensors.keys().find(|name| whole.tensors.contains_key(*name)) {
                let fault = format!("tensor {twice} is in it and in another shard");
                return Err(Fault::from(fault).of_file(&part.path));
            }
            whole.tensors.extend(read.tensors);
            whole.others.extend(read.others);
        }
        all.keys.extend(contents.keys.into_iter().filter(|_| number == 0));
        all.fault = all.fault.or(contents.fault);
        all.one_norm |= contents.one_norm;
    }
    Ok(all)
}

/// The header alone.
fn read_safetensors(part: &Part) -> std::result::Result<Contents, Fault> {
    let mut reader = part.reader();
    reader.seek(SeekFrom::Start(0))?;
    let (metadata, data) = file::safetensors_header(reader, part.len)?;
    let mut tensors = BTreeMap::new();
    for (name, info) in metadata.tensors() {
        // candle knows some types by name alone, and gives them no size.
        let dtype = DType::try_from(info.dtype)
            .ok()
            .filter(|dtype| dtype.size_in_bytes() > 0);
        let dtype =
            dtype.ok_or_else(|| format!("tensor {name} has elements of {:?}, which is not read here", info.dtype))?;
        let (first, last) = info.data_offsets;
        let stored = Stored {
            part: 0,
            dtype,
            strides: Stored::contiguous_strides(&info.shape),
            shape: info.shape.clone(),
            start: data + first as u64,
        };
        stored.check(&name, (last - first) as u64)?;
        tensors.insert(name, stored);
    }
    let whole = Dictionary {
        tensors,
        ..Default::default()
    };
    let said = metadata.metadata().as_ref();
    Ok(Contents {
        dictionaries: vec![whole],
        one_norm: said.is_some_and(|said| said.contains_key(ONE_NORM)),
        ..Default::default()
    })
}
