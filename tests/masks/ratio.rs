//! Ratios that are drawn for each step.

use std::collections::BTreeSet;

use masksub::{Error, MaskGenerator, MaskRatio, RandomMasking};
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
