//! The loss of the sub-branch: agree with the main branch.

use candle_core::Tensor;

use super::{binary_cross_entropy, check_classes, log_softmax, scale, sigmoid, soft_cross_entropy, upcast};
use crate::check;
use crate::error::{Error, Result};

/// Distance of the sub-branch's prediction from the main branch's own, which is detached here: nothing flows into it
/// (MaskSub, arXiv 2306.11339, equation 3).
///
/// With a temperature T both logits are divided by T and the loss is multiplied by T², which keeps the size of its
/// gradient (Hinton et al., arXiv 1503.02531). bf16 and f16 are computed in f32. Value and gradient are finite for all
/// finite logits.
///
/// The default is the soft cross-entropy. The weight of the sub-branch is not in here but
/// [`MaskSub`](crate::MaskSub)'s.
///
/// ```
/// use candle_core::{Device, Tensor};
/// use masksub::SubModelLoss;
/// let main = Tensor::new(&[[2f32, 0., -1.]], &Device::Cpu)?;
/// let sub = Tensor::new(&[[1f32, 0.5, -1.]], &Device::Cpu)?;
/// let loss = SubModelLoss::kl().with_temperature(2.)?.forward(&sub, &main)?;
/// assert!(loss.to_scalar::<f32>()? > 0.);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SubModelLoss {
    kind: Kind,
    temperature: f64,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    SoftCrossEntropy,
    Kl,
    Bce,
}

impl Default for SubModelLoss {
    fn default() -> Self {
        Self::soft_cross_entropy()
    }
}

impl SubModelLoss {
    /// Cross-entropy between softmax(main) and softmax(sub), the mean over the batch.
    pub fn soft_cross_entropy() -> Self {
        Self {
            kind: Kind::SoftCrossEntropy,
            temperature: 1.0,
        }
    }

    /// KL(softmax(main) || softmax(sub)), the mean over the batch: the soft cross-entropy less the target's entropy,
    /// a constant, so it has the same gradient and is 0 where both agree.
    pub fn kl() -> Self {
        Self {
            kind: Kind::Kl,
            ..Self::soft_cross_entropy()
        }
    }

    /// Binary cross-entropy between sigmoid(main) and sigmoid(sub), the mean over batch and classes: for main branches
    /// that are trained with BCE.
    pub fn bce() -> Self {
        Self {
            kind: Kind::Bce,
            ..Self::soft_cross_entropy()
        }
    }

    /// Divides both logits by `temperature` and multiplies the loss by its square.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] when `temperature` is not positive and finite.
    pub fn with_temperature(self, temperature: f64) -> Result<Self> {
        let temperature = check::positive("temperature", temperature)?;
        Ok(Self { temperature, ..self })
    }

    /// The loss of `sub_logits` [B, C] against `main_logits` [B, C], a scalar. The gradient flows into `sub_logits`
    /// only.
    ///
    /// # Errors
    /// [`Error::Shape`] when the logits are not [B, C] with B, C > 0 or differ in shape, and for a single class, over
    /// which a softmax is constant, unless the loss is [`bce`](Self::bce); [`Error::DType`] when they are no floats.
    pub fn forward(&self, sub_logits: &Tensor, main_logits: &Tensor) -> candle_core::Result<Tensor> {
        let sub = upcast("sub_logits", sub_logits)?;
        let main = upcast("main_logits", &main_logits.detach())?.to_dtype(sub.dtype())?;
        if sub.dims() != main.dims() {
            let expected = format!("{:?} like the main logits", main.dims());
            return Err(Error::shape("sub_logits", sub.dims(), expected).into());
        }
        if self.kind != Kind::Bce {
            check_classes("main_logits", &main, "SubModelLoss::bce()")?;
        }
        let temperature = self.temperature;
        Ok(match self.kind {
            Kind::SoftCrossEntropy => {
                let target = log_softmax(&main, temperature)?.exp()?;
                soft_cross_entropy(&sub, &target, None, temperature)?
            }
            Kind::Kl => {
                let log_target = log_softmax(&main, temperature)?;
                soft_cross_entropy(&sub, &log_target.exp()?, Some(&log_target), temperature)?
            }
            Kind::Bce => {
                let target = sigmoid(&scale(&main, temperature.recip())?)?;
                binary_cross_entropy(&sub, &target, temperature)?
            }
        })
    }
}
