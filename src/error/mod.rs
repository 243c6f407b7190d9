//! The crate's error type.

mod candle;
mod fault;
mod names;
#[cfg(test)]
mod tests;

pub(crate) use candle::unsupported_bf16;
pub use candle::CandleError;
pub(crate) use fault::Fault;
use names::plain;

/// Everything that can go wrong, each case naming the argument or tensor concerned, what it was, and what it may be.
///
/// Traits that you implement and closures that you pass return `candle_core::Result`. Return an `Error` there with `?` or
/// `into()`; `Error::from(candle_error)` finds it again, below any number of backtraces, contexts and paths (which are
/// dropped then). `candle_core::Error::wrap` keeps an error's text and loses its type.
///
/// ```
/// use masksub::Error;
/// let typed = Error::InvalidArgument { argument: "mask_ratio", value: "1.5".into(), allowed: "below 1".into() };
/// let as_candle: candle_core::Error = typed.into();
/// let back = Error::from(as_candle.context("while setting up"));
/// assert!(matches!(back, Error::InvalidArgument { argument: "mask_ratio", .. }));
/// ```
///
/// `Display` prints the fault, [`source`](std::error::Error::source) is its cause where that is another error, and `Debug`
/// prints both in one line, as `main() -> Result` does.
///
/// ```
/// use std::error::Error as _;
/// let error = masksub::Weights::from_safetensors("absent.safetensors").unwrap_err();
/// assert_eq!(error.to_string(), "absent.safetensors: it cannot be read");
/// let cause = error.source().and_then(|cause| cause.downcast_ref::<std::io::Error>());
/// assert_eq!(cause.map(std::io::Error::kind), Some(std::io::ErrorKind::NotFound));
/// assert!(format!("{error:?}").starts_with("absent.safetensors: it cannot be read: "));
/// ```
#[derive(thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// An argument outside its allowed range.
    #[error("{argument} is {}, but must be {}", plain(.value), plain(.allowed))]
    InvalidArgument {
        /// The argument's name, as in the function's signature or the configuration.
        argument: &'static str,
        /// The value that was given.
        value: String,
        /// The values that may be given.
        allowed: String,
    },

    /// A tensor whose shape does not fit.
    #[error("{argument} has shape {got:?}, but must be {}", plain(.expected))]
    Shape {
        /// The argument's name.
        argument: &'static str,
        /// The shape that was given.
        got: Vec<usize>,
        /// The shape that is needed, in words or the field's letters.
        expected: String,
    },

    /// A tensor whose dtype does not fit.
    #[error("{argument} has dtype {got:?}, but must be {}", plain(.expected))]
    DType {
        /// The argument's name.
        argument: &'static str,
        /// The dtype that was given.
        got: candle_core::DType,
        /// The values that may be given.
        expected: String,
    },

    /// Trained parameters that the backward pass did not reach. The loss may still fall: what is cut off simply never
    /// learns. The remedy: layers of [`nn`](crate::nn) and [`ops`](crate::ops) in the place of candle's, or
    /// [`Params::allow_missing`](crate::Params::allow_missing).
    #[error(
        "no gradient reached {} of {trained} trained parameters: a layer between them and the loss has no backward. candle_nn's \
         fused layer_norm, rms_norm, softmax_last_dim, rotary embeddings and attention cut gradients silently: compile the \
         model's source with `use masksub::nn as candle_nn;` at its top{}. Parameters that really are unused can be exempted \
         with Params::allow_missing. Without a gradient: {}",
        .names.len(), names::instead(.names), names::grouped(.names)
    )]
    MissingGradients {
        /// Names of the parameters without a gradient, sorted.
        names: Vec<String>,
        /// Number of parameters that are trained in all.
        trained: usize,
    },

    /// A gradient with an element that is infinite or NaN.
    #[error("the gradient of {} is not finite", plain(.name))]
    NonFiniteGradient {
        /// Name of the first such parameter, in the order in which parameters were given.
        name: String,
    },

    /// A loss that is infinite or NaN. Weights are unchanged, and so are batch statistics that models stage in
    /// their [`Pass`](crate::Pass); candle's own batch norm has changed its in the forward pass.
    #[error("the {branch} loss is {value}, but must be finite; no weight was changed")]
    NonFiniteLoss {
        /// `main` or `sub`.
        branch: &'static str,
        /// The loss.
        value: f64,
    },

    /// A loss that is no scalar: candle's backward would sum over its elements and so train with a larger step.
    #[error("the {branch} loss has shape {got:?}, but must be a scalar: take its mean or sum")]
    LossNotScalar {
        /// `main` or `sub`.
        branch: &'static str,
        /// The loss's shape.
        got: Vec<usize>,
    },

    /// A loss that does not depend on any variable through differentiable operations: compute it from the logits that
    /// the closure is given.
    #[error(
        "the {branch} loss is detached from the model: no gradient can flow back from it. It was computed from detached \
         logits, by an operation without a backward, or by a model without variables"
    )]
    LossDetached {
        /// `main` or `sub`.
        branch: &'static str,
    },

    /// A sub-branch that changes something the model does not have, so that sub and main branch would be the same:
    /// [`DropSub`](crate::DropSub) or [`PathSub`](crate::PathSub) on a model that never asks its pass.
    #[error(
        "the model never asked its Pass for {what}, so the {branch} sub-branch would equal the main branch: \
         use a model that does, or another sub-branch"
    )]
    BranchWithoutEffect {
        /// The sub-branch, as its type is called.
        branch: &'static str,
        /// The thing that it changes.
        what: &'static str,
    },

    /// A training pass that needs random draws was started without a key to draw from, by `forward_t(xs, true)`: call
    /// [`MaskSub::backward`](crate::MaskSub::backward), or [`Forward::forward_pass`](crate::Forward::forward_pass) with
    /// [`Pass::train`](crate::Pass::train).
    #[error(
        "{what} needs random draws in training, and forward_t has no key to draw from: \
         call MaskSub::backward, forward_pair or Forward::forward_pass with Pass::train(key), or run it in Pass::scope"
    )]
    DrawsWithoutKey {
        /// The draw that was asked for.
        what: &'static str,
    },

    /// A weight that the file does not have.
    #[error("weight {} is missing from {}", plain(.path), plain(.file))]
    MissingWeight {
        /// The weight's path.
        path: String,
        /// The file, or other source, that was searched.
        file: String,
    },

    /// A weight whose shape in the file, or in the model that shares it, is another one.
    #[error("weight {} has shape {got:?} in {}, but the model needs {expected:?}", plain(.path), plain(.source_name))]
    MisshapenWeight {
        /// The weight's path.
        path: String,
        /// Its shape there.
        got: Vec<usize>,
        /// The shape the model needs.
        expected: Vec<usize>,
        /// The file, or other source, that it was found in.
        source_name: String,
    },

    /// A model and a file that do not have the same weights.
    #[error("the model and {} do not have the same weights: {}", plain(.file), differences(.missing, .left_over))]
    WeightsDiffer {
        /// The file.
        file: String,
        /// The model's names of the weights that the file does not have, sorted.
        missing: Vec<String>,
        /// The file's names of what the model does not have, sorted.
        left_over: Vec<String>,
    },

    /// A PyTorch file that holds code, or an object that code would make, where tensors should be. It is refused:
    /// nothing of it was imported or executed.
    #[error(
        "{} holds code where weights should be: {}. Nothing of it was executed; in PyTorch, save the model's state_dict() \
         instead",
        plain(.path), plain(.what)
    )]
    CodeInCheckpoint {
        /// The file.
        path: String,
        /// The code that was found.
        what: String,
    },

    /// A checkpoint of no format that is known here.
    #[error("{} is of no known format ({known}): its weights are called {}", plain(.path), listed(.names))]
    UnknownFormat {
        /// The file.
        path: String,
        /// Names of its weights, sorted.
        names: Vec<String>,
        /// The formats that are known.
        known: String,
    },

    /// A checkpoint of a model that is not among the crate's.
    #[error(
        "{} holds {model}, which is not among the crate's models (ViT, Swin, ConvNeXt, ResNet): write it for candle-nn, and \
         give MaskSub that (its weights load by Weights::from_safetensors)",
        plain(.path)
    )]
    OtherModel {
        /// The file.
        path: String,
        /// The model, as its names tell.
        model: &'static str,
    },

    /// A checkpoint of another architecture than the model's.
    #[error(
        "{} holds the weights of a {family} (format {format}), but the model asks for {}, a weight of a {other}",
        plain(.path), plain(.weight)
    )]
    OtherArchitecture {
        /// The file.
        path: String,
        /// Its architecture.
        family: &'static str,
        /// Its format.
        format: &'static str,
        /// The weight that the model asked for.
        weight: String,
        /// The architecture that has such a weight.
        other: &'static str,
    },

    /// A file that could not be read or written.
    #[error("{}: {}", plain(.path), plain(.message))]
    File {
        /// The file.
        path: String,
        /// The fault, less its cause.
        message: String,
        /// The cause: an error of the system, of candle or of the format's reader. None where the file is at fault.
        source: Option<Box<dyn std::error::Error + Send + Sync>>,
    },

    /// candle cannot differentiate an operation of the model.
    #[error("the backward pass of the {branch} branch stopped: {reason}. {remedy}")]
    BackwardUnsupported {
        /// `main` or `sub`.
        branch: &'static str,
        /// candle's words.
        reason: String,
        /// The way out.
        remedy: &'static str,
    },

    /// Another of the [ranks](crate::train::distributed) that make a step together could not, and so this one has not.
    #[error("rank {rank}: {}", plain(.message))]
    OtherRank {
        /// The rank.
        rank: usize,
        /// Its error.
        message: String,
    },

    /// Any other error of candle.
    #[error(transparent)]
    Candle(CandleError),
}

/// `std::result::Result` with the crate's [`Error`].
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    pub(crate) fn invalid(argument: &'static str, value: impl ToString, allowed: impl Into<String>) -> Self {
        Self::InvalidArgument {
            argument,
            value: value.to_string(),
            allowed: allowed.into(),
        }
    }

    pub(crate) fn shape(argument: &'static str, got: &[usize], expected: impl Into<String>) -> Self {
        Self::Shape {
            argument,
            got: got.to_vec(),
            expected: expected.into(),
        }
    }
}

// A sentence as Display's, with its causes: candle's wrappers and `main() -> Result` print errors with Debug.
impl std::fmt::Debug for Error {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        with_causes(self, f)
    }
}

/// An error in one line, with its causes.
fn with_causes(error: &dyn std::error::Error, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
    write!(f, "{error}")?;
    std::iter::successors(error.source(), |cause| cause.source()).try_for_each(|cause| write!(f, ": {cause}"))
}

/// Names that a file lacks and that are left over of it, in one clause.
fn differences(missing: &[String], left_over: &[String]) -> String {
    let clauses = [
        ("the file does not have", missing),
        ("the model does not have", left_over),
    ];
    let clauses = clauses.iter().filter(|(_, names)| !names.is_empty());
    let clauses: Vec<_> = clauses
        .map(|(what, names)| format!("{what} {}", listed(names)))
        .collect();
    clauses.join("; ")
}

/// Names in a sentence: all of a few, of many the first ones.
pub(crate) fn listed(names: &[impl AsRef<str>]) -> String {
    const MOST: usize = 12;
    let first = names
        .iter()
        .take(MOST)
        .map(|name| plain(name.as_ref()))
        .collect::<Vec<_>>()
        .join(", ");
    match names.len().saturating_sub(MOST) {
        0 => first,
        others => format!("{first} and {others} more"),
    }
}
