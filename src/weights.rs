//! Where a model's weights come from: a seed or a file, as variables that can be trained.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard};

use candle_core::{DType, Device, Shape, Tensor, Var};
use candle_nn::init::NormalOrUniform;
use candle_nn::var_builder::SimpleBackend;
use candle_nn::{Init, VarBuilder, VarMap};
use rand::Rng;
use rand_distr::{Distribution, Normal};

use crate::error::{Error, Result};
use crate::key::Seed;

/// A source of weights for a `VarBuilder`: every tensor that a model asks for becomes a variable of a `VarMap`, drawn
/// from (seed, name) or read from a safetensors file.
///
/// candle's own builders are either trainable and drawn from a generator that cannot be seeded (`from_varmap`), or read
/// from a file and not trainable (`from_mmaped_safetensors`).
///
/// ```
/// use candle_core::{DType, Device};
/// use masksub::{Seed, Weights};
/// let weights = Weights::seeded(Seed::new(0));
/// let layer = candle_nn::linear(4, 2, weights.var_builder(DType::F32, &Device::Cpu).pp("fc"))?;
/// assert_eq!(weights.drawn(), ["fc.bias", "fc.weight"]);
/// # Ok::<(), candle_core::Error>(())
/// ```
#[derive(Clone)]
pub struct Weights(Arc<Inner>);

struct Inner {
    varmap: VarMap,
    file: Option<File>,
    seed: Option<Seed>,
    used: Mutex<Used>,
}

struct File {
    name: String,
    tensors: BTreeMap<String, Tensor>,
}

#[derive(Default)]
struct Used {
    read: BTreeSet<String>,
    drawn: BTreeSet<String>,
}

impl Weights {
    /// Initial values drawn as the model's hints say, from the seed and each weight's name: neither the order in which
    /// a model asks nor other weights change them.
    pub fn seeded(seed: Seed) -> Self {
        Self::build(None, Some(seed))
    }

    /// Values from a safetensors file. A weight that the file does not have is an [`Error::MissingWeight`], one of
    /// another shape an [`Error::MisshapenWeight`]; both name its path. What the file has and no model asked for is
    /// listed in [`left_over`](Self::left_over).
    ///
    /// # Errors
    /// [`Error::File`] when the file cannot be read or is no safetensors file.
    pub fn from_safetensors(path: impl AsRef<Path>) -> Result<Self> {
        Self::open(path.as_ref(), None)
    }

    /// Values from a safetensors file, and drawn from `seed` where it lacks them, as [`drawn`](Self::drawn) then tells:
    /// for fine-tuning with a new head.
    ///
    /// # Errors
    /// As [`from_safetensors`](Self::from_safetensors).
    pub fn from_safetensors_or_seed(path: impl AsRef<Path>, seed: Seed) -> Result<Self> {
        Self::open(path.as_ref(), Some(seed))
    }

    /// Values from tensors at hand, such as another model's state; otherwise like
    /// [`from_safetensors`](Self::from_safetensors).
    pub fn from_tensors(tensors: impl IntoIterator<Item = (String, Tensor)>) -> Self {
        let file = File {
            name: "the given tensors".into(),
            tensors: tensors.into_iter().collect(),
        };
        Self::build(Some(file), None)
    }

    fn open(path: &Path, seed: Option<Seed>) -> Result<Self> {
        let name = path.display().to_string();
        let tensors = candle_core::safetensors::load(path, &Device::Cpu).map_err(|error| Error::File {
            path: name.clone(),
            message: Error::from(error).to_string(),
        })?;
        let tensors = tensors.into_iter().collect();
        Ok(Self::build(Some(File { name, tensors }), seed))
    }

    fn build(file: Option<File>, seed: Option<Seed>) -> Self {
        Self(Arc::new(Inner {
            varmap: VarMap::new(),
            file,
            seed,
            used: Mutex::default(),
        }))
    }

    /// The builder to make models with. Weights have `dtype`, whatever they have in the file.
    pub fn var_builder(&self, dtype: DType, device: &Device) -> VarBuilder<'static> {
        VarBuilder::from_backend(Box::new(self.clone()), dtype, device.clone())
    }

    /// The variables made so far.
    pub fn varmap(&self) -> &VarMap {
        &self.0.varmap
    }

    /// Names of the weights that were drawn from the seed, sorted: with a file, what it lacks.
    pub fn drawn(&self) -> Vec<String> {
        self.used().drawn.iter().cloned().collect()
    }

    /// Names of the tensors in the file that no model has asked for, sorted.
    pub fn left_over(&self) -> Vec<String> {
        let used = self.used();
        let in_file = self.0.file.iter().flat_map(|file| file.tensors.keys());
        in_file.filter(|name| !used.read.contains(*name)).cloned().collect()
    }

    fn used(&self) -> MutexGuard<'_, Used> {
        // A thread that panicked while holding the lock leaves a list that is still whole.
        self.0.used.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn lookup(&self, name: &str) -> Option<Tensor> {
        let data = self
            .0
            .varmap
            .data()
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner());
        data.get(name).map(|var| var.as_tensor().clone())
    }

    /// The variable of that name, made now if need be. Without a shape, the file's.
    fn variable(&self, name: &str, shape: Option<Shape>, init: Init, dtype: DType, device: &Device) -> Result<Tensor> {
        let fits = |got: &Shape, source: &str| match &shape {
            Some(expected) if expected != got => Err(Error::MisshapenWeight {
                path: name.to_string(),
                got: got.dims().to_vec(),
                expected: expected.dims().to_vec(),
                source_name: source.to_string(),
            }),
            _ => Ok(()),
        };
        if let Some(shared) = self.lookup(name) {
            fits(shared.shape(), "a layer that shares it")?;
            return Ok(shared);
        }
        let from_file = self
            .0
            .file
            .as_ref()
            .and_then(|file| Some((file, file.tensors.get(name)?)));
        let value = match (from_file, self.0.seed, &shape) {
            (Some((file, tensor)), _, _) => {
                fits(tensor.shape(), &file.name)?;
                self.used().read.insert(name.to_string());
                tensor.to_dtype(dtype)?.to_device(device)?
            }
            (None, Some(seed), Some(shape)) => {
                self.used().drawn.insert(name.to_string());
                draw(init, shape, seed, name, dtype, device)?
            }
            (None, _, _) => {
                return Err(Error::MissingWeight {
                    path: name.to_string(),
                    file: self
                        .0
                        .file
                        .as_ref()
                        .map_or("the seeded weights".into(), |file| file.name.clone()),
                })
            }
        };
        // Detached, it is copied: a variable of the caller's would be taken as it is.
        let var = Var::from_tensor(&value.detach())?;
        let tensor = var.as_tensor().clone();
        let mut data = self
            .0
            .varmap
            .data()
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner());
        data.insert(name.to_string(), var);
        Ok(tensor)
    }
}

impl std::fmt::Debug for Weights {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let file = self.0.file.as_ref().map(|file| &file.name);
        f.debug_struct("Weights")
            .field("seed", &self.0.seed)
            .field("file", &file)
            .finish()
    }
}

impl SimpleBackend for Weights {
    fn get(&self, shape: Shape, name: &str, init: Init, dtype: DType, device: &Device) -> candle_core::Result<Tensor> {
        Ok(self.variable(name, Some(shape), init, dtype, device)?)
    }

    fn get_unchecked(&self, name: &str, dtype: DType, device: &Device) -> candle_core::Result<Tensor> {
        Ok(self.variable(name, None, Init::default(), dtype, device)?)
    }

    fn contains_tensor(&self, name: &str) -> bool {
        let in_file = self.0.file.as_ref().is_some_and(|file| file.tensors.contains_key(name));
        in_file || self.lookup(name).is_some()
    }
}

/// What candle's `Init` says, from a generator of its own.
fn draw(init: Init, shape: &Shape, seed: Seed, name: &str, dtype: DType, device: &Device) -> Result<Tensor> {
    let mut rng = seed.rng_for(name);
    let (spread, uniform) = match init {
        Init::Const(value) => return Ok(Tensor::full(value, shape, device)?.to_dtype(dtype)?),
        Init::Randn { mean, stdev } => ((mean, stdev), false),
        Init::Uniform { lo, up } => ((lo, up), true),
        Init::Kaiming {
            dist,
            fan,
            non_linearity,
        } => {
            let std = non_linearity.gain() / (fan.for_shape(shape) as f64).sqrt();
            match dist {
                NormalOrUniform::Normal => ((0., std), false),
                NormalOrUniform::Uniform => ((-3f64.sqrt() * std, 3f64.sqrt() * std), true),
            }
        }
    };
    let count = shape.elem_count();
    let values: Vec<f32> = if uniform {
        let (low, high) = spread;
        (0..count)
            .map(|_| (low + (high - low) * rng.random::<f64>()) as f32)
            .collect()
    } else {
        let normal = Normal::new(spread.0, spread.1)
            .map_err(|error| Error::invalid("init", format!("{init:?} for {name}"), error.to_string()))?;
        normal
            .sample_iter(&mut rng)
            .take(count)
            .map(|value| value as f32)
            .collect()
    };
    Ok(Tensor::from_vec(values, shape, device)?.to_dtype(dtype)?)
}
