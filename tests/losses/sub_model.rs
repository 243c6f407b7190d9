//! Losses of the sub-branch against the main one.

use candle_core::{DType, Tensor, Var, D};
use masksub::SubModelLoss;

use super::{compare, logits, oracle, tensor, value_and_gradient, Rows};
use crate::common::{numbers, randn, sub_losses, CPU};

const TEMPERATURES: [f64; 5] = [0.25, 0.5, 1.0, 2.0, 8.0];

fn softened(main: &Rows, t: f64) -> Rows {
    main.iter()
        .map(|row| oracle::softmax(&row.iter().map(|x| x / t).collect::<Vec<_>>()))
        .collect()
}

fn pairs() -> Vec<(Rows, Rows)> {
    logits("sub").into_iter().zip(logits("main")).collect()
}

#[test]
fn soft_cross_entropy() {
    for (sub, main) in pairs() {
        for t in TEMPERATURES {
            let loss = SubModelLoss::soft_cross_entropy().with_temperature(t).unwrap();
            let target = softened(&main, t);
            let formula = |x: &Rows| t * t * oracle::cross_entropy(&oracle::map(x, |x| x / t), &target);
            compare(
                &format!("T = {t}"),
                &sub,
                |x| loss.forward(x, &tensor(&main, DType::F64)),
                formula,
            );
        }
    }
    assert_eq!(SubModelLoss::default(), SubModelLoss::soft_cross_entropy());
}

#[test]
fn kl() {
    for (sub, main) in pairs() {
        for t in TEMPERATURES {
            let loss = SubModelLoss::kl().with_temperature(t).unwrap();
            let target = softened(&main, t);
            let formula = |x: &Rows| {
                let cross_entropy = oracle::cross_entropy(&oracle::map(x, |x| x / t), &target);
                t * t * (cross_entropy - oracle::entropy(&target))
            };
            compare(
                &format!("T = {t}"),
                &sub,
                |x| loss.forward(x, &tensor(&main, DType::F64)),
                formula,
            );
        }
    }
}

#[test]
fn symmetric_kl() {
    for (sub, main) in pairs() {
        for t in TEMPERATURES {
            let loss = SubModelLoss::symmetric_kl().with_temperature(t).unwrap();
            let target = softened(&main, t);
            let formula = |x: &Rows| {
                let probs = softened(x, t);
                let both = oracle::kl(&target, &probs) + oracle::kl(&probs, &target);
                t * t * both / 2.0
            };
            let ours = |x: &Tensor| loss.forward(x, &tensor(&main, DType::F64));
            compare(&format!("T = {t}"), &sub, ours, formula);
        }
    }
}

#[test]
fn bce() {
    for (sub, main) in pairs() {
        for t in TEMPERATURES {
            let loss = SubModelLoss::bce().with_temperature(t).unwrap();
            let target = oracle::map(&main, |x| oracle::sigmoid(x / t));
            let formula = |x: &Rows| t * t * oracle::bce(&oracle::map(x, |x| x / t), &target);
            compare(
                &format!("T = {t}"),
                &sub,
                |x| loss.forward(x, &tensor(&main, DType::F64)),
                formula,
            );
        }
    }
}

/// Where a classifier that is trained with BCE has most of its logits.
#[test]
fn bce_keeps_the_digits_of_small_probabilities() {
    let main = [-3f32, -8.0, -12.0, -16.0, -20.0, -30.0, -60.0, 20.0];
    let logits = |row: &[f32]| Tensor::new(row, &CPU).unwrap().reshape((1, row.len())).unwrap();
    let sub = Var::from_tensor(&logits(&[-100.0; 8])).unwrap();
    let loss = SubModelLoss::bce().forward(&sub, &logits(&main)).unwrap();
    let grads = loss.backward().unwrap();
    // sigmoid(-100) is nothing beside any of the targets, so the gradient is the target alone.
    for (got, x) in numbers(grads.get(&sub).unwrap()).into_iter().zip(main) {
        let expected = -oracle::sigmoid(x as f64) / 8.0;
        assert!((got / expected - 1.0).abs() < 1e-6, "{x}: {got:e} beside {expected:e}");
    }
}

#[test]
fn kl_and_soft_cross_entropy_have_the_same_gradient() {
    for (sub, main) in pairs() {
        for t in TEMPERATURES {
            let main = tensor(&main, DType::F32);
            let gradient = |loss: SubModelLoss| {
                let loss = loss.with_temperature(t).unwrap();
                value_and_gradient(&sub, DType::F32, |x| loss.forward(x, &main)).1
            };
            let (kl, ce) = (
                gradient(SubModelLoss::kl()),
                gradient(SubModelLoss::soft_cross_entropy()),
            );
            assert!(
                kl.iter().zip(&ce).all(|(a, b)| (a - b).abs() < 1e-6),
                "{kl:?} and {ce:?}"
            );
        }
    }
}

#[test]
fn kl_is_zero_where_both_agree() {
    for (logits, _) in pairs() {
        for t in TEMPERATURES {
            let loss = SubModelLoss::kl().with_temperature(t).unwrap();
            let main = tensor(&logits, DType::F32);
            let (value, gradient) = value_and_gradient(&logits, DType::F32, |x| loss.forward(x, &main));
            assert!(value.abs() < 1e-6, "{value}");
            assert!(gradient.iter().all(|g| g.abs() < 1e-6), "{gradient:?}");
            // A shift of all logits changes no probability.
            let shifted = oracle::map(&logits, |x| x + 3.0);
            let (value, _) = value_and_gradient(&shifted, DType::F32, |x| loss.forward(x, &main));
            assert!(value.abs() < 1e-4, "{value}");
        }
    }
}

/// A loss of sub and main logits.
type Pair = fn(&Tensor, &Tensor) -> Tensor;

/// The losses, and each as it would be if the target were not detached.
fn losses() -> [(SubModelLoss, Pair); 4] {
    fn log_softmax(x: &Tensor) -> Tensor {
        candle_nn::ops::log_softmax(x, D::Minus1).unwrap()
    }
    fn attached_ce(sub: &Tensor, main: &Tensor) -> Tensor {
        let target = log_softmax(main).exp().unwrap();
        let sum = (target * log_softmax(sub)).unwrap().sum_all().unwrap();
        (sum / -(sub.dims()[0] as f64)).unwrap()
    }
    fn attached_kl(sub: &Tensor, main: &Tensor) -> Tensor {
        let target = log_softmax(main);
        let sum = (target.exp().unwrap() * (&target - log_softmax(sub)).unwrap())
            .unwrap()
            .sum_all()
            .unwrap();
        (sum / sub.dims()[0] as f64).unwrap()
    }
    fn attached_symmetric_kl(sub: &Tensor, main: &Tensor) -> Tensor {
        ((attached_kl(sub, main) + attached_kl(main, sub)).unwrap() * 0.5).unwrap()
    }
    fn attached_bce(sub: &Tensor, main: &Tensor) -> Tensor {
        let sigmoid = |x: &Tensor| candle_nn::ops::sigmoid(x).unwrap();
        let target = sigmoid(main);
        let hit = (&target * sigmoid(sub).log().unwrap()).unwrap();
        let miss = ((1.0 - &target).unwrap() * (1.0 - sigmoid(sub)).unwrap().log().unwrap()).unwrap();
        (hit + miss).unwrap().mean_all().unwrap().neg().unwrap()
    }
    let [ce, kl, symmetric_kl, bce] = sub_losses();
    [
        (ce, attached_ce),
        (kl, attached_kl),
        (symmetric_kl, attached_symmetric_kl),
        (bce, attached_bce),
    ]
}

#[test]
fn nothing_flows_into_the_target() {
    // One weight under both logits, as in a model that is its own sub-model.
    let (sub_input, main_input) = (randn((4, 3), "sub input"), randn((4, 3), "main input"));
    for (loss, attached) in losses() {
        let weight = Var::from_tensor(&randn((3, 5), "weight")).unwrap();
        let branches = |main: &Tensor| (sub_input.matmul(&weight).unwrap(), main_input.matmul(main).unwrap());
        let gradient = |loss: Tensor| numbers(loss.backward().unwrap().get(&weight).unwrap());

        let (sub, main) = branches(&weight);
        let ours = gradient(loss.forward(&sub, &main).unwrap());
        let (_, constant) = branches(&weight.detach());
        let detached = gradient(loss.forward(&sub, &constant).unwrap());
        assert_eq!(ours, detached, "{loss:?}");
        // The same comparison finds a target that is attached.
        let wrong = gradient(attached(&sub, &main));
        let error: f64 = ours.iter().zip(&wrong).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
        assert!(error > 1e-2, "{loss:?}: {error}");
        // And is no comparison of different losses: with the constant they agree.
        let right = gradient(attached(&sub, &constant));
        assert!(ours.iter().zip(&right).all(|(a, b)| (a - b).abs() < 1e-5), "{loss:?}");

        let (sub, main) = (
            Var::from_tensor(&randn((4, 5), "s")).unwrap(),
            Var::from_tensor(&randn((4, 5), "m")).unwrap(),
        );
        let grads = loss.forward(&sub, &main).unwrap().backward().unwrap();
        assert!(grads.get(&sub).is_some() && grads.get(&main).is_none());
    }
}
