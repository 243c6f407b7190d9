//! The loss of the sub-branch: agree with the main branch.

use candle_core::{Tensor, D};

use super::rows::{kept_rows, Positions, Rows};
use super::{
    binary_cross_entropy, check_classes, log_softmax, scale, sigmoid, soft_cross_entropy, symmetric_kl, SubLoss,
};
use crate::check;
use crate::error::{Error, Result};
use crate::mask::Mask;
use crate::ops;
use crate::outputs::Outputs;

/// Distance of the sub-branch's prediction from the main branch's own, which is detached here: nothing flows into it
/// (MaskSub, arXiv 2306.11339, equation 3).
///
/// With a temperature T both logits are divided by T and the loss is multiplied by T², which keeps the size of its
/// gradient (Hinton et al., arXiv 1503.02531). bf16 and f16 are computed in f32. Value and gradient are finite for all
/// finite logits.
///
/// The default is the soft cross-entropy, for main branches that are trained with cross-entropy; one that is trained with
/// binary cross-entropy, as DeiT-III's from scratch, takes [`bce`](Self::bce), for its logits are no softmax's. The weight
/// of the sub-branch is not in here but [`MaskSub`](crate::MaskSub)'s.
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
///
/// Logits are `[B, C]`, or have one prediction for each position, `[B, N, C]` or (with
/// [`with_class_dim(1)`](Self::with_class_dim)) `[B, C, H, W]`; the loss is the mean over all predictions, or over those
/// [where the mask keeps](Self::where_kept) a position. Of a model with several heads it is the sum over them.
///
/// ```
/// use candle_core::{DType, Device, Tensor};
/// use masksub::{Grid, Mask, SubLoss, SubModelLoss};
/// # let device = Device::Cpu;
/// // Token classification under `DropToken`: 4 positions in the main branch, the 2 that are kept in the sub-branch.
/// let (main, sub) = (Tensor::zeros((1, 4, 5), DType::F32, &device)?, Tensor::ones((1, 2, 5), DType::F32, &device)?);
/// let mask = Mask::from_keep_indices(Grid::new(1, 4), &[[1, 3]])?;
/// let loss = SubModelLoss::kl().where_kept().compare(&sub, &main, Some(&mask))?;
/// // Segmentation.
/// let pixels = Tensor::zeros((1, 5, 8, 8), DType::F32, &device)?;
/// let loss = SubModelLoss::kl().with_class_dim(1)?.forward(&pixels, &pixels)?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SubModelLoss {
    kind: Kind,
    temperature: f64,
    /// The last one, unless told otherwise.
    class_dim: Option<usize>,
    kept_only: bool,
    confidence: Option<f64>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    SoftCrossEntropy,
    Kl,
    SymmetricKl,
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
            class_dim: None,
            kept_only: false,
            confidence: None,
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

    /// Half the sum of KL(softmax(main) || softmax(sub)) and KL(softmax(sub) || softmax(main)), the mean over the batch:
    /// R-Drop's distance (Wu et al., arXiv 2106.14448, equation 2). The gradient flows into the sub logits through both
    /// terms; with [`Mutual`](crate::Mutual) it flows into the main logits as well, as R-Drop's does.
    pub fn symmetric_kl() -> Self {
        Self {
            kind: Kind::SymmetricKl,
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

    /// Has the classes in another dimension than the last: 1 for `[B, C, H, W]`.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] when `class_dim` is 0, which is the batch.
    pub fn with_class_dim(self, class_dim: usize) -> Result<Self> {
        let class_dim = Some(check::at_least_one("class_dim", class_dim)?);
        Ok(Self { class_dim, ..self })
    }

    /// Compares predictions of kept positions only, for models that have one for each. Logits of either side have all
    /// positions, `[B, L, C]` or `[B, height, width, C]` like the mask's grid, or the kept ones alone, `[B, K, C]`, as a
    /// [`DropToken`](crate::DropToken) sub-branch predicts them. Sides that are multiples of the grid's are pixels, of which
    /// each belongs to the position in which it lies.
    ///
    /// A mask with K = L (of [`Sequences`](crate::Sequences) of which one keeps all) leaves open which of these `[B, L, C]`
    /// is; unless it keeps all in their order, where both are one, it is refused with [`Error::InvalidArgument`].
    pub fn where_kept(self) -> Self {
        Self {
            kept_only: true,
            ..self
        }
    }

    /// Leaves out predictions whose target is not sure: those whose largest probability, at the temperature, is below
    /// `confidence`. The mean still counts them (FixMatch, arXiv 2001.07685, equation 4).
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] when `confidence` is NaN or outside [0, 1].
    pub fn with_confidence(self, confidence: f64) -> Result<Self> {
        let confidence = Some(check::share("confidence", confidence)?);
        Ok(Self { confidence, ..self })
    }

    /// The loss of `sub_logits` against `main_logits`, `[B, C]` or `[B, .., C]`, a scalar. The gradient flows into
    /// `sub_logits` only.
    ///
    /// # Errors
    /// [`Error::Shape`] when logits are empty or differ in shape, and for a single class, over which a softmax is
    /// constant, unless the loss is [`bce`](Self::bce); [`Error::DType`] when they are no floats;
    /// [`Error::InvalidArgument`] when they are to be compared [where a mask keeps](Self::where_kept) them:
    /// [`compare`](SubLoss::compare) takes the mask.
    pub fn forward(&self, sub_logits: &Tensor, main_logits: &Tensor) -> candle_core::Result<Tensor> {
        self.forward_with(sub_logits, main_logits, None, None)
    }

    /// [`forward`](Self::forward) with the mask of the sub-branch and a weight for each sample, `[B]`: their predictions'
    /// losses are multiplied by it, and the mean is still over all. For
    /// [`MaskSub::backward_with`](crate::MaskSub::backward_with).
    ///
    /// ```
    /// use candle_core::{Device, Tensor};
    /// use masksub::SubModelLoss;
    /// let (sub, main) = (Tensor::new(&[[2f32, 0.], [0., 1.]], &Device::Cpu)?, Tensor::new(&[[1f32, 0.], [5., 1.]], &Device::Cpu)?);
    /// let weights = Tensor::new(&[1f32, 0.], &Device::Cpu)?;
    /// let loss = SubModelLoss::kl().forward_with(&sub, &main, None, Some(&weights))?;
    /// let first = SubModelLoss::kl().forward(&sub.narrow(0, 0, 1)?, &main.narrow(0, 0, 1)?)?;
    /// assert!((loss.to_scalar::<f32>()? - first.to_scalar::<f32>()? / 2.).abs() < 1e-6);
    /// # Ok::<(), candle_core::Error>(())
    /// ```
    ///
    /// # Errors
    /// As [`forward`](Self::forward); [`Error::Shape`] when there are not B weights, [`Error::InvalidArgument`] when one is
    /// below 0 or not finite.
    pub fn forward_with(
        &self,
        sub_logits: &Tensor,
        main_logits: &Tensor,
        mask: Option<&Mask>,
        sample_weights: Option<&Tensor>,
    ) -> candle_core::Result<Tensor> {
        let kept_by = match (self.kept_only, mask) {
            (false, _) => None,
            (true, Some(mask)) => Some(mask),
            (true, None) => {
                let value = "none, for a loss of kept positions";
                return Err(Error::invalid("mask", value, "that of a sub-branch that masks").into());
            }
        };
        let detached = main_logits.detach();
        let sub = Positions::new("sub_logits", sub_logits, self.class_dim)?;
        let main = Positions::new("main_logits", &detached, self.class_dim)?;
        let [sub, main] = match kept_by {
            Some(mask) => kept_rows(&sub, &main, mask)?,
            None => [sub.rows()?, main.rows()?],
        };
        if (&sub.counts, sub.logits.dims()) != (&main.counts, main.logits.dims())
            || (kept_by.is_none() && sub_logits.dims() != main_logits.dims())
        {
            let mut expected = format!("{:?} like the main logits", main_logits.dims());
            if mask.is_some_and(|mask| sub_logits.dims().get(1) == Some(&mask.num_keep())) {
                expected += "; logits of kept positions are compared by SubModelLoss::where_kept()";
            }
            return Err(Error::shape("sub_logits", sub_logits.dims(), expected).into());
        }
        let classes = sub.logits.dim(D::Minus1)?;
        if self.kind != Kind::Bce {
            let (dims, instead) = (main_logits.dims(), "SubModelLoss::bce()");
            check_classes("main_logits", dims, classes, "[B, .., C]", instead)?;
        }
        let weights = sample_weights.map(|weights| row_weights(weights, &sub)).transpose()?;
        let main = main.logits.to_dtype(sub.logits.dtype())?;
        Ok(self.of_rows(&sub.logits, &main, weights)?)
    }

    /// The loss of rows `[R, C]`, each with a weight where there are `weights` `[R, 1]`.
    fn of_rows(&self, sub: &Tensor, main: &Tensor, weights: Option<Tensor>) -> Result<Tensor> {
        let (rows, classes) = sub.dims2()?;
        let (temperature, count) = (self.temperature, rows as f64);
        if self.kind == Kind::Bce {
            let target = sigmoid(&scale(main, temperature.recip())?)?;
            let weights = self.confident(&target, weights)?;
            let count = count * classes as f64;
            return binary_cross_entropy(sub, &target, weights.as_ref(), temperature, count);
        }
        let log_target = log_softmax(main, temperature)?;
        let target = log_target.exp()?;
        let weights = self.confident(&target, weights)?;
        if self.kind == Kind::SymmetricKl {
            return symmetric_kl(sub, &log_target, weights.as_ref(), temperature, count);
        }
        let target = match &weights {
            Some(weights) => target.broadcast_mul(weights)?,
            None => target,
        };
        let offset = (self.kind == Kind::Kl).then_some(&log_target);
        soft_cross_entropy(sub, &target, offset, temperature, count)
    }

    /// The weights, 0 where the target's largest probability is too small.
    fn confident(&self, target: &Tensor, weights: Option<Tensor>) -> Result<Option<Tensor>> {
        let Some(confidence) = self.confidence else {
            return Ok(weights);
        };
        let sure = target
            .max_keepdim(D::Minus1)?
            .ge(confidence)?
            .to_dtype(target.dtype())?;
        Ok(Some(match weights {
            Some(weights) => (weights * sure)?,
            None => sure,
        }))
    }
}

/// Of several tensors the sum of their losses.
impl<O: Outputs> SubLoss<O> for SubModelLoss {
    fn compare(&self, sub: &O, target: &O, mask: Option<&Mask>) -> candle_core::Result<Tensor> {
        let (sub, target) = (sub.tensors(), target.tensors());
        if sub.len() != target.len() || sub.is_empty() {
            let value = format!("{} tensors", sub.len());
            let allowed = format!("as many as the target has, {}, and at least 1", target.len());
            return Err(Error::invalid("sub", value, allowed).into());
        }
        let loss = |at: usize| self.forward_with(sub[at], target[at], mask, None);
        (1..sub.len()).try_fold(loss(0)?, |sum, at| sum + loss(at)?)
    }
}

/// A weight for each of the `rows`, `[R, 1]`, from one for each sample.
fn row_weights(weights: &Tensor, rows: &Rows) -> Result<Tensor> {
    const ARGUMENT: &str = "sample_weights";
    check::vector(ARGUMENT, weights, rows.counts.len())?;
    check::float(ARGUMENT, weights)?;
    let weights = weights.detach().to_dtype(rows.logits.dtype())?;
    for weight in ops::on_host(&weights)? {
        check::non_negative(ARGUMENT, weight)?;
    }
    let samples = (0u32..).zip(&rows.counts);
    let samples = samples.flat_map(|(sample, &count)| std::iter::repeat_n(sample, count));
    let samples = Tensor::from_iter(samples, weights.device())?;
    Ok(weights.contiguous()?.index_select(&samples, 0)?.unsqueeze(1)?)
}
