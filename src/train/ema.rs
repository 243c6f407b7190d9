//! A moving average of the weights.

use std::collections::{BTreeMap, HashSet};

use candle_core::{DType, Device, Tensor, Var};
use candle_nn::VarMap;

use crate::check;
use crate::error::{Error, Result};
use crate::ops;
use crate::params;
use crate::weights::Weights;

/// An exponential moving average of a model's weights, to be evaluated in their place: a = decay a + (1 - decay) w
/// after each step, starting from the weights at hand. timm's `ModelEma`.
///
/// Running statistics are averaged like weights, as timm does.
///
/// ```
/// use candle_core::{DType, Device};
/// use candle_nn::Module;
/// use masksub::{train::ema::Ema, Seed, Weights};
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let weights = Weights::seeded(Seed::new(0));
/// let layer = candle_nn::linear(4, 2, weights.var_builder(DType::F32, &Device::Cpu))?;
/// let mut ema = Ema::of(weights.varmap(), 0.9998)?;
/// // ... after each step of the optimizer:
/// ema.update()?;
/// // ... and to evaluate:
/// let images = candle_core::Tensor::ones((1, 4), DType::F32, &Device::Cpu)?;
/// let logits = ema.averaged(|| layer.forward(&images))??; // of the exchange of weights, and of the closure
/// # Ok(()) }
/// ```
#[derive(Debug)]
pub struct Ema {
    decay: f64,
    warmup: bool,
    updates: u64,
    entries: Vec<Entry>,
}

#[derive(Debug)]
struct Entry {
    name: String,
    var: Var,
    /// In f32 where the weights are of half precision: at .9998 their own would not move. Models may see it.
    average: Var,
}

/// Names in the state: of the number of updates, and what those of the averages begin with.
const UPDATES: &str = "updates";
const AVERAGE: &str = "average/";

impl Ema {
    /// The average of all variables that `varmap` has now, running statistics among them.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] when `decay` is not within [0, 1), when there is no variable, or two of a name.
    pub fn of(varmap: &VarMap, decay: f64) -> Result<Self> {
        let vars: BTreeMap<String, Var> = params::lock(varmap).clone().into_iter().collect();
        Self::new(vars, decay)
    }

    /// The average of the variables in `vars` that are floats; names are for [`state`](Self::state).
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] when `decay` is not within [0, 1), when there is no variable, or two of a name.
    pub fn new(vars: impl IntoIterator<Item = (String, Var)>, decay: f64) -> Result<Self> {
        check::rate("decay", decay)?;
        let floats = vars.into_iter().filter(|(_, var)| var.dtype().is_float());
        let entry = |(name, var): (String, Var)| {
            let weights = var.as_detached_tensor();
            let wide = if ops::is_half(&var) { DType::F32 } else { var.dtype() };
            // A copy, as no detached tensor is a variable itself.
            let average = Var::from_tensor(&weights.to_dtype(wide)?)?;
            Ok(Entry { name, var, average })
        };
        let entries = floats.map(entry).collect::<Result<Vec<_>>>()?;
        let mut names = HashSet::new();
        if let Some(twice) = entries.iter().find(|entry| !names.insert(&entry.name)) {
            let value = format!("two of the name {}", twice.name);
            return Err(Error::invalid("vars", value, "variables of different names"));
        }
        if entries.is_empty() {
            return Err(Error::invalid(
                "vars",
                "empty",
                "at least one variable: taken once the model is made",
            ));
        }
        Ok(Self {
            decay,
            warmup: false,
            updates: 0,
            entries,
        })
    }

    /// Begins with a smaller decay, 1 - (1 + t)^(-2/3) at update t from 0 until it reaches the full one: the first
    /// weights, which have learnt nothing, are soon forgotten. timm's `ModelEmaV3` with `use_warmup`.
    pub fn with_warmup(self) -> Self {
        Self { warmup: true, ..self }
    }

    /// The decay of the next update.
    pub fn decay(&self) -> f64 {
        if self.warmup {
            self.decay.min(1.0 - (1.0 + self.updates as f64).powf(-2.0 / 3.0))
        } else {
            self.decay
        }
    }

    /// Takes the weights as they are now into the average: to be called after each step of the optimizer.
    ///
    /// # Errors
    /// When the weights cannot be read.
    pub fn update(&mut self) -> Result<()> {
        let share = 1.0 - self.decay();
        let mut pairs = Vec::with_capacity(self.entries.len());
        for entry in &self.entries {
            let average = entry.average.as_detached_tensor();
            let weights = entry.var.as_detached_tensor().to_dtype(average.dtype())?;
            pairs.push((average, weights));
        }
        let ids: Vec<_> = pairs.iter().map(|(average, _)| average.id()).collect();
        for ((entry, id), moved) in self.entries.iter().zip(ids).zip(ops::lerp_all(pairs, share)?) {
            if moved.id() != id {
                entry.average.set(&moved)?;
            }
        }
        self.updates += 1;
        Ok(())
    }

    /// Runs `f` with the averages in the place of the model's weights, which are back afterwards, also when it panics.
    ///
    /// # Errors
    /// When the weights cannot be exchanged.
    pub fn averaged<T>(&mut self, f: impl FnOnce() -> T) -> Result<T> {
        /// Weights to be put back.
        struct Restore(Vec<(Var, Tensor)>);
        impl Drop for Restore {
            fn drop(&mut self) {
                for (var, weights) in self.0.drain(..) {
                    // The variable had this very shape and dtype.
                    let _ = var.set(&weights);
                }
            }
        }
        let mut restore = Restore(Vec::with_capacity(self.entries.len()));
        for entry in &self.entries {
            let weights = ops::fresh(&entry.var)?;
            restore.0.push((entry.var.clone(), weights));
            entry.var.set(&entry.average.to_dtype(entry.var.dtype())?)?;
        }
        Ok(f())
    }

    /// The averages as weights that a model is made from, on their memory: it sees every update. The target of a
    /// sub-branch, say, by [`Weights::no_grad_builder`](crate::Weights::no_grad_builder) (see
    /// [`Teacher`](crate::Teacher)). Of half-precision weights the averages are f32, and so must the model be that is made
    /// of them.
    pub fn weights(&self) -> Weights {
        let averages = self.entries.iter();
        Weights::of_vars(averages.map(|entry| (entry.name.clone(), entry.average.clone())))
    }

    /// The averages out of what [`state`](Self::state) gave, under the model's names, for a model to be made from
    /// ([`Weights::from_tensors`](crate::Weights::from_tensors)).
    pub fn weights_of(state: &BTreeMap<String, Tensor>) -> BTreeMap<String, Tensor> {
        let average =
            |(path, tensor): (&String, &Tensor)| Some((path.strip_prefix(AVERAGE)?.to_string(), tensor.clone()));
        state.iter().filter_map(average).collect()
    }

    /// The averages as `average/NAME`, and under `updates` how many there were.
    ///
    /// # Errors
    /// When a tensor cannot be read.
    pub fn state(&self) -> Result<BTreeMap<String, Tensor>> {
        let mut state = BTreeMap::from([(UPDATES.to_string(), Tensor::new(self.updates as i64, &Device::Cpu)?)]);
        for entry in &self.entries {
            // A copy: the next update writes into the original.
            state.insert(
                format!("{AVERAGE}{}", entry.name),
                ops::fresh(&entry.average.to_device(&Device::Cpu)?)?,
            );
        }
        Ok(state)
    }

    /// Takes over what [`state`](Self::state) gave, of the same model.
    ///
    /// # Errors
    /// [`Error::MissingWeight`], [`Error::MisshapenWeight`] or [`Error::WeightsDiffer`], naming the tensor; the
    /// averages are as they were then.
    pub fn load_state(&mut self, state: &BTreeMap<String, Tensor>) -> Result<()> {
        const SOURCE: &str = "the state of the moving average";
        let find = |path: &str, dims: &[usize]| match state.get(path) {
            None => Err(Error::MissingWeight {
                path: path.into(),
                file: SOURCE.into(),
            }),
            Some(tensor) if tensor.dims() != dims => Err(Error::MisshapenWeight {
                path: path.into(),
                got: tensor.dims().to_vec(),
                expected: dims.to_vec(),
                source_name: SOURCE.into(),
            }),
            Some(tensor) => Ok(tensor),
        };
        let updates = find(UPDATES, &[])?.to_dtype(DType::I64)?.to_scalar::<i64>()?;
        let updates = check::updates("state", updates)?;
        let average = |entry: &Entry| {
            let tensor = find(&format!("{AVERAGE}{}", entry.name), entry.average.dims())?;
            let tensor = tensor.to_dtype(entry.average.dtype())?;
            // A copy: what is set below may neither share an average's memory nor lie outside its own.
            Ok(ops::fresh(&tensor.to_device(entry.average.device())?)?)
        };
        let averages: Vec<Tensor> = self.entries.iter().map(average).collect::<Result<_>>()?;
        let names: HashSet<&str> = self.entries.iter().map(|entry| entry.name.as_str()).collect();
        let known = |path: &str| path == UPDATES || path.strip_prefix(AVERAGE).is_some_and(|name| names.contains(name));
        let left_over: Vec<String> = state.keys().filter(|path| !known(path)).cloned().collect();
        if !left_over.is_empty() {
            return Err(Error::WeightsDiffer {
                file: SOURCE.into(),
                missing: vec![],
                left_over,
            });
        }
        self.updates = updates;
        for (entry, average) in self.entries.iter_mut().zip(averages) {
            entry.average.set(&average)?;
        }
        Ok(())
    }
}
