//! Ranks that are threads, against one device with as many replicas; and what they do when one of them fails.

mod common;

use std::cell::Cell;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use candle_core::backprop::GradStore;
use candle_core::{DType, Tensor, Var};
use candle_nn::VarBuilder;
use common::{bits, distance, gradient_distance, labels, randn, small_resnet, small_swin, tiny, CPU};
use masksub::models::resnet::{BlockKind, ResNet};
use masksub::models::swin::SwinTransformer;
use masksub::models::vit::{Config, VisionTransformer};
use masksub::train::distributed::{self, agree, threads, Alone, Communicator, ShardedOptimizer, Share};
use masksub::train::ema::Ema;
use masksub::train::mix::Mix;
use masksub::train::optim::{AdamWConfig, GroupOptimizer, LambConfig, ParamGroups, Rule, Sgd, SgdConfig};
use masksub::train::replicas::{Combine, Replicas, RunningStatistics};
use masksub::{
    Criterion, DropToken, Error, MaskSub, MaskToken, Params, PatchDrop, RandomMasking, Result, Seed, Step, StepKey,
    SubBranch, Weights,
};

const CLASSES: usize = 5;
const BATCH: usize = 8;
const REPLICAS: usize = 4;

type Values = BTreeMap<String, Tensor>;

/// A model and everything that is known of it.
struct Model<M, S> {
    model: MaskSub<M, S>,
    params: Params,
    weights: Weights,
    statistics: RunningStatistics,
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
    fn replica(&self, images: &Tensor, labels: &Tensor, key: StepKey) -> Result<(GradStore, f64)> {
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

fn same_bits(a: &Values, b: &Values) -> bool {
    a.len() == b.len() && a.iter().all(|(name, value)| bits(value) == bits(&b[name]))
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

fn resnet() -> Result<Model<ResNet, PatchDrop<RandomMasking>>> {
    build(PatchDrop::new(RandomMasking::new(0.5)?, 16)?, |vb| {
        ResNet::new(&small_resnet(BlockKind::Basic), vb)
    })
}

/// The rank that an error names, and what it says of it.
fn of_other<T>(ended: &Result<T>) -> Option<(usize, &str)> {
    match ended {
        Err(Error::OtherRank { rank, message }) => Some((*rank, message)),
        _ => None,
    }
}

#[test]
fn a_loss_that_is_not_finite_on_one_is_refused_by_all() {
    let images = randn((BATCH, 3, 64, 64), "images");
    let ended = threads::run(4, |ranks| {
        let model = resnet()?;
        let before: Values = model
            .weights
            .state()
            .into_iter()
            .map(|(n, t)| (n, t.copy().unwrap()))
            .collect();
        let share = Share::of(ranks, Replicas::new(4)?)?;
        let xs = share.of_rank().share(&images, ranks.rank())?;
        let ys = share.of_rank().share(&labels(BATCH, CLASSES), ranks.rank())?;
        let xs = if ranks.rank() == 2 { (xs * f64::INFINITY)? } else { xs };
        let refused = share.run(&model.params, &model.statistics, Combine::Mean, |replica| {
            model.replica(&xs, &ys, Seed::new(0).at(0).with_replica(share.number(replica)))
        });
        let after: Values = model.weights.state().into_iter().collect();
        assert!(
            same_bits(&before, &after),
            "rank {} has changed something",
            ranks.rank()
        );
        // They go on together: the next step is none of the last one's business.
        let mut ones = [1.0];
        distributed::sum(ranks, &mut ones)?;
        assert_eq!(ones, [4.0]);
        refused.map(drop)
    });
    let ended = ended.unwrap();
    assert!(matches!(ended[2], Err(Error::NonFiniteLoss { branch: "main", .. })));
    for rank in [0, 1, 3] {
        let (named, why) = of_other(&ended[rank]).unwrap();
        assert!(named == 2 && why.starts_with("the main loss is "), "{why}");
    }
}

/// What all of three ranks end with when rank 1 does `fails` in the place of the third of ten sums.
fn with_a_failing_rank(fails: impl Fn() -> Result<()> + Sync) -> Vec<Result<()>> {
    let started = Instant::now();
    let ended = threads::run(3, |ranks| {
        for turn in 0..10 {
            if (ranks.rank(), turn) == (1, 2) {
                return fails();
            }
            distributed::sum(ranks, &mut [1.0])?;
        }
        Ok(())
    });
    assert!(started.elapsed() < Duration::from_secs(10));
    ended.unwrap()
}

#[test]
fn one_that_fails_ends_the_others_by_name() {
    let failed = with_a_failing_rank(|| Err(Error::LossDetached { branch: "main" }));
    assert!(matches!(failed[1], Err(Error::LossDetached { .. })));
    let panicked = with_a_failing_rank(|| panic!("on purpose"));
    assert_eq!(of_other(&panicked[1]), Some((1, "it panicked: on purpose")));
    let gone = with_a_failing_rank(|| Ok(()));
    assert!(gone[1].is_ok());
    let cases = [
        (failed, "the main loss is detached"),
        (panicked, "it panicked: on purpose"),
        (gone, "it has ended"),
    ];
    for (ended, expected) in cases {
        for rank in [0, 2] {
            let (named, why) = of_other(&ended[rank]).unwrap();
            assert!(named == 1 && why.starts_with(expected), "{why}");
        }
    }
}

#[test]
fn that_do_not_call_the_same_are_refused() {
    let ended = threads::run(2, |ranks| match ranks.rank() {
        0 => ranks.gather(&[1]).map(drop),
        _ => ranks.sum(&Tensor::ones(3, DType::F32, &CPU)?).map(drop),
    });
    assert!(ended.unwrap().iter().all(|ended| of_other(ended).is_some()));
    let ended = threads::run(2, |ranks| {
        ranks.sum(&Tensor::ones(3 + ranks.rank(), DType::F32, &CPU)?).map(drop)
    });
    assert_eq!(of_other(&ended.unwrap()[0]), Some((1, "it gives 4 values, not 3")));
    let ended = threads::run(2, |ranks| {
        ranks.broadcast(&Tensor::ones(3, DType::F32, &CPU)?, 2).map(drop)
    });
    assert!(matches!(
        ended.unwrap()[0],
        Err(Error::InvalidArgument { argument: "root", .. })
    ));
    assert!(threads::run(0, |_| Ok::<_, Error>(())).is_err());
}

/// Variables by hand.
fn params(values: &[(&str, Vec<f32>)]) -> Params {
    let var = |(name, values): &(&str, Vec<f32>)| {
        let tensor = Tensor::from_slice(values, values.len(), &CPU).unwrap();
        (name.to_string(), Var::from_tensor(&tensor).unwrap())
    };
    Params::new(values.iter().map(var))
}

#[test]
fn gradients_are_their_mean_and_one_that_a_rank_lacks_is_zero_there() {
    let ended = threads::run(2, |ranks| {
        let params = params(&[("a", vec![0.0; 2]), ("b", vec![0.0]), ("c", vec![0.0])]);
        let mut grads = GradStore::default();
        let rank = ranks.rank() as f32;
        grads.insert(&params.vars()[0], Tensor::new(&[1.0 + rank, 3.0 * rank], &CPU)?);
        if ranks.rank() == 1 {
            grads.insert(&params.vars()[1], Tensor::new(&[5f32], &CPU)?);
        }
        distributed::mean_gradients(ranks, &mut grads, &params)?;
        let grads = common::by_name(&grads, &params);
        grads
            .into_iter()
            .map(|(name, grad)| Ok((name, grad.to_vec1::<f32>()?)))
            .collect::<Result<Vec<_>>>()
    });
    for ended in ended.unwrap() {
        assert_eq!(
            ended.unwrap(),
            [("a".to_string(), vec![1.5, 1.5]), ("b".to_string(), vec![2.5])]
        );
    }
}

#[test]
fn gradients_of_other_parameters_or_shapes_are_refused_by_all() {
    let ended = threads::run(3, |ranks| {
        let params = params(&[("a", vec![0.0; if ranks.rank() == 2 { 3 } else { 2 }])]);
        distributed::mean_gradients(ranks, &mut GradStore::default(), &params)
    });
    let expected = "it has other variables, by name, shape or dtype";
    let named = [2, 2, 0].map(|rank| Some((rank, expected)));
    assert_eq!(ended.unwrap().iter().map(of_other).collect::<Vec<_>>(), named);

    let ended = threads::run(2, |ranks| {
        let (params, mut grads) = (params(&[("a", vec![0.0; 2])]), GradStore::default());
        grads.insert(&params.vars()[0], Tensor::ones(2 + ranks.rank(), DType::F32, &CPU)?);
        distributed::mean_gradients(ranks, &mut grads, &params)
    });
    let ended = ended.unwrap();
    assert!(matches!(ended[1], Err(Error::Shape { argument: "grads", .. })));
    let (named, why) = of_other(&ended[0]).unwrap();
    assert!(named == 1 && why.starts_with("grads has shape [3]"), "{why}");
}

#[test]
fn weights_and_statistics_become_those_of_the_first() {
    let ended = threads::run(3, |ranks| {
        let weights = Weights::seeded(Seed::new(ranks.rank() as u64));
        ResNet::new(&small_resnet(BlockKind::Basic), weights.var_builder(DType::F32, &CPU))?;
        for value in RunningStatistics::of(weights.varmap()).read()? {
            assert!(common::numbers(&value).iter().all(|&v| v == 0.0 || v == 1.0));
        }
        let statistics = RunningStatistics::of(weights.varmap());
        let drawn = statistics
            .read()?
            .iter()
            .map(|t| t + ranks.rank() as f64)
            .collect::<candle_core::Result<Vec<_>>>()?;
        statistics.write(&drawn)?;
        distributed::synchronize(ranks, weights.varmap())?;
        Ok::<Values, Error>(weights.state().into_iter().collect())
    });
    let states: Vec<Values> = ended.unwrap().into_iter().map(|state| state.unwrap()).collect();
    let weights = Weights::seeded(Seed::new(0));
    ResNet::new(&small_resnet(BlockKind::Basic), weights.var_builder(DType::F32, &CPU)).unwrap();
    let expected: Values = weights.state().into_iter().collect();
    assert!(states.iter().all(|state| same_bits(state, &expected)));

    let ended = threads::run(2, |ranks| {
        let weights = Weights::seeded(Seed::new(0));
        candle_nn::linear(4, 2 + ranks.rank(), weights.var_builder(DType::F32, &CPU))?;
        distributed::synchronize(ranks, weights.varmap())
    });
    assert!(ended.unwrap().iter().all(|ended| of_other(ended).is_some()));
}

/// Weights in half precision from `seed`, a step of an optimizer with masters over them, and their average. `synchronize`
/// is called where it is to be: before either has copied anything.
fn step_in_half(seed: u64, synchronize: impl Fn(&Weights) -> Result<()>) -> Result<[Values; 3]> {
    let weights = Weights::seeded(Seed::new(seed));
    candle_nn::linear(6, 5, weights.var_builder(DType::BF16, &CPU))?;
    synchronize(&weights)?;
    let params = Params::from_varmap(weights.varmap());
    let mut opt = GroupOptimizer::new(&params, AdamWConfig::default())?;
    let mut ema = Ema::of(weights.varmap(), 0.9)?;
    opt.step(&gradients(&params, 0))?;
    ema.update()?;
    let averages = ema.state()?.into_iter().collect();
    Ok([values(&params), opt.state()?, averages])
}

#[test]
fn masters_and_averages_are_of_the_first_ones_weights() {
    let expected = step_in_half(0, |_| Ok(())).unwrap();
    let ended = threads::run(3, |ranks| {
        step_in_half(ranks.rank() as u64, |weights| {
            distributed::synchronize(ranks, weights.varmap())
        })
    });
    for ended in ended.unwrap() {
        for (ours, expected) in ended.unwrap().iter().zip(&expected) {
            assert!(!ours.is_empty() && same_bits(&as_f32(ours), &as_f32(expected)));
        }
    }
}

/// Two ranks alike, of which the second sum fails.
struct FailsLater(Cell<usize>);

impl Communicator for FailsLater {
    fn rank(&self) -> usize {
        0
    }

    fn size(&self) -> usize {
        2
    }

    fn sum(&self, values: &Tensor) -> Result<Tensor> {
        self.0.set(self.0.get() + 1);
        if self.0.get() == 2 {
            let message = "gone".into();
            return Err(Error::OtherRank { rank: 1, message });
        }
        Ok((values * 4.0)?)
    }

    fn broadcast(&self, values: &Tensor, _: usize) -> Result<Tensor> {
        Ok(values.clone())
    }

    fn gather(&self, bytes: &[u8]) -> Result<Vec<Vec<u8>>> {
        Ok(vec![bytes.to_vec(); 2])
    }
}

#[test]
fn gradients_are_as_they_were_when_one_goes_between_two_buckets() {
    // Those of f64 travel after the others.
    let var = |dtype| Var::from_tensor(&Tensor::ones(2, dtype, &CPU).unwrap()).unwrap();
    let params = Params::new([("a".into(), var(DType::F32)), ("b".into(), var(DType::F64))]);
    let mut grads = GradStore::default();
    for var in params.vars() {
        grads.insert(&var, var.as_detached_tensor());
    }
    let before = common::by_name(&grads, &params);
    let ranks = FailsLater(Cell::new(0));
    let refused = distributed::mean_gradients(&ranks, &mut grads, &params);
    assert_eq!(of_other(&refused), Some((1, "gone")));
    assert!(same_bits(&as_f32(&common::by_name(&grads, &params)), &as_f32(&before)));
    distributed::mean_gradients(&ranks, &mut grads, &params).unwrap();
    assert!(common::by_name(&grads, &params)
        .values()
        .all(|mean| common::numbers(mean) == [2.0, 2.0]));
}

#[test]
fn one_alone_does_as_without_ranks() {
    assert_eq!((Alone.rank(), Alone.size()), (0, 1));
    let values = Tensor::new(&[1f32, 2.0], &CPU).unwrap();
    assert_eq!(bits(&Alone.sum(&values).unwrap()), bits(&values));
    assert_eq!(bits(&Alone.broadcast(&values, 0).unwrap()), bits(&values));
    assert!(Alone.broadcast(&values, 1).is_err());
    assert_eq!(Alone.gather(&[7]).unwrap(), [[7]]);
    let error = agree(&Alone, Err::<(), _>(Error::LossDetached { branch: "sub" })).unwrap_err();
    assert!(matches!(error, Error::LossDetached { branch: "sub" }));
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

/// Parameters of several sizes, one of them in half precision and one without elements, and gradients for a step.
fn groups() -> (Params, ParamGroups) {
    let shapes = [
        ("a", vec![7, 5]),
        ("b", vec![5]),
        ("c", vec![3, 4]),
        ("d", vec![0]),
        ("e", vec![2, 9]),
    ];
    let var = |(name, shape): (&str, Vec<usize>)| {
        let dtype = if name == "c" { DType::BF16 } else { DType::F32 };
        let value = randn(&shape[..], name).to_dtype(dtype).unwrap();
        (name.to_string(), Var::from_tensor(&value).unwrap())
    };
    let params = Params::new(shapes.into_iter().map(var));
    let groups = ParamGroups::new(&params).without_decay(|name, _| name == "b");
    (
        params,
        groups
            .with_lr_scale(|name| if name == "e" { 0.5 } else { 1.0 })
            .unwrap(),
    )
}

fn gradients(params: &Params, step: usize) -> GradStore {
    let mut grads = GradStore::default();
    for (name, var) in params.iter().filter(|(name, _)| step != 1 || *name != "b") {
        let grad = randn(var.shape(), &format!("{name}{step}"))
            .to_dtype(var.dtype())
            .unwrap();
        grads.insert(var, grad);
    }
    grads
}

fn values(params: &Params) -> Values {
    let value = |(name, var): (&str, &Var)| {
        (
            name.to_string(),
            var.as_detached_tensor().copy().unwrap().to_dtype(DType::F32).unwrap(),
        )
    };
    params.iter().map(value).collect()
}

fn as_f32(state: &Values) -> Values {
    state
        .iter()
        .map(|(name, value)| (name.clone(), value.to_dtype(DType::F32).unwrap()))
        .collect()
}

/// Three steps on `first` ranks, and three more on `then`, of what a checkpoint between them has.
fn check_sharded<R: Rule + Clone>(rule: R) {
    let (params, all) = groups();
    let mut whole = GroupOptimizer::new(all, rule.clone()).unwrap();
    let mut halves = vec![];
    for step in 0..6 {
        if step == 3 {
            halves.push((values(&params), whole.state().unwrap()));
        }
        whole.step(&gradients(&params, step)).unwrap();
    }
    halves.push((values(&params), whole.state().unwrap()));

    for (first, then) in [(1, 2), (2, 3), (3, 1), (7, 2)] {
        let mut checkpoint: Option<(Values, Values)> = None;
        for (half, size) in [first, then].into_iter().enumerate() {
            let ended = threads::run(size, |ranks| {
                let (params, all) = groups();
                let mut opt = ShardedOptimizer::new(ranks, all, rule.clone())?;
                if let Some((weights, state)) = &checkpoint {
                    for (name, var) in params.iter() {
                        var.set(&weights[name].to_dtype(var.dtype())?)?;
                    }
                    opt.load_state(state)?;
                }
                for step in 3 * half..3 * (half + 1) {
                    opt.step(&gradients(&params, step))?;
                }
                let own: usize = opt.own().state()?.values().map(Tensor::elem_count).sum();
                Ok::<_, Error>((values(&params), opt.state()?, own))
            });
            let (weights, state) = &halves[half];
            let total: usize = state.values().map(Tensor::elem_count).sum();
            let mut sum = 0;
            for ended in ended.unwrap() {
                let (ours, our_state, own) = ended.unwrap();
                assert!(same_bits(&ours, weights), "weights of {size} ranks, from {first}");
                assert!(same_bits(&as_f32(&our_state), &as_f32(state)), "state of {size} ranks");
                assert!(state
                    .iter()
                    .all(|(name, value)| our_state[name].dtype() == value.dtype()));
                sum += own;
                checkpoint = Some((ours, our_state));
            }
            assert_eq!(sum, total, "nothing is kept twice");
        }
    }
}

#[test]
fn an_optimizer_divided_among_them_is_the_whole_one_to_the_bit() {
    let (lr, weight_decay) = (0.01, 0.05);
    check_sharded(AdamWConfig {
        lr,
        weight_decay,
        ..AdamWConfig::default()
    });
    // Its gradients are scaled by the norm of all of them, and these are above 1.
    check_sharded(LambConfig {
        lr,
        weight_decay,
        ..LambConfig::default()
    });
}

#[test]
fn a_divided_optimizer_refuses_together() {
    let ended = threads::run(3, |ranks| {
        let (params, all) = groups();
        let before = values(&params);
        let mut opt = ShardedOptimizer::new(ranks, all, AdamWConfig::default())?;
        let mut grads = gradients(&params, 0);
        let first = params.get("a").unwrap();
        grads.insert(first, (first.as_tensor() * f64::NAN)?);
        let refused = opt.step(&grads);
        assert!(matches!(refused, Err(Error::NonFiniteGradient { name }) if name == "a"));
        assert!(same_bits(&values(&params), &before));

        let state = opt.state()?;
        let mut more = state.clone();
        more.insert("z.exp_avg".into(), Tensor::ones(2, DType::F32, &CPU)?);
        assert!(matches!(opt.load_state(&more), Err(Error::WeightsDiffer { .. })));
        // What one rank lacks none takes over.
        let mut less: Values = state
            .iter()
            .map(|(name, value)| Ok((name.clone(), (value + 1.0)?)))
            .collect::<Result<_>>()?;
        less.remove("e.exp_avg");
        let refused = opt.load_state(&less).unwrap_err();
        assert!(refused.to_string().contains("e.exp_avg is missing"), "{refused}");
        assert!(same_bits(&as_f32(&opt.state()?), &as_f32(&state)), "{}", ranks.rank());
        opt.load_state(&state)?;
        Ok::<_, Error>(())
    });
    ended.unwrap().into_iter().for_each(|ended| ended.unwrap());
    let nothing = ParamGroups::from(&Params::default());
    assert!(ShardedOptimizer::new(&Alone, nothing, AdamWConfig::default()).is_err());
}
