//! What is refused: gradients that are not finite, bad settings, gradients that do not fit.

use candle_core::{DType, Tensor};
use masksub::train::optim::{AdamW, AdamWConfig, GroupOptimizer, Lamb, LambConfig, ParamGroups, Sgd, SgdConfig};
use masksub::{Error, Params};

use super::{every_rule, grads, params};
use crate::common::{bits, CPU};

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
