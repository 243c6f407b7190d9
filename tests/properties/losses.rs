//! Losses beside their formulas, sample by sample and class by class.

use candle_core::{DType, Tensor, Var};
use masksub::Criterion;
use proptest::prelude::*;

use crate::common::{numbers, oracle, sub_losses, CPU};
use crate::{any_float, any_lying, furthest, normal, tolerance, Lying};

/// log softmax of a row at a temperature.
fn log_softmax(row: &[f64], temperature: f64) -> Vec<f64> {
    oracle::log_softmax(&row.iter().map(|x| x / temperature).collect::<Vec<_>>())
}

/// -t log p - (1 - t) log(1 - p)
fn binary(x: f64, target: f64) -> f64 {
    oracle::bce(&vec![vec![x]], &vec![vec![target]])
}

/// Value and gradient of a loss of logits.
fn loss_and_gradient(logits: &Tensor, loss: impl Fn(&Tensor) -> candle_core::Result<Tensor>) -> (f64, Vec<f64>) {
    // A variable lies in order: the gradient goes through what made the logits lie as they do.
    let shift = Var::zeros(logits.shape(), logits.dtype(), &CPU).unwrap();
    let loss = loss(&(logits + shift.as_tensor()).unwrap()).unwrap();
    let gradient = loss.backward().unwrap();
    (numbers(&loss)[0], numbers(gradient.get(&shift).unwrap()))
}

proptest! {
    #[test]
    fn cross_entropy_is_its_formula(
        batch in 1usize..6, classes in 2usize..8, smoothing in 0f64..=1.0, dtype in any_float(), lying in any_lying(),
        of_indices in any::<bool>()
    ) {
        let logits = normal(&[batch, classes], dtype, lying, "logits");
        let indices: Vec<u32> = (0..batch).map(|sample| (sample * 3 % classes) as u32).collect();
        let soft = normal(&[batch, classes], DType::F32, Lying::InOrder, "targets").abs().unwrap();
        let soft = soft.broadcast_div(&soft.sum_keepdim(1).unwrap()).unwrap();
        let targets = if of_indices { Tensor::new(indices.clone(), &CPU).unwrap() } else { soft.clone() };
        let criterion = Criterion::cross_entropy().with_label_smoothing(smoothing).unwrap();
        let (loss, gradient) = loss_and_gradient(&logits, |logits| criterion.forward(logits, &targets));

        let (rows, soft) = (numbers(&logits), numbers(&soft));
        let (mut expected, mut slopes) = (0.0, vec![]);
        for sample in 0..batch {
            let log_p = log_softmax(&rows[sample * classes..][..classes], 1.0);
            for class in 0..classes {
                let hard = f64::from(indices[sample] as usize == class);
                let target = if of_indices { hard } else { soft[sample * classes + class] };
                let target = (1.0 - smoothing) * target + smoothing / classes as f64;
                expected -= target * log_p[class] / batch as f64;
                slopes.push((log_p[class].exp() - target) / batch as f64);
            }
        }
        let wide = if dtype == DType::F64 { 1e-6 } else { tolerance(DType::F32) };
        prop_assert!((loss - expected).abs() < wide * expected.max(1.0), "{loss} instead of {expected}");
        let far = furthest(&gradient, &slopes);
        prop_assert!(far < tolerance(dtype).max(1e-6), "gradient off by {far}");
    }

    #[test]
    fn sub_losses_are_their_formulas(
        batch in 1usize..6, classes in 2usize..8, temperature in 0.2f64..5.0, dtype in any_float(),
        lying in (any_lying(), any_lying())
    ) {
        let main = normal(&[batch, classes], dtype, lying.0, "main");
        let sub = normal(&[batch, classes], dtype, lying.1, "sub");
        let (rows, targets) = (numbers(&sub), numbers(&main));
        let [mut soft, mut kl, mut reverse, mut bce] = [0.0; 4];
        for sample in 0..batch {
            let row = |of: &[f64]| of[sample * classes..][..classes].to_vec();
            let log_p = log_softmax(&row(&rows), temperature);
            let log_t = log_softmax(&row(&targets), temperature);
            for class in 0..classes {
                soft -= log_t[class].exp() * log_p[class];
                kl += log_t[class].exp() * (log_t[class] - log_p[class]);
                reverse += log_p[class].exp() * (log_p[class] - log_t[class]);
                bce += binary(row(&rows)[class] / temperature, oracle::sigmoid(row(&targets)[class] / temperature));
            }
        }
        let scale = temperature * temperature / batch as f64;
        let expected = [soft, kl, (kl + reverse) / 2.0, bce / classes as f64];
        for (loss, expected) in sub_losses().into_iter().zip(expected) {
            let expected = scale * expected;
            let loss = loss.with_temperature(temperature).unwrap();
            let (value, gradient) = loss_and_gradient(&sub, |sub| loss.forward(sub, &main));
            let wide = if dtype == DType::F64 { 1e-12 } else { tolerance(DType::F32) };
            prop_assert!((value - expected).abs() < wide * expected.abs().max(1.0), "{value} instead of {expected}");
            // Where both agree, nothing is to be learnt.
            let (_, none) = loss_and_gradient(&main, |sub| loss.forward(sub, &main));
            prop_assert!(none.iter().all(|slope| slope.abs() < 1e-6), "{none:?}");
            prop_assert!(gradient.iter().all(|slope| slope.is_finite()));
        }
    }
}
