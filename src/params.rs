//! The trained variables of a model, by name.

use std::collections::{BTreeMap, HashMap};
use std::sync::MutexGuard;

use candle_core::Var;
use candle_nn::VarMap;

use crate::error::{Error, Result};
use crate::nearest::nearest;

/// The variables that are trained, by name and sorted by it, so that everything which walks over them gives the same
/// result in every run (a `VarMap` walks a randomised hash map).
///
/// ```
/// use masksub::{Params, Weights};
/// # let (device, weights) = (candle_core::Device::Cpu, Weights::seeded(masksub::Seed::new(0)));
/// let vb = weights.var_builder(candle_core::DType::F32, &device);
/// let head = candle_nn::linear(8, 2, vb.pp("head"))?;
/// let body = candle_nn::linear(8, 8, vb.pp("body"))?;
/// let params = Params::from_varmap(weights.varmap()).filter(|name| !name.starts_with("body."));
/// assert_eq!(params.names().collect::<Vec<_>>(), ["head.bias", "head.weight"]);
/// # Ok::<(), candle_core::Error>(())
/// ```
#[derive(Clone, Debug, Default)]
pub struct Params {
    vars: BTreeMap<String, Var>,
    may_lack_gradient: Vec<String>,
}

/// A copy of the list, of the same variables.
impl From<&Params> for Params {
    fn from(params: &Params) -> Self {
        params.clone()
    }
}

impl Params {
    /// Trained variables from any source. Variables that are no floats are left out: they have no gradient.
    pub fn new(vars: impl IntoIterator<Item = (String, Var)>) -> Self {
        Self {
            vars: vars.into_iter().filter(|(_, var)| var.dtype().is_float()).collect(),
            may_lack_gradient: Vec::new(),
        }
    }

    /// All variables that a `VarMap` has now, so after the model is made, except running statistics (`running_mean`,
    /// `running_var`), which candle's batch norm keeps there too.
    pub fn from_varmap(varmap: &VarMap) -> Self {
        let data = lock(varmap);
        Self::new(
            data.iter()
                .filter(|(name, _)| !is_statistic(name))
                .map(|(name, var)| (name.clone(), var.clone())),
        )
    }

    /// Only those whose name passes: the others are frozen.
    pub fn filter(mut self, mut keep: impl FnMut(&str) -> bool) -> Self {
        self.vars.retain(|name, _| keep(name));
        self
    }

    /// Freezes parameters, those of these names and those below them (`head` freezes `head.weight`): they are no longer
    /// among those that are trained, so that no optimizer and no check of gradients knows them. The running statistics
    /// of a batch norm are no parameters and go on.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for a name that no parameter has, or is below, with those most like it; and when none
    /// would be left to train.
    pub fn freeze<N: AsRef<str>>(mut self, names: impl IntoIterator<Item = N>) -> Result<Self> {
        const MOST: usize = 5;
        let names: Vec<N> = names.into_iter().collect();
        for name in names.iter().map(N::as_ref) {
            if !self.names().any(|param| is_at_or_below(param, name)) {
                let wholes = self.names().flat_map(|param| {
                    let modules = param.match_indices('.').filter_map(|(dot, _)| param.get(..dot));
                    modules.chain([param])
                });
                let near = nearest(name, wholes, MOST).join(", ");
                return Err(Error::invalid(
                    "freeze",
                    name,
                    format!("a parameter or a module: {near}"),
                ));
            }
        }
        self.vars
            .retain(|param, _| !names.iter().any(|name| is_at_or_below(param, name.as_ref())));
        if self.is_empty() && !names.is_empty() {
            let names: Vec<&str> = names.iter().map(N::as_ref).collect();
            return Err(Error::invalid("freeze", names.join(", "), "less than all parameters"));
        }
        Ok(self)
    }

    /// Exempts parameters from the rule that each must have a gradient: those of this name, and those below it (`head`
    /// exempts `head.weight`). For parameters that a step really does not use.
    pub fn allow_missing(mut self, name: impl Into<String>) -> Self {
        self.may_lack_gradient.push(name.into());
        self
    }

    /// The variables, in the order of their names: what an optimizer is made from.
    pub fn vars(&self) -> Vec<Var> {
        self.vars.values().cloned().collect()
    }

    /// Names and variables, sorted.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (&str, &Var)> {
        self.vars.iter().map(|(name, var)| (name.as_str(), var))
    }

    /// The names, sorted.
    pub fn names(&self) -> impl ExactSizeIterator<Item = &str> {
        self.vars.keys().map(String::as_str)
    }

    /// The variable of that name.
    pub fn get(&self, name: &str) -> Option<&Var> {
        self.vars.get(name)
    }

    /// Number of variables.
    pub fn len(&self) -> usize {
        self.vars.len()
    }

    /// True where there is none.
    pub fn is_empty(&self) -> bool {
        self.vars.is_empty()
    }

    /// Number of elements that they hold in all.
    pub fn num_elements(&self) -> usize {
        self.vars.values().map(|var| var.elem_count()).sum()
    }

    /// # Errors
    /// [`Error::InvalidArgument`] when there is no variable: such a step would train nothing, without a word.
    pub(crate) fn check_not_empty(&self) -> Result<()> {
        if self.is_empty() {
            Err(Error::invalid(
                "params",
                "without a variable",
                "the variables of a model: taken from its VarMap after the model is made, by a filter that keeps some",
            ))
        } else {
            Ok(())
        }
    }

    pub(crate) fn must_have_gradient(&self, name: &str) -> bool {
        !self.may_lack_gradient.iter().any(|whole| is_at_or_below(name, whole))
    }
}

/// Whether `name` is `whole` or stands below it.
fn is_at_or_below(name: &str, whole: &str) -> bool {
    let rest = name.strip_prefix(whole);
    rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
}

/// Whether a variable of that name is a batch norm's running statistic, which no gradient trains.
pub(crate) fn is_statistic(name: &str) -> bool {
    matches!(name.rsplit('.').next(), Some("running_mean" | "running_var"))
}

/// The variables of a `VarMap`.
pub(crate) fn lock(varmap: &VarMap) -> MutexGuard<'_, HashMap<String, Var>> {
    // A thread that panicked while holding the lock leaves a map that is still whole.
    varmap.data().lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}
