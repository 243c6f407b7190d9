//! Ranks against one device with as many replicas.

use candle_core::backprop::GradStore;
use candle_core::{DType, Tensor};
use candle_nn::VarBuilder;
use masksub::models::resnet::{BlockKind, ResNet};
use masksub::models::swin::SwinTransformer;
use masksub::models::vit::{Config, VisionTransformer};
use masksub::train::distributed::{self, threads, Communicator, Share};
use masksub::train::mix::Mix;
use masksub::train::optim::{Sgd, SgdConfig};
use masksub::train::replicas::{Combine, Replicas, RunningStatistics};
use masksub::{
    Criterion, DropToken, Error, MaskSub, MaskToken, Params, PatchDrop, RandomMasking, Result, Seed, Step, StepKey,
    SubBranch, Weights,
};

use super::{same_bits, Values, BATCH, CLASSES};
use crate::common::{self, distance, gradient_distance, labels, randn, small_resnet, small_swin, tiny, CPU};

const REPLICAS: usize = 4;

/// A model and everything that is known of it.
pub(super) struct Model<M, S> {
    pub model: MaskSub<M, S>,
    pub params: Params,
    pub weights: Weights,
    pub statistics: RunningStatistics,
}

fn build<M, S: SubBranch<M>>(
    branch: S,
    make: impl FnOnce(VarBuilder) -> candle_core::Result<M>,
) -> Result<Model<M, S>> {
    let weights = Weights::seeded(Seed::new(1));
    let inner = make(weights.var_builder(DType::F32, &CPU))?;
    let params = Params::from_varmap(weights.varmap());
    Ok(Model {
        model: MaskSub::new(inner, branch, &params),
        statistics: RunningStatistics::of(weights.varmap()),
        params,
        weights,
    })
}

impl<M, S: SubBranch<M>> Model<M, S> {
    /// The gradients of one replica.
    pub fn replica(&self, images: &Tensor, labels: &Tensor, key: StepKey) -> Result<(GradStore, f64)> {
        let mixed = Mix::new(CLASSES, 0.8, 1.0)?.apply(images, labels, key)?;
        let criterion = Criterion::cross_entropy();
        let Step { grads, main_loss, .. } =
            (self.model).backward(&mixed.images, key, |logits| criterion.forward(logits, &mixed.targets))?;
        Ok((grads, main_loss))
    }
}

/// Of one run: the first step's gradients, the last step's loss, and all variables at the end.
struct Trained {
    grads: Values,
    loss: f64,
    state: Values,
}

/// Trains, on `ranks`, by steps of which `step` makes one: it gets the step's batch and key.
fn train<M, S: SubBranch<M>>(
    model: &Model<M, S>,
    images: &Tensor,
    steps: usize,
    step: impl Fn(&Tensor, &Tensor, StepKey, Combine) -> Result<(GradStore, f64)>,
) -> Result<Trained> {
    let config = SgdConfig {
        lr: 0.02,
        ..SgdConfig::default()
    };
    let mut opt = Sgd::new(&model.params, config)?;
    let (mut first, mut last) = (None, f64::NAN);
    for t in 0..steps {
        // The last one of an "epoch" of four steps has the mean of the statistics.
        let combine = if t % 4 == 3 { Combine::Mean } else { Combine::First };
        let (grads, loss) = step(images, &labels(BATCH, CLASSES), Seed::new(3).at(t), combine)?;
        first.get_or_insert_with(|| common::by_name(&grads, &model.params));
        last = loss;
        opt.step(&grads)?;
    }
    Ok(Trained {
        grads: first.unwrap_or_default(),
        loss: last,
        state: model.weights.state().into_iter().collect(),
    })
}

fn on_one_device<M, S: SubBranch<M>>(model: &Model<M, S>, images: &Tensor, steps: usize) -> Result<Trained> {
    let replicas = Replicas::new(REPLICAS)?;
    train(model, images, steps, |images, labels, key, combine| {
        let (grads, losses) = replicas.run(&model.params, &model.statistics, combine, |replica| {
            let (xs, ys) = (replicas.share(images, replica)?, replicas.share(labels, replica)?);
            model.replica(&xs, &ys, key.with_replica(replica))
        })?;
        Ok((grads, losses.iter().sum::<f64>() / REPLICAS as f64))
    })
}

fn on_ranks<M, S: SubBranch<M>>(
    ranks: &dyn Communicator,
    model: &Model<M, S>,
    images: &Tensor,
    steps: usize,
) -> Result<Trained> {
    let share = Share::of(ranks, Replicas::new(REPLICAS)?)?;
    let (local, rank) = (share.replicas(), ranks.rank());
    distributed::synchronize(ranks, model.weights.varmap())?;
    train(model, images, steps, |images, labels, key, combine| {
        let (images, labels) = (
            share.of_rank().share(images, rank)?,
            share.of_rank().share(labels, rank)?,
        );
        let (grads, losses) = share.run(&model.params, &model.statistics, combine, |replica| {
            let (xs, ys) = (local.share(&images, replica)?, local.share(&labels, replica)?);
            model.replica(&xs, &ys, key.with_replica(share.number(replica)))
        })?;
        let mut loss = [losses.iter().sum::<f64>() / REPLICAS as f64];
        distributed::sum(ranks, &mut loss)?;
        Ok((grads, loss[0]))
    })
}

/// One, two and four ranks against one device with four replicas, for twenty steps.
fn check<M, S: SubBranch<M>>(images: Tensor, model: impl Fn() -> Result<Model<M, S>> + Sync) {
    const STEPS: usize = 20;
    let expected = on_one_device(&model().unwrap(), &images, STEPS).unwrap();
    for size in [1, 2, 4] {
        let run = || -> Vec<Trained> {
            let ended = threads::run(size, |ranks| on_ranks(ranks, &model()?, &images, STEPS));
            ended.unwrap().into_iter().map(|trained| trained.unwrap()).collect()
        };
        let (ranks, again) = (run(), run());
        let first = &ranks[0];
        let off = gradient_distance(&first.grads, &expected.grads);
        let weights = first
            .state
            .iter()
            .map(|(name, value)| distance(value, &expected.state[name]));
        let weights = weights.fold(0.0, f64::max);
        println!(
            "{size} ranks: gradients {off:.1e}, weights {weights:.1e}, loss {}",
            first.loss
        );
        assert!(off < 1e-6, "{size}: gradients are off by {off:e}");
        assert!(weights < 1e-5, "{size}: weights are off by {weights:e}");
        assert!((first.loss - expected.loss).abs() < 1e-5 * expected.loss);
        for (rank, again) in ranks.iter().zip(&again) {
            assert!(same_bits(&rank.grads, &first.grads) && same_bits(&rank.state, &first.state));
            assert!(same_bits(&rank.grads, &again.grads) && same_bits(&rank.state, &again.state));
            assert_eq!(rank.loss.to_bits(), again.loss.to_bits());
        }
    }
}

#[test]
fn of_a_vit_are_one_device_with_replicas() {
    let cfg = Config {
        dropout: 0.1,
        drop_path: 0.2,
        ..tiny(Config::deit3_tiny(CLASSES))
    };
    check(randn((BATCH, 3, 16, 16), "images"), || {
        build(DropToken::new(RandomMasking::new(0.5)?), |vb| {
            VisionTransformer::new(&cfg, vb)
        })
    });
}

#[test]
fn of_a_swin_are_one_device_with_replicas() {
    check(randn((BATCH, 3, 32, 64), "images"), || {
        build(MaskToken::new(RandomMasking::new(0.5)?, 8)?, |vb| {
            SwinTransformer::new(&small_swin(), vb)
        })
    });
}

#[test]
fn of_a_resnet_are_one_device_with_replicas_and_their_batch_norms() {
    check(randn((BATCH, 3, 64, 64), "images"), resnet);
}

pub(super) fn resnet() -> Result<Model<ResNet, PatchDrop<RandomMasking>>> {
    build(PatchDrop::new(RandomMasking::new(0.5)?, 16)?, |vb| {
        ResNet::new(&small_resnet(BlockKind::Basic), vb)
    })
}

#[test]
fn a_share_is_every_gth_replica() {
    let numbers = threads::run(2, |ranks| {
        let share = Share::of(ranks, Replicas::new(6)?)?;
        let rows: Vec<usize> = share.of_rank().positions(ranks.rank(), 12)?.collect();
        // The rows of each replica, of this rank's rows, are those it has of all.
        for local in 0..share.replicas().count() {
            let here: Vec<usize> = share
                .replicas()
                .positions(local, rows.len())?
                .map(|place| rows[place])
                .collect();
            let whole: Vec<usize> = Replicas::new(6)?.positions(share.number(local), 12)?.collect();
            assert_eq!(here, whole);
        }
        Ok::<_, Error>((0..3).map(|local| share.number(local)).collect::<Vec<_>>())
    });
    let numbers: Vec<_> = numbers.unwrap().into_iter().map(|numbers| numbers.unwrap()).collect();
    assert_eq!(numbers, [[0, 2, 4], [1, 3, 5]]);
    let refused = threads::run(2, |ranks| Share::of(ranks, Replicas::new(3)?).map(drop)).unwrap();
    let message = refused[0].as_ref().unwrap_err().to_string();
    assert_eq!(
        message,
        "replicas is 3, but must be a multiple of 2, the number of ranks"
    );
}
