//! The state of an optimizer, saved and restored.

use std::collections::BTreeMap;

use candle_core::{DType, Tensor};
use masksub::train::optim::{AdamW, AdamWConfig, GroupOptimizer, ParamGroups, Sgd, SgdConfig};
use masksub::Error;

use super::{grads, params, rules, train, values};
use crate::common::{bits, distance, CPU};

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
