//! Optimizers: fused steps against their compositions, groups, state, and what is refused. (Against PyTorch and timm:
//! `examples/parity/tests.rs`.)

mod common;

use std::collections::BTreeMap;

use candle_core::backprop::GradStore;
use candle_core::{DType, Tensor, Var};
use common::{bits, distance, randn, CPU};
use masksub::models::{swin, vit};
use masksub::train::optim::{AdamW, AdamWConfig, GroupOptimizer, Lamb, LambConfig, ParamGroups, Rule, Sgd, SgdConfig};
use masksub::{Error, Params, Seed, Weights};

/// Shapes that are one piece of work, several for three threads, several for one of them, a single number, and none.
const SHAPES: [(&str, &[usize]); 7] = [
    ("a.weight", &[7, 5]),
    ("b.weight", &[1100, 701]),
    ("b2.weight", &[400, 701]),
    ("b3.weight", &[401, 700]),
    ("c.bias", &[9]),
    ("d.scale", &[]),
    ("e.weight", &[0, 3]),
];

fn params(dtype: DType) -> Params {
    let var = |(name, shape): (&str, &[usize])| {
        let tensor = randn(shape, name).to_dtype(dtype).unwrap();
        (name.to_string(), Var::from_tensor(&tensor).unwrap())
    };
    Params::new(SHAPES.map(var))
}

fn grads(params: &Params, step: usize) -> GradStore {
    let mut grads = GradStore::default();
    for (name, var) in params.iter() {
        let grad = randn(var.dims(), &format!("{name} {step}"));
        grads.insert(var, grad.to_dtype(var.dtype()).unwrap());
    }
    grads
}

fn rules() -> Vec<Box<dyn Rule>> {
    let lamb = |max_grad_norm| LambConfig {
        weight_decay: 0.1,
        max_grad_norm,
        ..LambConfig::default()
    };
    vec![
        Box::new(AdamWConfig {
            weight_decay: 0.1,
            ..AdamWConfig::default()
        }),
        Box::new(lamb(Some(1.0))),
        Box::new(lamb(None)),
        Box::new(SgdConfig {
            weight_decay: 0.1,
            ..SgdConfig::default()
        }),
        Box::new(SgdConfig {
            nesterov: false,
            momentum: 0.0,
            ..SgdConfig::default()
        }),
    ]
}

/// Five steps from the same start, in that dtype.
fn train(rule: Box<dyn Rule>, dtype: DType) -> (Params, GroupOptimizer<Box<dyn Rule>>) {
    let params = params(dtype);
    let groups = ParamGroups::new(&params).without_decay(ParamGroups::usually_without_decay);
    let groups = groups
        .with_lr_scale(|name| if name == "a.weight" { 0.5 } else { 1.0 })
        .unwrap();
    let mut opt = GroupOptimizer::new(groups, rule).unwrap();
    for step in 0..5 {
        opt.step(&grads(&params, step)).unwrap();
    }
    (params, opt)
}

fn values(params: &Params) -> BTreeMap<String, Tensor> {
    let value = |(name, var): (&str, &Var)| (name.to_string(), var.as_tensor().copy().unwrap());
    params.iter().map(value).collect()
}

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
fn a_restored_optimizer_goes_on_to_the_bit() {
    for dtype in [DType::F32, DType::BF16] {
        for (rule, again) in rules().into_iter().zip(rules()) {
            let (mut trained, mut opt) = train(rule, dtype);
            let saved = opt.state().unwrap();
            let at = values(&trained);
            // Reading does not hand out what the next step changes.
            opt.step(&grads(&trained, 5)).unwrap();
            let expected = values(&trained);

            let restored = params(dtype);
            for (name, var) in restored.iter() {
                var.set(&at[name]).unwrap();
            }
            let groups = ParamGroups::new(&restored).without_decay(ParamGroups::usually_without_decay);
            let groups = groups
                .with_lr_scale(|name| if name == "a.weight" { 0.5 } else { 1.0 })
                .unwrap();
            let mut opt = GroupOptimizer::new(groups, again).unwrap();
            opt.load_state(&saved).unwrap();
            opt.step(&grads(&restored, 5)).unwrap();
            trained = restored;
            for (name, value) in values(&trained) {
                let numbers = |tensor: &Tensor| bits(&tensor.to_dtype(DType::F32).unwrap());
                assert_eq!(numbers(&value), numbers(&expected[&name]), "{name}");
            }
        }
    }
}

#[test]
fn a_state_that_does_not_fit_is_refused_and_changes_nothing() {
    let config = AdamWConfig::default;
    let params = params(DType::F32);
    let mut opt = AdamW::new(&params, config()).unwrap();
    opt.step(&grads(&params, 0)).unwrap();
    let saved = opt.state().unwrap();
    let fails = |opt: &mut AdamW, change: &dyn Fn(&mut BTreeMap<String, Tensor>), name: &str| {
        let mut state = saved.clone();
        change(&mut state);
        let error = opt.load_state(&state).unwrap_err();
        assert!(error.to_string().contains(name), "{error}");
        for ((name, ours), (_, theirs)) in opt.state().unwrap().iter().zip(&saved) {
            assert_eq!(distance(ours, theirs), 0.0, "{name}");
        }
        error
    };
    let missing = fails(
        &mut opt,
        &|state| drop(state.remove("c.bias.exp_avg")),
        "c.bias.exp_avg",
    );
    assert!(matches!(missing, Error::MissingWeight { .. }));
    let other = Tensor::zeros((1, 2), DType::F32, &CPU).unwrap();
    let misshapen = fails(
        &mut opt,
        &|state| drop(state.insert("a.weight.exp_avg_sq".into(), other.clone())),
        "a.weight.exp_avg_sq",
    );
    assert!(matches!(misshapen, Error::MisshapenWeight { .. }));
    let foreign = fails(
        &mut opt,
        &|state| drop(state.insert("z.step".into(), other.clone())),
        "z.step",
    );
    assert!(matches!(foreign, Error::WeightsDiffer { .. }));
    let half = saved["c.bias.exp_avg"].to_dtype(DType::F16).unwrap();
    let dtype = fails(
        &mut opt,
        &|state| drop(state.insert("c.bias.exp_avg".into(), half.clone())),
        "c.bias.exp_avg",
    );
    assert!(matches!(dtype, Error::DType { .. }));
    // Another rule's.
    let sgd = Sgd::new(&params, SgdConfig::default()).unwrap();
    assert!(opt.load_state(&sgd.state().unwrap()).is_err());
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

#[test]
fn a_scale_of_0_freezes() {
    let (frozen, filtered) = (params(DType::F32), params(DType::F32));
    let groups = ParamGroups::new(&frozen).with_lr_scale(|name| if name == "b.weight" { 0.0 } else { 1.0 });
    let mut by_scale = Lamb::new(groups.unwrap(), LambConfig::default()).unwrap();
    let rest = ParamGroups::new(&filtered.clone().filter(|name| name != "b.weight"));
    let mut by_filter = Lamb::new(rest, LambConfig::default()).unwrap();
    for step in 0..3 {
        by_scale.step(&grads(&frozen, step)).unwrap();
        by_filter.step(&grads(&filtered, step)).unwrap();
    }
    for ((name, a), (_, b)) in frozen.iter().zip(filtered.iter()) {
        assert_eq!(bits(a), bits(b), "{name}");
    }
}

fn every_rule() -> [Box<dyn Rule>; 3] {
    [
        Box::<AdamWConfig>::default(),
        Box::<LambConfig>::default(),
        Box::<SgdConfig>::default(),
    ]
}

#[test]
fn a_step_with_a_gradient_that_is_not_finite_is_refused() {
    for (rule, bad) in every_rule()
        .into_iter()
        .zip([f32::NAN, f32::INFINITY, f32::NEG_INFINITY])
    {
        let params = params(DType::F32);
        let before: Vec<_> = params.iter().map(|(_, var)| bits(var)).collect();
        let mut opt = GroupOptimizer::new(&params, rule).unwrap();
        let mut grads = grads(&params, 0);
        let mut gradient = vec![1f32; 9];
        gradient[7] = bad;
        grads.insert(
            params.get("c.bias").unwrap(),
            Tensor::from_vec(gradient, 9, &CPU).unwrap(),
        );
        let (state, error) = (opt.state().unwrap(), opt.step(&grads).unwrap_err());
        assert!(
            matches!(&error, Error::NonFiniteGradient { name } if name == "c.bias"),
            "{error}"
        );
        assert_eq!(before, params.iter().map(|(_, var)| bits(var)).collect::<Vec<_>>());
        let after = opt.state().unwrap();
        let same =
            |a: &Tensor, b: &Tensor| bits(&a.to_dtype(DType::F32).unwrap()) == bits(&b.to_dtype(DType::F32).unwrap());
        assert!(state.iter().all(|(name, tensor)| same(tensor, &after[name])));
        assert_eq!(opt.skipped_steps(), 0);
    }
}

#[test]
fn a_step_with_a_gradient_that_is_not_finite_is_passed_over_by_choice() {
    for rule in every_rule() {
        let params = params(DType::F32);
        let opt = GroupOptimizer::new(&params, rule).unwrap();
        let mut opt = opt.skip_non_finite();
        let mut bad = grads(&params, 0);
        bad.insert(params.get("c.bias").unwrap(), Tensor::full(f32::NAN, 9, &CPU).unwrap());
        let before: Vec<_> = params.iter().map(|(_, var)| bits(var)).collect();
        for skipped in 1..3 {
            opt.step(&bad).unwrap();
            assert_eq!(opt.skipped_steps(), skipped);
        }
        assert_eq!(before, params.iter().map(|(_, var)| bits(var)).collect::<Vec<_>>());
        opt.step(&grads(&params, 1)).unwrap();
        assert_ne!(before, params.iter().map(|(_, var)| bits(var)).collect::<Vec<_>>());
        assert_eq!(opt.skipped_steps(), 2);
    }
}

#[test]
fn bad_settings_and_gradients_are_named() {
    let params = params(DType::F32);
    let groups = || ParamGroups::new(&params);
    let argument = |error: Error| match error {
        Error::InvalidArgument { argument, .. } | Error::Shape { argument, .. } | Error::DType { argument, .. } => {
            argument
        }
        other => panic!("{other}"),
    };
    let adamw = |change: fn(&mut AdamWConfig)| {
        let mut config = AdamWConfig::default();
        change(&mut config);
        argument(AdamW::new(groups(), config).unwrap_err())
    };
    assert_eq!(adamw(|c| c.lr = -1.0), "lr");
    assert_eq!(adamw(|c| c.lr = f64::NAN), "lr");
    assert_eq!(adamw(|c| c.beta1 = 1.0), "beta1");
    assert_eq!(adamw(|c| c.beta2 = -0.1), "beta2");
    assert_eq!(adamw(|c| c.eps = f64::INFINITY), "eps");
    assert_eq!(adamw(|c| c.weight_decay = -0.1), "weight_decay");
    let config = SgdConfig {
        momentum: 1.0,
        ..SgdConfig::default()
    };
    assert_eq!(argument(Sgd::new(groups(), config).unwrap_err()), "momentum");
    let config = LambConfig {
        max_grad_norm: Some(0.0),
        ..LambConfig::default()
    };
    assert_eq!(argument(Lamb::new(groups(), config).unwrap_err()), "max_grad_norm");

    assert_eq!(argument(groups().with_lr_scale(|_| -1.0).unwrap_err()), "scale");
    assert_eq!(argument(groups().with_layer_decay(0.0, 2, |_| 0).unwrap_err()), "decay");
    assert_eq!(
        argument(groups().with_layer_decay(0.5, 2, |_| 4).unwrap_err()),
        "layer_of"
    );
    let twice = params.get("c.bias").unwrap();
    let twice = Params::new([("x".to_string(), twice.clone()), ("y".to_string(), twice.clone())]);
    let error = AdamW::new(&twice, AdamWConfig::default()).unwrap_err();
    assert_eq!(argument(error), "groups");

    let none = Params::new([]);
    let error = AdamW::new(&none, AdamWConfig::default()).unwrap_err();
    assert_eq!(argument(error), "groups");

    let mut opt = AdamW::new(groups(), AdamWConfig::default()).unwrap();
    for rate in [f64::NAN, -1.0] {
        opt.set_learning_rate(rate);
        assert_eq!(argument(opt.step(&grads(&params, 0)).unwrap_err()), "lr");
    }
    opt.set_learning_rate(1e-3);
    let mut negative = opt.state().unwrap();
    negative.insert("c.bias.step".into(), Tensor::new(-1i64, &CPU).unwrap());
    assert_eq!(argument(opt.load_state(&negative).unwrap_err()), "state");
    let mut bad = grads(&params, 0);
    bad.insert(
        params.get("c.bias").unwrap(),
        Tensor::zeros(8, DType::F32, &CPU).unwrap(),
    );
    let before: Vec<_> = params.iter().map(|(_, var)| bits(var)).collect();
    assert_eq!(argument(opt.step(&bad).unwrap_err()), "grads");
    assert_eq!(before, params.iter().map(|(_, var)| bits(var)).collect::<Vec<_>>());
}

/// The names of the weights that a model makes.
fn names(make: impl FnOnce(candle_nn::VarBuilder<'static>)) -> Params {
    let weights = Weights::seeded(Seed::new(0));
    make(weights.var_builder(DType::F32, &CPU));
    Params::from_varmap(weights.varmap())
}

#[test]
fn what_the_recipes_exempt_from_decay() {
    for cfg in [
        vit::Config::deit3_tiny(3),
        vit::Config::hf_base(3),
        vit::Config::clip_base(3),
    ] {
        let cfg = vit::Config {
            embed_dim: 8,
            num_heads: 2,
            mlp_dim: 16,
            depth: 2,
            ..cfg.with_input(16, 8, 3)
        };
        let params = names(|vb| drop(vit::VisionTransformer::new(&cfg, vb).unwrap()));
        let groups = ParamGroups::new(&params).without_decay(ParamGroups::usually_without_decay);
        for (name, _, decays) in groups.iter() {
            let matrix = name.ends_with(".weight") && !name.contains("norm") && !name.contains("position_embedding");
            assert_eq!(decays, matrix, "{name}");
        }
    }
    let params = names(|vb| drop(swin::SwinTransformer::new(&common::small_swin(), vb).unwrap()));
    let groups = ParamGroups::new(&params).without_decay(ParamGroups::usually_without_decay);
    for (name, _, decays) in groups.iter() {
        let exempt =
            name.contains("norm") || name.ends_with(".bias") || name.ends_with("table") || name == "mask_token";
        assert_eq!(decays, !exempt, "{name}");
    }
}

#[test]
fn layers_are_counted_in_all_forms() {
    for cfg in [
        vit::Config::deit3_tiny(3),
        vit::Config::hf_base(3),
        vit::Config::clip_base(3),
        vit::Config::mae_base(3),
    ] {
        let cfg = vit::Config {
            embed_dim: 8,
            num_heads: 2,
            mlp_dim: 16,
            depth: 2,
            ..cfg.with_input(16, 8, 3)
        };
        // Below another path, too.
        let params = names(|vb| drop(vit::VisionTransformer::new(&cfg, vb.pp("model")).unwrap()));
        let groups = ParamGroups::new(&params);
        let groups = groups
            .with_layer_decay(0.5, cfg.depth, |name| cfg.layer_of(name))
            .unwrap();
        for (name, scale, _) in groups.iter() {
            let block = ["blocks", "layer", "layers"].iter().find_map(|part| {
                let (_, rest) = name.split_once(&format!(".{part}."))?;
                rest.split('.').next()?.parse::<i32>().ok()
            });
            let first = ["patch", "cls_token", "class_embedding", "pos", "pre_"];
            let expected = match block {
                Some(block) => 0.5f64.powi(2 - block),
                None if first.iter().any(|part| name.contains(part) && !name.contains("post")) => 0.125,
                None => 1.0,
            };
            assert_eq!(scale, expected, "{name}");
        }
    }
    let cfg = swin::Config {
        depths: vec![2, 3, 1],
        ..swin::Config::tiny(10)
    };
    let timm = swin::Config {
        weight_names: swin::WeightNames::Timm,
        ..cfg.clone()
    };
    for (name, layer) in [
        ("mask_token", 0),
        ("patch_embed.norm.weight", 0),
        ("layers.0.blocks.1.attn.qkv.bias", 2),
        ("layers.1.blocks.0.norm1.weight", 3),
        ("layers.2.blocks.0.mlp.fc1.weight", 6),
        ("norm.weight", 7),
        ("head.weight", 7),
    ] {
        assert_eq!((cfg.layer_of(name), timm.layer_of(name)), (layer, layer), "{name}");
    }
    assert_eq!(cfg.layer_of("layers.0.downsample.reduction.weight"), 2);
    assert_eq!(cfg.layer_of("layers.1.downsample.norm.bias"), 5);
    assert_eq!(timm.layer_of("layers.1.downsample.reduction.weight"), 2);
    assert_eq!(timm.layer_of("layers.2.downsample.norm.bias"), 5);
}
