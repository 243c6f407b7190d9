//! What ranks exchange: gradients, weights, running statistics.

use std::cell::Cell;

use candle_core::backprop::GradStore;
use candle_core::{DType, Tensor, Var};
use masksub::models::resnet::{BlockKind, ResNet};
use masksub::train::distributed::{self, threads, Communicator};
use masksub::train::ema::Ema;
use masksub::train::optim::{AdamWConfig, GroupOptimizer};
use masksub::train::replicas::RunningStatistics;
use masksub::{Error, Params, Result, Seed, Weights};

use super::{as_f32, gradients, of_other, same_bits, values, Values};
use crate::common::{self, small_resnet, CPU};

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
