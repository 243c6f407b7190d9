//! The training step: main branch forward and backward, then the sub-branch.

use candle_core::backprop::GradStore;
use candle_core::Tensor;

use super::difficulty::{self, Difficulty};
use super::{check_batch, MaskSub};
use crate::branch::SubBranch;
use crate::error::Result;
use crate::grad;
use crate::key::StepKey;
use crate::loss::SubLoss;
use crate::mask::Mask;
use crate::ops::Gradients;
use crate::outputs::Outputs;
use crate::params::Params;
use crate::pass::Pass;
use crate::target::SubTarget;

/// Result of a training step. Everything is detached.
#[derive(Debug)]
pub struct Step<O = Tensor> {
    /// The gradients of `(1 - w) * main + w * sub` with respect to the trained variables.
    pub grads: GradStore,
    /// The main loss, unweighted.
    pub main_loss: f64,
    /// The sub-branch's loss, unweighted: its distance from its target; none where its weight is 0.
    pub sub_loss: Option<f64>,
    /// The main logits: `[B, classes]`, or whatever the model has.
    pub main_logits: O,
    /// Positions that the sub-branch kept, where it masks.
    pub mask: Option<Mask>,
    /// Difficulty of the sub-branch's task, where it was asked for ([`MaskSub::with_difficulty`]) and both halves have a
    /// gradient: at a weight above 0 and below 1.
    pub difficulty: Option<Difficulty>,
}

impl<M, S: SubBranch<M, O>, O: Outputs, L: SubLoss<O>, T: SubTarget<O>> MaskSub<M, S, O, L, T> {
    /// One training step's gradients: the main branch forward and backward, *then* the sub-branch, and the sum of both.
    ///
    /// The two halves never hold their activations at the same time, which keeps the memory of plain training. The
    /// result is that of a backward through `(1 - w) * main_loss(main) + w * sub_loss(sub, detached target)`, where the
    /// target is main unless told otherwise ([`with_target`](Self::with_target)).
    ///
    /// `xs` `[B, ...]` is the batch, `key` what masks, dropout and drop path are drawn from; `main_loss` is any scalar
    /// loss of the main logits `[B, classes]`: mixup targets, distillation, whatever a trainer has. It is called once, but
    /// for [`Mutual`](crate::Mutual) targets, under which both branches learn from the labels. Nothing is updated but
    /// batch statistics: of models that stage them in their [`Pass`], and of the batch norms of [`nn`](crate::nn), only
    /// when both losses are finite and every gradient is there; of candle's batch norms in each forward pass. Any
    /// optimizer steps on `grads`.
    ///
    /// # Errors
    /// * [`Error::Shape`] for an empty batch;
    /// * [`Error::LossNotScalar`], [`Error::LossDetached`], [`Error::NonFiniteLoss`], naming the branch;
    /// * [`Error::MissingGradients`] when trained parameters have none, unless the model is
    ///   [`unchecked`](Self::unchecked);
    /// * [`Error::BackwardUnsupported`] when candle cannot differentiate an operation;
    /// * [`Error::InvalidArgument`] when it was made with no variable;
    /// * those of model, branch, target and losses.
    ///
    /// [`Error::Shape`]: crate::Error::Shape
    /// [`Error::LossNotScalar`]: crate::Error::LossNotScalar
    /// [`Error::LossDetached`]: crate::Error::LossDetached
    /// [`Error::NonFiniteLoss`]: crate::Error::NonFiniteLoss
    /// [`Error::MissingGradients`]: crate::Error::MissingGradients
    /// [`Error::BackwardUnsupported`]: crate::Error::BackwardUnsupported
    /// [`Error::InvalidArgument`]: crate::Error::InvalidArgument
    pub fn backward(
        &self,
        xs: &Tensor,
        key: StepKey,
        main_loss: impl FnMut(&O) -> candle_core::Result<Tensor>,
    ) -> Result<Step<O>> {
        self.backward_with(xs, key, main_loss, &self.sub_loss)
    }

    /// [`backward`](Self::backward) with a loss of this step's own for the sub-branch: one that weighs the samples of the
    /// batch, say, or looks at their labels.
    ///
    /// ```
    /// use candle_core::Tensor;
    /// use candle_nn::loss::cross_entropy;
    /// use masksub::{Mask, MaskSub, Seed, SubBranch, SubModelLoss};
    /// # fn of<M, S: SubBranch<M>>(model: MaskSub<M, S>, images: &Tensor, labels: &Tensor, weights: &Tensor) -> masksub::Result<()> {
    /// let loss = SubModelLoss::kl();
    /// let weighted =
    ///     |sub: &Tensor, target: &Tensor, mask: Option<&Mask>| loss.forward_with(sub, target, mask, Some(weights));
    /// let step = model.backward_with(images, Seed::new(0).at(0), |logits| cross_entropy(logits, labels), &weighted)?;
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// As [`backward`](Self::backward).
    pub fn backward_with(
        &self,
        xs: &Tensor,
        key: StepKey,
        main_loss: impl FnMut(&O) -> candle_core::Result<Tensor>,
        sub_loss: &(impl SubLoss<O> + ?Sized),
    ) -> Result<Step<O>> {
        check_batch(xs)?;
        let params = self.params.as_ref();
        params.map_or(Ok(()), Params::check_not_empty)?;
        let mut losses = Losses {
            labels: main_loss,
            distance: sub_loss,
            share: self.target.mutual_share(),
            unread: vec![],
        };

        let ahead = self.sub_ahead(xs, key, losses.share)?;
        let mut main_pass = Pass::train(key);
        let logits = self.branch.main(&self.model, xs, &mut main_pass)?;
        let (loss, main_value) = losses.of_main(&logits, ahead.as_ref())?;
        let gradients = match self.weight {
            // All weight on the sub-branch: the main branch is only its target.
            1.0 => Gradients::new(),
            w => grad::raw_backward(&(&loss * (1.0 - w))?, "main", params, Gradients::new())?,
        };
        let main_logits = logits.detach();
        // The graph of the main half, and with it its activations, ends here.
        drop((loss, logits));

        let mut step = Step {
            grads: GradStore::default(),
            main_loss: f64::NAN,
            sub_loss: None,
            main_logits,
            mask: None,
            difficulty: None,
        };
        let mut passes = vec![main_pass];
        let sub_half = match self.weight {
            0.0 => Ok((gradients, None)),
            _ => {
                let mut sub_pass = Pass::train_sub(key);
                let half = self.sub_half(xs, &mut sub_pass, gradients, &mut losses, &mut step);
                passes.push(sub_pass);
                half.map(|(gradients, value)| (gradients, Some(value)))
            }
        };
        // Read once, when all is asked of the device. A main loss that is not finite is the cause of what may have failed
        // behind it.
        let values = grad::finite_values(&losses.unread)?;
        let (gradients, sub_value) = sub_half?;
        step.main_loss = values[main_value];
        step.sub_loss = sub_value.map(|sub_value| values[sub_value]);
        let grads = grad::into_store(gradients);
        if let Some(params) = params {
            grad::check_missing(&grads, params)?;
        }
        Pass::commit_all(passes)?;
        step.grads = grads;
        Ok(step)
    }

    /// The gradients of both halves, where `main` are those of the main half, and the number of the sub-branch's loss.
    fn sub_half<F, D>(
        &self,
        xs: &Tensor,
        pass: &mut Pass,
        main: Gradients,
        losses: &mut Losses<F, D>,
        step: &mut Step<O>,
    ) -> Result<(Gradients, usize)>
    where
        F: FnMut(&O) -> candle_core::Result<Tensor>,
        D: SubLoss<O> + ?Sized,
    {
        let (sub_logits, mask) = self.branch.sub(&self.model, xs, pass)?;
        let target = self.target.target(xs, &step.main_logits, mask.as_ref())?.detach();
        let (loss, value) = losses.of_sub(&sub_logits, &target, mask.as_ref())?;
        step.mask = mask;
        let gradients = self.with_sub_half(main, &(loss * self.weight)?, &sub_logits, step)?;
        Ok((gradients, value))
    }

    /// The gradients of both halves, of the sub half's `loss` and what the main half's were; and in `step` how difficult the
    /// sub half was, where it is asked for.
    fn with_sub_half(&self, main: Gradients, loss: &Tensor, logits: &O, step: &mut Step<O>) -> Result<Gradients> {
        let params = self.params.as_ref();
        if !self.difficulty || self.weight == 1.0 {
            return grad::raw_backward(loss, "sub", params, main);
        }
        let sub = grad::raw_backward(loss, "sub", params, Gradients::new())?;
        let agreement = difficulty::agreement(&step.main_logits, logits)?;
        let (both, difficulty) = Difficulty::of(main, sub, self.weight, agreement)?;
        step.difficulty = Some(difficulty);
        Ok(both)
    }

    /// The sub-branch's logits, where the main branch learns from them, before anything of the main branch is there. The
    /// pass is forgotten: the sub half draws the same once more.
    fn sub_ahead(&self, xs: &Tensor, key: StepKey, share: f64) -> Result<Option<(O, Option<Mask>)>> {
        if share == 0.0 || self.weight == 0.0 || self.weight == 1.0 {
            return Ok(None);
        }
        let (logits, mask) = self.branch.sub(&self.model, xs, &mut Pass::train_sub(key))?;
        Ok(Some((logits.detach(), mask)))
    }
}

/// The losses that the two branches are trained by.
struct Losses<'a, F, L: ?Sized> {
    labels: F,
    distance: &'a L,
    /// Of the distance in each branch's loss, where both learn from each other.
    share: f64,
    /// Those that have been computed, each with its branch, and are not on the host yet.
    unread: Vec<(&'static str, Tensor)>,
}

impl<F, L: ?Sized> Losses<'_, F, L> {
    /// The loss of the main branch, and the number of the one on the labels alone. `sub` is what it learns from the sub-branch.
    fn of_main<O>(&mut self, main: &O, sub: Option<&(O, Option<Mask>)>) -> Result<(Tensor, usize)>
    where
        F: FnMut(&O) -> candle_core::Result<Tensor>,
        L: SubLoss<O>,
    {
        let labels = (self.labels)(main)?;
        let value = self.note("main", &labels)?;
        let Some((sub, mask)) = sub else {
            return Ok((labels, value));
        };
        let distance = self.distance.compare(main, sub, mask.as_ref())?;
        self.note("main", &distance)?;
        Ok((self.mix(labels, distance)?, value))
    }

    /// The loss of the sub-branch, and the number of its distance from its target alone.
    fn of_sub<O>(&mut self, sub: &O, target: &O, mask: Option<&Mask>) -> Result<(Tensor, usize)>
    where
        F: FnMut(&O) -> candle_core::Result<Tensor>,
        L: SubLoss<O>,
    {
        let distance = self.distance.compare(sub, target, mask)?;
        let value = self.note("sub", &distance)?;
        if self.share == 0.0 {
            return Ok((distance, value));
        }
        let labels = (self.labels)(sub)?;
        self.note("sub", &labels)?;
        Ok((self.mix(labels, distance)?, value))
    }

    /// Checks all of a loss but its value, and gives it a number.
    fn note(&mut self, branch: &'static str, loss: &Tensor) -> Result<usize> {
        grad::check_loss(loss, branch)?;
        self.unread.push((branch, loss.detach()));
        Ok(self.unread.len() - 1)
    }

    fn mix(&self, labels: Tensor, distance: Tensor) -> Result<Tensor> {
        // Of half-precision logits one loss may be in half precision, and the other one wider.
        let (a, b) = (labels.dtype(), distance.dtype());
        let wider = if a.size_in_bytes() > b.size_in_bytes() { a } else { b };
        // Scalars may have shape [1].
        let scalar = |loss: Tensor| loss.reshape(())?.to_dtype(wider);
        let [labels, distance] = [scalar(labels)?, scalar(distance)?];
        Ok(((labels * (1.0 - self.share))? + (distance * self.share)?)?)
    }
}
