//! Files that a path stands for: one, the shards that an index lists, or what a directory of `save_pretrained` holds.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::error::{listed, Fault, Result};
use crate::file;

/// Names that writers give the weights in a directory, in the order in which transformers looks for them; then
/// OpenCLIP's.
const NAMES: [&str; 6] = [
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.bin",
];
const INDEX: &str = ".index.json";
/// Most files of one checkpoint, all of which are open at once.
const MOST_SHARDS: usize = 256;
/// Longest index that is read, in bytes.
const MOST_BYTES: u64 = 16 << 20;

/// The files of a checkpoint.
pub(super) struct Files {
    pub(super) paths: Vec<PathBuf>,
    /// Of an index, the number of the file that each tensor is in.
    pub(super) index: Option<Index>,
}

/// An index, and what it says.
pub(super) struct Index {
    pub(super) path: PathBuf,
    pub(super) places: BTreeMap<String, usize>,
}

/// What is read of an index.
#[derive(Deserialize)]
struct WeightMap {
    weight_map: BTreeMap<String, String>,
}

/// The files that hold the checkpoint at `path`.
///
/// # Errors
/// [`Error::File`](crate::Error::File) for a directory without weights, for an index that cannot be read or lists what
/// is not beside it, and for a shard whose siblings are missing.
pub(super) fn files(path: &Path) -> Result<Files> {
    if path.is_dir() {
        let mut inside = NAMES.iter().map(|name| path.join(name));
        let found = inside.find(|path| path.is_file());
        let fault = || format!("it is a directory, and no file of [{}] is in it", listed(&NAMES));
        return files_of(&found.ok_or_else(|| Fault::from(fault()).of_file(path))?);
    }
    files_of(path)
}

/// Those that one of them stands for.
fn files_of(path: &Path) -> Result<Files> {
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    if name.ends_with(INDEX) {
        return of_index(path);
    }
    let Some(shard) = Shard::of(name) else {
        return Ok(Files {
            paths: vec![path.to_path_buf()],
            index: None,
        });
    };
    let index = path.with_file_name(format!("{}{}{INDEX}", shard.stem, shard.ending));
    if index.exists() {
        let files = of_index(&index)?;
        // Of another checkpoint's index nothing is to be had.
        if files.paths.iter().any(|other| other.file_name() == path.file_name()) {
            return Ok(files);
        }
    }
    shard.siblings(path)
}

/// A file whose name says that it is one of several, as in `model-00001-of-00003.safetensors`.
struct Shard<'a> {
    stem: &'a str,
    ending: &'a str,
    number: usize,
    of: usize,
}

impl<'a> Shard<'a> {
    const DIGITS: usize = 5;

    fn of(name: &'a str) -> Option<Self> {
        let digits = |text: &str| {
            let is_number = text.len() == Self::DIGITS && text.bytes().all(|byte| byte.is_ascii_digit());
            is_number.then(|| text.parse().ok()).flatten()
        };
        let (before, after) = name.rsplit_once("-of-")?;
        let (stem, number) = before.rsplit_once('-')?;
        let (of, ending) = after.split_at_checked(Self::DIGITS)?;
        let (number, of) = (digits(number)?, digits(of)?);
        // The only one of one is whole.
        let several = of > 1 && (1..=of).contains(&number) && ending.starts_with('.');
        several.then_some(Self {
            stem,
            ending,
            number,
            of,
        })
    }

    fn siblings(&self, path: &Path) -> Result<Files> {
        let Self {
            stem,
            ending,
            number,
            of,
        } = self;
        let fail = |fault: String| Fault::from(fault).of_file(path);
        check_count(*of).map_err(|fault| fault.of_file(path))?;
        let names = (1..=*of).map(|number| format!("{stem}-{number:05}-of-{of:05}{ending}"));
        let paths: Vec<_> = names.map(|name| path.with_file_name(name)).collect();
        let missing: Vec<_> = paths
            .iter()
            .filter(|path| !path.exists())
            .map(|path| name_of(path))
            .collect();
        if missing.is_empty() {
            return Ok(Files { paths, index: None });
        }
        let missing = listed(&missing);
        Err(fail(format!(
            "it is shard {number} of {of}, and [{missing}] is not beside it"
        )))
    }
}

fn name_of(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

fn check_count(shards: usize) -> std::result::Result<(), Fault> {
    if shards <= MOST_SHARDS {
        return Ok(());
    }
    Err(format!("it is cut into {shards} shards, of which at most {MOST_SHARDS} are read").into())
}

fn of_index(path: &Path) -> Result<Files> {
    let fail = |fault: Fault| fault.of_file(path);
    let (file, len) = file::open(path).map_err(fail)?;
    if len > MOST_BYTES {
        return Err(fail(
            format!("its {len} bytes are more than {MOST_BYTES}, which no index has").into(),
        ));
    }
    let mut bytes = vec![];
    let read = file.take(MOST_BYTES).read_to_end(&mut bytes);
    read.map_err(|error| fail(error.into()))?;
    let damaged = |error| fail(Fault::caused_by("it is no index of weights", error));
    let WeightMap { weight_map } = serde_json::from_slice(&bytes).map_err(damaged)?;
    let names: BTreeSet<&str> = weight_map.values().map(String::as_str).collect();
    check_count(names.len()).map_err(fail)?;
    for name in &names {
        // What lies elsewhere is none of its business.
        let is_beside = Path::new(name).file_name().is_some_and(|file| file == *name) && !name.contains('\\');
        if !is_beside {
            return Err(fail(
                format!("it lists {name}, which is no name of a file beside it").into(),
            ));
        }
    }
    let paths: Vec<_> = names.iter().map(|name| path.with_file_name(name)).collect();
    let missing = paths.iter().filter(|path| fs::metadata(path).is_err());
    let missing: Vec<_> = missing.map(|path| name_of(path)).collect();
    if !missing.is_empty() {
        let fault = format!("it lists [{}], which is not beside it", listed(&missing));
        return Err(fail(fault.into()));
    }
    if paths.is_empty() {
        return Err(fail("it lists no weights".into()));
    }
    let numbers: BTreeMap<&str, usize> = names.iter().copied().zip(0..).collect();
    let number = |(tensor, name): (&String, &String)| Some((tensor.clone(), *numbers.get(name.as_str())?));
    let places = weight_map.iter().filter_map(number).collect();
    let index = Some(Index {
        path: path.to_path_buf(),
        places,
    });
    Ok(Files { paths, index })
}
