//! Replicas on one device against as many runs, each by itself, whose gradients are averaged.

mod common;

use std::collections::BTreeMap;

use candle_core::{DType, Tensor};
use candle_nn::VarBuilder;
use common::{distance, gradient_distance, labels, randn, small_resnet, tiny, CPU};
use masksub::models::resnet::{BlockKind, ResNet};
use masksub::models::vit::{Config, VisionTransformer};
use masksub::train::mix::Mix;
use masksub::train::replicas::{Combine, Replicas, RunningStatistics};
use masksub::{
    Criterion, DropToken, Error, MaskSub, Params, PatchDrop, RandomMasking, Seed, StepKey, SubBranch, Weights,
};

const CLASSES: usize = 5;
const BATCH: usize = 12;

type Values = BTreeMap<String, Tensor>;

/// Images of a batch and what the recipe does with a replica's share of them.
struct Setting {
    images: Tensor,
    labels: Tensor,
    key: StepKey,
}

impl Setting {
    fn new(side: usize) -> Self {
        Self {
            images: randn((BATCH, 3, side, side), "images"),
            labels: labels(BATCH, CLASSES),
            key: Seed::new(3).at(8),
        }
    }

    /// The gradients of one share, by name, and its loss.
    fn step<M, S: SubBranch<M>>(
        &self,
        model: &MaskSub<M, S>,
        (images, labels): (&Tensor, &Tensor),
        key: StepKey,
    ) -> masksub::Result<masksub::Step> {
        let mixed = Mix::new(CLASSES, 0.8, 1.0)?.apply(images, labels, key)?;
        let criterion = Criterion::cross_entropy();
        model.backward(&mixed.images, key, |logits| criterion.forward(logits, &mixed.targets))
    }
}

/// A model and everything that is known of it.
struct Model<M, S> {
    model: MaskSub<M, S>,
    params: Params,
    weights: Weights,
}

fn build<M, S: SubBranch<M>>(branch: S, make: impl FnOnce(VarBuilder) -> candle_core::Result<M>) -> Model<M, S> {
    let weights = Weights::seeded(Seed::new(1));
    let inner = make(weights.var_builder(DType::F32, &CPU)).unwrap();
    let params = Params::from_varmap(weights.varmap());
    Model {
        model: MaskSub::new(inner, branch, &params),
        params,
        weights,
    }
}

impl<M, S> Model<M, S> {
    fn statistics(&self) -> Values {
        let state = self.weights.state().into_iter();
        let running = state.filter(|(name, _)| name.contains("running_"));
        running.map(|(name, tensor)| (name, tensor.copy().unwrap())).collect()
    }
}

fn mean<'a>(tensors: impl Iterator<Item = &'a Tensor>) -> Tensor {
    let tensors: Vec<_> = tensors.collect();
    Tensor::stack(&tensors, 0).unwrap().mean(0).unwrap()
}

/// G replicas on one device, and G models that never meet, each with rows r, r + G, ... picked by hand.
fn check<M, S: SubBranch<M>>(side: usize, has_statistics: bool, model: impl Fn() -> Model<M, S>) {
    let setting = Setting::new(side);
    for count in [1, 2, 3, 6] {
        let alone: Vec<(Values, Values, f64)> = (0..count)
            .map(|rank| {
                let alone = model();
                let rows = (rank..BATCH).step_by(count).map(|row| row as u32);
                let rows = Tensor::new(rows.collect::<Vec<_>>(), &CPU).unwrap();
                let (xs, ys) = (
                    setting.images.index_select(&rows, 0),
                    setting.labels.index_select(&rows, 0),
                );
                let key = setting.key.with_replica(rank);
                let step = setting.step(&alone.model, (&xs.unwrap(), &ys.unwrap()), key).unwrap();
                (
                    common::by_name(&step.grads, &alone.params),
                    alone.statistics(),
                    step.main_loss,
                )
            })
            .collect();
        let expected: Values = alone[0]
            .0
            .keys()
            .map(|name| (name.clone(), mean(alone.iter().map(|a| &a.0[name]))))
            .collect();

        let replicas = Replicas::new(count).unwrap();
        for combine in [Combine::First, Combine::Mean] {
            let together = model();
            let statistics = RunningStatistics::of(together.weights.varmap());
            let (grads, losses) = replicas
                .run(&together.params, &statistics, combine, |replica| {
                    let xs = replicas.share(&setting.images, replica)?;
                    let ys = replicas.share(&setting.labels, replica)?;
                    let step = setting.step(&together.model, (&xs, &ys), setting.key.with_replica(replica))?;
                    Ok::<_, Error>((step.grads, step.main_loss))
                })
                .unwrap();
            let error = gradient_distance(&common::by_name(&grads, &together.params), &expected);
            println!("{count} replicas: {error:.1e}");
            assert!(error < 1e-6, "{count}: {error:e}");
            assert!(losses.iter().zip(&alone).all(|(loss, alone)| *loss == alone.2));
            let ours = together.statistics();
            assert_eq!(!ours.is_empty(), has_statistics);
            for (name, ours) in &ours {
                let expected = match combine {
                    Combine::First => alone[0].1[name].clone(),
                    Combine::Mean => mean(alone.iter().map(|alone| &alone.1[name])),
                };
                let error = distance(ours, &expected);
                assert!(error < 1e-6, "{count}, {combine:?}: {name} is off by {error:e}");
            }
        }
    }
}

#[test]
fn of_a_vit_are_as_many_runs() {
    let cfg = Config {
        dropout: 0.1,
        drop_path: 0.2,
        ..tiny(Config::deit3_tiny(CLASSES))
    };
    check(16, false, || {
        let branch = DropToken::new(RandomMasking::new(0.5).unwrap());
        build(branch, |vb| VisionTransformer::new(&cfg, vb))
    });
}

#[test]
fn of_a_resnet_are_as_many_runs_with_their_batch_norms() {
    check(64, true, || {
        let branch = PatchDrop::new(RandomMasking::new(0.5).unwrap(), 16).unwrap();
        build(branch, |vb| ResNet::new(&small_resnet(BlockKind::Bottleneck), vb))
    });
}

// Each sees and draws something else: without that, the two checks above would show nothing.
#[test]
fn see_and_draw_apart() {
    let setting = Setting::new(16);
    let replicas = Replicas::new(3).unwrap();
    let mut lambdas: Vec<f64> = (0..3)
        .map(|replica| {
            let (xs, ys) = (
                replicas.share(&setting.images, replica),
                replicas.share(&setting.labels, replica),
            );
            let mix = Mix::new(CLASSES, 0.8, 1.0).unwrap();
            mix.apply(&xs.unwrap(), &ys.unwrap(), setting.key.with_replica(replica))
                .unwrap()
                .lambda
        })
        .collect();
    lambdas.sort_by(f64::total_cmp);
    lambdas.dedup();
    assert_eq!(lambdas.len(), 3);
}

// torch.utils.data.DistributedSampler's, worked by hand.
#[test]
fn take_every_gth_position() {
    let of = |count, replica, len| {
        Replicas::new(count)
            .unwrap()
            .positions(replica, len)
            .unwrap()
            .collect::<Vec<_>>()
    };
    assert_eq!(of(3, 0, 8), [0, 3, 6]);
    assert_eq!(of(3, 1, 8), [1, 4, 7]);
    assert_eq!(of(3, 2, 8), [2, 5]);
    assert_eq!(of(3, 2, 2), [0; 0]);
    assert_eq!(of(3, 2, 0), [0; 0]);
    assert_eq!(of(1, 0, 3), [0, 1, 2]);
    // A batch in a row gives each the rows that its positions of the epoch are.
    let batch = Tensor::arange(0u32, 24, &CPU).unwrap().reshape((6, 2, 2)).unwrap();
    let replicas = Replicas::new(3).unwrap();
    let shares: Vec<Tensor> = (0..3).map(|replica| replicas.share(&batch, replica).unwrap()).collect();
    let first = |share: &Tensor| share.flatten_all().unwrap().to_vec1::<u32>().unwrap();
    assert_eq!(first(&shares[1]), [4, 5, 6, 7, 16, 17, 18, 19]);
    assert_eq!(first(&replicas.interleave(&shares).unwrap()), first(&batch));
    assert_eq!(replicas.samples_of(6).unwrap(), 2);
}

/// The argument that an error names.
fn argument<T>(result: Result<T, Error>) -> String {
    match result.map(drop) {
        Err(Error::InvalidArgument { argument, .. } | Error::Shape { argument, .. }) => argument.into(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn that_cannot_be_are_refused_by_name() {
    let (three, batch) = (Replicas::new(3).unwrap(), randn((8, 2), "batch"));
    for count in [0, usize::MAX] {
        assert_eq!(argument(Replicas::new(count)), "replicas");
    }
    let message = three.samples_of(8).unwrap_err().to_string();
    assert_eq!(
        message,
        "batch is 8, but must be a multiple of 3, the number of replicas"
    );
    assert_eq!(argument(three.samples_of(0)), "batch");
    assert_eq!(argument(three.positions(3, 8)), "replica");
    assert_eq!(argument(three.share(&batch, 3)), "replica");
    assert_eq!(argument(three.share(&batch, 0)), "xs");
    assert_eq!(argument(three.share(&Tensor::new(1f32, &CPU).unwrap(), 0)), "xs");
    assert_eq!(argument(three.interleave(&[batch.clone(), batch.clone()])), "shares");
    assert!(three
        .interleave(&[batch.clone(), batch.clone(), randn((8, 3), "other")])
        .is_err());
    assert_eq!(argument(Combine::Mean.of(&[])), "replicas");
    for combine in [Combine::First, Combine::Mean] {
        for ragged in [[vec![batch.clone()], vec![]], [vec![], vec![batch.clone()]]] {
            assert_eq!(argument(combine.of(&ragged)), "replicas");
        }
    }
    assert_eq!(argument(RunningStatistics::default().write(&[batch])), "values");
}

// One that fails takes the others back with it.
#[test]
fn that_fail_leave_no_statistics() {
    let setting = Setting::new(64);
    let branch = PatchDrop::new(RandomMasking::new(0.5).unwrap(), 16).unwrap();
    let model = build(branch, |vb| ResNet::new(&small_resnet(BlockKind::Basic), vb));
    let statistics = RunningStatistics::of(model.weights.varmap());
    let before = model.statistics();
    for count in [1, 2] {
        let replicas = Replicas::new(count).unwrap();
        let failed = replicas.run(&model.params, &statistics, Combine::Mean, |replica| {
            let (xs, ys) = (
                replicas.share(&setting.images, replica)?,
                replicas.share(&setting.labels, replica)?,
            );
            let step = setting.step(&model.model, (&xs, &ys), setting.key)?;
            if replica + 1 == count {
                return Err(Error::LossDetached { branch: "main" });
            }
            Ok((step.grads, ()))
        });
        assert!(matches!(failed, Err(Error::LossDetached { .. })));
        assert!(model
            .statistics()
            .iter()
            .all(|(name, now)| distance(now, &before[name]) == 0.0));
    }
}
