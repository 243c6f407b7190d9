//! Targets of the sub-branch, against loops in f64 over a linear model: losses and, by finite differences, gradients.

mod mutual;
mod teachers;

use candle_core::{DType, Tensor, Var};
use masksub::{Criterion, Error, MainBranch, MaskSub, Mutual, Params, PatchDrop, Step, SubModelLoss, SubTarget};

use super::{half, key};
use crate::common::oracle::{self, bce, cross_entropy as ce, sigmoid, softmax, Rows};
use crate::common::{labels, numbers, randn, sub_losses, CPU};

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
