//! Targets of the sub-branch, against loops in f64 over a linear model: losses and, by finite differences, gradients.

use candle_core::{DType, Tensor, Var};
use candle_nn::{ModuleT, Optimizer};
use masksub::models::resnet::{BlockKind, ResNet};
use masksub::models::vit::{Config, VisionTransformer};
use masksub::train::ema::Ema;
use masksub::{
    Criterion, DropSub, Error, Forward, MainBranch, MaskSub, MaskedTeacher, Mutual, Params, PatchDrop, PathSub, Plain,
    Step, SubModelLoss, SubTarget, Teacher, Weights,
};

use super::probe::Probe;
use super::{adam, drop_token, dropping, half, key};
use crate::common::oracle::{self, bce, cross_entropy as ce, sigmoid, softmax, Rows};
use crate::common::{
    bits, by_name, gradient_distance, images, labels, numbers, randn, small_resnet, sub_losses, vit, CPU,
};

const PIXELS: usize = 16;
const CLASSES: usize = 3;
const BATCH: usize = 5;

/// logits = pixels W, the weights PIXELS * CLASSES numbers.
fn logits(pixels: &Rows, weights: &[f64]) -> Rows {
    let logit = |row: &Vec<f64>, class: usize| (0..PIXELS).map(|i| row[i] * weights[i * CLASSES + class]).sum();
    let of_row = |row: &Vec<f64>| (0..CLASSES).map(|class| logit(row, class)).collect();
    pixels.iter().map(of_row).collect()
}

/// KL(softmax(p) || softmax(q)) of logits.
fn kl(p: &Rows, q: &Rows) -> f64 {
    oracle::kl(&map(p, softmax), &map(q, softmax))
}

fn map(rows: &Rows, f: impl Fn(&[f64]) -> Vec<f64>) -> Rows {
    rows.iter().map(|row| f(row)).collect()
}

fn sigmoids(rows: &Rows) -> Rows {
    oracle::map(rows, sigmoid)
}

/// A linear model, in f64, its batch and what is left of that under the step's mask.
struct Linear {
    weights: Var,
    params: Params,
    xs: Tensor,
    ys: Tensor,
    main: Rows,
    one_hot: Rows,
}

fn random(shape: &[usize], name: &str) -> Tensor {
    randn(shape, name).to_dtype(DType::F64).unwrap()
}

fn net(weights: Tensor) -> impl Fn(&Tensor) -> candle_core::Result<Tensor> {
    move |xs: &Tensor| xs.flatten_from(1)?.matmul(&weights)
}

impl Linear {
    fn new() -> Self {
        let weights = Var::from_tensor(&random(&[PIXELS, CLASSES], "w")).unwrap();
        let xs = random(&[BATCH, 1, 4, 4], "xs");
        let ys = labels(BATCH, CLASSES);
        let hot = |&y: &u32| (0..CLASSES as u32).map(|c| f64::from(c == y)).collect();
        Self {
            params: Params::new([("w".to_string(), weights.clone())]),
            weights,
            main: xs.flatten_from(1).unwrap().to_vec2().unwrap(),
            one_hot: ys.to_vec1::<u32>().unwrap().iter().map(hot).collect(),
            xs,
            ys,
        }
    }

    fn step(&self, target: impl SubTarget, sub_loss: SubModelLoss, criterion: Criterion, weight: f64) -> Step {
        let branch = PatchDrop::new(half(), 2).unwrap();
        MaskSub::wrap(net(self.weights.as_tensor().clone()), branch, &self.params)
            .with_target(target)
            .with_sub_loss(sub_loss)
            .with_weight(weight)
            .unwrap()
            .backward(&self.xs, key(), |logits| criterion.forward(logits, &self.ys))
            .unwrap()
    }

    /// The pixels that the step's sub-branch saw, in 2 x 2 blocks.
    fn sub(&self, step: &Step) -> Rows {
        let mask = step.mask.as_ref().unwrap();
        let kept = mask.rows().zip(&self.main);
        let seen = |keep: &[u32], at: usize| keep.contains(&((at / 8 * 2 + at % 4 / 2) as u32));
        kept.map(|(keep, row)| {
            (0..PIXELS)
                .map(|at| if seen(keep, at) { row[at] } else { 0.0 })
                .collect()
        })
        .collect()
    }

    fn w(&self) -> Vec<f64> {
        numbers(&self.weights)
    }

    /// The step's gradient is that of `total`, a function of live weights and of those in whatever is detached.
    #[track_caller]
    fn assert_gradient(&self, step: &Step, scale: f64, total: impl Fn(&[f64], &[f64]) -> f64) {
        let fixed = self.w();
        for (at, ours) in numbers(step.grads.get(&self.weights).unwrap()).into_iter().enumerate() {
            let moved = |by: f64| {
                let mut live = fixed.clone();
                live[at] += by;
                total(&live, &fixed)
            };
            let expected = (moved(1e-5) - moved(-1e-5)) / 2e-5;
            assert!(
                (ours * scale - expected).abs() < 1e-8,
                "{at}: {} instead of {expected}",
                ours * scale
            );
        }
    }
}

fn close(a: f64, b: f64) {
    assert!((a - b).abs() < 1e-10, "{a} instead of {b}");
}

#[test]
fn the_main_branch_by_default() {
    let linear = Linear::new();
    let step = linear.step(MainBranch, SubModelLoss::kl(), Criterion::cross_entropy(), 0.3);
    let sub = linear.sub(&step);
    linear.assert_gradient(&step, 1.0, |live, fixed| {
        0.7 * ce(&logits(&linear.main, live), &linear.one_hot)
            + 0.3 * kl(&logits(&linear.main, fixed), &logits(&sub, live))
    });
}

#[test]
fn a_teacher_that_sees_all() {
    let linear = Linear::new();
    let other = random(&[PIXELS, CLASSES], "teacher");
    let teacher = Teacher(Plain(net(other.clone())));
    let step = linear.step(
        teacher,
        SubModelLoss::soft_cross_entropy(),
        Criterion::cross_entropy(),
        0.3,
    );
    let (sub, w) = (linear.sub(&step), linear.w());
    let target = map(&logits(&linear.main, &numbers(&other)), softmax);
    close(step.sub_loss.unwrap(), ce(&logits(&sub, &w), &target));
    close(step.main_loss, ce(&logits(&linear.main, &w), &linear.one_hot));
    linear.assert_gradient(&step, 1.0, |live, _| {
        0.7 * ce(&logits(&linear.main, live), &linear.one_hot) + 0.3 * ce(&logits(&sub, live), &target)
    });
}

#[test]
fn a_teacher_that_sees_what_is_kept() {
    let xs = images(4, "masked teacher");
    let [student, teacher] = [1, 2].map(|seed| vit(&dropping(Config::deit3_tiny(5)), seed));
    let model = MaskSub::new(student.0, drop_token(), &student.1);
    let loss = |logits: &Tensor| Criterion::cross_entropy().forward(logits, &labels(4, 5));
    let sub_loss = |target: Box<dyn SubTarget>| {
        let step = model.clone().with_target(target).backward(&xs, key(), loss);
        step.unwrap().sub_loss.unwrap()
    };
    let masked = sub_loss(Box::new(MaskedTeacher(teacher.0.clone())));
    let whole = sub_loss(Box::new(Teacher(teacher.0)));

    // Without dropout: in evaluation mode.
    let still = MaskSub::unchecked(vit(&crate::common::tiny(Config::deit3_tiny(5)), 2).0, drop_token());
    let pair = still.forward_pair(&xs, key()).unwrap();
    let sub = model.forward_pair(&xs, key()).unwrap().sub;
    for (ours, target) in [(masked, pair.sub), (whole, pair.main)] {
        let expected = numbers(&SubModelLoss::default().forward(&sub, &target).unwrap())[0];
        assert!((ours - expected).abs() < 1e-6, "{ours} instead of {expected}");
    }
    assert!((masked - whole).abs() > 1e-3);
}

#[test]
fn a_masked_teacher_sees_all_where_nothing_is_masked() {
    let xs = images(4, "masked teacher");
    let [student, teacher] = [1, 2].map(|seed| vit(&dropping(Config::deit3_tiny(5)), seed));
    let sub_loss = |target: Box<dyn SubTarget>| {
        let model = MaskSub::new(&student.0, DropSub::new(0.2).unwrap(), &student.1).with_target(target);
        let loss = |logits: &Tensor| Criterion::cross_entropy().forward(logits, &labels(4, 5));
        model.backward(&xs, key(), loss).unwrap().sub_loss
    };
    let masked = sub_loss(Box::new(MaskedTeacher(teacher.0.clone())));
    assert_eq!(masked, sub_loss(Box::new(Teacher(teacher.0))));
    assert_ne!(masked, sub_loss(Box::new(MainBranch)));
}

#[test]
fn an_averaged_copy_sees_every_update() {
    let (xs, ys) = (images(4, "averaged"), labels(4, 5));
    let cfg = crate::common::tiny(Config::deit3_tiny(5));
    let weights = Weights::seeded(masksub::Seed::new(1));
    let student = VisionTransformer::new(&cfg, weights.var_builder(DType::F32, &CPU)).unwrap();
    let params = Params::from_varmap(weights.varmap());
    let mut ema = Ema::of(weights.varmap(), 0.6).unwrap();
    let averaged = VisionTransformer::new(&cfg, ema.weights().no_grad_builder(DType::F32, &CPU)).unwrap();
    let model = MaskSub::new(student, drop_token(), &params).with_target(Teacher(averaged));
    let mut optimizer = adam(&params, 1e-2);
    for t in 0..3 {
        let key = masksub::Seed::new(2).at(t);
        // The same by hand: the averages in the place of the weights.
        let target = ema.averaged(|| model.model().forward_pass(&xs, &mut masksub::Pass::eval()));
        let target = target.unwrap().unwrap();
        let sub = model.forward_pair(&xs, key).unwrap().sub;
        let expected = numbers(&SubModelLoss::default().forward(&sub, &target).unwrap())[0];
        let step = model.backward(&xs, key, |logits| Criterion::cross_entropy().forward(logits, &ys));
        let step = step.unwrap();
        assert!((step.sub_loss.unwrap() - expected).abs() < 1e-6, "step {t}");
        optimizer.step(&step.grads).unwrap();
        ema.update().unwrap();
    }
    // A run that is taken up again gives it the averages that were saved.
    let predicted = || {
        let step = model.backward(&xs, key(), |logits| Criterion::cross_entropy().forward(logits, &ys));
        step.unwrap().sub_loss.unwrap()
    };
    let (state, saved) = (ema.state().unwrap(), predicted());
    ema.update().unwrap();
    assert_ne!(predicted(), saved);
    ema.load_state(&state).unwrap();
    assert_eq!(predicted(), saved);
    // What the average lacks is told.
    let deeper = Config { depth: 3, ..cfg };
    let error = VisionTransformer::new(&deeper, ema.weights().no_grad_builder(DType::F32, &CPU)).unwrap_err();
    assert!(matches!(Error::from(error), Error::MissingWeight { .. }));
}

/// Averages of half-precision weights are f32: their copy sees its inputs in f32, too.
#[test]
fn an_averaged_copy_of_half_precision_weights() {
    let (xs, ys) = (images(4, "averaged"), labels(4, 5));
    let cfg = crate::common::tiny(Config::deit3_tiny(5));
    let weights = Weights::seeded(masksub::Seed::new(1));
    let student = VisionTransformer::new(&cfg, weights.var_builder(DType::BF16, &CPU)).unwrap();
    let params = Params::from_varmap(weights.varmap());
    let ema = Ema::of(weights.varmap(), 0.6).unwrap();
    let averaged = VisionTransformer::new(&cfg, ema.weights().no_grad_builder(DType::F32, &CPU)).unwrap();
    let expected = averaged.forward_t(&xs.to_dtype(DType::BF16).unwrap().to_dtype(DType::F32).unwrap(), false);
    let expected = expected.unwrap();
    let teacher = Teacher(Plain(move |xs: &Tensor| {
        averaged.forward_t(&xs.to_dtype(DType::F32)?, false)
    }));
    let model = MaskSub::new(student, drop_token(), &params).with_target(teacher);
    let xs = xs.to_dtype(DType::BF16).unwrap();
    let step = model.backward(&xs, key(), |logits| Criterion::cross_entropy().forward(logits, &ys));
    let sub = model.forward_pair(&xs, key()).unwrap().sub;
    let expected = numbers(&SubModelLoss::default().forward(&sub, &expected).unwrap())[0];
    assert!((step.unwrap().sub_loss.unwrap() - expected).abs() < 1e-6);
}

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

#[test]
fn the_weight_stands_beside_the_share() {
    let linear = Linear::new();
    for weight in [0.2, 1.0] {
        let target = Mutual::new(0.4).unwrap();
        let step = linear.step(
            target,
            SubModelLoss::soft_cross_entropy(),
            Criterion::cross_entropy(),
            weight,
        );
        let sub = linear.sub(&step);
        linear.assert_gradient(&step, 1.0, |live, fixed| {
            let half = |own: &Rows, other: &Rows| {
                let target = map(&logits(other, fixed), softmax);
                0.6 * ce(&logits(own, live), &linear.one_hot) + 0.4 * ce(&logits(own, live), &target)
            };
            (1.0 - weight) * half(&linear.main, &sub) + weight * half(&sub, &linear.main)
        });
    }
    // Without a sub-branch there is nobody to learn from.
    let target = Mutual::new(0.4).unwrap();
    let step = linear.step(target, SubModelLoss::kl(), Criterion::cross_entropy(), 0.0);
    linear.assert_gradient(&step, 1.0, |live, _| ce(&logits(&linear.main, live), &linear.one_hot));
    for share in [0.0, -0.1, 1.1, f64::NAN] {
        let error = Mutual::new(share).unwrap_err();
        assert!(
            matches!(error, Error::InvalidArgument { argument: "share", .. }),
            "{error}"
        );
    }
}

#[test]
fn samples_count_by_their_weight_and_their_targets_confidence() {
    let linear = Linear::new();
    let branch = || PatchDrop::new(half(), 2).unwrap();
    let model = MaskSub::wrap(net(linear.weights.as_tensor().clone()), branch(), &linear.params);
    let labels = |logits: &Tensor| Criterion::cross_entropy().forward(logits, &linear.ys);
    let of_samples = Tensor::new(&[0.0, 1.0, 2.5, 0.0, 0.5], &CPU).unwrap();
    for (name, loss) in ["soft", "kl", "symmetric", "bce"].into_iter().zip(sub_losses()) {
        // As sure as the third surest.
        let main = logits(&linear.main, &linear.w());
        let probabilities = if name == "bce" {
            sigmoids(&main)
        } else {
            map(&main, softmax)
        };
        let mut tops: Vec<f64> = probabilities
            .iter()
            .map(|row| row.iter().copied().fold(0.0, f64::max))
            .collect();
        tops.sort_by(|a, b| b.total_cmp(a));
        let third = tops[2] - 1e-9;
        let sure = loss.with_confidence(third).unwrap();
        for (confidence, loss) in [(0.0, loss), (third, sure)] {
            let weighted = |sub: &Tensor, target: &Tensor, mask: Option<&masksub::Mask>| {
                loss.forward_with(sub, target, mask, Some(&of_samples))
            };
            let step = model.backward_with(&linear.xs, key(), labels, &weighted).unwrap();
            let sub = linear.sub(&step);
            let left_out = std::cell::Cell::new(0);
            let total = |live: &[f64], fixed: &[f64]| {
                let mut sum = 0.0;
                for b in 0..BATCH {
                    let main = logits(&vec![linear.main[b].clone()], fixed);
                    let own = logits(&vec![sub[b].clone()], live);
                    let probabilities = if name == "bce" {
                        sigmoids(&main)
                    } else {
                        map(&main, softmax)
                    };
                    let top = probabilities[0].iter().copied().fold(0.0, f64::max);
                    if top < confidence {
                        left_out.set(left_out.get() + 1);
                        continue;
                    }
                    sum += [0.0, 1.0, 2.5, 0.0, 0.5][b]
                        * match name {
                            "soft" => ce(&own, &probabilities),
                            "kl" => kl(&main, &own),
                            "symmetric" => 0.5 * (kl(&main, &own) + kl(&own, &main)),
                            _ => bce(&own, &probabilities),
                        };
                }
                sum / BATCH as f64
            };
            close(step.sub_loss.unwrap(), total(&linear.w(), &linear.w()));
            let left_out = left_out.get();
            assert_eq!(left_out, if confidence > 0.0 { BATCH - 3 } else { 0 }, "{name}");
            linear.assert_gradient(&step, 1.0, |live, fixed| {
                let labels = ce(&logits(&linear.main, live), &linear.one_hot);
                0.5 * labels + 0.5 * total(live, fixed)
            });
        }
    }
    // Nobody sure: no gradient from the sub-branch, and no error.
    let nobody = SubModelLoss::kl().with_confidence(1.0).unwrap();
    let step = model.with_sub_loss(nobody).backward(&linear.xs, key(), labels).unwrap();
    assert_eq!(step.sub_loss, Some(0.0));
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
