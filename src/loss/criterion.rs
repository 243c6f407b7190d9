//! The usual losses of the main branch.

use candle_core::{DType, Tensor, D};

use super::{binary_cross_entropy, check_classes, soft_cross_entropy, upcast};
use crate::check;
use crate::error::{Error, Result};

/// A loss of logits (not probabilities) against labels: cross-entropy or binary cross-entropy.
///
/// Targets are class indices (`[B]`, any integer dtype) or probabilities (`[B, C]`, any float dtype), told apart by dtype
/// and rank. bf16 and f16 logits are computed in f32. Value and gradient are finite for all finite logits.
///
/// ```
/// use candle_core::{Device, Tensor};
/// use masksub::Criterion;
/// let logits = Tensor::new(&[[2f32, 0., -1.], [0., 1., 0.]], &Device::Cpu)?;
/// let classes = Tensor::new(&[0u32, 1], &Device::Cpu)?;
/// let loss = Criterion::cross_entropy().with_label_smoothing(0.1)?.forward(&logits, &classes)?;
/// let multi_hot = Tensor::new(&[[1f32, 0., 1.], [0., 1., 0.]], &Device::Cpu)?;
/// let bce = Criterion::bce_with_logits().forward(&logits, &multi_hot)?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Criterion {
    kind: Kind,
    label_smoothing: f64,
    target_threshold: Option<f64>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    CrossEntropy,
    BceWithLogits,
}

impl Criterion {
    /// Cross-entropy with softmax, the mean over the batch. `torch.nn.CrossEntropyLoss`, for class indices and
    /// probabilities alike.
    pub fn cross_entropy() -> Self {
        Self {
            kind: Kind::CrossEntropy,
            label_smoothing: 0.0,
            target_threshold: None,
        }
    }

    /// Binary cross-entropy of each class by itself, the mean over batch and classes: `torch.nn.BCEWithLogitsLoss`.
    /// Class indices stand for one-hot targets. The sub-branch's loss beside it is [`SubModelLoss::bce`].
    ///
    /// [`SubModelLoss::bce`]: crate::SubModelLoss::bce
    pub fn bce_with_logits() -> Self {
        Self {
            kind: Kind::BceWithLogits,
            ..Self::cross_entropy()
        }
    }

    /// Replaces targets t by (1 - s) t + s / C.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] when `label_smoothing` is NaN or outside [0, 1].
    pub fn with_label_smoothing(self, label_smoothing: f64) -> Result<Self> {
        check::share("label_smoothing", label_smoothing)?;
        Ok(Self {
            label_smoothing,
            ..self
        })
    }

    /// For binary cross-entropy: makes targets 1 where they are above `target_threshold` and 0 elsewhere, after
    /// smoothing. At 0 this is what the DeiT-III recipe does with mixed labels (arXiv 2204.07118): every class that was
    /// mixed in counts fully.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] when `target_threshold` is NaN or outside [0, 1), and for cross-entropy, whose
    /// targets are one distribution.
    pub fn with_target_threshold(self, target_threshold: f64) -> Result<Self> {
        if self.kind == Kind::CrossEntropy {
            let value = format!("{target_threshold} for cross-entropy");
            return Err(Error::invalid(
                "target_threshold",
                value,
                "for binary cross-entropy only",
            ));
        }
        check::rate("target_threshold", target_threshold)?;
        Ok(Self {
            target_threshold: Some(target_threshold),
            ..self
        })
    }

    /// The loss of `logits` `[B, C]` against `targets`, a scalar.
    ///
    /// # Errors
    /// [`Error::Shape`] when logits are not `[B, C]` with B, C > 0 (for cross-entropy C > 1, as a softmax over one class
    /// is constant) or targets do not agree with them; [`Error::InvalidArgument`] when a class index is not below C;
    /// [`Error::DType`] for logits that are no floats.
    pub fn forward(&self, logits: &Tensor, targets: &Tensor) -> candle_core::Result<Tensor> {
        if logits.rank() != 2 || logits.elem_count() == 0 {
            let expected = "[B, C] with B > 0 and C > 0";
            return Err(Error::shape("logits", logits.dims(), expected).into());
        }
        let logits = upcast("logits", logits)?;
        let (batch, classes) = logits.dims2()?;
        if self.kind == Kind::CrossEntropy {
            let instead = "Criterion::bce_with_logits()";
            check_classes("logits", logits.dims(), classes, "[B, C]", instead)?;
        }
        let targets = self.targets(&logits, targets)?;
        Ok(match self.kind {
            Kind::CrossEntropy => soft_cross_entropy(&logits, &targets, None, 1.0, batch as f64)?,
            Kind::BceWithLogits => binary_cross_entropy(&logits, &targets, None, 1.0, (batch * classes) as f64)?,
        })
    }

    /// Targets as probabilities `[B, C]`, smoothed and thresholded.
    fn targets(&self, logits: &Tensor, targets: &Tensor) -> Result<Tensor> {
        let classes = logits.dims()[1];
        let probabilities = if targets.dtype().is_int() {
            one_hot(logits, targets)?
        } else if targets.dims() == logits.dims() {
            targets.detach().to_dtype(logits.dtype())?
        } else {
            let expected = format!("{:?} like the logits, or class indices [B]", logits.dims());
            return Err(Error::shape("targets", targets.dims(), expected));
        };
        let smoothed = match self.label_smoothing {
            0.0 => probabilities,
            s => probabilities.affine(1.0 - s, s / classes as f64)?,
        };
        match self.target_threshold {
            None => Ok(smoothed),
            Some(threshold) => Ok(smoothed.gt(threshold)?.to_dtype(logits.dtype())?),
        }
    }
}

fn one_hot(logits: &Tensor, classes: &Tensor) -> Result<Tensor> {
    let (batch, num_classes) = (logits.dims()[0], logits.dims()[1]);
    if classes.dims() != [batch] {
        let expected = format!("[{batch}] class indices, or probabilities {:?}", logits.dims());
        return Err(Error::shape("targets", classes.dims(), expected));
    }
    let indices = classes.to_dtype(DType::I64)?;
    let on_host = indices.to_vec1::<i64>()?;
    if let Some(class) = on_host.iter().find(|&&class| class < 0 || class >= num_classes as i64) {
        return Err(Error::invalid(
            "targets",
            format!("class {class}"),
            format!("within 0..{num_classes}"),
        ));
    }
    let all = Tensor::arange(0i64, num_classes as i64, logits.device())?;
    let hot = indices.unsqueeze(D::Minus1)?.broadcast_eq(&all)?;
    Ok(hot.to_dtype(logits.dtype())?)
}
