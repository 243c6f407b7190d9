//! Targets that teach each other.

use candle_core::{DType, Tensor, Var};
use masksub::models::resnet::{BlockKind, ResNet};
use masksub::models::vit::Config;
use masksub::{
    Criterion, DropSub, MainBranch, MaskSub, Mutual, Params, PatchDrop, PathSub, SubModelLoss, SubTarget, Weights,
};

use super::{close, kl, logits, sigmoids, Linear, BATCH, CLASSES, PIXELS};
use crate::common::oracle::{bce, cross_entropy as ce};
use crate::common::{bits, by_name, gradient_distance, images, labels, numbers, randn, small_resnet, vit, CPU};
use crate::probe::Probe;
use crate::{drop_token, dropping, half, key};

/// facebookresearch/deit's `--cosub`: a quarter of each of four terms, the targets detached.
#[test]
fn cosub_has_four_terms() {
    let linear = Linear::new();
    let step = linear.step(
        Mutual::new(0.5).unwrap(),
        SubModelLoss::bce(),
        Criterion::bce_with_logits(),
        0.5,
    );
    let (sub, w) = (linear.sub(&step), linear.w());
    let main_logits = logits(&linear.main, &w);
    close(step.main_loss, bce(&main_logits, &linear.one_hot));
    close(step.sub_loss.unwrap(), bce(&logits(&sub, &w), &sigmoids(&main_logits)));
    linear.assert_gradient(&step, 1.0, |live, fixed| {
        let (main, sub, pixels) = (&linear.main, &sub, &linear.one_hot);
        0.25 * bce(&logits(main, live), pixels)
            + 0.25 * bce(&logits(sub, live), pixels)
            + 0.25 * bce(&logits(main, live), &sigmoids(&logits(sub, fixed)))
            + 0.25 * bce(&logits(sub, live), &sigmoids(&logits(main, fixed)))
    });
}

/// Equation 3 of the paper, nothing detached, at α = 3.
#[test]
fn r_drop_has_gradients_through_both_arguments() {
    let (linear, alpha) = (Linear::new(), 3.0);
    let share = alpha / (1.0 + alpha);
    let target = Mutual::new(share).unwrap();
    let step = linear.step(target, SubModelLoss::symmetric_kl(), Criterion::cross_entropy(), 0.5);
    let (sub, w) = (linear.sub(&step), linear.w());
    let (a, b) = (logits(&linear.main, &w), logits(&sub, &w));
    close(step.sub_loss.unwrap(), 0.5 * (kl(&a, &b) + kl(&b, &a)));
    linear.assert_gradient(&step, 2.0 / (1.0 - share), |live, _| {
        let (main, sub) = (logits(&linear.main, live), logits(&sub, live));
        let labels = ce(&main, &linear.one_hot) + ce(&sub, &linear.one_hot);
        labels + alpha / 2.0 * (kl(&main, &sub) + kl(&sub, &main))
    });
}

/// Losses of half-precision logits are in half precision where candle computes them, and in f32 here.
#[test]
fn mutual_losses_may_differ_in_dtype() {
    let linear = Linear::new();
    let weights = Var::from_tensor(&linear.weights.to_dtype(DType::F32).unwrap()).unwrap();
    let xs = linear.xs.to_dtype(DType::F32).unwrap();
    let gradient = |of_logits: DType, of_labels: DType| {
        let matrix = weights.as_tensor().clone();
        let net = move |xs: &Tensor| xs.flatten_from(1)?.matmul(&matrix)?.to_dtype(of_logits);
        let params = Params::new([("w".to_string(), weights.clone())]);
        let model = MaskSub::wrap(net, PatchDrop::new(half(), 2).unwrap(), params);
        let step = model
            .with_target(Mutual::new(0.5).unwrap())
            .backward(&xs, key(), |logits| {
                candle_nn::loss::cross_entropy(logits, &linear.ys)?.to_dtype(of_labels)
            });
        numbers(step.unwrap().grads.get(&weights).unwrap())
    };
    let expected = gradient(DType::F32, DType::F32);
    for (of_logits, of_labels, tolerance) in [
        (DType::BF16, DType::BF16, 0.05),
        (DType::F16, DType::F16, 0.01),
        (DType::F32, DType::F64, 1e-6),
    ] {
        for (ours, expected) in gradient(of_logits, of_labels).iter().zip(&expected) {
            assert!(
                (ours - expected).abs() < tolerance,
                "{of_logits:?}: {ours} instead of {expected}"
            );
        }
    }
}

/// Three passes, never two at once.
#[test]
fn mutual_targets_keep_one_pass_alive() {
    let (weights, probe) = (
        Var::from_tensor(&randn((PIXELS, CLASSES), "w")).unwrap(),
        Probe::default(),
    );
    let counting = {
        let probe = probe.clone();
        let weights = weights.as_tensor().clone();
        move |xs: &Tensor| probe.mark(&xs.flatten_from(1)?.matmul(&weights)?)
    };
    let params = Params::new([("w".to_string(), weights)]);
    let model = MaskSub::wrap(counting, PatchDrop::new(half(), 2).unwrap(), params);
    let loss = |logits: &Tensor| Criterion::cross_entropy().forward(logits, &labels(BATCH, CLASSES));
    let xs = randn((BATCH, 1, 4, 4), "xs");
    model.clone().backward(&xs, key(), loss).unwrap();
    assert_eq!((probe.alive(), probe.most()), (0, 1));
    let mutual = model.with_target(Mutual::new(0.5).unwrap());
    mutual.backward(&xs, key(), loss).unwrap();
    assert_eq!((probe.alive(), probe.most()), (0, 1));
    let _pair = mutual.forward_pair(&xs, key()).unwrap();
    assert_eq!(probe.most(), 2, "the probe does count");
}

/// The pass that runs ahead draws what the sub-branch draws, and leaves no trace in running statistics.
#[test]
fn mutual_targets_are_exact() {
    let (xs, ys) = (images(4, "ahead"), labels(4, 5));
    let loss = |logits: &Tensor| Criterion::cross_entropy().forward(logits, &ys);
    let cfg = dropping(Config::deit3_tiny(5));
    fn joint<M, S: masksub::SubBranch<M>>(
        model: &MaskSub<M, S, Tensor, SubModelLoss, Mutual>,
        params: &Params,
        xs: &Tensor,
        ys: &Tensor,
    ) -> f64 {
        let labels = |logits: &Tensor| Criterion::cross_entropy().forward(logits, ys).unwrap();
        let kl = |a: &Tensor, b: &Tensor| SubModelLoss::kl().forward(a, b).unwrap();
        let pair = model.forward_pair(xs, key()).unwrap();
        let (main, sub) = (&pair.main, &pair.sub);
        let total = [labels(main), labels(sub), kl(main, sub), kl(sub, main)];
        let total = (Tensor::stack(&total, 0).unwrap().sum_all().unwrap() * 0.25).unwrap();
        let joint = by_name(&masksub::grad::backward(&total, params).unwrap(), params);
        let step = model.backward(xs, key(), |logits| Criterion::cross_entropy().forward(logits, ys));
        gradient_distance(&by_name(&step.unwrap().grads, params), &joint)
    }
    let mutual = || Mutual::new(0.5).unwrap();
    let kl = SubModelLoss::kl;
    let (net, params) = vit(&cfg, 1);
    let errors = [
        joint(
            &MaskSub::new(&net, drop_token(), &params)
                .with_target(mutual())
                .with_sub_loss(kl()),
            &params,
            &xs,
            &ys,
        ),
        joint(
            &MaskSub::new(&net, DropSub::new(0.2).unwrap(), &params)
                .with_target(mutual())
                .with_sub_loss(kl()),
            &params,
            &xs,
            &ys,
        ),
        joint(
            &MaskSub::new(&net, PathSub::new(0.3).unwrap(), &params)
                .with_target(mutual())
                .with_sub_loss(kl()),
            &params,
            &xs,
            &ys,
        ),
    ];
    assert!(errors.iter().all(|&error| error < 1e-5), "{errors:?}");

    let statistics = |mutually: bool| {
        let weights = Weights::seeded(masksub::Seed::new(3));
        let net = ResNet::new(&small_resnet(BlockKind::Basic), weights.var_builder(DType::F32, &CPU)).unwrap();
        let model = MaskSub::new(
            net,
            PatchDrop::new(half(), 16).unwrap(),
            Params::from_varmap(weights.varmap()),
        );
        let target: Box<dyn SubTarget> = if mutually {
            Box::new(mutual())
        } else {
            Box::new(MainBranch)
        };
        let model = model.with_target(target);
        model
            .backward(&randn((4, 3, 32, 32), "statistics"), key(), loss)
            .unwrap();
        let state = weights
            .state()
            .into_iter()
            .filter(|(name, _)| name.contains("running_"));
        state.map(|(name, value)| (name, bits(&value))).collect::<Vec<_>>()
    };
    assert_eq!(statistics(true), statistics(false));
}
