//! What all optimizers share: the variables with their state, the step over them, saving and restoring.

use std::collections::{BTreeMap, HashSet};

use candle_core::backprop::GradStore;
use candle_core::{DType, Device, Tensor, Var};

use super::groups::{gradient, Group, ParamGroups};
use super::rule::Rule;
use super::slot::{memory, Slot};
use super::update::update;
use crate::check;
use crate::error::{Error, Result};
use crate::grad::{check_finite, global_norm};
use crate::ops;

/// An optimizer by rule `R`: [`AdamW`](super::AdamW), [`Lamb`](super::Lamb), [`Sgd`](super::Sgd).
///
/// Weights in bf16 and f16 get a master copy in f32, which is what is updated; the weights are its rounding, so that
/// what somebody else writes into them later is undone by the next step. Moments are f32 (f64 for weights in f64). A
/// parameter without a gradient is passed over in that step, as PyTorch does.
///
/// On the CPU in f32 a step goes through each parameter's memory in parallel; the result does not depend on the number
/// of threads. Elsewhere it is composed of candle's operations.
#[derive(Debug)]
pub struct GroupOptimizer<R> {
    rule: R,
    slots: Vec<Slot>,
    /// Whether a step with a gradient that is not finite is passed over instead of refused.
    skips_non_finite: bool,
    skipped: u64,
}

/// Name of the number of updates in the state.
const STEP: &str = "step";

impl<R: Rule> GroupOptimizer<R> {
    /// An optimizer of `&Params`, which all decay and have the whole learning rate, or of [`ParamGroups`], which say
    /// what does. (Of a `Vec<Var>` too, as candle-nn's: their names in the [state](Self::state) are their numbers.)
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for a setting out of its range, no parameter, or a variable that is there under two
    /// names; [`Error::DType`] for one that is no float.
    pub fn new(groups: impl Into<ParamGroups>, rule: R) -> Result<Self> {
        let groups = groups.into();
        groups.check()?;
        Self::build(groups, rule)
    }

    /// The same, of groups among which there may be none.
    pub(in crate::train) fn build(groups: ParamGroups, rule: R) -> Result<Self> {
        rule.check()?;
        groups.check_distinct()?;
        let slots = groups.0.into_iter().map(|group| Slot::new(group, rule.buffers().len()));
        Ok(Self {
            slots: slots.collect::<Result<_>>()?,
            rule,
            skips_non_finite: false,
            skipped: 0,
        })
    }

    /// Passes over a step with a gradient that is infinite or NaN, and [counts](Self::skipped_steps) it, instead of
    /// refusing it: as `torch.amp.GradScaler` does.
    pub fn skip_non_finite(self) -> Self {
        Self {
            skips_non_finite: true,
            ..self
        }
    }

    /// Number of steps that were passed over because a gradient was not finite. Not a part of the state.
    pub fn skipped_steps(&self) -> u64 {
        self.skipped
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
    /// [`Error::NonFiniteGradient`], naming the first parameter in the optimizer's order whose gradient is infinite or
    /// NaN, unless such steps are [passed over](Self::skip_non_finite); [`Error::Shape`] when a gradient's shape is not
    /// its parameter's; [`Error::InvalidArgument`] when the learning rate that was set is negative or not finite.
    /// Nothing is updated then.
    pub fn step(&mut self, grads: &GradStore) -> Result<()> {
        self.step_among(grads, None)
    }

    pub(super) fn slots(&self) -> &[Slot] {
        &self.slots
    }

    /// The same, where this optimizer's parameters are some of `all`: the gradients of all of them are looked at.
    pub(in crate::train) fn step_among(&mut self, grads: &GradStore, all: Option<&ParamGroups>) -> Result<()> {
        self.rule.check()?;
        let weights: Vec<_> = self.slots.iter().map(Slot::memory).collect::<Result<_>>()?;
        let mut due = Vec::with_capacity(self.slots.len());
        for slot in self.slots.iter_mut().filter(|slot| slot.lr_scale > 0.0) {
            if let Some(grad) = gradient(grads, &slot.name, &slot.var)? {
                // A gradient may be a variable's own memory (that of w²/2 is w): it would change meanwhile, or be
                // waited for.
                let shared = memory(&grad)?.is_some_and(|grad| {
                    let mut weights = weights.iter().flatten();
                    weights.any(|weights| weights.start < grad.end && grad.start < weights.end)
                });
                due.push((slot, if shared { ops::fresh(&grad)? } else { grad }));
            }
        }
        let grad_scale = match all {
            None => grad_scale(&self.rule, due.iter().map(|(slot, grad)| (slot.name.as_str(), grad))),
            Some(all) => {
                let all = all.gradients(grads)?;
                grad_scale(&self.rule, all.iter().map(|(name, grad)| (*name, grad)))
            }
        };
        match grad_scale {
            Err(Error::NonFiniteGradient { .. }) if self.skips_non_finite => {
                self.skipped += 1;
                Ok(())
            }
            grad_scale => update(&self.rule, grad_scale?, due),
        }
    }

    /// All that the optimizer remembers, by name, on the host: `NAME.step` (how often the parameter was updated),
    /// `NAME.` followed by `exp_avg`, `exp_avg_sq` or `momentum_buffer`, PyTorch's words for the moments, and
    /// `NAME.master` where there is a copy in full precision. The learning rate is not among it: the schedule knows it.
    ///
    /// # Errors
    /// When a tensor cannot be read.
    pub fn state(&self) -> Result<BTreeMap<String, Tensor>> {
        state_of(&self.slots, self.rule.buffers())
    }

    /// What [`state`](Self::state) would have of other parameters that were never updated.
    pub(in crate::train) fn blank_state<'a>(
        &self,
        groups: impl Iterator<Item = &'a Group>,
    ) -> Result<BTreeMap<String, Tensor>> {
        let others = ParamGroups(groups.cloned().collect());
        let slots = others
            .0
            .into_iter()
            .map(|group| Slot::new(group, self.rule.buffers().len()));
        state_of(&slots.collect::<Result<Vec<_>>>()?, self.rule.buffers())
    }

    /// Takes over what [`state`](Self::state) gave, of an optimizer with the same rule and parameters.
    ///
    /// # Errors
    /// [`Error::MissingWeight`], [`Error::MisshapenWeight`], [`Error::DType`] or [`Error::WeightsDiffer`], naming the
    /// tensor. The state is as it was then.
    pub fn load_state(&mut self, state: &BTreeMap<String, Tensor>) -> Result<()> {
        let read = self.read_state(state)?;
        self.put_state(read);
        Ok(())
    }

    /// The first half of [`load_state`](Self::load_state), which may fail: nothing is changed yet.
    pub(in crate::train) fn read_state(&self, state: &BTreeMap<String, Tensor>) -> Result<ReadState> {
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
                .map(|(part, like)| Ok(ops::fresh(&find(slot, part, Some(like))?.to_device(like.device())?)?))
                .collect::<Result<_>>()?;
            let steps = check::updates("state", steps)?;
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
        Ok(ReadState(new))
    }

    /// The second half, of what this optimizer has read.
    pub(in crate::train) fn put_state(&mut self, read: ReadState) {
        for (slot, (steps, mut tensors)) in self.slots.iter_mut().zip(read.0) {
            slot.steps = steps;
            slot.buffers = tensors.split_off(tensors.len() - slot.buffers.len());
            slot.master = tensors.pop();
        }
    }
}

/// Of each slot, the number of updates and the tensors: a state that fits the optimizer that read it.
pub(in crate::train) struct ReadState(Vec<(u64, Vec<Tensor>)>);

fn state_of(slots: &[Slot], buffers: &[&'static str]) -> Result<BTreeMap<String, Tensor>> {
    let mut state = BTreeMap::new();
    for slot in slots {
        let mut put = |part: &str, tensor: Tensor| state.insert(format!("{}.{part}", slot.name), tensor);
        put(STEP, Tensor::new(slot.steps as i64, &Device::Cpu)?);
        for (part, tensor) in slot.tensors(buffers) {
            // A copy: the next step writes into the original.
            put(part, ops::fresh(&tensor.to_device(&Device::Cpu)?)?);
        }
    }
    Ok(state)
}

/// What all gradients are to be multiplied by.
fn grad_scale<'a>(rule: &impl Rule, grads: impl Iterator<Item = (&'a str, &'a Tensor)>) -> Result<f64> {
    match rule.max_grad_norm() {
        Some(max) => global_norm(grads).map(|norm| (max / norm).min(1.0)),
        None => check_finite(grads).map(|()| 1.0),
    }
}

/// All variables decay and have the whole learning rate, as in candle-nn's optimizers and PyTorch's.
impl<R: Rule> candle_nn::Optimizer for GroupOptimizer<R> {
    type Config = R;

    fn new(vars: Vec<Var>, config: R) -> candle_core::Result<Self> {
        Ok(Self::build(vars.into(), config)?)
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
