//! Batch norm beside candle-nn's, and its statistics in a pass.

use super::*;
use crate::ops::testing::{check_derivative, random, relative};
use candle_core::Device;
use candle_nn::VarMap;

/// candle-nn's layer and ours on weights of their own, all of them random.
fn both(config: BatchNormConfig, dtype: DType) -> (BatchNorm, candle_nn::BatchNorm) {
    let map = || {
        let map = VarMap::new();
        let vb = VarBuilder::from_varmap(&map, dtype, &Device::Cpu);
        let made = batch_norm(5, config, vb.clone()).unwrap();
        for (name, var) in map.data().lock().unwrap().iter() {
            let numbers = random(&[5], name.len() as u64).abs().unwrap();
            var.set(&numbers.to_dtype(dtype).unwrap()).unwrap();
        }
        (made, vb)
    };
    (map().0, candle_nn::batch_norm(5, config, map().1).unwrap())
}

fn configs() -> impl Iterator<Item = BatchNormConfig> {
    [(true, true), (true, false), (false, true), (false, false)]
        .into_iter()
        .map(|(affine, remove_mean)| {
            let (eps, momentum) = (1e-3, 0.3);
            BatchNormConfig {
                eps,
                remove_mean,
                affine,
                momentum,
            }
        })
}

#[test]
fn equals_candles_in_training_and_evaluation() {
    for config in configs() {
        for dtype in [DType::F32, DType::F64] {
            let (ours, candles) = both(config, dtype);
            assert_eq!(ours.weight_and_bias().is_some(), candles.weight_and_bias().is_some());
            assert_eq!((ours.eps(), ours.momentum()), (candles.eps(), candles.momentum()));
            for (train, shape) in [
                (true, &[3, 5, 2, 4][..]),
                (true, &[7, 5]),
                (false, &[3, 5, 2, 4]),
                (false, &[1, 5]),
            ] {
                let xs = random(shape, 1).to_dtype(dtype).unwrap();
                let (got, want) = (
                    ours.forward_t(&xs, train).unwrap(),
                    candles.forward_t(&xs, train).unwrap(),
                );
                let statistics = [
                    (ours.running_mean(), candles.running_mean()),
                    (ours.running_var(), candles.running_var()),
                ];
                for (got, want) in [(&got, &want)].into_iter().chain(statistics) {
                    let error = relative(got, want);
                    assert!(
                        error < 1e-6,
                        "{config:?}, {dtype:?}, train {train}, {shape:?}: {error:e}"
                    );
                }
            }
        }
    }
}

#[test]
fn is_differentiable() {
    for config in configs() {
        let vector = |seed| random(&[5], seed).abs().unwrap();
        for train in [true, false] {
            let op = |t: &[Tensor]| {
                let affine = config.affine.then(|| (t[1].clone(), t[2].clone()));
                let BatchNormConfig {
                    remove_mean,
                    eps,
                    momentum,
                    ..
                } = config;
                let statistics = (vector(3), vector(4));
                BatchNorm::checked(5, statistics, affine, remove_mean, eps, momentum)?.forward_t(&t[0], train)
            };
            let shapes: [&[usize]; 3] = [&[3, 5, 2], &[5], &[5]];
            check_derivative(&op, &shapes[..if config.affine { 3 } else { 1 }], 7);
        }
    }
}

#[test]
fn constructors_equal_candles() {
    let [mean, var, weight, bias] = [0, 1, 2, 3].map(|seed| random(&[5], seed).abs().unwrap());
    let xs = random(&[3, 5], 9);
    let t = || (mean.clone(), var.clone(), weight.clone(), bias.clone());
    let ours = [
        BatchNorm::new(5, t().0, t().1, t().2, t().3, 1e-3),
        BatchNorm::new_no_bias(5, t().0, t().1, 1e-3),
        BatchNorm::new_with_momentum(5, t().0, t().1, t().2, t().3, 1e-3, 0.7),
        BatchNorm::new_no_bias_with_momentum(5, t().0, t().1, 1e-3, 0.7),
    ];
    use candle_nn::BatchNorm as Candles;
    let candles = [
        Candles::new(5, t().0, t().1, t().2, t().3, 1e-3),
        Candles::new_no_bias(5, t().0, t().1, 1e-3),
        Candles::new_with_momentum(5, t().0, t().1, t().2, t().3, 1e-3, 0.7),
        Candles::new_no_bias_with_momentum(5, t().0, t().1, 1e-3, 0.7),
    ];
    for (ours, candles) in ours.into_iter().zip(candles) {
        let (ours, candles) = (ours.unwrap(), candles.unwrap());
        assert!(relative(&ours.forward_train(&xs).unwrap(), &candles.forward_train(&xs).unwrap()) < 1e-14);
        assert!(relative(ours.running_var(), candles.running_var()) < 1e-14);
        assert_eq!(ours.momentum(), candles.momentum());
    }
    let error = BatchNorm::new(4, mean.clone(), var, weight, bias, 1e-3).unwrap_err();
    assert_eq!(error.to_string(), "weight has shape [5], but must be [4]");
}

#[test]
fn statistics_stay_in_a_pass_of_evaluation() {
    let norm = batch_norm(
        5,
        1e-3,
        VarBuilder::from_varmap(&VarMap::new(), DType::F64, &Device::Cpu),
    )
    .unwrap();
    let (xs, before) = (random(&[3, 5], 0), norm.running_mean().copy().unwrap());
    let mut pass = Pass::eval();
    let ys = pass.scope(|_| norm.forward_t(&xs, true).unwrap());
    pass.commit().unwrap();
    assert_eq!(relative(norm.running_mean(), &before), 0.0);
    assert!(
        ys.mean(0)
            .unwrap()
            .abs()
            .unwrap()
            .sum_all()
            .unwrap()
            .to_scalar::<f64>()
            .unwrap()
            < 1e-12
    );
}

#[test]
fn frozen_statistics_stay_and_no_gradient_reaches_them() {
    let map = VarMap::new();
    let norm = batch_norm(5, 1e-3, VarBuilder::from_varmap(&map, DType::F64, &Device::Cpu)).unwrap();
    let before = norm.running_mean().copy().unwrap();
    let grads = norm
        .forward_t(&random(&[3, 5], 0), false)
        .unwrap()
        .sqr()
        .unwrap()
        .sum_all()
        .unwrap();
    let grads = grads.backward().unwrap();
    assert_eq!(relative(norm.running_mean(), &before), 0.0);
    let data = map.data().lock().unwrap();
    let reached: Vec<_> = data
        .iter()
        .filter(|(_, var)| grads.get(var).is_some())
        .map(|(name, _)| name)
        .collect();
    assert_eq!(reached.len(), 2, "{reached:?}");
    assert!(grads.get(&data["weight"]).is_some() && grads.get(&data["bias"]).is_some());
}
