//! Mixup and cutmix against brute force, and their distributions.

mod common;

use candle_core::{DType, Tensor};
use common::{bits, numbers, randn, CPU};
use masksub::train::mix::{Mix, MixKind, Mixed};
use masksub::{Error, Seed};

const SHAPE: [usize; 4] = [5, 3, 12, 9];
const CLASSES: usize = 4;

fn images() -> Tensor {
    randn(&SHAPE[..], "images")
}

fn labels() -> Tensor {
    Tensor::new(&[3u32, 0, 1, 1, 2], &CPU).unwrap()
}

fn apply(mix: Mix, step: usize) -> Mixed {
    mix.apply(&images(), &labels(), Seed::new(1).at(step)).unwrap()
}

/// Element [b, c, y, x] of the images, counted by hand.
fn at(values: &[f64], [b, c, y, x]: [usize; 4]) -> f64 {
    let [_, channels, height, width] = SHAPE;
    values[((b * channels + c) * height + y) * width + x]
}

fn every_element(check: impl Fn([usize; 4])) {
    let [batch, channels, height, width] = SHAPE;
    for b in 0..batch {
        for c in 0..channels {
            for y in 0..height {
                (0..width).for_each(|x| check([b, c, y, x]));
            }
        }
    }
}

fn check_targets(mixed: &Mixed, smoothing: f64) {
    let labels = labels().to_vec1::<u32>().unwrap();
    let targets = mixed.targets.to_vec2::<f32>().unwrap();
    for (b, row) in targets.iter().enumerate() {
        for (class, &target) in row.iter().enumerate() {
            let hot = |b: usize| f64::from(u8::from(labels[b] as usize == class));
            let own = mixed.lambda * hot(b) + (1.0 - mixed.lambda) * hot(labels.len() - 1 - b);
            let expected = (1.0 - smoothing) * own + smoothing / CLASSES as f64;
            assert!((f64::from(target) - expected).abs() < 1e-6);
        }
        assert!((row.iter().sum::<f32>() - 1.0).abs() < 1e-6, "targets sum to 1");
    }
}

#[test]
fn mixup_is_a_weighted_sum_with_the_reversed_batch() {
    let before = numbers(&images());
    for step in 0..20 {
        let mixed = apply(Mix::new(CLASSES, 0.8, 0.0).unwrap(), step);
        assert_eq!(mixed.kind, MixKind::Mixup);
        assert!(mixed.lambda > 0.0 && mixed.lambda < 1.0);
        let after = numbers(&mixed.images);
        every_element(|[b, c, y, x]| {
            let partner = at(&before, [SHAPE[0] - 1 - b, c, y, x]);
            let expected = mixed.lambda * at(&before, [b, c, y, x]) + (1.0 - mixed.lambda) * partner;
            assert!((at(&after, [b, c, y, x]) - expected).abs() < 1e-5);
        });
        check_targets(&mixed, 0.0);
    }
}

#[test]
fn cutmix_puts_a_box_of_the_partner_and_counts_what_was_kept() {
    let before = numbers(&images());
    let mut clipped = 0;
    for step in 0..200 {
        let mixed = apply(Mix::new(CLASSES, 0.0, 1.0).unwrap(), step);
        let MixKind::Cutmix {
            top,
            left,
            height,
            width,
        } = mixed.kind
        else {
            panic!("{:?}", mixed.kind)
        };
        let after = numbers(&mixed.images);
        let inside = |y: usize, x: usize| (top..top + height).contains(&y) && (left..left + width).contains(&x);
        every_element(|[b, c, y, x]| {
            let from = if inside(y, x) { SHAPE[0] - 1 - b } else { b };
            assert_eq!(at(&after, [b, c, y, x]), at(&before, [from, c, y, x]));
        });
        let kept = (0..SHAPE[2]).flat_map(|y| (0..SHAPE[3]).map(move |x| (y, x)));
        let kept = kept.filter(|&(y, x)| !inside(y, x)).count();
        let share = kept as f64 / (SHAPE[2] * SHAPE[3]) as f64;
        assert!((mixed.lambda - share).abs() < 1e-12, "lambda is the share really kept");
        check_targets(&mixed, 0.0);
        clipped += usize::from(top == 0 || left == 0 || top + height == SHAPE[2] || left + width == SHAPE[3]);
    }
    assert!(clipped > 20, "boxes at the border are cut: {clipped}");
}

/// Uncut, a box has the area 1 - lambda that was drawn: uniform for alpha 1, so 1/2 on average; the border takes some.
#[test]
fn lambdas_are_distributed_as_they_should_be() {
    let images = Tensor::zeros((1, 1, 64, 64), DType::F32, &CPU).unwrap();
    let labels = Tensor::new(&[0u32], &CPU).unwrap();
    let draw = |mix: Mix, step| mix.apply(&images, &labels, Seed::new(3).at(step)).unwrap();
    let n = 2000;
    let moments = |mix: Mix| {
        let lambdas: Vec<f64> = (0..n).map(|step| draw(mix, step).lambda).collect();
        let mean = lambdas.iter().sum::<f64>() / n as f64;
        let variance = lambdas.iter().map(|l| (l - mean).powi(2)).sum::<f64>() / n as f64;
        (mean, variance)
    };
    // Beta(a, a) has mean 1/2 and variance 1 / (4 (2a + 1)).
    for alpha in [0.8, 0.1, 3.0] {
        let (mean, variance) = moments(Mix::new(1, alpha, 0.0).unwrap());
        let expected = 1.0 / (4.0 * (2.0 * alpha + 1.0));
        let error = (expected / n as f64).sqrt();
        assert!((mean - 0.5).abs() < 4.0 * error, "{alpha}: {mean}");
        assert!((variance / expected - 1.0).abs() < 0.1, "{alpha}: {variance}");
    }
    // A side s, uniformly placed, keeps s - s²/4 of itself on average; with E over s² uniform the mean area is
    // E[(s - s²/4)²] = E[s²] - E[s³]/2 + E[s⁴]/16 = 1/2 - 1/5 + 1/48.
    let (mean, _) = moments(Mix::new(1, 0.0, 1.0).unwrap());
    assert!((1.0 - mean - (0.5 - 0.2 + 1.0 / 48.0)).abs() < 0.03, "{mean}");

    let kinds = |mix: Mix| {
        let count = |wanted: fn(MixKind) -> bool| (0..n).filter(|&step| wanted(draw(mix, step).kind)).count();
        let cutmix = count(|kind| matches!(kind, MixKind::Cutmix { .. }));
        (
            count(|kind| kind == MixKind::None),
            count(|kind| kind == MixKind::Mixup),
            cutmix,
        )
    };
    let both = Mix::new(1, 0.8, 1.0).unwrap();
    let near = |count: usize, share: f64| (count as f64 - share * n as f64).abs() < 4.0 * (n as f64).sqrt() / 2.0;
    let (none, mixup, cutmix) = kinds(both);
    assert!(none == 0 && near(mixup, 0.5) && near(cutmix, 0.5), "{mixup} {cutmix}");
    let (none, mixup, cutmix) = kinds(both.with_prob(0.6).unwrap().with_switch_prob(0.25).unwrap());
    assert!(
        near(none, 0.4) && near(mixup, 0.45) && near(cutmix, 0.15),
        "{none} {mixup} {cutmix}"
    );
    assert_eq!(kinds(Mix::new(1, 0.0, 0.0).unwrap()).0, n);
}

#[test]
fn smoothing_and_probabilities_go_through() {
    let mix = Mix::new(CLASSES, 0.8, 1.0).unwrap().with_label_smoothing(0.1).unwrap();
    (0..20).for_each(|step| check_targets(&apply(mix, step), 0.1));
    // Without mixing, too.
    check_targets(&apply(mix.with_prob(0.0).unwrap(), 0), 0.1);
    let soft = Tensor::new(&[[0.5f32, 0.25, 0.25, 0.0]; 5], &CPU).unwrap();
    let mixed = Mix::new(CLASSES, 0.8, 1.0)
        .unwrap()
        .apply(&images(), &soft, Seed::new(1).at(0))
        .unwrap();
    for (ours, theirs) in numbers(&mixed.targets).iter().zip(numbers(&soft)) {
        assert!((ours - theirs).abs() < 1e-6);
    }
}

#[test]
fn a_step_draws_once_and_the_same_again() {
    let mix = Mix::new(CLASSES, 0.8, 1.0).unwrap();
    for step in 0..8 {
        let (once, again) = (apply(mix, step), apply(mix, step));
        assert_eq!(bits(&once.images), bits(&again.images));
        let part = |tensor: &Tensor| tensor.narrow(0, 2, 3).unwrap();
        let key = Seed::new(1).at(step).with_first_sample(2);
        let micro = mix.apply(&part(&images()), &part(&labels()), key).unwrap();
        assert_eq!((micro.kind, micro.lambda), (once.kind, once.lambda));
    }
    let lambdas: Vec<f64> = (0..8).map(|step| apply(mix, step).lambda).collect();
    assert!(lambdas.iter().any(|&lambda| lambda != lambdas[0]));
}

#[test]
fn half_precision_and_a_batch_of_one() {
    let image = randn((1, 3, 8, 8), "one").to_dtype(DType::BF16).unwrap();
    for (mixup, cutmix) in [(0.8, 0.0), (0.0, 1.0)] {
        let mix = Mix::new(2, mixup, cutmix).unwrap();
        let mixed = mix
            .apply(&image, &Tensor::new(&[1u8], &CPU).unwrap(), Seed::new(0).at(0))
            .unwrap();
        assert_eq!((mixed.images.dtype(), mixed.targets.dtype()), (DType::BF16, DType::F32));
        // It is its own partner.
        assert!(common::distance(&mixed.images, &image) < 1e-2);
    }
}

#[test]
fn bad_input_is_named() {
    let argument = |error: Error| match error {
        Error::InvalidArgument { argument, .. } | Error::Shape { argument, .. } | Error::DType { argument, .. } => {
            argument
        }
        other => panic!("{other}"),
    };
    assert_eq!(argument(Mix::new(0, 0.0, 0.0).unwrap_err()), "num_classes");
    assert_eq!(argument(Mix::new(2, -1.0, 0.0).unwrap_err()), "mixup_alpha");
    assert_eq!(argument(Mix::new(2, 0.0, f64::NAN).unwrap_err()), "cutmix_alpha");
    let mix = Mix::new(CLASSES, 0.8, 1.0).unwrap();
    assert_eq!(argument(mix.with_prob(1.5).unwrap_err()), "prob");
    assert_eq!(argument(mix.with_switch_prob(-0.5).unwrap_err()), "switch_prob");
    assert_eq!(argument(mix.with_label_smoothing(2.0).unwrap_err()), "label_smoothing");
    let key = Seed::new(0).at(0);
    let fails = |images: &Tensor, labels: &Tensor| argument(mix.apply(images, labels, key).unwrap_err());
    assert_eq!(fails(&images().get(0).unwrap(), &labels()), "images");
    assert_eq!(fails(&images().narrow(0, 0, 0).unwrap(), &labels()), "images");
    assert_eq!(fails(&images().to_dtype(DType::U8).unwrap(), &labels()), "images");
    assert_eq!(fails(&images(), &labels().narrow(0, 0, 3).unwrap()), "labels");
    assert_eq!(
        fails(&images(), &Tensor::new(&[4u32, 0, 0, 0, 0], &CPU).unwrap()),
        "labels"
    );
    assert_eq!(fails(&images(), &randn((5, 3), "p")), "labels");
    let dtype = |labels: &Tensor| {
        matches!(
            mix.apply(&images(), labels, key),
            Err(Error::DType { argument: "labels", .. })
        )
    };
    assert!(dtype(&labels().to_dtype(DType::F32).unwrap()));
    assert!(dtype(&Tensor::zeros((5, CLASSES), DType::U32, &CPU).unwrap()));
}
