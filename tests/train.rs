//! Accumulated gradients and averaged weights.

mod common;

use std::collections::BTreeMap;

use candle_core::backprop::GradStore;
use candle_core::{DType, Tensor, Var};
use candle_nn::VarMap;
use common::{bits, by_name, distance, gradient_distance, numbers, randn, CPU};
use masksub::models::vit::{Config, VisionTransformer};
use masksub::train::accumulate::Accumulator;
use masksub::train::ema::Ema;
use masksub::{Criterion, DropToken, Error, MaskSub, Params, RandomMasking, Seed, Weights};

/// Four times sixteen are sixty-four: with masks, dropout and drop path drawn for each sample.
#[test]
fn micro_batches_give_the_gradients_of_the_whole() {
    let weights = Weights::seeded(Seed::new(0));
    let cfg = Config {
        embed_dim: 32,
        depth: 2,
        num_heads: 2,
        mlp_dim: 64,
        dropout: 0.1,
        drop_path: 0.2,
        layer_scale: Some(0.5),
        ..Config::deit3_tiny(10)
    };
    let vit = VisionTransformer::new(&cfg.with_input(16, 4, 1), weights.var_builder(DType::F32, &CPU)).unwrap();
    let params = Params::from_varmap(weights.varmap());
    let model = MaskSub::new(vit, DropToken::new(RandomMasking::new(0.5).unwrap()), &params);
    let images = randn((64, 1, 16, 16), "images");
    let labels = Tensor::new((0..64).map(|i| i * 7 % 10).collect::<Vec<u32>>(), &CPU).unwrap();
    let criterion = Criterion::cross_entropy();
    let key = Seed::new(5).at(3);
    let gradients = |first: usize, n: usize| {
        let (xs, ys) = (images.narrow(0, first, n).unwrap(), labels.narrow(0, first, n).unwrap());
        let key = key.with_first_sample(first);
        model
            .backward(&xs, key, |logits| criterion.forward(logits, &ys))
            .unwrap()
            .grads
    };
    let whole = by_name(&gradients(0, 64), &params);
    let mut accumulator = Accumulator::new(&params);
    for sizes in [vec![16; 4], vec![16, 16, 16, 9, 7], vec![64]] {
        let mut first = 0;
        for &n in &sizes {
            accumulator.add(&gradients(first, n), n).unwrap();
            first += n;
        }
        assert_eq!(accumulator.samples(), 64);
        let accumulated = by_name(&accumulator.take().unwrap(), &params);
        let error = gradient_distance(&accumulated, &whole);
        println!("{sizes:?}: {error:.1e}");
        assert!(error < 1e-5, "{sizes:?}: {error:e}");
        if sizes.len() == 1 {
            assert!(whole.iter().all(|(name, grad)| bits(grad) == bits(&accumulated[name])));
        }
    }
}

fn two() -> (Params, [Var; 2]) {
    let vars = ["a", "b"].map(|name| Var::from_tensor(&randn(3, name)).unwrap());
    let named = ["a", "b"].map(String::from).into_iter().zip(vars.clone());
    (Params::new(named), vars)
}

#[test]
fn a_gradient_that_is_not_there_counts_as_zero() {
    let (params, [a, b]) = two();
    let mut accumulator = Accumulator::new(&params);
    let ones = || Tensor::ones(3, DType::F32, &CPU).unwrap();
    let mut only_a = GradStore::default();
    only_a.insert(&a, ones());
    let mut only_b = GradStore::default();
    only_b.insert(&b, ones());
    accumulator.add(&only_a, 1).unwrap();
    accumulator.add(&only_b, 3).unwrap();
    let grads = accumulator.take().unwrap();
    assert_eq!(grads.get(&a).unwrap().to_vec1::<f32>().unwrap(), [0.25; 3]);
    assert_eq!(grads.get(&b).unwrap().to_vec1::<f32>().unwrap(), [0.75; 3]);
    // What was given is as it was, and the next batch begins anew.
    assert_eq!(only_a.get(&a).unwrap().to_vec1::<f32>().unwrap(), [1.0; 3]);
    accumulator.add(&only_b, 2).unwrap();
    let grads = accumulator.take().unwrap();
    assert!(grads.get(&a).is_none());
    assert_eq!(grads.get(&b).unwrap().to_vec1::<f32>().unwrap(), [1.0; 3]);
}

#[test]
fn accumulation_refuses_what_means_nothing() {
    let (params, [a, _]) = two();
    let mut accumulator = Accumulator::new(&params);
    assert!(matches!(
        accumulator.take(),
        Err(Error::InvalidArgument {
            argument: "samples",
            ..
        })
    ));
    let mut grads = GradStore::default();
    grads.insert(&a, Tensor::ones(3, DType::F32, &CPU).unwrap());
    let none = accumulator.add(&grads, 0);
    assert!(matches!(
        none,
        Err(Error::InvalidArgument {
            argument: "samples",
            ..
        })
    ));
    accumulator.add(&grads, 1).unwrap();
    let mut other = GradStore::default();
    other.insert(&a, Tensor::ones(4, DType::F32, &CPU).unwrap());
    assert!(matches!(
        accumulator.add(&other, 1),
        Err(Error::Shape { argument: "grads", .. })
    ));
    assert_eq!(accumulator.samples(), 1);
}

/// A model of two variables, one of them a running statistic.
fn varmap(dtype: DType) -> VarMap {
    let varmap = VarMap::new();
    for name in ["fc.weight", "bn.running_mean"] {
        let value = randn((4, 3), name).to_dtype(dtype).unwrap();
        let mut data = varmap.data().lock().unwrap();
        data.insert(name.into(), Var::from_tensor(&value).unwrap());
    }
    varmap
}

fn values(varmap: &VarMap) -> BTreeMap<String, Vec<f64>> {
    let data = varmap.data().lock().unwrap();
    data.iter().map(|(name, var)| (name.clone(), numbers(var))).collect()
}

/// Sets every variable to what it is at that step.
fn train(varmap: &VarMap, step: usize) {
    for (name, var) in varmap.data().lock().unwrap().iter() {
        let value = randn((4, 3), &format!("{name} {step}"));
        var.set(&value.to_dtype(var.dtype()).unwrap()).unwrap();
    }
}

#[test]
fn the_average_is_the_recursion_written_out() {
    for (dtype, tolerance) in [(DType::F32, 1e-6), (DType::F64, 1e-14), (DType::BF16, 1e-6)] {
        for warmup in [false, true] {
            let varmap = varmap(dtype);
            let mut expected = values(&varmap);
            let mut ema = Ema::of(&varmap, 0.9).unwrap();
            if warmup {
                ema = ema.with_warmup();
            }
            for step in 0..50 {
                train(&varmap, step);
                let decay = if warmup {
                    0.9f64.min(1.0 - (1.0 + step as f64).powf(-2.0 / 3.0))
                } else {
                    0.9
                };
                assert_eq!(ema.decay(), decay);
                ema.update().unwrap();
                for (name, now) in values(&varmap) {
                    for (average, now) in expected.get_mut(&name).unwrap().iter_mut().zip(now) {
                        *average = decay * *average + (1.0 - decay) * now;
                    }
                }
            }
            let state = ema.state().unwrap();
            for (name, expected) in expected {
                for (ours, expected) in numbers(&state[&format!("average/{name}")]).iter().zip(expected) {
                    assert!(
                        (ours - expected).abs() < tolerance * (1.0 + expected.abs()),
                        "{dtype:?} {name}"
                    );
                }
            }
        }
    }
}

#[test]
fn averages_stand_in_for_the_weights_and_go_again() {
    for dtype in [DType::F32, DType::F16] {
        let varmap = varmap(dtype);
        let start = values(&varmap);
        let mut ema = Ema::of(&varmap, 0.5).unwrap();
        train(&varmap, 0);
        let trained = values(&varmap);
        assert_eq!(ema.averaged(|| values(&varmap)).unwrap(), start);
        assert_eq!(values(&varmap), trained);
        let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            let _ = ema.averaged(|| panic!("in an evaluation"));
        }));
        assert!(panicked.is_err());
        assert_eq!(values(&varmap), trained);
    }
}

#[test]
fn a_restored_average_goes_on_to_the_bit() {
    let start = varmap(DType::F32);
    let mut ema = Ema::of(&start, 0.99).unwrap().with_warmup();
    for step in 0..3 {
        train(&start, step);
        ema.update().unwrap();
    }
    let saved = ema.state().unwrap();
    let again = varmap(DType::F32);
    let mut restored = Ema::of(&again, 0.99).unwrap().with_warmup();
    restored.load_state(&saved).unwrap();
    for (varmap, ema) in [(&start, &mut ema), (&again, &mut restored)] {
        train(varmap, 3);
        ema.update().unwrap();
    }
    for (name, theirs) in ema.state().unwrap() {
        assert_eq!(distance(&restored.state().unwrap()[&name], &theirs), 0.0, "{name}");
    }

    let mut fails = |change: &dyn Fn(&mut BTreeMap<String, Tensor>), name: &str| {
        let mut state = saved.clone();
        change(&mut state);
        let before = restored.state().unwrap();
        let error = restored.load_state(&state).unwrap_err();
        assert!(error.to_string().contains(name), "{error}");
        for (name, after) in restored.state().unwrap() {
            assert_eq!(distance(&after, &before[&name]), 0.0, "{name}");
        }
    };
    fails(&|state| drop(state.remove("average/fc.weight")), "fc.weight");
    fails(&|state| drop(state.remove("updates")), "updates");
    fails(
        &|state| drop(state.insert("average/fc.weight".into(), randn(2, "x"))),
        "fc.weight",
    );
    fails(
        &|state| drop(state.insert("average/fc.scale".into(), randn(2, "x"))),
        "fc.scale",
    );
}

#[test]
fn a_decay_of_one_would_never_learn() {
    for decay in [1.0, -0.1, f64::NAN] {
        let error = Ema::of(&varmap(DType::F32), decay).unwrap_err();
        assert!(matches!(error, Error::InvalidArgument { argument: "decay", .. }));
    }
}

#[test]
fn what_cannot_be_averaged_is_refused() {
    let var = || Var::from_tensor(&randn(3, "v")).unwrap();
    for vars in [vec![], vec![("a".to_string(), var()), ("a".to_string(), var())]] {
        let error = Ema::new(vars, 0.9).unwrap_err();
        assert!(
            matches!(error, Error::InvalidArgument { argument: "vars", .. }),
            "{error}"
        );
    }
    // A variable may be called what it likes.
    let mut ema = Ema::new([("updates".to_string(), var())], 0.9).unwrap();
    ema.update().unwrap();
    let mut state = ema.state().unwrap();
    assert_eq!((state.len(), state["updates"].to_scalar::<i64>().unwrap()), (2, 1));
    assert_eq!(Ema::weights_of(&state)["updates"].dims(), [3]);
    state.insert("updates".into(), Tensor::new(-1i64, &CPU).unwrap());
    assert!(ema.load_state(&state).unwrap_err().to_string().contains("-1 updates"));
}

/// In bf16 itself the hundredth gradient would not count.
#[test]
fn gradients_of_half_precision_are_accumulated_in_f32() {
    let var = Var::from_tensor(&Tensor::ones(2, DType::BF16, &CPU).unwrap()).unwrap();
    let params = Params::new([("w".to_string(), var.clone())]);
    let mut accumulator = Accumulator::new(&params);
    for i in 0..300 {
        let mut grads = GradStore::default();
        let value = if i < 200 { 1f32 } else { 4.0 };
        grads.insert(
            &var,
            Tensor::full(value, 2, &CPU).unwrap().to_dtype(DType::BF16).unwrap(),
        );
        accumulator.add(&grads, 1).unwrap();
    }
    let mean = accumulator.take().unwrap();
    let mean = mean.get(&var).unwrap();
    assert_eq!((mean.dtype(), numbers(mean)), (DType::BF16, vec![2.0; 2]));
}
