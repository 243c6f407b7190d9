//! An optimizer that is divided among the ranks.

use candle_core::{DType, Tensor, Var};
use masksub::train::distributed::{threads, Alone, Communicator, ShardedOptimizer};
use masksub::train::optim::{AdamWConfig, GroupOptimizer, LambConfig, ParamGroups, Rule};
use masksub::{Error, Params, Result};

use super::{as_f32, gradients, same_bits, values, Values};
use crate::common::{randn, CPU};

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
