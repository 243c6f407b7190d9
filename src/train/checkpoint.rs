//! Checkpoints of a run, which survive whatever happens while they are written.

use std::collections::BTreeMap;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use candle_core::{Device, Tensor};
use safetensors::tensor::{SafeTensorError, TensorView, View};
use safetensors::SafeTensors;

use crate::error::{Error, Fault, Result};
use crate::file;
use crate::key::Seed;
use crate::ops;

/// Everything that a run needs to go on: how far it is, its seed and settings, and named sections of tensors: the
/// model's weights, the optimizer's state, averages. On the disk it is a safetensors file, which other programs read,
/// too; a tensor's name there is its section's, a slash and its own.
///
/// [`save`](Self::save) writes to another file first, brings it to the disk and only then puts it in its place; the
/// checkpoint that was there is kept as the one before. Whenever the process or the power goes, there is a whole
/// checkpoint, and [`load_last`](Self::load_last) finds it.
///
/// ```
/// use masksub::train::checkpoint::Checkpoint;
/// # use masksub::train::optim::{AdamW, AdamWConfig, ParamGroups};
/// # use masksub::{Params, Seed, Weights};
/// # use candle_core::{DType, Device};
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let dir = tempfile::tempdir()?;
/// # let path = dir.path().join("checkpoint.safetensors");
/// # let weights = Weights::seeded(Seed::new(0));
/// # candle_nn::linear(4, 2, weights.var_builder(DType::F32, &Device::Cpu))?;
/// # let mut opt = AdamW::new(&Params::from_varmap(weights.varmap()), AdamWConfig::default())?;
/// Checkpoint::new(1200, Seed::new(7))
///     .with_setting("lr", 1e-3)
///     .with_section("model", weights.state())
///     .with_section("optim", opt.state()?)
///     .save(&path)?;
///
/// let Some(found) = Checkpoint::load_last(&path)? else { return Ok(()) }; // nothing there: a new run
/// let checkpoint = found.checkpoint;
/// let weights = Weights::from_tensors(checkpoint.section("model")?.clone());
/// // ... make the model and the optimizer, then
/// opt.load_state(checkpoint.section("optim")?)?;
/// println!("going on at step {} with {:?}", checkpoint.step(), checkpoint.seed());
/// # Ok(()) }
/// ```
#[derive(Clone, Debug)]
pub struct Checkpoint {
    step: usize,
    seed: Seed,
    settings: BTreeMap<String, String>,
    sections: BTreeMap<String, BTreeMap<String, Tensor>>,
}

/// A checkpoint, and where it was.
#[derive(Debug)]
pub struct Found {
    /// The checkpoint.
    pub checkpoint: Checkpoint,
    /// Its file.
    pub path: PathBuf,
    /// Why the last one was not used, where this is the one before.
    pub refused: Option<Error>,
}

const FORMAT: &str = "masksub-checkpoint";
const VERSION: &str = "1";
const SETTING: &str = "setting/";
const CHECKSUM: &str = "checksum";
/// Said of a file that is no checkpoint.
const FOREIGN: &str = "this is no checkpoint of masksub";

impl Checkpoint {
    /// A run of that seed after `step` steps.
    pub fn new(step: usize, seed: Seed) -> Self {
        Self {
            step,
            seed,
            settings: BTreeMap::new(),
            sections: BTreeMap::new(),
        }
    }

    /// Remembers a setting, or anything else that is short and has a name.
    pub fn with_setting(mut self, name: impl Into<String>, value: impl ToString) -> Self {
        self.settings.insert(name.into(), value.to_string());
        self
    }

    /// Remembers tensors under the name of their section, which has no slash. They are not copied: save the checkpoint
    /// before they change.
    pub fn with_section(
        mut self,
        section: impl Into<String>,
        tensors: impl IntoIterator<Item = (String, Tensor)>,
    ) -> Self {
        self.sections.insert(section.into(), tensors.into_iter().collect());
        self
    }

    /// Steps done.
    pub fn step(&self) -> usize {
        self.step
    }

    /// The run's seed.
    pub fn seed(&self) -> Seed {
        self.seed
    }

    /// All settings by name.
    pub fn settings(&self) -> &BTreeMap<String, String> {
        &self.settings
    }

    /// The tensors of a section by name.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`], when there is no such section; it lists those there are.
    pub fn section(&self, section: &str) -> Result<&BTreeMap<String, Tensor>> {
        self.sections.get(section).ok_or_else(|| {
            let names: Vec<&str> = self.sections.keys().map(String::as_str).collect();
            let allowed = format!("a section of the checkpoint: {}", names.join(", "));
            Error::invalid("section", section, allowed)
        })
    }

    /// True where there is such a section.
    pub fn has_section(&self, section: &str) -> bool {
        self.sections.contains_key(section)
    }

    /// Writes the checkpoint to `path` by way of a temporary file beside it. What was at `path` becomes the one before:
    /// `run.safetensors` is kept as `run.previous.safetensors`. Where the file system has hard links, there is a whole
    /// checkpoint at `path` at any moment.
    ///
    /// # Errors
    /// [`Error::File`] when a file cannot be written, the disk being full, say. What was there is there as before.
    /// [`Error::InvalidArgument`] for a section whose name has a slash.
    pub fn save(&self, path: impl AsRef<Path>) -> Result<()> {
        let path = path.as_ref();
        let tensors = self.tensors()?;
        let mut metadata = self.metadata();
        let checksum = checksum(&metadata, tensors.iter());
        metadata.insert(CHECKSUM.into(), checksum);
        let written = file::write_safetensors(path, &tensors, metadata, |workshop| keep_as_previous(path, workshop));
        written.map_err(|error| Fault::caused_by("cannot write the checkpoint", error).of_file(path))
    }

    /// Reads a checkpoint.
    ///
    /// # Errors
    /// [`Error::File`] when the file cannot be read, is no checkpoint of this crate, or is torn: its checksum is not
    /// that of its contents.
    pub fn load(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        // Read whole only if its header is one.
        let bytes = file::read_safetensors(path).map_err(|fault| fault.of_file(path))?;
        Self::parse(&bytes).map_err(|fault| fault.of_file(path))
    }

    /// Reads the checkpoint at `path`, or the one before where that is torn, foreign or missing; `None` where there
    /// is neither.
    ///
    /// # Errors
    /// [`Error::File`] of the last one when none can be used.
    pub fn load_last(path: impl AsRef<Path>) -> Result<Option<Found>> {
        let path = path.as_ref();
        let refused = match Self::load(path) {
            Ok(checkpoint) => {
                return Ok(Some(Found {
                    checkpoint,
                    path: path.into(),
                    refused: None,
                }))
            }
            Err(error) => error,
        };
        // What was being put in its place is newer than the one before, and may be all there is: where the last one was
        // torn, it is that which has become the one before.
        let others = [file::unfinished(path), previous(path)];
        for other in &others {
            if let Ok(checkpoint) = Self::load(other) {
                return Ok(Some(Found {
                    checkpoint,
                    path: other.clone(),
                    refused: Some(refused),
                }));
            }
        }
        match (may_exist(path), may_exist(&others[1])) {
            (false, false) => Ok(None),
            (false, true) => Err(Self::load(&others[1]).err().unwrap_or(refused)),
            (true, _) => Err(refused),
        }
    }

    /// All tensors by their names in the file.
    fn tensors(&self) -> Result<BTreeMap<String, Tensor>> {
        let mut all = BTreeMap::new();
        for (section, tensors) in &self.sections {
            if section.contains('/') {
                return Err(Error::invalid("section", section, "a name without a slash"));
            }
            for (name, tensor) in tensors {
                let tensor = tensor.detach().to_device(&Device::Cpu)?;
                let tensor = match tensor.elem_count() {
                    0 => ops::fresh(&tensor)?,
                    _ => tensor.contiguous()?,
                };
                all.insert(format!("{section}/{name}"), tensor);
            }
        }
        Ok(all)
    }

    fn metadata(&self) -> BTreeMap<String, String> {
        let fixed = [
            ("format", FORMAT.to_string()),
            ("version", VERSION.to_string()),
            ("step", self.step.to_string()),
            ("seed", self.seed.value().to_string()),
            // One may be empty. None has a slash.
            (
                "sections",
                self.sections.keys().map(|name| format!("{name}/")).collect(),
            ),
        ];
        let fixed = fixed.map(|(key, value)| (key.to_string(), value));
        let settings = self.settings.iter();
        let settings = settings.map(|(name, value)| (format!("{SETTING}{name}"), value.clone()));
        fixed.into_iter().chain(settings).collect()
    }

    fn parse(bytes: &[u8]) -> std::result::Result<Self, Fault> {
        let no_checkpoint = |why: &str| Fault::from(why).of_part(FOREIGN);
        let unread = |error: SafeTensorError| Fault::caused_by(FOREIGN, error);
        let file = SafeTensors::deserialize(bytes).map_err(unread)?;
        let (_, header) = SafeTensors::read_metadata(bytes).map_err(unread)?;
        let metadata = header.metadata().clone().unwrap_or_default();
        let mut metadata: BTreeMap<String, String> = metadata.into_iter().collect();
        match (
            metadata.get("format").map(String::as_str),
            metadata.get("version").map(String::as_str),
        ) {
            (Some(FORMAT), Some(VERSION)) => {}
            (Some(FORMAT), version) => {
                let version = version.unwrap_or("unknown");
                return Err(format!("its version is {version}, this release reads {VERSION}").into());
            }
            _ => return Err(no_checkpoint("its header does not say that it is one")),
        }
        let recorded = metadata.remove(CHECKSUM);
        let views: BTreeMap<&str, TensorView> = file.iter().collect();
        if recorded.as_deref() != Some(checksum(&metadata, views.into_iter()).as_str()) {
            return Err("it is torn: its checksum is not that of its contents".into());
        }
        let number = |key: &str| -> std::result::Result<u64, Fault> {
            let text = metadata.get(key).and_then(|text| text.parse().ok());
            text.ok_or_else(|| no_checkpoint(&format!("its header has no {key}")))
        };
        let mut checkpoint = Self::new(number("step")? as usize, Seed::new(number("seed")?));
        for section in metadata
            .get("sections")
            .iter()
            .flat_map(|names| names.split_terminator('/'))
        {
            checkpoint.sections.insert(section.to_string(), BTreeMap::new());
        }
        let tensors = candle_core::safetensors::load_buffer(bytes, &Device::Cpu);
        for (path, tensor) in tensors.map_err(|error| Fault::of_candle(FOREIGN, error))? {
            let Some((section, name)) = path.split_once('/') else {
                return Err(no_checkpoint(&format!("tensor {path} is in no section")));
            };
            let section = checkpoint.sections.entry(section.to_string()).or_default();
            section.insert(name.to_string(), tensor);
        }
        let settings = metadata.into_iter().filter_map(|(key, value)| {
            let name = key.strip_prefix(SETTING)?.to_string();
            Some((name, value))
        });
        checkpoint.settings = settings.collect();
        Ok(checkpoint)
    }
}

/// Gives the checkpoint at `path` its second name, so that there is one at `path` at any moment, whoever looks for it. A
/// file system without such names (FAT, some that come over a network) has it moved, and for a moment it is away.
fn keep_as_previous(path: &Path, workshop: &Path) -> std::io::Result<()> {
    let second = workshop.join("previous");
    match fs::hard_link(path, &second) {
        Ok(()) => fs::rename(second, previous(path)),
        Err(_) => fs::rename(path, previous(path)),
    }
}

/// Where the checkpoint before the one at `path` is kept.
fn previous(path: &Path) -> PathBuf {
    let mut name = path.file_stem().unwrap_or_default().to_os_string();
    name.push(".previous");
    if let Some(extension) = path.extension() {
        name.push(".");
        name.push(extension);
    }
    path.with_file_name(name)
}

/// Whether there is something at `path`, as far as one can tell: a disk that does not answer is no new run.
fn may_exist(path: &Path) -> bool {
    !matches!(path.symlink_metadata(), Err(error) if error.kind() == ErrorKind::NotFound)
}

/// Of everything in the file, in the order of names. It finds what was torn, not what was forged.
fn checksum<V: View>(
    metadata: &BTreeMap<String, String>,
    tensors: impl Iterator<Item = (impl AsRef<str>, V)>,
) -> String {
    let mut hasher = crc32fast::Hasher::new();
    // Each piece with its length, so that what ends one cannot begin the next.
    let mut add = |bytes: &[u8]| {
        hasher.update(&(bytes.len() as u64).to_le_bytes());
        hasher.update(bytes);
    };
    for (key, value) in metadata {
        add(key.as_bytes());
        add(value.as_bytes());
    }
    for (name, tensor) in tensors {
        add(name.as_ref().as_bytes());
        add(format!("{:?} {:?}", tensor.dtype(), tensor.shape()).as_bytes());
        add(&tensor.data());
    }
    format!("{:08x}", hasher.finalize())
}
