//! Sources of a model's weights: a seed or a file, as variables that can be trained.

mod draw;
mod source;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard};

use candle_core::{DType, Device, Shape, Tensor, Var};
use candle_nn::var_builder::SimpleBackend;
use candle_nn::{Init, VarBuilder, VarMap};

use crate::error::{Error, Fault, Result};
use crate::file;
use crate::key::Seed;
use crate::params;
use draw::draw;
use source::told;
pub(crate) use source::{is_buffer, tell_positions, PositionRows, Source, Value};

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
    /// Name of the source of weights that are not drawn.
    file: Option<String>,
    seed: Option<Seed>,
    state: Mutex<State>,
}

struct State {
    source: Box<dyn Source>,
    drawn: BTreeSet<String>,
}

impl Weights {
    /// Initial values drawn as the model's hints say, from the seed and each weight's name: neither the order in which
    /// a model asks nor other weights change them.
    pub fn seeded(seed: Seed) -> Self {
        Self::build(None, Box::new(BTreeMap::new()), Some(seed))
    }

    /// Values from a safetensors file. A weight that the file does not have is an [`Error::MissingWeight`], one of
    /// another shape an [`Error::MisshapenWeight`]; both name its path. What the file has and no model asked for is
    /// listed in [`left_over`](Self::left_over). (For other projects' checkpoints, under their names and for other
    /// image sizes and classes: [`Pretrained`](crate::pretrained::Pretrained).)
    ///
    /// # Errors
    /// [`Error::File`] when the file cannot be read or is no safetensors file.
    pub fn from_safetensors(path: impl AsRef<Path>) -> Result<Self> {
        Self::open(path.as_ref(), None)
    }

    /// Values from a safetensors file, and drawn from `seed` where it lacks them, as [`drawn`](Self::drawn) then tells.
    ///
    /// A weight of another shape, such as a head for other classes, is an [`Error::MisshapenWeight`] all the same:
    /// [`Pretrained`](crate::pretrained::Pretrained) draws it anew.
    ///
    /// # Errors
    /// As [`from_safetensors`](Self::from_safetensors).
    pub fn from_safetensors_or_seed(path: impl AsRef<Path>, seed: Seed) -> Result<Self> {
        Self::open(path.as_ref(), Some(seed))
    }

    /// Values from tensors at hand, such as another model's state; otherwise like
    /// [`from_safetensors`](Self::from_safetensors).
    pub fn from_tensors(tensors: impl IntoIterator<Item = (String, Tensor)>) -> Self {
        let tensors: BTreeMap<_, _> = tensors.into_iter().collect();
        Self::build(Some("the given tensors".into()), Box::new(tensors), None)
    }

    /// Values from a source of another kind, called `file`, and drawn from `seed` where it lacks them.
    pub(crate) fn from_source(file: String, source: Box<dyn Source>, seed: Seed) -> Self {
        Self::build(Some(file), source, Some(seed))
    }

    /// These variables, and no others.
    pub(crate) fn of_vars(vars: impl IntoIterator<Item = (String, Var)>) -> Self {
        let weights = Self::from_tensors([]);
        params::lock(weights.varmap()).extend(vars);
        weights
    }

    fn open(path: &Path, seed: Option<Seed>) -> Result<Self> {
        let name = path.display().to_string();
        let bytes = file::read_safetensors(path).map_err(|fault| fault.of_file(path))?;
        let tensors = candle_core::safetensors::load_buffer(&bytes, &Device::Cpu)
            .map_err(|error| Fault::of_candle("it cannot be read as a safetensors file", error).of_file(path))?;
        let tensors: BTreeMap<_, _> = tensors.into_iter().collect();
        Ok(Self::build(Some(name), Box::new(tensors), seed))
    }

    fn build(file: Option<String>, source: Box<dyn Source>, seed: Option<Seed>) -> Self {
        let state = State {
            source,
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

    /// A builder of models that only predict, as within `torch.no_grad()`. They are on the memory of the same variables,
    /// which are made now where they are not yet, so that they see each update; and nothing is kept for a backward.
    ///
    /// One thread may train while another predicts, on a thread of its own. Within a task of rayon's a prediction can wait
    /// for ever: it holds read locks while it waits for other tasks, of which one may wait behind the optimizer.
    ///
    /// Run such a model with `train` false: `running_mean` and `running_var` are the trained model's own.
    ///
    /// ```
    /// use candle_core::{DType, Device, Tensor};
    /// use candle_nn::Module;
    /// use masksub::{Seed, Weights};
    /// let weights = Weights::seeded(Seed::new(0));
    /// let trained = candle_nn::linear(4, 2, weights.var_builder(DType::F32, &Device::Cpu))?;
    /// let evaluated = candle_nn::linear(4, 2, weights.no_grad_builder(DType::F32, &Device::Cpu))?;
    /// let xs = Tensor::ones((1, 4), DType::F32, &Device::Cpu)?;
    /// assert!(trained.forward(&xs)?.track_op() && !evaluated.forward(&xs)?.track_op());
    /// # Ok::<(), candle_core::Error>(())
    /// ```
    pub fn no_grad_builder(&self, dtype: DType, device: &Device) -> VarBuilder<'static> {
        VarBuilder::from_backend(Box::new(NoGrad(self.clone())), dtype, device.clone())
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
        self.lock().source.left_over()
    }

    /// Lines that say what was done to a file's values beside copying them, to be read once the model is made: of another
    /// project's checkpoint ([`pretrained`](crate::pretrained)) which it is and what was resized, replaced or left out; of
    /// any file which weights were drawn for lack of them, and what is left over. Empty for weights from a seed alone.
    pub fn notes(&self) -> Vec<String> {
        if self.0.file.is_none() {
            return vec![];
        }
        let state = self.lock();
        let mut notes = state.source.notes();
        let drawn = state.drawn.iter().filter(|name| !state.source.may_lack(name));
        let left_over = state.source.left_over().into_iter();
        let left_over = left_over.filter(|name| !state.source.may_leave(name));
        for (what, names) in [
            ("missing, so drawn", drawn.cloned().collect::<Vec<_>>()),
            ("left over", left_over.collect()),
        ] {
            if !names.is_empty() {
                notes.push(format!("{what}: {}", names.join(", ")));
            }
        }
        notes
    }

    /// Fails unless the model, once it is made, and the file have the same weights: none was drawn, none is left over.
    /// `may_differ(name)` allows exceptions: it gets the model's name of a weight that was drawn, and the file's of one
    /// that is left over. Without this call a deeper model's checkpoint fills a shallower one in silence.
    ///
    /// Buffers that PyTorch modules save though they can be computed are passed over: `num_batches_tracked`,
    /// `relative_position_index` and `attn_mask`; and of another project's checkpoint what [`pretrained`](crate::pretrained)
    /// says.
    ///
    /// # Errors
    /// [`Error::WeightsDiffer`], which lists them.
    pub fn check_exact(&self, may_differ: impl Fn(&str) -> bool) -> Result<()> {
        let Some(file) = &self.0.file else { return Ok(()) };
        let state = self.lock();
        let missing = state.drawn.iter();
        let missing = missing.filter(|name| !state.source.may_lack(name) && !may_differ(name));
        let left_over = state.source.left_over().into_iter();
        let left_over = left_over.filter(|name| !state.source.may_leave(name) && !may_differ(name));
        let (missing, left_over): (Vec<_>, Vec<_>) = (missing.cloned().collect(), left_over.collect());
        if missing.is_empty() && left_over.is_empty() {
            return Ok(());
        }
        Err(Error::WeightsDiffer {
            file: file.clone(),
            missing,
            left_over,
        })
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
        // Locked from the look to the insertion, before the map as everywhere: another thread may ask for the same
        // name.
        let mut state = self.lock();
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
        let found = state.source.find(name, shape.as_ref(), dtype)?;
        let is_drawn = found.is_none();
        let var = match (found, self.0.seed, &shape) {
            (Some(value), _, _) => {
                fits(value.shape(), self.0.file.as_deref().unwrap_or_default())?;
                value.into_var(dtype, device)?
            }
            (None, Some(seed), Some(shape)) => Var::from_tensor(&draw(init, shape, seed, name, dtype, device)?)?,
            (None, _, _) => {
                return Err(Error::MissingWeight {
                    path: name.to_string(),
                    file: self.0.file.clone().unwrap_or("the seeded weights".into()),
                })
            }
        };
        let tensor = var.as_tensor().clone();
        if is_drawn {
            state.drawn.insert(name.to_string());
        } else {
            state.source.taken(name);
        }
        params::lock(&self.0.varmap).insert(name.to_string(), var);
        Ok(tensor)
    }
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
        let mut state = self.lock();
        if let Some((name, positions)) = told(name) {
            state.source.tell_positions(name, positions);
            return false;
        }
        self.lookup(name).is_some() || state.source.has(name)
    }
}

/// Weights that are no variables.
struct NoGrad(Weights);

impl NoGrad {
    fn of(&self, name: &str, weight: Tensor) -> Tensor {
        if params::is_statistic(name) {
            weight
        } else {
            weight.detach()
        }
    }
}

impl SimpleBackend for NoGrad {
    fn get(&self, shape: Shape, name: &str, init: Init, dtype: DType, device: &Device) -> candle_core::Result<Tensor> {
        Ok(self.of(name, self.0.get(shape, name, init, dtype, device)?))
    }

    fn get_unchecked(&self, name: &str, dtype: DType, device: &Device) -> candle_core::Result<Tensor> {
        Ok(self.of(name, self.0.get_unchecked(name, dtype, device)?))
    }

    fn contains_tensor(&self, name: &str) -> bool {
        self.0.contains_tensor(name)
    }
}
