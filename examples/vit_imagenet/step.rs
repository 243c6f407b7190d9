//! The gradients of a batch: its replicas one after the other, and each of them in parts.

use crate::flags::training::TrainingFlags;
use anyhow::Result;
use candle_core::Tensor;
use masksub::train::accumulate::Accumulator;
use masksub::train::mix::Mix;
use masksub::train::replicas::{Combine, Replicas, RunningStatistics};
use masksub::{Criterion, MaskSub, Params, Step, StepKey, SubBranch, Weights};

/// Runs a model on batches as the recipe says.
pub struct Stepper<'a, M, S> {
    model: &'a MaskSub<M, S>,
    params: &'a Params,
    criterion: Criterion,
    mix: Option<Mix>,
    replicas: Replicas,
    statistics: RunningStatistics,
    /// In how many parts a batch is run at least.
    accumulate: usize,
}

impl<'a, M, S: SubBranch<M>> Stepper<'a, M, S> {
    pub fn new(
        model: &'a MaskSub<M, S>,
        params: &'a Params,
        weights: &Weights,
        settings: &TrainingFlags,
        num_classes: usize,
    ) -> Result<Self> {
        Ok(Self {
            model,
            params,
            criterion: settings.criterion()?,
            mix: settings.mix(num_classes)?,
            replicas: settings.replicas()?,
            statistics: RunningStatistics::of(weights.varmap()),
            accumulate: settings.accumulate,
        })
    }

    /// The gradients of `images` [B, C, H, W] and their class indices [B]; `combine` says whose running statistics there
    /// are afterwards.
    pub fn backward(&self, images: &Tensor, labels: &Tensor, key: StepKey, combine: Combine) -> Result<Step> {
        let (grads, steps) = self.replicas.run(self.params, &self.statistics, combine, |replica| {
            let (xs, ys) = (
                self.replicas.share(images, replica)?,
                self.replicas.share(labels, replica)?,
            );
            let Step {
                grads,
                main_loss,
                sub_loss,
                main_logits,
                ..
            } = self.replica(xs, ys, key.with_replica(replica))?;
            anyhow::Ok((grads, (main_loss, sub_loss, main_logits)))
        })?;
        let share = 1.0 / steps.len() as f64;
        let sub_losses: Option<f64> = steps.iter().map(|(_, sub, _)| *sub).sum();
        let logits: Vec<Tensor> = steps.iter().map(|(_, _, logits)| logits.clone()).collect();
        Ok(Step {
            grads,
            main_loss: steps.iter().map(|(main, _, _)| main).sum::<f64>() * share,
            sub_loss: sub_losses.map(|sum| sum * share),
            main_logits: self.replicas.interleave(&logits)?,
            mask: None,
        })
    }

    /// One replica's, of its share.
    fn replica(&self, images: Tensor, labels: Tensor, key: StepKey) -> Result<Step> {
        let (images, targets) = match &self.mix {
            None => (images, labels),
            Some(mix) => {
                let mixed = mix.apply(&images, &labels, key)?;
                (mixed.images, mixed.targets)
            }
        };
        let batch = images.dim(0)?;
        // No part is a single image where it could be two: batch norm may have no variance to divide by.
        let parts = self.accumulate.div_ceil(self.replicas.count()).min((batch / 2).max(1));
        if parts == 1 {
            return self.part(&images, &targets, key);
        }
        let mut accumulator = Accumulator::new(self.params);
        let (mut main_loss, mut sub_loss, mut logits) = (0.0, None, vec![]);
        for part in 0..parts {
            let first = part * batch / parts;
            let n = (part + 1) * batch / parts - first;
            let (xs, targets) = (images.narrow(0, first, n)?, targets.narrow(0, first, n)?);
            let step = self.part(&xs, &targets, key.with_first_sample(first))?;
            accumulator.add(&step.grads, n)?;
            let share = n as f64 / batch as f64;
            main_loss += share * step.main_loss;
            if let Some(loss) = step.sub_loss {
                *sub_loss.get_or_insert(0.0) += share * loss;
            }
            logits.push(step.main_logits);
        }
        Ok(Step {
            grads: accumulator.take()?,
            main_loss,
            sub_loss,
            main_logits: Tensor::cat(&logits, 0)?,
            mask: None,
        })
    }

    fn part(&self, images: &Tensor, targets: &Tensor, key: StepKey) -> Result<Step> {
        let main_loss = |logits: &Tensor| self.criterion.forward(logits, targets);
        Ok(self.model.backward(images, key, main_loss)?)
    }
}
