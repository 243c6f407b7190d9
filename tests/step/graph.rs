//! What a step leaves of the graph, and gradients that meet others of the same variables.

use candle_core::{Tensor, Var};
use candle_nn::loss::cross_entropy;
use masksub::models::vit::Config;
use masksub::{grad, MaskSub, Params, PatchDrop, Plain};

use super::{drop_token, dropping, half, key};
use crate::common::{images, labels, numbers, randn, vit};

#[test]
fn everything_in_a_step_is_detached() {
    let (vit, params) = vit(&dropping(Config::deit3_tiny(5)), 4);
    for params in [Some(params), None] {
        for weight in [0.0, 0.5, 1.0] {
            let model = match &params {
                Some(params) => MaskSub::new(&vit, drop_token(), params),
                None => MaskSub::unchecked(&vit, drop_token()),
            };
            let model = model.with_weight(weight).unwrap();
            let loss = |logits: &Tensor| cross_entropy(logits, &labels(4, 5));
            let step = model.backward(&images(4, "detached"), key(), loss).unwrap();
            assert!(!step.main_logits.track_op());
            for id in step.grads.get_ids() {
                // A gradient that is attached keeps the activations of its pass alive.
                assert!(!step.grads.get_id(*id).unwrap().track_op(), "w = {weight}");
            }
        }
    }
}

#[test]
fn gradients_do_not_keep_the_graph_alive() {
    // Where a variable itself is an operand, candle's backward computes its gradient from the other operand, graph and
    // all: the second weight's from the hidden layer.
    let var = |shape: (usize, usize)| Var::from_tensor(&randn(shape, "graph")).unwrap();
    let (first, second) = (var((768, 8)), var((8, 5)));
    let params = Params::new([
        ("first".to_string(), first.clone()),
        ("second".to_string(), second.clone()),
    ]);
    let net = candle_nn::func({
        let (first, second) = (first.clone(), second.clone());
        move |xs| xs.flatten_from(1)?.matmul(&first)?.tanh()?.matmul(&second)
    });
    let patch_drop = || PatchDrop::new(half(), 8).unwrap();
    let models = [
        MaskSub::wrap(net.clone(), patch_drop(), &params),
        MaskSub::unchecked(Plain(net), patch_drop()),
    ];
    let (xs, ys) = (images(4, "graph"), labels(4, 5));
    let loss = |logits: &Tensor| cross_entropy(logits, &ys);
    let hidden = xs.flatten_from(1).unwrap().matmul(&first).unwrap().tanh().unwrap();
    let own = cross_entropy(&hidden.matmul(&second).unwrap(), &ys)
        .unwrap()
        .backward()
        .unwrap();
    assert!(own.get(&second).unwrap().track_op(), "candle detaches by itself now");

    for weight in [0.0, 0.5, 1.0] {
        for model in &models {
            let model = model.clone().with_weight(weight).unwrap();
            let step = model.backward(&xs, key(), loss).unwrap();
            for var in [&first, &second] {
                assert!(!step.grads.get(var).unwrap().track_op(), "w = {weight}");
            }
        }
    }
    let logits = hidden.matmul(&second).unwrap();
    let grads = grad::backward(&loss(&logits).unwrap(), &params).unwrap();
    assert!(!grads.get(&second).unwrap().track_op());
}

/// A branch's parameters' gradients take another way than candle's. Here they meet others of the same variables: of the
/// same branch run twice, of one parameter in two places of it, and of an operation of candle's.
#[test]
fn gradients_of_branches_meet_others() {
    use masksub::ops::{mlp_branch, Activation, Affine, MlpBranch};
    let var = |name: &str, shape: &[usize]| Var::from_tensor(&randn(shape, name)).unwrap();
    let (norm, wide) = (var("norm", &[8]), var("wide", &[16]));
    let (fc1, fc2) = (var("fc1", &[16, 8]), var("fc2", &[8, 16]));
    let branch = MlpBranch {
        norm: Affine {
            weight: &norm,
            bias: &norm,
        },
        eps: 1e-6,
        fc1: Affine {
            weight: &fc1,
            bias: &wide,
        },
        activation: Activation::Gelu,
        fc2: Affine {
            weight: &fc2,
            bias: &norm,
        },
        gamma: Some(&norm),
        recompute: false,
    };
    let once = mlp_branch(&randn((2, 3, 8), "xs"), &branch, None).unwrap();
    let twice = mlp_branch(&once, &branch, Some(&[2.0, 0.5])).unwrap();
    let decay = (fc1.sqr().unwrap().sum_all().unwrap() + norm.sqr().unwrap().sum_all().unwrap()).unwrap();
    let loss = (twice.sqr().unwrap().mean_all().unwrap() + decay).unwrap();

    let vars = [("norm", norm), ("wide", wide), ("fc1", fc1), ("fc2", fc2)];
    let plain = loss.backward().unwrap();
    let params = Params::new(vars.iter().map(|(name, var)| (name.to_string(), var.clone())));
    let ours = masksub::grad::backward(&loss, &params).unwrap();
    for (name, var) in &vars {
        let [ours, plain] = [&ours, &plain].map(|grads| numbers(grads.get(var).unwrap()));
        let largest = plain.iter().fold(0f64, |most, x| most.max(x.abs()));
        let apart = ours.iter().zip(&plain).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
        assert!(apart < 1e-5 * largest, "{name}: {apart:e} of {largest:e}");
    }
    // What was not asked for stays out.
    let some = masksub::grad::backward(&loss, &params.clone().filter(|name| name == "fc2")).unwrap();
    assert!(some.get(&vars[3].1).is_some() && some.get(&vars[2].1).is_none());
}
