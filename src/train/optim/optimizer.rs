//! What all optimizers share: the variables with their state, the step over them, saving and restoring.

use std::collections::{BTreeMap, HashSet};
use std::fmt::Debug;
use std::ops::Range;

use candle_core::backprop::GradStore;
use candle_core::{DType, Device, Tensor, Var};
use rayon::prelude::*;

use super::groups::ParamGroups;
use super::in_place::with_elements;
use crate::error::{Error, Result};
use crate::grad::global_norm;
use crate::ops;

/// How one parameter is updated. Implemented by the configurations of this module, and by a `Box<dyn Rule>` of any of
/// them: for a trainer that chooses at run time.
pub trait Rule: Debug + Send + Sync + private::Update {}

pub(super) mod private {
    use super::*;

    /// The part of [`Rule`] that is not for users: kernels and their compositions.
    pub trait Update {
        /// The learning rate.
        fn lr(&self) -> f64;
        /// Changes the learning rate.
        fn set_lr(&mut self, lr: f64);
        /// Decay of the parameters that decay.
        fn weight_decay(&self) -> f64;
        /// An error that names the first setting that is out of its range.
        fn check(&self) -> Result<()>;
        /// Names of the tensors that are kept for each parameter, of its shape, 0 at first.
        fn buffers(&self) -> &'static [&'static str];
        /// The global gradient norm above which gradients are scaled down to it.
        fn max_grad_norm(&self) -> Option<f64> {
            None
        }
        /// Updates a parameter from its gradient, in its memory: all slices have the same length.
        fn update(&self, at: &At, weights: &mut [f32], grads: &[f32], buffers: &mut [&mut [f32]]);
        /// The same, composed of candle's operations: the new weights and buffers.
        fn compose(
            &self,
            at: &At,
            weights: &Tensor,
            grad: &Tensor,
            buffers: &[Tensor],
        ) -> Result<(Tensor, Vec<Tensor>)>;
    }

    /// What differs from parameter to parameter and from step to step.
    #[derive(Clone, Copy, Debug)]
    pub struct At {
        /// Learning rate of this parameter.
        pub lr: f64,
        /// Weight decay of this parameter.
        pub weight_decay: f64,
        /// Number of this update, from 1.
        pub step: u64,
        /// What gradients are multiplied by.
        pub grad_scale: f64,
    }
}
use private::{At, Update};

impl Update for Box<dyn Rule> {
    fn lr(&self) -> f64 {
        (**self).lr()
    }
    fn set_lr(&mut self, lr: f64) {
        (**self).set_lr(lr)
    }
    fn weight_decay(&self) -> f64 {
        (**self).weight_decay()
    }
    fn check(&self) -> Result<()> {
        (**self).check()
    }
    fn buffers(&self) -> &'static [&'static str] {
        (**self).buffers()
    }
    fn max_grad_norm(&self) -> Option<f64> {
        (**self).max_grad_norm()
    }
    fn update(&self, at: &At, weights: &mut [f32], grads: &[f32], buffers: &mut [&mut [f32]]) {
        (**self).update(at, weights, grads, buffers)
    }
    fn compose(&self, at: &At, weights: &Tensor, grad: &Tensor, buffers: &[Tensor]) -> Result<(Tensor, Vec<Tensor>)> {
        (**self).compose(at, weights, grad, buffers)
    }
}
impl Rule for Box<dyn Rule> {}

/// An optimizer by rule `R`: [`AdamW`](super::AdamW), [`Lamb`](super::Lamb), [`Sgd`](super::Sgd).
///
/// Weights in bf16 and f16 get a master copy in f32, which is what is updated; the weights are its rounding, so that what
/// somebody else writes into them later is undone by the next step. Moments are
/// f32 (f64 for weights in f64). A parameter without a gradient is passed over in that step, as PyTorch does.
///
/// On the CPU in f32 a step goes through each parameter's memory in parallel; the result does not depend on the number
/// of threads. Elsewhere it is composed of candle's operations.
#[derive(Debug)]
pub struct GroupOptimizer<R> {
    rule: R,
    slots: Vec<Slot>,
}

/// A parameter with its state.
#[derive(Debug)]
struct Slot {
    name: String,
    var: Var,
    lr_scale: f64,
    decays: bool,
    /// The weights in full precision, where the variable is of half.
    master: Option<Tensor>,
    buffers: Vec<Tensor>,
    /// Updates so far.
    steps: u64,
}

/// Name of the master copy in the state.
const MASTER: &str = "master";
const STEP: &str = "step";

impl<R: Rule> GroupOptimizer<R> {
    /// An optimizer of parameters in groups.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for a setting out of its range, no parameter, or a variable that is there under two names;
    /// [`Error::DType`] for one that is no float.
    pub fn with_groups(groups: ParamGroups, rule: R) -> Result<Self> {
        if groups.0.is_empty() {
            return Err(Error::invalid(
                "groups",
                "empty",
                "at least one parameter: taken once the model is made",
            ));
        }
        Self::build(groups, rule)
    }

    fn build(groups: ParamGroups, rule: R) -> Result<Self> {
        rule.check()?;
        let mut seen = HashSet::new();
        let mut slots = Vec::with_capacity(groups.0.len());
        for group in groups.0 {
            if !seen.insert(group.var.id()) {
                let value = format!("a list with variable {} under another name, too", group.name);
                return Err(Error::invalid("groups", value, "a list in which each variable is once"));
            }
            slots.push(Slot::new(group, rule.buffers().len())?);
        }
        Ok(Self { rule, slots })
    }

    /// The settings.
    pub fn config(&self) -> &R {
        &self.rule
    }

    /// The learning rate, of which each group has its share.
    pub fn learning_rate(&self) -> f64 {
        self.rule.lr()
    }

    /// Changes the learning rate: what a schedule says for the next step.
    pub fn set_learning_rate(&mut self, lr: f64) {
        self.rule.set_lr(lr)
    }

    /// Updates every parameter that has a gradient.
    ///
    /// # Errors
    /// [`Error::Shape`] when a gradient's shape is not its parameter's; [`Error::InvalidArgument`] when the learning rate
    /// that was set is negative or not finite. With clipping by global norm (LAMB), [`Error::NonFiniteGradient`]. Nothing
    /// is updated then.
    pub fn step(&mut self, grads: &GradStore) -> Result<()> {
        self.rule.check()?;
        let weights = self.slots.iter().map(Slot::memory).collect::<Result<Vec<_>>>()?;
        let mut due = Vec::with_capacity(self.slots.len());
        for slot in self.slots.iter_mut().filter(|slot| slot.lr_scale > 0.) {
            if let Some(grad) = grads.get_id(slot.var.id()) {
                if grad.dims() != slot.var.dims() {
                    let expected = format!("{:?} like {}", slot.var.dims(), slot.name);
                    return Err(Error::shape("grads", grad.dims(), expected));
                }
                let grad = grad.detach().to_dtype(slot.weights().dtype())?.contiguous()?;
                // A gradient may be a variable's own memory (that of w²/2 is w): it would change meanwhile, or be waited for.
                let memory = memory(&grad)?;
                let shared = weights
                    .iter()
                    .any(|weights| weights.start < memory.end && memory.start < weights.end);
                due.push((slot, if shared { grad.copy()? } else { grad }));
            }
        }
        let grad_scale = match self.rule.max_grad_norm() {
            None => 1.,
            Some(max) => {
                let named = due.iter().map(|(slot, grad)| (slot.name.as_str(), grad));
                1f64.min(max / global_norm(named)?)
            }
        };
        let rule = &self.rule;
        due.into_par_iter().try_for_each(|(slot, grad)| {
            let at = At {
                lr: rule.lr() * slot.lr_scale,
                weight_decay: if slot.decays { rule.weight_decay() } else { 0. },
                step: slot.steps + 1,
                grad_scale,
            };
            slot.update(rule, &at, &grad)
        })
    }

    /// All that the optimizer remembers, by name, on the host: `NAME.step` (how often the parameter was updated), `NAME.`
    /// followed by `exp_avg`, `exp_avg_sq` or `momentum_buffer`, PyTorch's words for the moments, and `NAME.master` where
    /// there is a copy in full precision. The learning rate is not among it: the schedule knows it.
    ///
    /// # Errors
    /// When a tensor cannot be read.
    pub fn state(&self) -> Result<BTreeMap<String, Tensor>> {
        let mut state = BTreeMap::new();
        for slot in &self.slots {
            let mut put = |part: &str, tensor: Tensor| state.insert(format!("{}.{part}", slot.name), tensor);
            put(STEP, Tensor::new(slot.steps as i64, &Device::Cpu)?);
            for (part, tensor) in slot.tensors(self.rule.buffers()) {
                // A copy: the next step writes into the original.
                put(part, tensor.to_device(&Device::Cpu)?.copy()?);
            }
        }
        Ok(state)
    }

    /// Takes over what [`state`](Self::state) gave, of an optimizer with the same rule and parameters.
    ///
    /// # Errors
    /// [`Error::MissingWeight`], [`Error::MisshapenWeight`], [`Error::DType`] or [`Error::WeightsDiffer`], naming the
    /// tensor. The state is as it was then.
    pub fn load_state(&mut self, state: &BTreeMap<String, Tensor>) -> Result<()> {
        const SOURCE: &str = "the optimizer's state";
        let mut used = HashSet::new();
        let mut find = |slot: &Slot, part: &str, like: Option<&Tensor>| {
            let path = format!("{}.{part}", slot.name);
            let Some(tensor) = state.get(&path) else {
                let file = SOURCE.into();
                return Err(Error::MissingWeight { path, file });
            };
            let dims = like.map_or(&[][..], Tensor::dims);
            if tensor.dims() != dims {
                return Err(Error::MisshapenWeight {
                    path,
                    got: tensor.dims().to_vec(),
                    expected: dims.to_vec(),
                    source_name: SOURCE.into(),
                });
            }
            let dtype = like.map_or(DType::I64, Tensor::dtype);
            if tensor.dtype() != dtype {
                return Err(Error::DType {
                    argument: "state",
                    got: tensor.dtype(),
                    expected: format!("{dtype:?} for {path}"),
                });
            }
            used.insert(path);
            Ok(tensor)
        };
        let mut new = Vec::with_capacity(self.slots.len());
        for slot in &self.slots {
            let steps = find(slot, STEP, None)?.to_scalar::<i64>()?;
            let tensors: Vec<_> = slot
                .tensors(self.rule.buffers())
                .map(|(part, like)| Ok(find(slot, part, Some(like))?.to_device(like.device())?.copy()?))
                .collect::<Result<_>>()?;
            let allowed = "at least 0";
            let steps = u64::try_from(steps).map_err(|_| Error::invalid("state", format!("step {steps}"), allowed))?;
            new.push((steps, tensors));
        }
        let left_over: Vec<String> = state.keys().filter(|path| !used.contains(*path)).cloned().collect();
        if !left_over.is_empty() {
            return Err(Error::WeightsDiffer {
                file: SOURCE.into(),
                missing: vec![],
                left_over,
            });
        }
        for (slot, (steps, mut tensors)) in self.slots.iter_mut().zip(new) {
            slot.steps = steps;
            slot.buffers = tensors.split_off(tensors.len() - slot.buffers.len());
            slot.master = tensors.pop();
        }
        Ok(())
    }
}

impl Slot {
    fn new(group: super::groups::Group, buffers: usize) -> Result<Self> {
        let dtype = match group.var.dtype() {
            DType::F64 => DType::F64,
            DType::F32 | DType::F16 | DType::BF16 => DType::F32,
            got => {
                return Err(Error::DType {
                    argument: "groups",
                    got,
                    expected: format!("f32, f64, f16 or bf16 for {}", group.name),
                })
            }
        };
        let master = match ops::is_half(&group.var) {
            true => Some(group.var.as_detached_tensor().to_dtype(dtype)?),
            false => None,
        };
        let zeros = || Ok(Tensor::zeros(group.var.shape(), dtype, group.var.device())?);
        let buffers = (0..buffers).map(|_| zeros()).collect::<Result<_>>()?;
        Ok(Self {
            name: group.name,
            var: group.var,
            lr_scale: group.lr_scale,
            decays: group.decays,
            master,
            buffers,
            steps: 0,
        })
    }

    /// What is updated.
    fn weights(&self) -> &Tensor {
        self.master.as_ref().unwrap_or(self.var.as_tensor())
    }

    /// Where that lies.
    fn memory(&self) -> Result<Range<*const f32>> {
        memory(self.weights())
    }

    /// What is kept beside the number of steps, by its name.
    fn tensors<'a>(&'a self, buffers: &'a [&'static str]) -> impl Iterator<Item = (&'static str, &'a Tensor)> {
        let master = self.master.iter().map(|master| (MASTER, master));
        master.chain(buffers.iter().copied().zip(&self.buffers))
    }

    fn update(&mut self, rule: &dyn Update, at: &At, grad: &Tensor) -> Result<()> {
        self.steps = at.step;
        if self.var.elem_count() == 0 {
            return Ok(());
        }
        let weights = self.weights();
        let tensors: Vec<&Tensor> = std::iter::once(weights).chain(&self.buffers).collect();
        if ops::on_cpu_f32(&tensors) && tensors.iter().all(|tensor| tensor.is_contiguous()) {
            let grads = ops::Elements::of(grad)?;
            with_elements(&tensors, |mut slices| {
                if let Some((weights, buffers)) = slices.split_first_mut() {
                    rule.update(at, weights, &grads, buffers);
                }
            })?;
        } else {
            let (weights, buffers) = rule.compose(at, &weights.detach(), grad, &self.buffers)?;
            match &mut self.master {
                Some(master) => *master = weights,
                None => self.var.set(&weights)?,
            }
            self.buffers = buffers;
        }
        if let Some(master) = &self.master {
            self.var.set(&master.to_dtype(self.var.dtype())?)?;
        }
        Ok(())
    }
}

/// All variables decay and have the whole learning rate, as in candle-nn's optimizers and PyTorch's. Their names in the
/// state are their numbers: give them in an order that the next run has, too, that of [`Params::vars`](crate::Params::vars),
/// not that of `VarMap::all_vars`, which is another in every run.
impl<R: Rule> candle_nn::Optimizer for GroupOptimizer<R> {
    type Config = R;

    fn new(vars: Vec<Var>, config: R) -> candle_core::Result<Self> {
        let floats = vars.into_iter().filter(|var| var.dtype().is_float());
        let named = floats.enumerate().map(|(i, var)| (i.to_string(), var));
        Ok(Self::build(ParamGroups::named(named), config)?)
    }

    fn step(&mut self, grads: &GradStore) -> candle_core::Result<()> {
        Ok(self.step(grads)?)
    }

    fn learning_rate(&self) -> f64 {
        self.learning_rate()
    }

    fn set_learning_rate(&mut self, lr: f64) {
        self.set_learning_rate(lr)
    }
}

/// Where a tensor lies, if that is where kernels write: nowhere else.
fn memory(tensor: &Tensor) -> Result<Range<*const f32>> {
    match ops::on_cpu_f32(&[tensor]) && tensor.is_contiguous() {
        true => Ok(ops::Elements::of(tensor)?.as_ptr_range()),
        false => Ok(std::ptr::null()..std::ptr::null()),
    }
}

/// Runs `f` on pieces of a parameter, in parallel, and adds up what it returns. How it is cut depends on its length only.
pub(super) fn pieces<const N: usize>(
    weights: &mut [f32],
    grads: &[f32],
    buffers: [&mut [f32]; N],
    f: &(impl Fn(&mut [f32], &[f32], [&mut [f32]; N]) -> [f64; 2] + Sync),
) -> [f64; 2] {
    const PIECE: usize = 16 * 1024;
    if weights.len() <= PIECE {
        return f(weights, grads, buffers);
    }
    let middle = (weights.len() / 2).next_multiple_of(PIECE);
    let (weights, more_weights) = weights.split_at_mut(middle);
    let (grads, more_grads) = grads.split_at(middle);
    let mut more = [const { None }; N];
    let mut first = [const { None }; N];
    for (i, buffer) in buffers.into_iter().enumerate() {
        let (a, b) = buffer.split_at_mut(middle);
        (first[i], more[i]) = (Some(a), Some(b));
    }
    let whole = |halves: [Option<_>; N]| halves.map(Option::unwrap_or_default);
    let (first, more) = (whole(first), whole(more));
    let (a, b) = rayon::join(
        || pieces(weights, grads, first, f),
        || pieces(more_weights, more_grads, more, f),
    );
    [a[0] + b[0], a[1] + b[1]]
}
