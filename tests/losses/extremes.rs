//! Logits of any size: finite losses and gradients, right where the answer is plain.

use candle_core::{DType, Device, Tensor, Var};
use masksub::{Criterion, SubModelLoss};

use super::{rows, value_and_gradient};
use crate::common::{numbers, sub_losses, CPU};

/// Rows of logits at the ends of f32 and far from each other.
fn f32_rows() -> Vec<[f32; 3]> {
    let (max, min) = (f32::MAX, f32::MIN);
    vec![
        [max, min, 0.0],
        [min, max, max],
        [min, min, min],
        [max, max, max],
        [1e38, -1e38, 0.0],
        [-1e38, 1e38, 3e38],
        [0.0, 0.0, 0.0],
        [-0.0, 0.0, f32::MIN_POSITIVE],
        [1e-45, -1e-45, 1.0],
        [88.8, -104.0, 17.0],
        [-90.0, -90.1, 709.0],
        [1e4, -1e4, 5.0],
    ]
}

const TEMPERATURES: [f64; 13] = [
    f64::MIN_POSITIVE,
    1e-300,
    1e-45,
    1e-20,
    1e-6,
    0.1,
    1.0,
    3.0,
    10.0,
    1e6,
    1e20,
    1e40,
    f64::MAX,
];

/// Checks value and gradient of a loss on logits of one dtype, whose other half is `main`.
fn assert_finite(what: &str, logits: &Tensor, loss: impl Fn(&Tensor) -> candle_core::Result<Tensor>) {
    let var = Var::from_tensor(logits).unwrap();
    let value = loss(&var).unwrap();
    let grads = value.backward().unwrap();
    let value = numbers(&value)[0];
    assert!(value.is_finite(), "{what}: {value} on {:?}", numbers(logits));
    let gradient = numbers(grads.get(&var).unwrap());
    assert!(
        gradient.iter().all(|g| g.is_finite()),
        "{what}: {gradient:?} on {:?}",
        numbers(logits)
    );
}

/// All pairs of rows, each as a batch of one and all of them as one batch.
fn pairs(rows: &[Tensor]) -> Vec<(Tensor, Tensor)> {
    let mut pairs = vec![];
    for sub in rows {
        for main in rows {
            pairs.push((sub.clone(), main.clone()));
        }
    }
    let reversed: Vec<&Tensor> = rows.iter().rev().collect();
    pairs.push((Tensor::cat(rows, 0).unwrap(), Tensor::cat(&reversed, 0).unwrap()));
    pairs
}

fn check(rows: &[Tensor]) {
    for (sub, main) in pairs(rows) {
        for loss in sub_losses() {
            for t in TEMPERATURES {
                let what = format!("{loss:?}, T = {t:e}, target from {:?}", numbers(&main));
                let loss = loss.with_temperature(t).unwrap();
                assert_finite(&what, &sub, |x| loss.forward(x, &main));
            }
        }
    }
    for logits in rows.iter().chain([&Tensor::cat(rows, 0).unwrap()]) {
        let batch = logits.dims()[0];
        let soft = Tensor::new(&[[0.25f32, 0.0, 0.75]], &CPU)
            .unwrap()
            .repeat((batch, 1))
            .unwrap();
        for class in 0..3u32 {
            let indices = Tensor::full(class, batch, &Device::Cpu).unwrap();
            for criterion in [
                Criterion::cross_entropy(),
                Criterion::bce_with_logits(),
                Criterion::cross_entropy().with_label_smoothing(0.1).unwrap(),
                Criterion::bce_with_logits().with_target_threshold(0.0).unwrap(),
            ] {
                for targets in [&indices, &soft] {
                    assert_finite(&format!("{criterion:?}"), logits, |x| criterion.forward(x, targets));
                }
            }
        }
    }
}

#[test]
fn are_finite_in_f32() {
    let rows: Vec<Tensor> = f32_rows()
        .iter()
        .map(|row| Tensor::new(&[*row], &CPU).unwrap())
        .collect();
    check(&rows);
}

#[test]
fn are_finite_in_f64() {
    let row = |row: &[f32; 3]| {
        // The ends of f32 stand for those of f64.
        let widen = |x: f32| match x {
            f32::MAX => f64::MAX,
            f32::MIN => f64::MIN,
            x => x as f64,
        };
        Tensor::new(&[row.map(widen)], &CPU).unwrap()
    };
    check(&f32_rows().iter().map(row).collect::<Vec<_>>());
}

#[test]
fn are_finite_in_bf16_and_f16() {
    for (dtype, max) in [(DType::BF16, 3.38e38f32), (DType::F16, 65504.0)] {
        let row = |row: &[f32; 3]| {
            let row = row.map(|x| x.clamp(-max, max));
            Tensor::new(&[row], &CPU).unwrap().to_dtype(dtype).unwrap()
        };
        let rows: Vec<Tensor> = f32_rows().iter().map(row).collect();
        assert!(rows.iter().all(|row| numbers(row).iter().all(|x| x.is_finite())));
        for (sub, main) in pairs(&rows) {
            for loss in sub_losses() {
                let what = format!("{loss:?} {dtype:?}");
                assert_finite(&what, &sub, |x| loss.forward(x, &main));
            }
        }
    }
}

/// What keeps finite logits finite must not hide those that are not: the step would be accepted.
#[test]
fn undefined_logits_give_an_undefined_loss() {
    let fine = Tensor::new(&[[1f32, 2.0, 3.0], [0.0, 0.0, 0.0]], &CPU).unwrap();
    let classes = Tensor::new(&[2u32, 0], &CPU).unwrap();
    for broken in [f32::NAN, f32::INFINITY] {
        for at in 0..3 {
            let mut row = [1f32, 2.0, 3.0];
            row[at] = broken;
            let broken = Tensor::new(&[row, [0.0, 0.0, 0.0]], &CPU).unwrap();
            for criterion in [Criterion::cross_entropy(), Criterion::bce_with_logits()] {
                let loss = numbers(&criterion.forward(&broken, &classes).unwrap())[0];
                assert!(!loss.is_finite(), "{criterion:?}: {loss} of {row:?}");
            }
            for loss in sub_losses() {
                for t in [0.5, 1.0, 2.0] {
                    let loss = loss.with_temperature(t).unwrap();
                    let value = numbers(&loss.forward(&broken, &fine).unwrap())[0];
                    assert!(!value.is_finite(), "{loss:?}: {value} of {row:?}");
                }
            }
            // A target that is NaN is undefined; one that is infinite is a class of probability 1 in BCE.
            if row[at].is_nan() {
                for loss in sub_losses() {
                    let value = numbers(&loss.forward(&fine, &broken).unwrap())[0];
                    assert!(!value.is_finite(), "{loss:?}: {value} of a target {row:?}");
                }
            }
        }
    }
}

/// Finite is not enough: where both agree or the answer is certain, the value is known.
#[test]
fn are_right_where_the_answer_is_plain() {
    let far = Tensor::new(&[[f32::MAX, f32::MIN, 0.0]], &CPU).unwrap();
    let class = |c: u32| Tensor::new(&[c], &CPU).unwrap();
    let ce = |c| numbers(&Criterion::cross_entropy().forward(&far, &class(c)).unwrap())[0];
    assert_eq!(ce(0), 0.0);
    assert!(ce(1) > 1e37 && ce(2) > 1e37);
    assert_eq!(numbers(&SubModelLoss::kl().forward(&far, &far).unwrap())[0], 0.0);
    let gradient = |c| {
        let logits = rows(&far);
        value_and_gradient(&logits, DType::F32, |x| {
            Criterion::cross_entropy().forward(x, &class(c))
        })
        .1
    };
    assert_eq!(gradient(0), [0.0, 0.0, 0.0]);
    assert_eq!(gradient(1), [1.0, -1.0, 0.0]);
    let equal = Tensor::new(&[[f32::MAX; 4]], &CPU).unwrap();
    let loss = numbers(&Criterion::cross_entropy().forward(&equal, &class(2)).unwrap())[0];
    assert!((loss - 4f64.ln()).abs() < 1e-6);
    // A sharp temperature makes the larger logit certain, a blunt one makes all alike.
    let (sub, main) = (
        Tensor::new(&[[1f32, 2.0]], &CPU).unwrap(),
        Tensor::new(&[[2f32, 1.0]], &CPU).unwrap(),
    );
    let kl = |t: f64| {
        numbers(
            &SubModelLoss::kl()
                .with_temperature(t)
                .unwrap()
                .forward(&sub, &main)
                .unwrap(),
        )[0]
    };
    // T^2 * (1 / T), and half the variance of the differences.
    assert!((kl(1e-3) - 1e-3).abs() < 1e-8, "{}", kl(1e-3));
    assert!((kl(1e2) - 0.5).abs() < 0.05, "{}", kl(1e2));
}
