//! The losses against loops in f64 that follow the formulas, and their gradients against finite differences of those.

#[path = "../common/mod.rs"]
mod common;

use candle_core::{DType, Device, Tensor, Var, D};
use common::{bits, numbers, randn, CPU};
use masksub::{Criterion, SubModelLoss};

type Rows = Vec<Vec<f64>>;

/// The formulas, term by term.
mod oracle {
    use super::Rows;

    fn log_softmax(row: &[f64]) -> Vec<f64> {
        let max = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let sum: f64 = row.iter().map(|x| (x - max).exp()).sum();
        row.iter().map(|x| x - max - sum.ln()).collect()
    }

    pub fn softmax(row: &[f64]) -> Vec<f64> {
        log_softmax(row).into_iter().map(f64::exp).collect()
    }

    pub fn sigmoid(x: f64) -> f64 {
        1. / (1. + (-x).exp())
    }

    pub fn cross_entropy(logits: &Rows, targets: &Rows) -> f64 {
        let mut total = 0.;
        for (row, target) in logits.iter().zip(targets) {
            for (log_p, t) in log_softmax(row).iter().zip(target) {
                total -= t * log_p;
            }
        }
        total / logits.len() as f64
    }

    pub fn bce(logits: &Rows, targets: &Rows) -> f64 {
        let mut total = 0.;
        for (row, target) in logits.iter().zip(targets) {
            for (&x, t) in row.iter().zip(target) {
                // 1 - sigmoid(x) is sigmoid(-x), without the cancellation.
                total -= t * sigmoid(x).ln() + (1. - t) * sigmoid(-x).ln();
            }
        }
        total / (logits.len() * logits[0].len()) as f64
    }

    pub fn entropy(targets: &Rows) -> f64 {
        let of_row = |row: &Vec<f64>| -> f64 { -row.iter().map(|t| t * t.ln()).sum::<f64>() };
        targets.iter().map(of_row).sum::<f64>() / targets.len() as f64
    }

    pub fn map(rows: &Rows, f: impl Fn(f64) -> f64) -> Rows {
        rows.iter().map(|row| row.iter().map(|&x| f(x)).collect()).collect()
    }

    pub fn one_hot(classes: &[usize], count: usize) -> Rows {
        let hot = |&class: &usize| (0..count).map(|c| if c == class { 1. } else { 0. }).collect();
        classes.iter().map(hot).collect()
    }

    /// Central differences, good to about 1e-9.
    pub fn gradient(logits: &Rows, loss: impl Fn(&Rows) -> f64) -> Vec<f64> {
        let step = 1e-5;
        let mut gradient = vec![];
        for b in 0..logits.len() {
            for c in 0..logits[0].len() {
                let shifted = |by: f64| {
                    let mut shifted = logits.clone();
                    shifted[b][c] += by;
                    loss(&shifted)
                };
                gradient.push((shifted(step) - shifted(-step)) / (2. * step));
            }
        }
        gradient
    }
}

fn tensor(rows: &Rows, dtype: DType) -> Tensor {
    Tensor::new(rows.clone(), &CPU).unwrap().to_dtype(dtype).unwrap()
}

fn rows(tensor: &Tensor) -> Rows {
    tensor.to_dtype(DType::F64).unwrap().to_vec2().unwrap()
}

/// A loss of logits in some dtype, and its gradient with respect to them.
fn value_and_gradient(
    logits: &Rows,
    dtype: DType,
    loss: impl Fn(&Tensor) -> candle_core::Result<Tensor>,
) -> (f64, Vec<f64>) {
    let var = Var::from_tensor(&tensor(logits, dtype)).unwrap();
    let loss = loss(&var).unwrap();
    assert_eq!(loss.rank(), 0, "the loss is a scalar");
    let grads = loss.backward().unwrap();
    let grad = grads.get(&var).expect("the gradient arrives");
    assert_eq!((grad.dims(), grad.dtype()), (var.dims(), dtype));
    (loss.to_dtype(DType::F64).unwrap().to_scalar().unwrap(), numbers(grad))
}

/// Compares a loss with its formula in f64 and in f32.
#[track_caller]
fn compare(
    what: &str,
    logits: &Rows,
    ours: impl Fn(&Tensor) -> candle_core::Result<Tensor>,
    formula: impl Fn(&Rows) -> f64,
) {
    for (dtype, tolerance) in [(DType::F64, 1e-8), (DType::F32, 3e-6)] {
        // What remains of the logits in this dtype.
        let logits = rows(&tensor(logits, dtype));
        let (value, gradient) = value_and_gradient(&logits, dtype, &ours);
        let expected = formula(&logits);
        let close = |a: f64, b: f64| (a - b).abs() <= tolerance * (1. + b.abs());
        assert!(
            close(value, expected),
            "{what}, {dtype:?}: {value} instead of {expected}"
        );
        for (at, (&got, expected)) in gradient.iter().zip(oracle::gradient(&logits, &formula)).enumerate() {
            assert!(
                close(got, expected),
                "{what}, {dtype:?}, gradient {at}: {got} instead of {expected}"
            );
        }
    }
}

/// Random logits of several shapes and sizes.
fn logits(name: &str) -> Vec<Rows> {
    [(1, 2, 1.), (3, 5, 1.), (4, 7, 4.), (2, 3, 9.)]
        .map(|(batch, classes, scale)| rows(&randn((batch, classes), &format!("{name} {scale}"))))
        .into_iter()
        .zip([1., 1., 4., 9.])
        .map(|(rows, scale)| oracle::map(&rows, |x| scale * x))
        .collect()
}

/// Probabilities that sum to 1 in every row.
fn probabilities(like: &Rows) -> Rows {
    let (batch, classes) = (like.len(), like[0].len());
    let logits = rows(&randn((batch, classes), "probabilities"));
    logits.iter().map(|row| oracle::softmax(row)).collect()
}

fn classes(like: &Rows) -> Vec<usize> {
    (0..like.len()).map(|b| (3 * b + 1) % like[0].len()).collect()
}

mod criterion {
    use super::*;

    fn smooth(targets: &Rows, s: f64) -> Rows {
        let classes = targets[0].len() as f64;
        oracle::map(targets, |t| (1. - s) * t + s / classes)
    }

    #[test]
    fn cross_entropy() {
        for logits in logits("ce") {
            let soft = probabilities(&logits);
            let hard = oracle::one_hot(&classes(&logits), logits[0].len());
            let indices = Tensor::from_iter(classes(&logits).into_iter().map(|c| c as u32), &CPU).unwrap();
            for smoothing in [0., 0.1, 1.] {
                let ce = Criterion::cross_entropy().with_label_smoothing(smoothing).unwrap();
                let formula = |targets: &Rows| {
                    let targets = smooth(targets, smoothing);
                    move |x: &Rows| oracle::cross_entropy(x, &targets)
                };
                compare("classes", &logits, |x| ce.forward(x, &indices), formula(&hard));
                compare(
                    "soft",
                    &logits,
                    |x| ce.forward(x, &tensor(&soft, DType::F64)),
                    formula(&soft),
                );
            }
        }
    }

    #[test]
    fn bce() {
        for logits in logits("bce") {
            let soft = probabilities(&logits);
            let hard = oracle::one_hot(&classes(&logits), logits[0].len());
            let indices = Tensor::from_iter(classes(&logits).into_iter().map(|c| c as u32), &CPU).unwrap();
            for smoothing in [0., 0.2] {
                let bce = Criterion::bce_with_logits().with_label_smoothing(smoothing).unwrap();
                let formula = |targets: &Rows| {
                    let targets = smooth(targets, smoothing);
                    move |x: &Rows| oracle::bce(x, &targets)
                };
                compare("classes", &logits, |x| bce.forward(x, &indices), formula(&hard));
                compare(
                    "soft",
                    &logits,
                    |x| bce.forward(x, &tensor(&soft, DType::F64)),
                    formula(&soft),
                );
            }
        }
    }

    #[test]
    fn a_threshold_makes_mixed_labels_full_ones() {
        let logits = vec![vec![0.3, -1., 2., 0.], vec![1., 1., -2., 0.5]];
        // Two classes mixed, as mixup and CutMix do.
        let mixed = vec![vec![0.7, 0., 0.3, 0.], vec![0., 1., 0., 0.]];
        for (threshold, full) in [
            (0., vec![vec![1., 0., 1., 0.], vec![0., 1., 0., 0.]]),
            (0.5, vec![vec![1., 0., 0., 0.], vec![0., 1., 0., 0.]]),
            // Above the threshold, not at it. 0.75 and 0.25 are exact in every dtype.
            (0.25, vec![vec![1., 0., 1., 0.], vec![0., 1., 0., 0.]]),
        ] {
            let bce = Criterion::bce_with_logits().with_target_threshold(threshold).unwrap();
            let targets = tensor(&mixed, DType::F32);
            compare(
                "threshold",
                &logits,
                |x| bce.forward(x, &targets),
                |x| oracle::bce(x, &full),
            );
        }
        let at = Criterion::bce_with_logits().with_target_threshold(0.25).unwrap();
        let exact = tensor(&vec![vec![0.75, 0., 0.25, 0.]], DType::F32);
        let logits = vec![logits[0].clone()];
        let full = vec![vec![1., 0., 0., 0.]];
        compare(
            "at the threshold",
            &logits,
            |x| at.forward(x, &exact),
            |x| oracle::bce(x, &full),
        );
    }

    /// Cross-entropy is a sum over classes, so full labels of two classes count twice.
    #[test]
    fn targets_need_not_sum_to_1() {
        let logits = vec![vec![0.3, -1., 2., 0.], vec![1., 1., -2., 0.5]];
        let targets = vec![vec![1., 0., 1., 0.], vec![0.2, 0., 0., 0.]];
        let ce = Criterion::cross_entropy();
        let ours = |x: &Tensor| ce.forward(x, &tensor(&targets, DType::F64));
        compare("two classes", &logits, ours, |x| oracle::cross_entropy(x, &targets));
    }

    #[test]
    fn class_indices_have_any_integer_dtype() {
        let logits = tensor(&logits("integers")[1], DType::F32);
        let loss = |criterion: Criterion, targets: &Tensor| numbers(&criterion.forward(&logits, targets).unwrap())[0];
        let indices = Tensor::new(&[4i64, 0, 2], &CPU).unwrap();
        for criterion in [Criterion::cross_entropy(), Criterion::bce_with_logits()] {
            let expected = loss(criterion, &indices);
            for dtype in [DType::U8, DType::U32, DType::I16, DType::I32, DType::I64] {
                assert_eq!(
                    loss(criterion, &indices.to_dtype(dtype).unwrap()),
                    expected,
                    "{dtype:?}"
                );
            }
        }
    }

    #[test]
    fn probabilities_have_any_float_dtype() {
        let logits = &logits("floats")[1];
        // Exact in all of them.
        let soft = vec![vec![0.5, 0.25, 0.25, 0., 0.]; 3];
        let expected = oracle::cross_entropy(&rows(&tensor(logits, DType::F32)), &soft);
        for dtype in [DType::F16, DType::BF16, DType::F32, DType::F64] {
            let loss = Criterion::cross_entropy()
                .forward(&tensor(logits, DType::F32), &tensor(&soft, dtype))
                .unwrap();
            assert!((numbers(&loss)[0] - expected).abs() < 1e-6, "{dtype:?}");
        }
    }

    #[test]
    fn agrees_with_candles_own() {
        let logits = tensor(&logits("candle")[2], DType::F32);
        let indices = Tensor::new(&[1u32, 0, 6, 3], &CPU).unwrap();
        let ours = Criterion::cross_entropy().forward(&logits, &indices).unwrap();
        let theirs = candle_nn::loss::cross_entropy(&logits, &indices).unwrap();
        assert!((numbers(&ours)[0] - numbers(&theirs)[0]).abs() < 1e-5);
    }

    #[test]
    fn targets_are_not_trained() {
        let logits = Var::from_tensor(&tensor(&logits("targets")[1], DType::F32)).unwrap();
        let targets = Var::from_tensor(&tensor(&probabilities(&rows(&logits)), DType::F32)).unwrap();
        for criterion in [Criterion::cross_entropy(), Criterion::bce_with_logits()] {
            let grads = criterion.forward(&logits, &targets).unwrap().backward().unwrap();
            assert!(grads.get(&logits).is_some());
            assert!(grads.get(&targets).is_none());
        }
    }
}

mod sub_model {
    use super::*;

    const TEMPERATURES: [f64; 5] = [0.25, 0.5, 1., 2., 8.];

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
        let main = [-3f32, -8., -12., -16., -20., -30., -60., 20.];
        let logits = |row: &[f32]| Tensor::new(row, &CPU).unwrap().reshape((1, row.len())).unwrap();
        let sub = Var::from_tensor(&logits(&[-100.; 8])).unwrap();
        let loss = SubModelLoss::bce().forward(&sub, &logits(&main)).unwrap();
        let grads = loss.backward().unwrap();
        // sigmoid(-100) is nothing beside any of the targets, so the gradient is the target alone.
        for (got, x) in numbers(grads.get(&sub).unwrap()).into_iter().zip(main) {
            let expected = -oracle::sigmoid(x as f64) / 8.;
            assert!((got / expected - 1.).abs() < 1e-6, "{x}: {got:e} beside {expected:e}");
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
                let shifted = oracle::map(&logits, |x| x + 3.);
                let (value, _) = value_and_gradient(&shifted, DType::F32, |x| loss.forward(x, &main));
                assert!(value.abs() < 1e-4, "{value}");
            }
        }
    }

    /// A loss of sub and main logits.
    type Pair = fn(&Tensor, &Tensor) -> Tensor;

    /// The losses, and each as it would be if the target were not detached.
    fn losses() -> [(SubModelLoss, Pair); 3] {
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
        fn attached_bce(sub: &Tensor, main: &Tensor) -> Tensor {
            let sigmoid = |x: &Tensor| candle_nn::ops::sigmoid(x).unwrap();
            let target = sigmoid(main);
            let hit = (&target * sigmoid(sub).log().unwrap()).unwrap();
            let miss = ((1. - &target).unwrap() * (1. - sigmoid(sub)).unwrap().log().unwrap()).unwrap();
            (hit + miss).unwrap().mean_all().unwrap().neg().unwrap()
        }
        [
            (SubModelLoss::soft_cross_entropy(), attached_ce),
            (SubModelLoss::kl(), attached_kl),
            (SubModelLoss::bce(), attached_bce),
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
            let error: f64 = ours.iter().zip(&wrong).map(|(a, b)| (a - b).abs()).fold(0., f64::max);
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
}

mod dtypes {
    use super::*;

    type Loss = Box<dyn Fn(&Tensor, &Tensor) -> candle_core::Result<Tensor>>;

    /// Every loss, of logits and of main logits where it takes them.
    fn cases() -> Vec<(String, Loss)> {
        let mut cases: Vec<(String, Loss)> = vec![];
        for loss in [
            SubModelLoss::soft_cross_entropy(),
            SubModelLoss::kl(),
            SubModelLoss::bce(),
        ] {
            for loss in [loss, loss.with_temperature(3.).unwrap()] {
                cases.push((format!("{loss:?}"), Box::new(move |x, main| loss.forward(x, main))));
            }
        }
        for criterion in [Criterion::cross_entropy(), Criterion::bce_with_logits()] {
            let indices = Tensor::new(&[0u32, 10, 20, 30, 40, 49], &CPU).unwrap();
            cases.push((
                format!("{criterion:?}"),
                Box::new(move |x, _| criterion.forward(x, &indices)),
            ));
        }
        cases
    }

    #[test]
    fn half_precision_is_computed_in_f32() {
        let sub = oracle::map(&rows(&randn((6, 50), "half sub")), |x| 5. * x);
        let main = oracle::map(&rows(&randn((6, 50), "half main")), |x| 5. * x);
        for (half, precision) in [(DType::BF16, 1. / 256.), (DType::F16, 1. / 2048.)] {
            // The same numbers in both precisions.
            let (sub, main) = (rows(&tensor(&sub, half)), tensor(&main, half));
            let main_in_f32 = main.to_dtype(DType::F32).unwrap();
            for (what, loss) in cases() {
                let (value, gradient) = value_and_gradient(&sub, half, |x| loss(x, &main));
                let (expected, expected_gradient) = value_and_gradient(&sub, DType::F32, |x| loss(x, &main_in_f32));
                assert!(
                    (value - expected).abs() <= 1e-6 * expected.abs(),
                    "{what} {half:?}: {value}, {expected}"
                );
                for (got, expected) in gradient.iter().zip(expected_gradient) {
                    // Only the gradient itself is rounded.
                    assert!(
                        (got - expected).abs() <= precision * expected.abs() + 1e-7,
                        "{what} {half:?}"
                    );
                }
            }
        }
    }

    #[test]
    fn f64_keeps_its_digits() {
        let logits = rows(&randn((2, 4), "f64"));
        let var = Var::from_tensor(&tensor(&logits, DType::F64)).unwrap();
        let loss = SubModelLoss::kl()
            .forward(&var, &(var.as_tensor() * 1.5).unwrap())
            .unwrap();
        assert_eq!(loss.dtype(), DType::F64);
    }

    #[test]
    fn main_and_sub_may_differ_in_dtype() {
        let (sub, main) = (randn((3, 4), "sub"), randn((3, 4), "main"));
        let expected = numbers(&SubModelLoss::kl().forward(&sub, &main).unwrap())[0];
        for (sub_dtype, main_dtype) in [(DType::F32, DType::F64), (DType::F64, DType::F32)] {
            let (sub, main) = (sub.to_dtype(sub_dtype).unwrap(), main.to_dtype(main_dtype).unwrap());
            let loss = numbers(&SubModelLoss::kl().forward(&sub, &main).unwrap())[0];
            assert!((loss - expected).abs() < 1e-6);
        }
    }

    #[test]
    fn logits_that_are_not_contiguous_are_read_right() {
        let main = randn((4, 3), "main").t().unwrap();
        let sub = randn((4, 3), "sub").t().unwrap();
        for loss in [
            SubModelLoss::soft_cross_entropy(),
            SubModelLoss::kl(),
            SubModelLoss::bce(),
        ] {
            let strided = loss.forward(&sub, &main).unwrap();
            let plain = loss
                .forward(&sub.contiguous().unwrap(), &main.contiguous().unwrap())
                .unwrap();
            assert_eq!(bits(&strided), bits(&plain));
        }
    }
}

mod extremes {
    use super::*;

    /// Rows of logits at the ends of f32 and far from each other.
    fn f32_rows() -> Vec<[f32; 3]> {
        let (max, min) = (f32::MAX, f32::MIN);
        vec![
            [max, min, 0.],
            [min, max, max],
            [min, min, min],
            [max, max, max],
            [1e38, -1e38, 0.],
            [-1e38, 1e38, 3e38],
            [0., 0., 0.],
            [-0., 0., f32::MIN_POSITIVE],
            [1e-45, -1e-45, 1.],
            [88.8, -104., 17.],
            [-90., -90.1, 709.],
            [1e4, -1e4, 5.],
        ]
    }

    const TEMPERATURES: [f64; 13] = [
        f64::MIN_POSITIVE,
        1e-300,
        1e-45,
        1e-20,
        1e-6,
        0.1,
        1.,
        3.,
        10.,
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
            for loss in [
                SubModelLoss::soft_cross_entropy(),
                SubModelLoss::kl(),
                SubModelLoss::bce(),
            ] {
                for t in TEMPERATURES {
                    let what = format!("{loss:?}, T = {t:e}, target from {:?}", numbers(&main));
                    let loss = loss.with_temperature(t).unwrap();
                    assert_finite(&what, &sub, |x| loss.forward(x, &main));
                }
            }
        }
        for logits in rows.iter().chain([&Tensor::cat(rows, 0).unwrap()]) {
            let batch = logits.dims()[0];
            let soft = Tensor::new(&[[0.25f32, 0., 0.75]], &CPU)
                .unwrap()
                .repeat((batch, 1))
                .unwrap();
            for class in 0..3u32 {
                let indices = Tensor::full(class, batch, &Device::Cpu).unwrap();
                for criterion in [
                    Criterion::cross_entropy(),
                    Criterion::bce_with_logits(),
                    Criterion::cross_entropy().with_label_smoothing(0.1).unwrap(),
                    Criterion::bce_with_logits().with_target_threshold(0.).unwrap(),
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
        for (dtype, max) in [(DType::BF16, 3.38e38f32), (DType::F16, 65504.)] {
            let row = |row: &[f32; 3]| {
                let row = row.map(|x| x.clamp(-max, max));
                Tensor::new(&[row], &CPU).unwrap().to_dtype(dtype).unwrap()
            };
            let rows: Vec<Tensor> = f32_rows().iter().map(row).collect();
            assert!(rows.iter().all(|row| numbers(row).iter().all(|x| x.is_finite())));
            for (sub, main) in pairs(&rows) {
                for loss in [
                    SubModelLoss::soft_cross_entropy(),
                    SubModelLoss::kl(),
                    SubModelLoss::bce(),
                ] {
                    let what = format!("{loss:?} {dtype:?}");
                    assert_finite(&what, &sub, |x| loss.forward(x, &main));
                }
            }
        }
    }

    /// What keeps finite logits finite must not hide those that are not: the step would be accepted.
    #[test]
    fn undefined_logits_give_an_undefined_loss() {
        let fine = Tensor::new(&[[1f32, 2., 3.], [0., 0., 0.]], &CPU).unwrap();
        let classes = Tensor::new(&[2u32, 0], &CPU).unwrap();
        for broken in [f32::NAN, f32::INFINITY] {
            for at in 0..3 {
                let mut row = [1f32, 2., 3.];
                row[at] = broken;
                let broken = Tensor::new(&[row, [0., 0., 0.]], &CPU).unwrap();
                for criterion in [Criterion::cross_entropy(), Criterion::bce_with_logits()] {
                    let loss = numbers(&criterion.forward(&broken, &classes).unwrap())[0];
                    assert!(!loss.is_finite(), "{criterion:?}: {loss} of {row:?}");
                }
                for loss in [
                    SubModelLoss::soft_cross_entropy(),
                    SubModelLoss::kl(),
                    SubModelLoss::bce(),
                ] {
                    for t in [0.5, 1., 2.] {
                        let loss = loss.with_temperature(t).unwrap();
                        let value = numbers(&loss.forward(&broken, &fine).unwrap())[0];
                        assert!(!value.is_finite(), "{loss:?}: {value} of {row:?}");
                    }
                }
                // A target that is NaN is undefined; one that is infinite is a class of probability 1 in BCE.
                if row[at].is_nan() {
                    for loss in [
                        SubModelLoss::soft_cross_entropy(),
                        SubModelLoss::kl(),
                        SubModelLoss::bce(),
                    ] {
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
        let far = Tensor::new(&[[f32::MAX, f32::MIN, 0.]], &CPU).unwrap();
        let class = |c: u32| Tensor::new(&[c], &CPU).unwrap();
        let ce = |c| numbers(&Criterion::cross_entropy().forward(&far, &class(c)).unwrap())[0];
        assert_eq!(ce(0), 0.);
        assert!(ce(1) > 1e37 && ce(2) > 1e37);
        assert_eq!(numbers(&SubModelLoss::kl().forward(&far, &far).unwrap())[0], 0.);
        let gradient = |c| {
            let logits = rows(&far);
            value_and_gradient(&logits, DType::F32, |x| {
                Criterion::cross_entropy().forward(x, &class(c))
            })
            .1
        };
        assert_eq!(gradient(0), [0., 0., 0.]);
        assert_eq!(gradient(1), [1., -1., 0.]);
        let equal = Tensor::new(&[[f32::MAX; 4]], &CPU).unwrap();
        let loss = numbers(&Criterion::cross_entropy().forward(&equal, &class(2)).unwrap())[0];
        assert!((loss - 4f64.ln()).abs() < 1e-6);
        // A sharp temperature makes the larger logit certain, a blunt one makes all alike.
        let (sub, main) = (
            Tensor::new(&[[1f32, 2.]], &CPU).unwrap(),
            Tensor::new(&[[2f32, 1.]], &CPU).unwrap(),
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
}
