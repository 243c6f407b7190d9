//! Which parameters decay, and at what share of the learning rate each is trained.

use std::collections::HashSet;

use candle_core::backprop::GradStore;
use candle_core::{DType, Tensor, Var};

use crate::check;
use crate::error::{Error, Result};
use crate::ops;
use crate::params::Params;

/// The parameters of an optimizer, each with its share of the learning rate and of the weight decay. What PyTorch calls
/// parameter groups; here every parameter is one, so that rules by name can be combined.
///
/// Frozen parameters are those that [`Params::filter`] leaves out, or whose learning-rate scale is 0: they are passed
/// over, and do not count in a global norm.
#[derive(Clone, Debug)]
pub struct ParamGroups(pub(in crate::train) Vec<Group>);

#[derive(Clone, Debug)]
pub(in crate::train) struct Group {
    pub name: String,
    pub var: Var,
    pub lr_scale: f64,
    pub decays: bool,
}

/// The gradient of a parameter, if it has one, as its update takes it: detached, contiguous, in f32 where the parameter is of
/// half precision.
///
/// # Errors
/// [`Error::Shape`] when it has not the parameter's shape.
pub(super) fn gradient(grads: &GradStore, name: &str, var: &Var) -> Result<Option<Tensor>> {
    let Some(grad) = grads.get_id(var.id()) else {
        return Ok(None);
    };
    check_like(name, var, grad)?;
    let dtype = if ops::is_half(var) { DType::F32 } else { var.dtype() };
    Ok(Some(grad.detach().to_dtype(dtype)?.contiguous()?))
}

/// An error unless a gradient has its parameter's shape.
pub(in crate::train) fn check_like(name: &str, var: &Var, grad: &Tensor) -> Result<()> {
    if grad.dims() == var.dims() {
        return Ok(());
    }
    Err(Error::shape(
        "grads",
        grad.dims(),
        format!("{:?} like {name}", var.dims()),
    ))
}

/// All of them, with weight decay and the whole learning rate.
impl From<&Params> for ParamGroups {
    fn from(params: &Params) -> Self {
        Self::new(params)
    }
}

/// All that are floats, with weight decay and the whole learning rate, their numbers as names: give them in an order
/// that the next run has, too, that of [`Params::vars`], not that of `VarMap::all_vars`, which is another in every run.
impl From<Vec<Var>> for ParamGroups {
    fn from(vars: Vec<Var>) -> Self {
        let floats = vars.into_iter().filter(|var| var.dtype().is_float());
        Self::named(floats.enumerate().map(|(i, var)| (i.to_string(), var)))
    }
}

impl ParamGroups {
    /// All of `params`, with weight decay and the whole learning rate.
    pub fn new(params: &Params) -> Self {
        Self::named(params.iter().map(|(name, var)| (name.to_string(), var.clone())))
    }

    /// An error unless there are some, and each variable is once.
    pub(in crate::train) fn check(&self) -> Result<()> {
        if self.0.is_empty() {
            return Err(Error::invalid(
                "groups",
                "empty",
                "at least one parameter: taken once the model is made",
            ));
        }
        self.check_distinct()
    }

    /// The gradients of those that are trained, as they are for their updates.
    pub(super) fn gradients<'a>(&'a self, grads: &GradStore) -> Result<Vec<(&'a str, Tensor)>> {
        let trained = self.0.iter().filter(|group| group.lr_scale > 0.0);
        let found = trained.filter_map(|group| {
            let grad = gradient(grads, &group.name, &group.var).transpose()?;
            Some(grad.map(|grad| (group.name.as_str(), grad)))
        });
        found.collect()
    }

    pub(super) fn check_distinct(&self) -> Result<()> {
        let mut seen = HashSet::new();
        match self.0.iter().find(|group| !seen.insert(group.var.id())) {
            None => Ok(()),
            Some(group) => {
                let value = format!("a list with variable {} under another name, too", group.name);
                Err(Error::invalid("groups", value, "a list in which each variable is once"))
            }
        }
    }

    fn named(vars: impl IntoIterator<Item = (String, Var)>) -> Self {
        let group = |(name, var)| Group {
            name,
            var,
            lr_scale: 1.0,
            decays: true,
        };
        Self(vars.into_iter().map(group).collect())
    }

    /// No weight decay where `exempt(name, var)` says so; see
    /// [`usually_without_decay`](Self::usually_without_decay).
    pub fn without_decay(mut self, exempt: impl Fn(&str, &Var) -> bool) -> Self {
        for group in &mut self.0 {
            group.decays &= !exempt(&group.name, &group.var);
        }
        self
    }

    /// True for what the paper's recipes exempt from weight decay: biases and all other parameters of one dimension
    /// (norms, LayerScale), class tokens, position embeddings, mask tokens, and relative position bias tables.
    pub fn usually_without_decay(name: &str, var: &Var) -> bool {
        // As timm, Hugging Face, OpenCLIP and Microsoft's Swin call them.
        const NAMES: [&str; 12] = [
            "bias",
            "cls_token",
            "class_token",
            "class_embedding",
            "dist_token",
            "reg_token",
            "mask_token",
            "pos_embed",
            "position_embeddings",
            "position_embedding",
            "positional_embedding",
            "relative_position_bias_table",
        ];
        var.rank() <= 1 || name.split('.').any(|part| NAMES.contains(&part))
    }

    /// Multiplies the learning rate of each parameter by `scale(name)`, on top of earlier scales.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] when a scale is negative, infinite or NaN.
    pub fn with_lr_scale(mut self, scale: impl Fn(&str) -> f64) -> Result<Self> {
        for group in &mut self.0 {
            let scale = scale(&group.name);
            if !check::is_non_negative(scale) {
                let value = format!("{scale} for {}", group.name);
                return Err(Error::invalid("scale", value, check::NON_NEGATIVE));
            }
            group.lr_scale *= scale;
        }
        Ok(self)
    }

    /// Layer-wise learning-rate decay, as fine-tuning recipes have it (ELECTRA, arXiv 2003.10555; BEiT, MAE): a
    /// parameter of layer i of n is trained at decay^(n + 1 - i) of the learning rate. `layer_of(name)` is 0 for the
    /// embeddings, 1 to `num_layers` for the blocks, and n + 1 for what follows them: `layer_of` of
    /// [`vit::Config`](crate::models::vit::Config::layer_of) and
    /// [`swin::Config`](crate::models::swin::Config::layer_of) say so.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] when `decay` is not in (0, 1], a layer is beyond n + 1, or `num_layers` is too large to count.
    pub fn with_layer_decay(self, decay: f64, num_layers: usize, layer_of: impl Fn(&str) -> usize) -> Result<Self> {
        check::positive_share("decay", decay)?;
        check::counts([("num_layers", num_layers.max(1))])?;
        let beyond = |group: &&Group| layer_of(&group.name) > num_layers + 1;
        if let Some(group) = self.0.iter().find(beyond) {
            let value = format!("{} for {}", layer_of(&group.name), group.name);
            return Err(Error::invalid("layer_of", value, format!("at most {}", num_layers + 1)));
        }
        self.with_lr_scale(|name| decay.powi((num_layers + 1 - layer_of(name)) as i32))
    }

    /// For each parameter its name, its share of the learning rate, and whether it decays.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (&str, f64, bool)> {
        self.0
            .iter()
            .map(|group| (group.name.as_str(), group.lr_scale, group.decays))
    }
}
