//! The flags that a recipe sets beside those of the input: optimizer, schedule, losses, mixing, averaging.

use super::batches::DistBn;
use super::value::{at_least_1, fraction, not_negative, positive, share, weight};
use crate::network::Network;
use anyhow::{ensure, Result};
use candle_core::DType;
use clap::{ArgAction, Args, ValueEnum};
use masksub::models::Recompute;
use masksub::train::distributed::{Alone, Communicator, ShardedOptimizer};
use masksub::train::ema::Ema;
use masksub::train::mix::Mix;
use masksub::train::optim::{AdamWConfig, LambConfig, ParamGroups, Rule, SgdConfig};
use masksub::train::schedule::{Cosine, Schedule};
use masksub::{Criterion, Params};

#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Training")]
pub struct TrainingFlags {
    /// Passes over the training images
    #[arg(long, value_name = "N", default_value_t = 60, value_parser = at_least_1)]
    pub epochs: usize,

    /// Images per step of the optimizer
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = at_least_1)]
    pub batch_size: usize,

    /// Leave out the images of an epoch that no longer fill a batch
    #[arg(long, value_name = "BOOL", default_value_t = false, action = ArgAction::Set)]
    pub drop_last: bool,

    /// Train as N devices that share each batch: mixup, cutmix, masks and batch norms are each device's own, an image's
    /// repeats go to different ones, and the gradients are averaged. N divides --batch-size. Default: 1; a recipe's devices
    /// have as many images each as in its source
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = at_least_1)]
    pub replicas: usize,

    /// Whose running statistics of batch norms are kept of --replicas; timm's --dist-bn
    #[arg(long, value_enum, default_value = "broadcast")]
    pub dist_bn: DistBn,

    /// Run each batch in N parts (with --replicas, at least as many), one after the other, and add up their gradients: the
    /// same step (but for batch norm) in a part of the memory
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = at_least_1)]
    pub accumulate: usize,

    /// The optimizer. lamb brings its own clipping of gradients to a norm of 1; sgd has Nesterov's momentum of 0.9
    #[arg(long, value_enum, default_value = "adamw")]
    pub optimizer: OptimizerKind,

    /// Divide the optimizer's state among the ranks of mpirun: the same step with less memory on each
    #[arg(long)]
    pub shard_optimizer: bool,

    /// Leave parameters as they are: those of these names in the network, and those of modules of these names; without a
    /// name, none
    #[arg(long, value_name = "NAME", num_args = 0.., action = ArgAction::Set)]
    pub freeze: Vec<String>,

    /// Highest learning rate; for --lr-per images where that is given, or the recipe's (MAE, Swin)
    #[arg(long, value_name = "RATE", default_value_t = 2e-3, value_parser = positive)]
    pub lr: f64,

    /// --lr is for N images: it is multiplied by --batch-size / N. Default: it is not scaled
    #[arg(long, value_name = "N", value_parser = at_least_1)]
    pub lr_per: Option<usize>,

    /// Weight decay
    #[arg(long, value_name = "DECAY", default_value_t = 0.05, value_parser = not_negative)]
    pub weight_decay: f64,

    /// What decays: all parameters, or those that are neither biases, norms, tokens, positions nor bias tables
    #[arg(long, value_enum, default_value = "all")]
    pub decay_on: DecayOn,

    /// Train each block at D times the learning rate of the next, above 0 and at most 1; of ViT and Swin
    #[arg(long, value_name = "D", default_value_t = 1.0, value_parser = fraction)]
    pub layer_decay: f64,

    /// What adamw and lamb add to the root of the second moment
    #[arg(long, value_name = "EPS", default_value = "1e-8", value_parser = not_negative)]
    pub eps: f64,

    /// Scale gradients down to this global norm; 0 leaves them
    #[arg(long, value_name = "NORM", default_value_t = 0.0, value_parser = not_negative)]
    pub clip_grad: f64,

    /// Steps in which the learning rate rises linearly from 0 to --lr, the first of them above 0
    #[arg(long, value_name = "STEPS", default_value_t = 100, overrides_with = "warmup_epochs")]
    pub warmup_steps: usize,

    /// Epochs in which the learning rate rises linearly from --warmup-lr, instead of --warmup-steps
    #[arg(long, value_name = "N", overrides_with = "warmup_steps")]
    pub warmup_epochs: Option<usize>,

    /// Learning rate at the start of --warmup-epochs
    #[arg(long, value_name = "RATE", default_value_t = 0.0, value_parser = not_negative)]
    pub warmup_lr: f64,

    /// Learning rate at the end
    #[arg(long, value_name = "RATE", default_value_t = 0.0, value_parser = not_negative)]
    pub min_lr: f64,

    /// Whether --lr-per is for --warmup-lr and --min-lr, too
    #[arg(long, value_name = "BOOL", default_value_t = false, action = ArgAction::Set)]
    pub scale_ends: bool,

    /// Where the learning rate's half cosine is evaluated, and where it begins
    #[arg(long, value_enum, default_value = "after-warmup")]
    pub cosine: CosineKind,

    /// Learning rates come N steps late: epochs with --cosine per-epoch. The first one stays until then
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub lr_delay: usize,

    /// Loss of the main branch
    #[arg(long, value_enum, default_value = "ce")]
    pub loss: LossKind,

    /// Share of the targets that is spread over all classes, 0 to 1
    #[arg(long, value_name = "S", default_value_t = 0.0, value_parser = weight)]
    pub label_smoothing: f64,

    /// Probability with which a residual branch is dropped, at least 0 and below 1. Default: as the network has it, 0
    #[arg(long, value_name = "P", value_parser = share)]
    pub drop_path: Option<f64>,

    /// Blocks that compute again in the backward what they would keep
    ///
    /// never, every-block or every-other, of a ViT or Swin: less memory, more time, the same result to the bit.
    #[arg(long, value_name = "BLOCKS", default_value = "never")]
    pub recompute: Recompute,

    /// What products are computed in; weights, norms, softmax, losses and the sums of residual branches stay f32
    ///
    /// f32, or bf16: the factors of each product are rounded to bf16, as under PyTorch's autocast. On a GPU that is faster;
    /// on the CPU it is slower, and gives what a GPU would.
    #[arg(long, value_enum, default_value = "f32")]
    pub dtype: ComputeDType,

    /// Let products of f32 round their factors to TF32, on CUDA devices that have it
    ///
    /// As PyTorch's torch.backends.cuda.matmul.allow_tf32.
    #[arg(long)]
    pub tf32: bool,

    /// Alpha of mixup, 0 for none
    #[arg(long, value_name = "ALPHA", default_value_t = 0.0, value_parser = not_negative)]
    pub mixup: f64,

    /// Alpha of cutmix, 0 for none. With both, one is drawn for each batch
    #[arg(long, value_name = "ALPHA", default_value_t = 0.0, value_parser = not_negative)]
    pub cutmix: f64,

    /// Keep a moving average of the weights with this decay, at least 0 and below 1, and evaluate it, too; 0 for none
    #[arg(long, value_name = "DECAY", default_value_t = 0.0, value_parser = share)]
    pub ema: f64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum OptimizerKind {
    Adamw,
    Lamb,
    Sgd,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ComputeDType {
    F32,
    Bf16,
}

impl ComputeDType {
    /// As the configurations of models have it.
    pub fn of_config(self) -> Option<DType> {
        match self {
            Self::F32 => None,
            Self::Bf16 => Some(DType::BF16),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum DecayOn {
    All,
    Matrices,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum CosineKind {
    /// Once an epoch, the warm-up laid over its beginning (timm, DeiT-III)
    PerEpoch,
    /// Each step, the warm-up laid over its beginning (Swin)
    PerStep,
    /// Each step, beginning after the warm-up (MAE)
    AfterWarmup,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LossKind {
    /// Cross-entropy
    Ce,
    /// Binary cross-entropy of each class
    Bce,
    /// Binary cross-entropy in which every class that was mixed in counts fully
    BceHard,
}

impl TrainingFlags {
    fn scale(&self) -> f64 {
        self.lr_per.map_or(1.0, |images| self.batch_size as f64 / images as f64)
    }

    /// The highest learning rate at this batch size.
    pub fn peak_lr(&self) -> f64 {
        self.lr * self.scale()
    }

    /// The learning rates where the warm-up starts and at the end.
    pub fn end_lrs(&self) -> (f64, f64) {
        let scale = if self.scale_ends { self.scale() } else { 1.0 };
        (self.warmup_lr * scale, self.min_lr * scale)
    }

    /// The learning rate of each step.
    pub fn schedule(&self, steps_per_epoch: usize) -> Result<Box<dyn Schedule>> {
        let (peak, (start, floor)) = (self.peak_lr(), self.end_lrs());
        let total = self.epochs * steps_per_epoch;
        let Some(warmup) = self.warmup_epochs else {
            ensure!(
                self.cosine == CosineKind::AfterWarmup && self.warmup_lr == 0.0,
                "--cosine and --warmup-lr are for --warmup-epochs: after --warmup-steps, which rise from 0, the cosine begins"
            );
            // The first step is not spent on a learning rate of 0.
            let steps = self.warmup_steps;
            let rise = move |step: usize| peak * (step + 1) as f64 / steps as f64;
            let fall = Cosine::new(peak, total.saturating_sub(steps))?.with_floor(floor)?;
            return Ok(Box::new(rise.then(steps, fall).delayed(self.lr_delay)));
        };
        let cosine = |total, warmup| -> Result<Cosine> {
            Ok(Cosine::new(peak, total)?
                .with_warmup(warmup, start)?
                .with_floor(floor)?)
        };
        Ok(match self.cosine {
            CosineKind::PerEpoch => {
                let by_epoch = cosine(self.epochs, warmup)?.delayed(self.lr_delay);
                Box::new(by_epoch.per_epoch(steps_per_epoch)?)
            }
            CosineKind::PerStep => Box::new(cosine(total, warmup * steps_per_epoch)?.delayed(self.lr_delay)),
            CosineKind::AfterWarmup => {
                let cosine = cosine(total, warmup * steps_per_epoch)?.after_warmup();
                Box::new(cosine.delayed(self.lr_delay))
            }
        })
    }

    /// A warning where a run of so many steps an epoch never comes to its highest learning rate.
    pub fn ends_in_warmup(&self, steps_per_epoch: usize) -> Option<String> {
        let total = self.epochs * steps_per_epoch;
        let (warmup, flag, ends) = match self.warmup_epochs {
            // The last of the steps has the highest rate, the last of the epochs has not.
            None => (self.warmup_steps, "--warmup-steps", total < self.warmup_steps),
            Some(epochs) => {
                let late = if self.cosine == CosineKind::PerEpoch {
                    self.lr_delay
                } else {
                    0
                };
                let steps = epochs * steps_per_epoch;
                (steps, "--warmup-epochs", self.epochs <= epochs + late)
            }
        };
        ends.then(|| {
            format!("the run ends in its warm-up and learns next to nothing: it has {total} steps, the warm-up {warmup} ({flag})")
        })
    }

    /// The optimizer of `params`, with what decays and each layer's share of the learning rate.
    pub fn optimizer<'a>(
        &self,
        ranks: &'a dyn Communicator,
        params: &Params,
        network: &Network,
    ) -> Result<ShardedOptimizer<'a, Box<dyn Rule>>> {
        let mut groups = ParamGroups::new(params);
        if self.decay_on == DecayOn::Matrices {
            groups = groups.without_decay(ParamGroups::usually_without_decay);
        }
        if self.layer_decay < 1.0 {
            groups = match network {
                Network::Vit(cfg) => groups.with_layer_decay(self.layer_decay, cfg.depth, |name| cfg.layer_of(name))?,
                Network::Swin(cfg) => {
                    groups.with_layer_decay(self.layer_decay, cfg.num_blocks(), |name| cfg.layer_of(name))?
                }
                Network::ResNet(..) | Network::ConvNeXt(..) => anyhow::bail!(
                    "--layer-decay is {}, but must be 1 for a ResNet or ConvNeXt: it is for networks of like blocks",
                    self.layer_decay
                ),
            };
        }
        let (lr, weight_decay, eps) = (self.peak_lr(), self.weight_decay, self.eps);
        let rule: Box<dyn Rule> = match self.optimizer {
            OptimizerKind::Adamw => Box::new(AdamWConfig {
                lr,
                weight_decay,
                eps,
                ..AdamWConfig::default()
            }),
            OptimizerKind::Lamb => Box::new(LambConfig {
                lr,
                weight_decay,
                eps,
                ..LambConfig::default()
            }),
            OptimizerKind::Sgd => Box::new(SgdConfig {
                lr,
                weight_decay,
                ..SgdConfig::default()
            }),
        };
        let ranks = if self.shard_optimizer { ranks } else { &Alone };
        Ok(ShardedOptimizer::new(ranks, groups, rule)?)
    }

    /// The main branch's loss.
    pub fn criterion(&self) -> Result<Criterion> {
        let smoothing = self.label_smoothing;
        Ok(match self.loss {
            LossKind::Ce => Criterion::cross_entropy().with_label_smoothing(smoothing)?,
            LossKind::Bce => Criterion::bce_with_logits().with_label_smoothing(smoothing)?,
            LossKind::BceHard => {
                // Smoothed, every class would be above 0.
                ensure!(
                    smoothing == 0.0,
                    "--label-smoothing is {smoothing}, but must be 0 with --loss bce-hard, which makes all targets 0 or 1"
                );
                Criterion::bce_with_logits().with_target_threshold(0.0)?
            }
        })
    }

    /// Mixing, where there is any.
    pub fn mix(&self, num_classes: usize) -> Result<Option<Mix>> {
        if self.mixup > 0.0 || self.cutmix > 0.0 {
            Ok(Some(Mix::new(num_classes, self.mixup, self.cutmix)?))
        } else {
            Ok(None)
        }
    }

    /// The moving average of the weights, where there is one.
    pub fn ema(&self, weights: &candle_nn::VarMap) -> Result<Option<Ema>> {
        if self.ema > 0.0 {
            Ok(Some(Ema::of(weights, self.ema)?))
        } else {
            Ok(None)
        }
    }
}
