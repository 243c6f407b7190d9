//! Ratios that are drawn for each step, or go by a schedule.

use std::collections::BTreeSet;

use masksub::{Error, MaskGenerator, MaskRatio, RandomMasking, Seed};
use rand_distr::{Distribution, Uniform};

use super::{key, row_of};
use crate::common::p_value;

fn drawn(low: f64, high: f64) -> MaskRatio {
    MaskRatio::drawn(Uniform::new(low, high).unwrap())
}

#[test]
fn is_drawn_once_per_step_for_all_samples() {
    let masking = RandomMasking::with_ratio(drawn(0.2, 0.8));
    let keeps = |step: usize| masking.generate(6, row_of(100), key(step)).unwrap().num_keep();
    let of_steps: BTreeSet<usize> = (0..200).map(keeps).collect();
    assert!(of_steps.len() > 30, "ratios hardly change: {of_steps:?}");
    assert!(of_steps.iter().all(|kept| (20..=80).contains(kept)), "{of_steps:?}");
    for step in 0..20 {
        // The same when asked again, and in every micro-batch.
        let micro = masking
            .generate(2, row_of(100), key(step).with_first_sample(4))
            .unwrap();
        assert_eq!(micro.num_keep(), keeps(step));
    }
}

#[test]
fn follows_its_distribution() {
    let ratio = drawn(0.2, 0.6);
    let mut bins = [0f64; 8];
    for step in 0..4000 {
        bins[((ratio.at(key(step)).unwrap() - 0.2) / 0.05) as usize] += 1.0;
    }
    let statistic = bins.iter().map(|count| (count - 500f64).powi(2) / 500.0).sum();
    assert!(p_value(statistic, 7) > 1e-4, "{bins:?}");
}

#[test]
fn outside_its_range_is_an_error_of_that_step() {
    for (low, high) in [(1.0, 2.0), (-2.0, -1.0), (1.0, 1.0000001)] {
        let error = RandomMasking::with_ratio(drawn(low, high))
            .generate(1, row_of(4), key(0))
            .unwrap_err();
        let error = Error::from(error);
        assert!(
            matches!(
                error,
                Error::InvalidArgument {
                    argument: "mask_ratio",
                    ..
                }
            ),
            "{error}"
        );
        assert!(error.to_string().contains("at least 0 and below 1"), "{error}");
    }
    let nan = MaskRatio::drawn(rand_distr::Normal::new(0.5, f64::MAX).unwrap().map(|_| f64::NAN));
    assert!(nan.at(key(0)).unwrap_err().to_string().contains("NaN"));
    // Some steps are fine and others are not.
    let sometimes = drawn(0.5, 1.5);
    let fine = (0..100).filter(|&step| sometimes.at(key(step)).is_ok()).count();
    assert!((20..80).contains(&fine), "{fine}");
}

fn at(ratio: &MaskRatio, step: usize) -> f64 {
    ratio.at(key(step)).unwrap()
}

#[test]
fn goes_from_one_to_another() {
    let linear = MaskRatio::linear(0.8, 0.2, 100).unwrap();
    let cosine = MaskRatio::cosine(0.8, 0.2, 100).unwrap();
    for step in 0..=100 {
        let passed = step as f64 / 100.0;
        assert!((at(&linear, step) - (0.8 - 0.6 * passed)).abs() < 1e-12);
        let expected = 0.5 + 0.3 * (std::f64::consts::PI * passed).cos();
        assert!((at(&cosine, step) - expected).abs() < 1e-12, "{step}");
    }
    let up = MaskRatio::linear(0.0, 0.9, 3).unwrap();
    for ratio in [&linear, &cosine, &up] {
        let [first, last] = [at(ratio, 0), at(ratio, usize::MAX)];
        assert_eq!([first, last, last], [first, at(ratio, 100), at(ratio, 101)]);
        // The step decides, and nothing else.
        let other = Seed::new(77).at(2).with_first_sample(5);
        assert_eq!(ratio.at(other).unwrap(), at(ratio, 2));
    }
    assert_eq!([at(&linear, 0), at(&linear, 100)], [0.8, 0.2]);
    assert_eq!([at(&up, 0), at(&up, 3)], [0.0, 0.9]);
}

#[test]
fn warms_down_to_nothing() {
    let fixed = MaskRatio::fixed(0.6).unwrap().with_warm_down(10, 4);
    let ratios: Vec<_> = [0, 10, 11, 12, 13, 14, 1000].map(|step| at(&fixed, step)).into();
    for (ratio, expected) in ratios.iter().zip([0.6, 0.6, 0.45, 0.3, 0.15, 0.0, 0.0]) {
        assert!((ratio - expected).abs() < 1e-12, "{ratios:?}");
    }
    let at_once = MaskRatio::linear(0.6, 0.3, 20).unwrap().with_warm_down(10, 0);
    assert!((at(&at_once, 9) - 0.465).abs() < 1e-12);
    assert_eq!(at(&at_once, 10), 0.0);
    // What is drawn is what would be drawn without.
    let (plain, warm) = (drawn(0.2, 0.8), drawn(0.2, 0.8).with_warm_down(50, 100));
    assert_eq!(at(&plain, 49), at(&warm, 49));
    assert!((at(&plain, 100) * 0.5 - at(&warm, 100)).abs() < 1e-12);
    // A mask that hides nothing keeps all, on any grid.
    let masking = RandomMasking::with_ratio(fixed.clone());
    for positions in [1, 2, 5] {
        let mask = masking.generate(3, row_of(positions), key(14)).unwrap();
        let all: Vec<u32> = (0..positions as u32).collect();
        assert!(mask.rows().all(|row| row == all));
    }
    assert_eq!(
        format!("{fixed:?}"),
        "MaskRatio(0.6, WarmDown { first_step: 10, steps: 4 })"
    );
}

#[test]
fn schedules_refuse_what_is_no_ratio() {
    for bad in [-0.1, 1.0, f64::NAN] {
        for (argument, result) in [
            ("from", MaskRatio::linear(bad, 0.5, 3)),
            ("to", MaskRatio::cosine(0.5, bad, 3)),
        ] {
            let error = result.unwrap_err().to_string();
            assert!(
                error.starts_with(&format!("{argument} is {bad}, but must be")),
                "{error}"
            );
        }
    }
    let error = MaskRatio::linear(0.1, 0.2, 0).unwrap_err().to_string();
    assert_eq!(error, "steps is 0, but must be at least 1");
}
