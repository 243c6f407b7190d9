//! Steps: the fused ones against their compositions, and what a step leaves alone.

use candle_core::backprop::GradStore;
use candle_core::{DType, Tensor, Var};
use masksub::train::optim::{AdamW, AdamWConfig, ParamGroups, Sgd, SgdConfig};
use masksub::Params;

use super::{grads, params, rules, train};
use crate::common::{bits, distance, CPU};

// In f64 the composition runs, in f32 the kernel.
#[test]
fn kernels_equal_their_compositions() {
    for (i, (fused, composed)) in rules().into_iter().zip(rules()).enumerate() {
        let (fused, opt) = train(fused, DType::F32);
        let (composed, reference) = train(composed, DType::F64);
        for ((name, ours), (_, theirs)) in fused.iter().zip(composed.iter()) {
            let error = distance(ours, theirs);
            assert!(error < 1e-6, "rule {i}, {name}: {error:e}");
        }
        let (ours, theirs) = (opt.state().unwrap(), reference.state().unwrap());
        for ((name, ours), (_, theirs)) in ours.iter().zip(&theirs) {
            let error = distance(ours, theirs);
            assert!(error < 1e-6, "rule {i}, {name}: {error:e}");
        }
    }
}

#[test]
fn every_step_moves_every_parameter() {
    for rule in rules() {
        let (trained, _) = train(rule, DType::F32);
        for ((name, before), (_, after)) in params(DType::F32).iter().zip(trained.iter()) {
            assert!(before.elem_count() == 0 || bits(before) != bits(after), "{name}");
        }
    }
}

#[test]
fn the_number_of_threads_does_not_matter() {
    for (one, three) in rules().into_iter().zip(rules()) {
        let [one, three] = [(one, 1), (three, 3)].map(|(rule, threads)| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            let (params, _) = pool.install(|| train(rule, DType::F32));
            params.iter().map(|(_, var)| bits(var)).collect::<Vec<_>>()
        });
        assert_eq!(one, three);
    }
}

/// Half precision keeps steps that its own rounding would swallow.
#[test]
fn half_precision_has_a_master_copy() {
    for dtype in [DType::BF16, DType::F16] {
        let weight = Var::from_tensor(&Tensor::ones(3, dtype, &CPU).unwrap()).unwrap();
        let params = Params::new([("w".to_string(), weight.clone())]);
        let mut opt = Sgd::new(
            ParamGroups::new(&params),
            SgdConfig {
                lr: 1.0 / 65536.0,
                momentum: 0.0,
                ..SgdConfig::default()
            },
        )
        .unwrap();
        let mut grads = GradStore::default();
        grads.insert(&weight, Tensor::ones(3, dtype, &CPU).unwrap());
        for _ in 0..512 {
            opt.step(&grads).unwrap();
        }
        let expected = Tensor::full(1.0 - 1f32 / 128.0, 3, &CPU).unwrap();
        assert_eq!(distance(&opt.state().unwrap()["w.master"], &expected), 0.0);
        let rounded = expected.to_dtype(dtype).unwrap();
        assert_eq!(weight.dtype(), dtype);
        assert_eq!(distance(&weight, &rounded), 0.0, "{dtype:?}");
    }
}

#[test]
fn a_parameter_without_a_gradient_is_passed_over() {
    let params = params(DType::F32);
    let mut opt = AdamW::new(&params, AdamWConfig::default()).unwrap();
    let before = bits(params.get("c.bias").unwrap());
    let mut partial = grads(&params, 0);
    partial.remove(params.get("c.bias").unwrap());
    opt.step(&partial).unwrap();
    assert_eq!(bits(params.get("c.bias").unwrap()), before);
    let steps = |opt: &AdamW, name: &str| opt.state().unwrap()[name].to_scalar::<i64>().unwrap();
    assert_eq!((steps(&opt, "c.bias.step"), steps(&opt, "a.weight.step")), (0, 1));
    // Its first update is corrected as a first one, as PyTorch's is: with a sign of the gradient it is lr long.
    opt.step(&grads(&params, 1)).unwrap();
    let decayed = 1.0 - 1e-3 * 0.01;
    for (before, after) in before.iter().zip(bits(params.get("c.bias").unwrap())) {
        let moved = f64::from(f32::from_bits(after)) - decayed * f64::from(f32::from_bits(*before));
        assert!((moved.abs() - 1e-3).abs() < 1e-6, "{moved}");
    }
}

#[test]
fn candle_trait_and_groups_agree_where_all_decay() {
    let (by_groups, by_trait) = (params(DType::F32), params(DType::F32));
    let mut groups = AdamW::new(&by_groups, AdamWConfig::default()).unwrap();
    let mut plain = <AdamW as candle_nn::Optimizer>::new(by_trait.vars(), AdamWConfig::default()).unwrap();
    // candle's cannot update a variable without elements.
    let theirs = params(DType::F32).filter(|name| name != "e.weight");
    let mut candle = <candle_nn::AdamW as candle_nn::Optimizer>::new(theirs.vars(), Default::default()).unwrap();
    for step in 0..4 {
        groups.step(&grads(&by_groups, step)).unwrap();
        candle_nn::Optimizer::step(&mut plain, &grads(&by_trait, step)).unwrap();
        candle_nn::Optimizer::step(&mut candle, &grads(&theirs, step)).unwrap();
    }
    for ((name, a), (_, b)) in by_groups.iter().zip(by_trait.iter()) {
        assert_eq!(bits(a), bits(b), "{name}");
        assert!(
            theirs.get(name).is_none_or(|theirs| distance(a, theirs) < 1e-6),
            "{name}"
        );
    }
    candle_nn::Optimizer::set_learning_rate(&mut plain, 0.25);
    assert_eq!(candle_nn::Optimizer::learning_rate(&plain), 0.25);
}

/// Weights whose gradient is their own memory, as `d(w²/2)/dw` may be, are updated and do not hang.
#[test]
fn a_gradient_may_be_the_variable_itself() {
    let weight = Var::from_tensor(&Tensor::ones(4, DType::F32, &CPU).unwrap()).unwrap();
    let params = Params::new([("w".to_string(), weight.clone())]);
    let config = SgdConfig {
        lr: 0.25,
        momentum: 0.0,
        ..SgdConfig::default()
    };
    let mut opt = Sgd::new(&params, config).unwrap();
    let mut grads = GradStore::default();
    grads.insert(&weight, weight.as_detached_tensor());
    opt.step(&grads).unwrap();
    assert_eq!(weight.to_vec1::<f32>().unwrap(), [0.75; 4]);
    // One number for all, as the gradient of a sum is.
    grads.insert(
        &weight,
        Tensor::ones(1, DType::F32, &CPU).unwrap().broadcast_as(4).unwrap(),
    );
    opt.step(&grads).unwrap();
    assert_eq!(weight.to_vec1::<f32>().unwrap(), [0.5; 4]);
}

/// Two that are each other's: either is updated by what the other was.
#[test]
fn gradients_may_be_other_variables() {
    let vars = [1f32, 2.0].map(|value| Var::from_tensor(&Tensor::full(value, 1 << 17, &CPU).unwrap()).unwrap());
    let named = ["a", "b"].map(String::from).into_iter().zip(vars.clone());
    let config = SgdConfig {
        lr: 0.25,
        momentum: 0.0,
        ..SgdConfig::default()
    };
    let mut opt = Sgd::new(ParamGroups::new(&Params::new(named)), config).unwrap();
    let mut grads = GradStore::default();
    grads.insert(&vars[0], vars[1].as_detached_tensor());
    grads.insert(&vars[1], vars[0].as_detached_tensor());
    opt.step(&grads).unwrap();
    let all = |var: &Var, value: f32| var.to_vec1::<f32>().unwrap().iter().all(|&v| v == value);
    assert!(all(&vars[0], 0.5) && all(&vars[1], 1.75));
}
