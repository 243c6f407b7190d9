//! Gradients: the checked backward pass, merging, clipping, and the audit.

mod remedies;

use std::collections::HashSet;

use candle_core::backprop::GradStore;
use candle_core::{DType, Tensor, TensorId};

use crate::check;
use crate::error::{Error, Result};
use crate::ops::{self, Gradients};
use crate::params::Params;

/// The gradients of `loss` with respect to `params`, each of which must have one.
///
/// As `loss.backward()`, with everything checked that candle lets pass: for trainers that need only one branch.
///
/// # Errors
/// [`Error::LossNotScalar`], [`Error::LossDetached`], [`Error::NonFiniteLoss`], [`Error::MissingGradients`];
/// [`Error::BackwardUnsupported`] when candle cannot differentiate an operation; [`Error::InvalidArgument`] when
/// `params` is empty.
pub fn backward(loss: &Tensor, params: &Params) -> Result<GradStore> {
    params.check_not_empty()?;
    check_loss(loss, "main")?;
    finite_values(&[("main", loss.clone())])?;
    let grads = into_store(raw_backward(loss, "main", Some(params), Gradients::new())?);
    check_missing(&grads, params)?;
    Ok(grads)
}

/// An error unless a backward pass can start from `loss`.
pub(crate) fn check_loss(loss: &Tensor, branch: &'static str) -> Result<()> {
    if loss.elem_count() != 1 {
        let got = loss.dims().to_vec();
        return Err(Error::LossNotScalar { branch, got });
    }
    if !loss.track_op() {
        return Err(Error::LossDetached { branch });
    }
    Ok(())
}

/// The values of losses, each of one element and with the name of its branch, or an error for the first that is infinite or
/// NaN. They come to the host together: each transfer waits until the device has done all that was asked of it.
pub(crate) fn finite_values(losses: &[(&'static str, Tensor)]) -> Result<Vec<f64>> {
    let is_double = losses.iter().any(|(_, loss)| loss.dtype() == DType::F64);
    let dtype = if is_double { DType::F64 } else { DType::F32 };
    let flat = |(_, loss): &(_, Tensor)| loss.detach().flatten_all()?.to_dtype(dtype);
    let values = match losses
        .iter()
        .map(flat)
        .collect::<candle_core::Result<Vec<_>>>()?
        .as_slice()
    {
        [] => return Ok(vec![]),
        losses => ops::on_host(&Tensor::cat(losses, 0)?)?,
    };
    match losses.iter().zip(&values).find(|(_, value)| !value.is_finite()) {
        Some((&(branch, _), &value)) => Err(Error::NonFiniteLoss { branch, value }),
        None => Ok(values),
    }
}

/// Adds to `earlier` the gradients of the trained variables, or of all variables where it is not known which are
/// trained. candle's store also holds those of inputs that are not variables; they are dropped.
pub(crate) fn raw_backward(
    loss: &Tensor,
    branch: &'static str,
    params: Option<&Params>,
    earlier: Gradients,
) -> Result<Gradients> {
    let (store, mut gradients) = ops::accumulate(loss, earlier, || loss.backward());
    let store = store.map_err(|error| explain(error, branch))?;
    let trained: HashSet<TensorId> = match params {
        Some(params) => params.iter().map(|(_, var)| var.id()).collect(),
        None => {
            let nodes = loss.sorted_nodes();
            let variables = nodes.iter().filter(|node| node.is_variable()).map(|node| node.id());
            variables.chain(gradients.keys().copied()).collect()
        }
    };
    gradients.retain(|id, _| trained.contains(id));
    for &id in &trained {
        if let Some(gradient) = store.get_id(id) {
            // candle computes the gradient of a convolution's kernel, say, from the layer's input: attached, it would
            // keep this half's activations while the other half makes its own.
            ops::add_to(&mut gradients, id, gradient.detach())?;
        }
    }
    Ok(gradients)
}

/// Gradients as candle has them.
pub(crate) fn into_store(gradients: Gradients) -> GradStore {
    let mut store = GradStore::default();
    for (id, gradient) in gradients {
        store.insert_id(id, gradient);
    }
    store
}

pub(crate) fn check_missing(grads: &GradStore, params: &Params) -> Result<()> {
    let names: Vec<String> = missing(grads, params).map(str::to_string).collect();
    if names.is_empty() {
        Ok(())
    } else {
        Err(Error::MissingGradients {
            names,
            trained: params.len(),
        })
    }
}

fn missing<'a>(grads: &'a GradStore, params: &'a Params) -> impl Iterator<Item = &'a str> {
    params
        .iter()
        .filter(|(name, var)| params.must_have_gradient(name) && grads.get_id(var.id()).is_none())
        .map(|(name, _)| name)
}

/// Names the remedy where candle's backward stops at an operation.
fn explain(error: candle_core::Error, branch: &'static str) -> Error {
    let error = Error::from(error);
    let reason = error.to_string();
    match (&error, remedies::remedy(&reason)) {
        (Error::Candle(_), Some(remedy)) => Error::BackwardUnsupported { branch, reason, remedy },
        _ => error,
    }
}

/// Adds the gradients of `other` to `grads`: of micro-batches, or of two losses.
///
/// # Errors
/// When gradients of the same variable differ in shape, dtype or device.
pub fn merge(grads: &mut GradStore, other: GradStore) -> Result<()> {
    Ok(grads.extend(other)?)
}

/// Multiplies all gradients so that their global 2-norm over `params` is at most `max_norm`, and returns the norm they
/// had. `torch.nn.utils.clip_grad_norm_`; the sum runs over the sorted names, so it is the same in every run.
///
/// # Errors
/// [`Error::InvalidArgument`] when `max_norm` is not above 0; [`Error::NonFiniteGradient`] when a gradient is infinite
/// or NaN, with all gradients as they were.
pub fn clip_grad_norm(grads: &mut GradStore, params: &Params, max_norm: f64) -> Result<f64> {
    check::bound("max_norm", max_norm)?;
    let trained = params
        .iter()
        .filter_map(|(name, var)| Some((name, grads.get_id(var.id())?)));
    let norm = global_norm(trained)?;
    // PyTorch's small term, so that clipped gradients agree with its own.
    let factor = max_norm / (norm + 1e-6);
    if factor < 1.0 {
        for (_, var) in params.iter() {
            if let Some(grad) = grads.get_id(var.id()) {
                let clipped = (grad * factor)?;
                grads.insert_id(var.id(), clipped);
            }
        }
    }
    Ok(norm)
}

/// The 2-norm of all gradients together.
///
/// # Errors
/// [`Error::NonFiniteGradient`] when a gradient is infinite or NaN, or too large for its square.
pub(crate) fn global_norm<'a>(grads: impl IntoIterator<Item = (&'a str, &'a Tensor)>) -> Result<f64> {
    let (names, grads): (Vec<_>, Vec<_>) = grads.into_iter().unzip();
    let squares = ops::sums_of_squares(&grads)?;
    match squares.iter().position(|square| !square.is_finite()) {
        None => Ok(squares.iter().sum::<f64>().sqrt()),
        Some(i) => Err(Error::NonFiniteGradient { name: names[i].into() }),
    }
}

/// # Errors
/// [`Error::NonFiniteGradient`] when a gradient is infinite or NaN.
pub(crate) fn check_finite<'a>(grads: impl IntoIterator<Item = (&'a str, &'a Tensor)>) -> Result<()> {
    let (names, grads): (Vec<_>, Vec<_>) = grads.into_iter().unzip();
    match ops::first_not_finite(&grads)? {
        None => Ok(()),
        Some(i) => Err(Error::NonFiniteGradient { name: names[i].into() }),
    }
}

/// Findings of an audit of gradients, by name and sorted.
///
/// It prints as a report. All-zero gradients are told, but are no fault: a zero-initialised last batch norm of a
/// residual branch has them in the first step.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Audit {
    /// Number of parameters that were looked at.
    pub trained: usize,
    /// Parameters without a gradient, except those that may lack one.
    pub missing: Vec<String>,
    /// Parameters whose gradient has an element that is infinite or NaN.
    pub non_finite: Vec<String>,
    /// Parameters whose gradient is zero throughout.
    pub all_zero: Vec<String>,
}

impl Audit {
    /// True where every parameter has a gradient and all are finite.
    pub fn is_ok(&self) -> bool {
        self.missing.is_empty() && self.non_finite.is_empty()
    }
}

impl std::fmt::Display for Audit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} parameters", self.trained)?;
        for (what, names) in [
            ("without a gradient", &self.missing),
            ("with a gradient that is not finite", &self.non_finite),
            ("with a gradient that is all zero", &self.all_zero),
        ] {
            if !names.is_empty() {
                write!(f, "; {} {what}: {}", names.len(), names.join(", "))?;
            }
        }
        Ok(())
    }
}

/// Looks at the gradient of every parameter: missing, non-finite, or all zero. It reads all of them, so it is for the
/// first step and for when something is odd; what is missing, [`MaskSub::backward`](crate::MaskSub::backward) checks in
/// every step.
///
/// # Errors
/// When a gradient cannot be read.
pub fn audit(grads: &GradStore, params: &Params) -> Result<Audit> {
    let mut audit = Audit {
        trained: params.len(),
        missing: missing(grads, params).map(str::to_string).collect(),
        ..Audit::default()
    };
    for (name, var) in params.iter() {
        let Some(grad) = grads.get_id(var.id()) else { continue };
        let values = ops::on_host(grad)?;
        if values.iter().any(|v| !v.is_finite()) {
            audit.non_finite.push(name.to_string());
        } else if values.iter().all(|&v| v == 0.0) {
            audit.all_zero.push(name.to_string());
        }
    }
    Ok(audit)
}
