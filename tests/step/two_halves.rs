//! Two halves of a step against the joint loss.

use candle_core::backprop::GradStore;
use candle_core::{Tensor, D};
use candle_nn::loss::cross_entropy;
use masksub::models::vit::{Config, VisionTransformer};
use masksub::{
    grad, Criterion, DropToken, Fill, MaskSub, Params, PatchDrop, RandomMasking, Seed, SubBranch, SubModelLoss,
};

use super::{drop_token, dropping, key};
use crate::common::{
    bits, by_name, distance, gradient_distance, images, labels, numbers, sub_losses, tiny, tiny_forms, vit,
};

/// The gradients of the joint loss from one backward through both branches.
fn joint<S: SubBranch<VisionTransformer>>(
    model: &MaskSub<VisionTransformer, S>,
    params: &Params,
    xs: &Tensor,
    weight: f64,
    main_loss: impl Fn(&Tensor) -> Tensor,
    sub_loss: SubModelLoss,
) -> GradStore {
    let pair = model.forward_pair(xs, key()).unwrap();
    let main = (main_loss(&pair.main) * (1.0 - weight)).unwrap();
    let sub = (sub_loss.forward(&pair.sub, &pair.main).unwrap() * weight).unwrap();
    grad::backward(&(main + sub).unwrap(), params).unwrap()
}

#[test]
fn give_the_gradients_of_the_joint_loss() {
    let (xs, ys) = (images(6, "joint"), labels(6, 5));
    for (name, form) in tiny_forms(5) {
        let cfg = dropping(form);
        let cfg = Config { embed_dim: 24, ..cfg };
        for sub_loss in sub_losses() {
            let sub_loss = sub_loss.with_temperature(2.0).unwrap();
            for weight in [0.1, 0.5, 0.9] {
                let (vit, params) = vit(&cfg, 1);
                let model = MaskSub::new(vit, drop_token(), &params).with_sub_loss(sub_loss);
                let model = model.with_weight(weight).unwrap();
                let step = model.backward(&xs, key(), |logits| cross_entropy(logits, &ys)).unwrap();
                let main_loss = |logits: &Tensor| cross_entropy(logits, &ys).unwrap();
                let joint = joint(&model, &params, &xs, weight, main_loss, sub_loss);
                let error = gradient_distance(&by_name(&step.grads, &params), &by_name(&joint, &params));
                assert!(error < 1e-5, "{name}, {sub_loss:?}, w = {weight}: {error:.1e}");
            }
        }
    }
}

#[test]
fn differ_from_a_step_whose_target_is_attached() {
    // What the comparison above would say if the target were not detached.
    let (xs, ys) = (images(6, "joint"), labels(6, 5));
    let (vit, params) = vit(&dropping(Config::deit3_tiny(5)), 1);
    let model = MaskSub::new(vit, drop_token(), &params);
    let step = model.backward(&xs, key(), |logits| cross_entropy(logits, &ys)).unwrap();
    let pair = model.forward_pair(&xs, key()).unwrap();
    let target = candle_nn::ops::softmax(&pair.main, D::Minus1).unwrap();
    let sub = Criterion::cross_entropy();
    let attached = {
        let log_p = candle_nn::ops::log_softmax(&pair.sub, D::Minus1).unwrap();
        ((target * log_p).unwrap().sum_all().unwrap() / -6.0).unwrap()
    };
    let detached = sub
        .forward(&pair.sub, &candle_nn::ops::softmax(&pair.main, D::Minus1).unwrap())
        .unwrap();
    let main = cross_entropy(&pair.main, &ys).unwrap();
    let ours = by_name(&step.grads, &params);
    let error = |sub: Tensor| {
        let joint = ((&main + sub).unwrap() * 0.5).unwrap();
        gradient_distance(&ours, &by_name(&grad::backward(&joint, &params).unwrap(), &params))
    };
    assert!(error(detached) < 1e-5);
    assert!(error(attached) > 1e-2);
}

#[test]
fn report_the_losses_and_logits_of_the_joint_pass() {
    let (xs, ys) = (images(4, "report"), labels(4, 5));
    let (vit, params) = vit(&dropping(Config::mae_base(5)), 2);
    let loss = SubModelLoss::kl().with_temperature(3.0).unwrap();
    let model = MaskSub::new(vit, drop_token(), params).with_sub_loss(loss);
    let model = model.with_weight(0.3).unwrap();
    let step = model.backward(&xs, key(), |logits| cross_entropy(logits, &ys)).unwrap();
    let pair = model.forward_pair(&xs, key()).unwrap();
    assert_eq!(bits(&step.main_logits), bits(&pair.main));
    assert_eq!(step.mask, pair.mask);
    assert_eq!(step.mask.unwrap().num_keep(), 8);
    // Both losses unweighted.
    let main = numbers(&cross_entropy(&pair.main, &ys).unwrap())[0];
    let sub = numbers(&loss.forward(&pair.sub, &pair.main).unwrap())[0];
    assert!((step.main_loss - main).abs() < 1e-6);
    assert!((step.sub_loss.unwrap() - sub).abs() < 1e-6);
}

#[test]
fn run_main_and_sub_with_draws_of_their_own() {
    // Nothing is masked, so only dropout and drop path tell the branches apart.
    let (vit, _) = vit(&dropping(Config::deit3_tiny(5)), 1);
    let pair = |model: &MaskSub<&VisionTransformer, DropToken<RandomMasking>>, key| {
        let pair = model.forward_pair(&images(4, "draws"), key).unwrap();
        (bits(&pair.main), bits(&pair.sub))
    };
    let model = MaskSub::unchecked(&vit, DropToken::new(RandomMasking::new(0.0).unwrap()));
    let (main, sub) = pair(&model, key());
    assert_ne!(main, sub);
    assert_eq!(pair(&model, key()), (main.clone(), sub.clone()));
    let (next_main, next_sub) = pair(&model, Seed::new(5).at(4));
    assert!(next_main != main && next_sub != sub);
}

#[test]
fn agree_where_nothing_is_dropped() {
    for (name, cfg) in tiny_forms(5) {
        let (vit, _) = vit(&cfg, 3);
        let pair = MaskSub::unchecked(vit, DropToken::new(RandomMasking::new(0.0).unwrap()))
            .forward_pair(&images(3, "ratio 0"), key())
            .unwrap();
        assert_eq!(bits(&pair.main), bits(&pair.sub), "{name}");
    }
    let (vit, _) = vit(&tiny(Config::deit3_tiny(5)), 3);
    let branch = PatchDrop::new(RandomMasking::new(0.0).unwrap(), 8)
        .unwrap()
        .with_fill(Fill::Noise);
    let pair = MaskSub::unchecked(vit, branch)
        .forward_pair(&images(3, "ratio 0"), key())
        .unwrap();
    assert_eq!(bits(&pair.main), bits(&pair.sub));
}

#[test]
fn gradients_of_both_halves_count() {
    // A check on the checks: each half alone is far from the sum.
    let (vit, params) = vit(&tiny(Config::deit3_tiny(5)), 4);
    let grads = |weight: f64| {
        let model = MaskSub::new(&vit, drop_token(), &params).with_weight(weight).unwrap();
        let loss = |logits: &Tensor| cross_entropy(logits, &labels(4, 5));
        by_name(
            &model.backward(&images(4, "halves"), key(), loss).unwrap().grads,
            &params,
        )
    };
    let (main, both, sub) = (grads(0.0), grads(0.5), grads(1.0));
    assert!(gradient_distance(&main, &both) > 0.1 && gradient_distance(&sub, &both) > 0.1);
    for (name, both) in &both {
        let halves = ((&main[name] + &sub[name]).unwrap() * 0.5).unwrap();
        assert!(distance(&halves, both) < 1e-4, "{name}");
    }
}

#[test]
fn micro_batches_give_the_gradients_of_the_whole_batch() {
    for (name, form) in tiny_forms(5) {
        let (vit, params) = vit(&dropping(form), 10);
        let model = MaskSub::new(&vit, drop_token(), &params);
        let (xs, ys) = (images(8, "micro"), labels(8, 5));
        let whole = model.backward(&xs, key(), |logits| cross_entropy(logits, &ys)).unwrap();

        for sizes in [vec![4, 4], vec![5, 2, 1]] {
            let mut merged = GradStore::default();
            let (mut first, mut main_loss, mut sub_loss) = (0, 0.0, 0.0);
            for &size in &sizes {
                let part = |t: &Tensor| t.narrow(0, first, size).unwrap();
                let step = model
                    .backward(&part(&xs), key().with_first_sample(first), |logits| {
                        cross_entropy(logits, &part(&ys))
                    })
                    .unwrap();
                let share = size as f64 / 8.0;
                main_loss += share * step.main_loss;
                sub_loss += share * step.sub_loss.unwrap();
                let mut weighted = GradStore::default();
                for (_, var) in params.iter() {
                    weighted.insert(var, (step.grads.get(var).unwrap() * share).unwrap());
                }
                grad::merge(&mut merged, weighted).unwrap();
                first += size;
            }
            let error = gradient_distance(&by_name(&merged, &params), &by_name(&whole.grads, &params));
            assert!(error < 1e-5, "{name} in {sizes:?}: {error:.1e}");
            assert!((main_loss - whole.main_loss).abs() < 1e-5);
            assert!((sub_loss - whole.sub_loss.unwrap()).abs() < 1e-5);
        }
    }
}

#[test]
fn the_whole_of_it_is_reproducible_within_a_process() {
    let run = || {
        let (vit, params) = vit(&dropping(Config::deit3_tiny(5)), 4);
        let model = MaskSub::new(vit, drop_token(), &params);
        let loss = |logits: &Tensor| cross_entropy(logits, &labels(4, 5));
        let step = model.backward(&images(4, "again"), key(), loss).unwrap();
        let grads: Vec<_> = by_name(&step.grads, &params).values().map(bits).collect();
        (grads, step.main_loss, step.sub_loss, step.mask)
    };
    assert_eq!(run(), run());
}
