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
use crate::params;

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
    /// What is called the source of a weight that is not drawn.
    file: Option<String>,
    seed: Option<Seed>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// What the file has and no model has asked for yet.
    left_over: BTreeMap<String, Tensor>,
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
        Self::build(Some(("the given tensors".into(), tensors.into_iter().collect())), None)
    }

    fn open(path: &Path, seed: Option<Seed>) -> Result<Self> {
        let name = path.display().to_string();
        let tensors = candle_core::safetensors::load(path, &Device::Cpu).map_err(|error| Error::File {
            path: name.clone(),
            message: Error::from(error).to_string(),
        })?;
        Ok(Self::build(Some((name, tensors.into_iter().collect())), seed))
    }

    fn build(file: Option<(String, BTreeMap<String, Tensor>)>, seed: Option<Seed>) -> Self {
        let (file, left_over) = file.unzip();
        let state = State {
            left_over: left_over.unwrap_or_default(),
            drawn: BTreeSet::new(),
        };
        Self(Arc::new(Inner {
            varmap: VarMap::new(),
            file,
            seed,
            state: Mutex::new(state),
        }))
    }

    /// The builder to make models with. Weights have `dtype`, whatever they have in the file; one that two layers share
    /// has the same `dtype` and `device` in both, or is an error there.
    pub fn var_builder(&self, dtype: DType, device: &Device) -> VarBuilder<'static> {
        VarBuilder::from_backend(Box::new(self.clone()), dtype, device.clone())
    }

    /// The variables made so far.
    pub fn varmap(&self) -> &VarMap {
        &self.0.varmap
    }

    /// The variables made so far by name, running statistics among them: what a checkpoint keeps, and
    /// [`from_tensors`](Self::from_tensors) takes. They share the variables' memory.
    pub fn state(&self) -> BTreeMap<String, Tensor> {
        let vars = params::lock(&self.0.varmap);
        let tensors = vars.iter().map(|(name, var)| (name.clone(), var.as_detached_tensor()));
        tensors.collect()
    }

    /// Names of the weights that were drawn from the seed, sorted: with a file, what it lacks.
    pub fn drawn(&self) -> Vec<String> {
        self.lock().drawn.iter().cloned().collect()
    }

    /// Names of the tensors in the file that no model has asked for, sorted.
    pub fn left_over(&self) -> Vec<String> {
        self.lock().left_over.keys().cloned().collect()
    }

    /// Makes sure, once the model is made, that it and the file have the same weights: that none was drawn but those that
    /// `may_be_drawn` says, and that the file has no others. Without this a deeper model's checkpoint fills a shallower
    /// one in silence.
    ///
    /// What PyTorch modules save beside their weights and can be computed is passed over: `num_batches_tracked`,
    /// `relative_position_index` and `attn_mask`.
    ///
    /// # Errors
    /// [`Error::MissingWeight`] or [`Error::UnusedWeight`], which name the first.
    pub fn check_exact(&self, may_be_drawn: impl Fn(&str) -> bool) -> Result<()> {
        let Some(file) = &self.0.file else { return Ok(()) };
        let state = self.lock();
        if let Some(path) = state.drawn.iter().find(|name| !may_be_drawn(name)) {
            let (path, file) = (path.clone(), file.clone());
            return Err(Error::MissingWeight { path, file });
        }
        let mut unused = state.left_over.keys().filter(|name| !is_buffer(name));
        match unused.next() {
            None => Ok(()),
            Some(path) => Err(Error::UnusedWeight {
                path: path.clone(),
                others: unused.count(),
                file: file.clone(),
            }),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // A thread that panicked while holding the lock leaves lists that are still whole.
        self.0.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn lookup(&self, name: &str) -> Option<Tensor> {
        params::lock(&self.0.varmap)
            .get(name)
            .map(|var| var.as_tensor().clone())
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
            if shared.dtype() != dtype || !shared.device().same_device(device) {
                let place = |dtype, device: &Device| format!("{dtype:?} on {:?}", device.location());
                return Err(Error::invalid(
                    "dtype and device",
                    format!("{} for weight {name}", place(dtype, device)),
                    format!(
                        "{}, as in the layer that shares it",
                        place(shared.dtype(), shared.device())
                    ),
                ));
            }
            return Ok(shared);
        }
        let mut state = self.lock();
        let value = match (state.left_over.get(name), self.0.seed, &shape) {
            (Some(tensor), _, _) => {
                fits(tensor.shape(), self.0.file.as_deref().unwrap_or_default())?;
                tensor.to_dtype(dtype)?.to_device(device)?
            }
            (None, Some(seed), Some(shape)) => draw(init, shape, seed, name, dtype, device)?,
            (None, _, _) => {
                return Err(Error::MissingWeight {
                    path: name.to_string(),
                    file: self.0.file.clone().unwrap_or("the seeded weights".into()),
                })
            }
        };
        // Detached, it is copied: a variable of the caller's would be taken as it is.
        let var = Var::from_tensor(&value.detach())?;
        let tensor = var.as_tensor().clone();
        // The file's tensor goes when its variable is there: a run would keep two of each.
        if state.left_over.remove(name).is_none() {
            state.drawn.insert(name.to_string());
        }
        params::lock(&self.0.varmap).insert(name.to_string(), var);
        Ok(tensor)
    }
}

/// Whether a tensor is one that PyTorch modules save though it can be computed: batch norm's count of steps (torch), the
/// indices and masks of windows (Swin).
fn is_buffer(name: &str) -> bool {
    let last = name.rsplit('.').next();
    matches!(
        last,
        Some("num_batches_tracked" | "relative_position_index" | "attn_mask")
    )
}

impl std::fmt::Debug for Weights {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Weights")
            .field("seed", &self.0.seed)
            .field("file", &self.0.file)
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
        self.lookup(name).is_some() || self.lock().left_over.contains_key(name)
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
