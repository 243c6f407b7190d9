//! The record of how hard the sub-branch's task is, against halves that are computed each for itself.

use candle_core::backprop::GradStore;
use candle_core::{DType, Tensor, Var, D};
use candle_nn::loss::cross_entropy;
use masksub::models::resnet::{BlockKind, ResNet};
use masksub::models::vit::Config;
use masksub::{grad, Difficulty, MaskSub, Params, PatchDrop, Seed, SubBranch, SubModelLoss, Weights};

use super::{drop_token, dropping, half, key};
use crate::common::{by_name, gradient_distance, images, labels, numbers, randn, small_resnet, vit, CPU};

/// All gradients, one behind the other.
fn flat(grads: &GradStore, params: &Params) -> Vec<f64> {
    params
        .vars()
        .iter()
        .flat_map(|var| numbers(grads.get(var).unwrap()))
        .collect()
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// From one backward pass for each half, unweighted, and the logits of both.
fn expected<M, S: SubBranch<M>>(model: &MaskSub<M, S>, params: &Params, xs: &Tensor, ys: &Tensor) -> Difficulty {
    let pair = model.forward_pair(xs, key()).unwrap();
    let main = grad::backward(&cross_entropy(&pair.main, ys).unwrap(), params).unwrap();
    let sub = SubModelLoss::default().forward(&pair.sub, &pair.main).unwrap();
    let sub = grad::backward(&sub, params).unwrap();
    let (main, sub) = (flat(&main, params), flat(&sub, params));
    let (main_norm, sub_norm) = (dot(&main, &main).sqrt(), dot(&sub, &sub).sqrt());
    let class = |logits: &Tensor| logits.argmax(D::Minus1).unwrap().to_vec1::<u32>().unwrap();
    let pairs: Vec<_> = class(&pair.main).into_iter().zip(class(&pair.sub)).collect();
    let same = pairs.iter().filter(|(main, sub)| main == sub).count();
    Difficulty {
        main_norm,
        sub_norm,
        cosine: dot(&main, &sub) / (main_norm * sub_norm),
        agreement: Some(same as f64 / pairs.len() as f64),
    }
}

#[track_caller]
fn assert_close(ours: Difficulty, expected: Difficulty) {
    let close = |a: f64, b: f64| (a - b).abs() <= 1e-5 * b.abs().max(0.1);
    let alike = close(ours.main_norm, expected.main_norm)
        && close(ours.sub_norm, expected.sub_norm)
        && close(ours.cosine, expected.cosine)
        && ours.agreement == expected.agreement;
    assert!(alike, "{ours:?} instead of {expected:?}");
}

/// Whatever the weight, the record is of the unweighted losses, and the step is the one without it.
fn check<M, S: SubBranch<M>>(model: impl Fn() -> MaskSub<M, S>, params: &Params, xs: &Tensor, ys: &Tensor) {
    let main_loss = |logits: &Tensor| cross_entropy(logits, ys);
    for weight in [0.1, 0.5, 0.75] {
        let plain = model().with_weight(weight).unwrap();
        let without = plain.backward(xs, key(), main_loss).unwrap();
        assert!(without.difficulty.is_none());
        let recording = plain.with_difficulty(true);
        let with = recording.backward(xs, key(), main_loss).unwrap();
        assert_close(with.difficulty.unwrap(), expected(&recording, params, xs, ys));
        assert_eq!((with.main_loss, with.sub_loss), (without.main_loss, without.sub_loss));
        let off = gradient_distance(&by_name(&with.grads, params), &by_name(&without.grads, params));
        assert!(off < 1e-6, "{weight}: {off:e}");
    }
    for weight in [0.0, 1.0] {
        let recording = model().with_weight(weight).unwrap().with_difficulty(true);
        let step = recording.backward(xs, key(), main_loss).unwrap();
        assert!(step.difficulty.is_none(), "{weight}");
    }
}

#[test]
fn is_that_of_halves_computed_alone() {
    let (xs, ys) = (images(16, "difficulty"), labels(16, 5));
    let (vit, params) = vit(&dropping(Config::deit3_tiny(5)), 1);
    check(|| MaskSub::new(&vit, drop_token(), &params), &params, &xs, &ys);

    let weights = Weights::seeded(Seed::new(1));
    let cfg = small_resnet(BlockKind::Basic);
    let xs = randn((16, cfg.in_channels, 32, 32), "difficulty of a resnet");
    let ys = labels(16, cfg.num_classes);
    let resnet = ResNet::new(&cfg, weights.var_builder(DType::F32, &CPU)).unwrap();
    let params = Params::from_varmap(weights.varmap());
    let branch = || PatchDrop::new(half(), 8).unwrap();
    check(|| MaskSub::new(&resnet, branch(), &params), &params, &xs, &ys);
}

#[test]
fn predictions_that_cannot_be_compared_have_no_agreement() {
    let weights = Var::from_tensor(&Tensor::new(&[[0.5f32], [2.0]], &CPU).unwrap()).unwrap();
    let params = Params::new([("w".to_string(), weights.clone())]);
    // One logit each, under a loss of its own: there is no class to choose.
    let net = move |xs: &Tensor| xs.flatten_from(2)?.mean(2)?.matmul(weights.as_tensor());
    let distance = |sub: &Tensor, target: &Tensor, _: Option<&_>| (sub - target)?.sqr()?.mean_all();
    let model = MaskSub::wrap(net, PatchDrop::new(half(), 4).unwrap(), &params)
        .with_sub_loss(distance)
        .with_difficulty(true);
    let xs = Tensor::ones((3, 2, 8, 8), DType::F32, &CPU).unwrap();
    let step = model.backward(&xs, key(), |logits| logits.sqr()?.mean_all()).unwrap();
    let difficulty = step.difficulty.unwrap();
    assert_eq!(difficulty.agreement, None);
    assert!(difficulty.main_norm > 0.0 && difficulty.sub_norm > 0.0);
}
