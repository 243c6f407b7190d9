//! The gradients of a batch: this rank's replicas one after the other, and each of them in parts.

use crate::flags::training::TrainingFlags;
use crate::heads;
use crate::target::Targeted;
use anyhow::Result;
use candle_core::Tensor;
use masksub::train::accumulate::Accumulator;
use masksub::train::distributed::{Communicator, Share};
use masksub::train::mix::Mix;
use masksub::train::replicas::{Combine, RunningStatistics};
use masksub::{Criterion, Difficulty, Params, Step, StepKey, SubBranch, Weights};

/// Runs a model on batches as the recipe says.
pub struct Stepper<'a, M, S> {
    model: &'a Targeted<M, S>,
    params: &'a Params,
    criterion: Criterion,
    mix: Option<Mix>,
    share: Share<'a>,
    statistics: RunningStatistics,
    /// In how many parts a batch is run at least.
    accumulate: usize,
}

impl<'a, M, S: SubBranch<M>> Stepper<'a, M, S> {
    pub fn new(
        ranks: &'a dyn Communicator,
        model: &'a Targeted<M, S>,
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
            share: Share::of(ranks, settings.replicas()?)?,
            statistics: RunningStatistics::of(weights.varmap()),
            accumulate: settings.accumulate,
        })
    }

    /// The gradients of the batch of which `images` [B, C, H, W] and their class indices [B] are this rank's; `combine` says
    /// whose running statistics there are afterwards. Losses and logits are of this rank's images.
    pub fn backward(&self, images: &Tensor, labels: &Tensor, key: StepKey, combine: Combine) -> Result<Step> {
        let replicas = self.share.replicas();
        let (grads, steps) = self.share.run(self.params, &self.statistics, combine, |replica| {
            let (xs, ys) = (replicas.share(images, replica)?, replicas.share(labels, replica)?);
            let Step {
                grads,
                main_loss,
                sub_loss,
                main_logits,
                difficulty,
                ..
            } = self.replica(xs, ys, key.with_replica(self.share.number(replica)))?;
            anyhow::Ok((grads, (main_loss, sub_loss, main_logits, difficulty)))
        })?;
        let share = 1.0 / steps.len() as f64;
        let sub_losses: Option<f64> = steps.iter().map(|(_, sub, ..)| *sub).sum();
        let logits: Vec<Tensor> = steps.iter().map(|(_, _, logits, _)| logits.clone()).collect();
        let difficulties = steps.iter().filter_map(|(.., difficulty)| *difficulty);
        Ok(Step {
            grads,
            main_loss: steps.iter().map(|(main, ..)| main).sum::<f64>() * share,
            sub_loss: sub_losses.map(|sum| sum * share),
            main_logits: replicas.interleave(&logits)?,
            mask: None,
            difficulty: mean(difficulties.map(|difficulty| (difficulty, share))),
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
        let parts = self.accumulate.div_ceil(self.share.count()).min((batch / 2).max(1));
        if parts == 1 {
            return self.part(&images, &targets, key);
        }
        let mut accumulator = Accumulator::new(self.params);
        let (mut main_loss, mut sub_loss, mut logits, mut difficulties) = (0.0, None, vec![], vec![]);
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
            difficulties.extend(step.difficulty.map(|difficulty| (difficulty, share)));
        }
        Ok(Step {
            grads: accumulator.take()?,
            main_loss,
            sub_loss,
            main_logits: Tensor::cat(&logits, 0)?,
            mask: None,
            difficulty: mean(difficulties),
        })
    }

    fn part(&self, images: &Tensor, targets: &Tensor, key: StepKey) -> Result<Step> {
        let main_loss = |logits: &Tensor| heads::mean_loss(logits, |logits| self.criterion.forward(logits, targets));
        let step = self.model.backward(images, key, main_loss)?;
        Ok(Step {
            main_logits: heads::prediction(step.main_logits)?,
            ..step
        })
    }
}

/// The mean of what was recorded of each part, by its share of the batch; of each number, over the parts in which it is
/// finite.
fn mean(parts: impl IntoIterator<Item = (Difficulty, f64)>) -> Option<Difficulty> {
    let parts: Vec<(Difficulty, f64)> = parts.into_iter().collect();
    let mean = |value: fn(&Difficulty) -> f64| {
        let known = parts.iter().map(|(part, share)| (value(part), share));
        let known = known.filter(|(value, _)| value.is_finite());
        let (sum, weight) = known.fold((0.0, 0.0), |(sum, weight), (value, share)| {
            (sum + share * value, weight + share)
        });
        sum / weight // NaN where there is none
    };
    let agreement = mean(|part| part.agreement.unwrap_or(f64::NAN));
    (!parts.is_empty()).then(|| Difficulty {
        main_norm: mean(|part| part.main_norm),
        sub_norm: mean(|part| part.sub_norm),
        cosine: mean(|part| part.cosine),
        agreement: agreement.is_finite().then_some(agreement),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flags::Flags;
    use candle_core::{DType, Device};
    use masksub::models::vit::{Config, VisionTransformer};
    use masksub::train::distributed::Alone;
    use masksub::{DropToken, MainBranch, MaskSub, RandomMasking, Seed, SubTarget};

    type Model = Targeted<VisionTransformer, DropToken<RandomMasking>>;

    fn stepper<'a>(
        model: &'a Model,
        params: &'a Params,
        weights: &Weights,
        more: &str,
    ) -> Stepper<'a, VisionTransformer, DropToken<RandomMasking>> {
        let arguments = format!("--mixup 0.8 --cutmix 1 --drop-last true {more}");
        let arguments = arguments.split_whitespace().map(Into::into).collect();
        let settings = Flags::from_arguments(arguments).unwrap().training;
        Stepper::new(&Alone, model, params, weights, &settings, 5).unwrap()
    }

    #[test]
    fn a_part_without_a_cosine_leaves_the_others_theirs() {
        let part = |cosine, agreement| Difficulty {
            main_norm: 2.0,
            sub_norm: 1.0,
            cosine,
            agreement,
        };
        let parts = [(part(f64::NAN, None), 0.5), (part(0.4, Some(0.25)), 0.5)];
        assert_eq!(mean(parts), Some(part(0.4, Some(0.25))));
        assert_eq!(mean([]), None);
    }

    /// Rows and draws of each replica are its own, and what is returned is of the batch in its order.
    #[test]
    fn replicas_and_their_parts_are_as_many_steps() {
        let small = Config {
            embed_dim: 16,
            depth: 2,
            num_heads: 2,
            mlp_dim: 32,
            drop_path: 0.2,
            // Large enough that whatever is drawn shows.
            layer_scale: Some(0.5),
            head_init_std: 0.5,
            ..Config::deit3_tiny(5)
        };
        let weights = Weights::seeded(Seed::new(0));
        let vb = weights.var_builder(DType::F32, &Device::Cpu);
        let vit = VisionTransformer::new(&small.with_input(8, 2, 1), vb).unwrap();
        let params = Params::from_varmap(weights.varmap());
        let model = MaskSub::new(vit, DropToken::new(RandomMasking::new(0.5).unwrap()), &params);
        let model = model.with_target(Box::new(MainBranch) as Box<dyn SubTarget>);
        let pixels = Tensor::arange(0f32, 12.0 * 64.0, &Device::Cpu).unwrap();
        let images = pixels.sin().unwrap().reshape((12, 1, 8, 8)).unwrap();
        let labels = Tensor::new((0..12u32).map(|i| i % 5).collect::<Vec<_>>(), &Device::Cpu).unwrap();
        let key = Seed::new(4).at(7);

        let together = stepper(&model, &params, &weights, "--batch-size 12 --replicas 3 --accumulate 6");
        let step = together.backward(&images, &labels, key, Combine::First).unwrap();
        let alone: Vec<Step> = (0..3u32)
            .map(|replica| {
                let rows = Tensor::new([0, 3, 6, 9].map(|row: u32| row + replica).to_vec(), &Device::Cpu).unwrap();
                let of = |tensor: &Tensor| tensor.index_select(&rows, 0).unwrap();
                let alone = stepper(&model, &params, &weights, "--batch-size 4");
                let key = key.with_replica(replica as usize);
                alone.replica(of(&images), of(&labels), key).unwrap()
            })
            .collect();
        let mean = alone.iter().map(|step| step.main_loss).sum::<f64>() / 3.0;
        assert!((step.main_loss - mean).abs() < 1e-6);
        let mean = alone.iter().filter_map(|step| step.sub_loss).sum::<f64>() / 3.0;
        assert!((step.sub_loss.unwrap() - mean).abs() < 1e-6);
        for (name, var) in params.iter() {
            let theirs: Vec<&Tensor> = alone.iter().map(|step| step.grads.get(var).unwrap()).collect();
            let theirs = Tensor::stack(&theirs, 0).unwrap().mean(0).unwrap();
            let norm = |tensor: &Tensor| {
                tensor
                    .sqr()
                    .unwrap()
                    .sum_all()
                    .unwrap()
                    .to_scalar::<f32>()
                    .unwrap()
                    .sqrt()
            };
            let off = norm(&(step.grads.get(var).unwrap() - &theirs).unwrap()) / norm(&theirs).max(1e-3);
            assert!(off < 1e-5, "{name}: {off:e}"); // in parts the sums are taken in another order
        }
        let ours = step.main_logits.to_vec2::<f32>().unwrap();
        for (row, ours) in ours.iter().enumerate() {
            let theirs = alone[row % 3].main_logits.to_vec2::<f32>().unwrap();
            let off = ours.iter().zip(&theirs[row / 3]).map(|(a, b)| (a - b).abs());
            assert!(off.fold(0.0, f32::max) < 1e-5, "{row}");
        }
    }
}
