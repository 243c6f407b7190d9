//! RandAugment: which operations are drawn, and how strong.

use super::super::resize::Filter;
use super::super::testing::{noise, rng};
use super::*;
use std::collections::HashMap;
use std::mem::discriminant;

#[test]
fn operations_are_equally_likely_and_half_of_them_are_applied() {
    let (mut rng, mut kinds, mut counts) = (rng(0), HashMap::new(), [0; 3]);
    for _ in 0..15_000 {
        let ops = RandAugment::new(9.0).unwrap().draw(&mut rng);
        counts[ops.len()] += 1;
        for op in ops {
            *kinds.entry(discriminant(&op.0)).or_insert(0) += 1;
        }
    }
    // 1000 expected of each, standard deviation 31; none, one or two in a quarter, a half and a quarter.
    assert_eq!(kinds.len(), KINDS as usize);
    assert!(kinds.values().all(|n| (870..1130).contains(n)), "{kinds:?}");
    assert!(
        (3500..4000).contains(&counts[0]) && (7200..7800).contains(&counts[1]),
        "{counts:?}"
    );
}

// At magnitude 5, by hand: half of everything.
#[test]
fn a_magnitude_means_to_each_operation_what_timm_says() {
    let mut rng = rng(0);
    let rand_augment = RandAugment::new(9.0).unwrap().with_fill([1, 2, 3]);
    let mut drawn = |kind| rand_augment.op(kind, 5.0, &mut rng).0;
    let resample = Resample {
        filter: Filter::Bicubic,
        fill: [1, 2, 3],
    };
    let both = |value: f64, make: &dyn Fn(f64) -> Kind| [make(value), make(-value)];
    for (kind, allowed) in [
        (0, [Kind::AutoContrast; 2]),
        (1, [Kind::Equalize; 2]),
        (2, [Kind::Invert; 2]),
        (3, [Kind::Posterize { bits: 2 }; 2]),
        (4, [Kind::Solarize { threshold: 128 }; 2]),
        (
            5,
            [Kind::SolarizeAdd {
                add: 55,
                threshold: 128,
            }; 2],
        ),
        (6, both(0.45, &|by| Kind::Saturation { factor: 1.0 + by })),
        (7, both(0.45, &|by| Kind::Contrast { factor: 1.0 + by })),
        (8, both(0.45, &|by| Kind::Brightness { factor: 1.0 + by })),
        (9, both(0.45, &|by| Kind::Sharpness { factor: 1.0 + by })),
        (10, both(15.0, &|degrees| Kind::Rotate { degrees, resample })),
        (11, both(0.15, &|factor| Kind::ShearX { factor, resample })),
        (12, both(0.15, &|factor| Kind::ShearY { factor, resample })),
        (13, both(0.225, &|share| Kind::TranslateX { share, resample })),
        (14, both(0.225, &|share| Kind::TranslateY { share, resample })),
    ] {
        let ops: Vec<Kind> = (0..40).map(|_| drawn(kind)).collect();
        assert!(ops.iter().all(|op| allowed.contains(op)), "{kind}: {:?}", ops[0]);
        assert!(allowed.iter().all(|op| ops.contains(op)), "{kind}: one sign only");
    }
    let mut most = |kind| rand_augment.op(kind, 10.0, &mut rng).0;
    assert_eq!(most(3), Kind::Posterize { bits: 0 });
    assert_eq!(most(4), Kind::Solarize { threshold: 0 });
    assert_eq!(
        most(5),
        Kind::SolarizeAdd {
            add: 110,
            threshold: 128
        }
    );
    let factors: Vec<Kind> = (0..40).map(|_| most(9)).collect();
    assert!(factors.contains(&Kind::Sharpness { factor: 0.1 }) && factors.contains(&Kind::Sharpness { factor: 1.9 }));
}

// timm's `rand-m7` without `inc1`, by hand: factors of 1.36, two bits, from 179.
#[test]
fn without_increasing_forms_a_magnitude_is_one_argument() {
    let (mut rng, mut same) = (rng(0), [rng(1), rng(1)]);
    let rand_augment = RandAugment::new(7.0).unwrap().with_increasing(false);
    let near = |factor: f64, expected: f64| (factor - expected).abs() < 1e-12;
    for _ in 0..20 {
        assert_eq!(rand_augment.op(3, 7.0, &mut rng).0, Kind::Posterize { bits: 2 });
        assert_eq!(rand_augment.op(4, 7.0, &mut rng).0, Kind::Solarize { threshold: 179 });
        let add = Kind::SolarizeAdd {
            add: 77,
            threshold: 128,
        };
        assert_eq!(rand_augment.op(5, 7.0, &mut rng).0, add);
        for kind in 6..10 {
            let factor = |magnitude, rng: &mut _| match rand_augment.op(kind, magnitude, rng).0 {
                Kind::Saturation { factor } | Kind::Contrast { factor } => factor,
                Kind::Brightness { factor } | Kind::Sharpness { factor } => factor,
                other => panic!("{other:?}"),
            };
            assert!(near(factor(7.0, &mut rng), 1.36) && near(factor(0.0, &mut rng), 0.1));
            assert!(near(factor(10.0, &mut rng), 1.9));
        }
    }
    // A turn is the same in both.
    let turns = [true, false].map(|increasing| rand_augment.with_increasing(increasing));
    let turns: Vec<_> = turns
        .iter()
        .zip(&mut same)
        .map(|(rand, rng)| rand.op(10, 7.0, rng))
        .collect();
    assert_eq!(turns[0], turns[1]);
}

// The magnitude shows in a rotation: mean 9, standard deviation a half, never above 10.
#[test]
fn magnitudes_are_normal_around_theirs() {
    let mut rng = rng(0);
    let certain = RandAugment::new(7.0).unwrap().with_prob(1.0).unwrap();
    let certain = certain.with_interpolation(Interpolation::Random);
    let drawn = (0..60_000).flat_map(|_| certain.draw(&mut rng));
    let magnitudes: Vec<f64> = drawn
        .filter_map(|op| match op.0 {
            Kind::Rotate { degrees, .. } => Some(degrees.abs() / 3.0),
            _ => None,
        })
        .collect();
    let n = magnitudes.len() as f64;
    let mean = magnitudes.iter().sum::<f64>() / n;
    let std = (magnitudes.iter().map(|m| (m - mean).powi(2)).sum::<f64>() / n).sqrt();
    assert!((mean - 7.0).abs() < 0.03 && (std - 0.5).abs() < 0.02, "{mean} {std}");
    assert!(magnitudes.iter().all(|&m| m <= 10.0));
}

#[test]
fn settings_are_set_and_checked() {
    let three = RandAugment::new(10.0).unwrap().with_num_ops(3).unwrap();
    let three = three.with_prob(1.0).unwrap().with_magnitude_std(0.0).unwrap();
    let ops = three.with_interpolation(Interpolation::Bilinear).draw(&mut rng(0));
    assert_eq!(ops.len(), 3);
    let nothing = three.with_prob(0.0).unwrap();
    let mut image = noise(9, 9);
    nothing.apply(&mut image, &mut rng(0));
    assert_eq!(image, noise(9, 9));
    for magnitude in [-0.1, 10.1, f64::NAN] {
        assert!(RandAugment::new(magnitude).is_err());
    }
    assert!(three.with_num_ops(0).is_err() && three.with_num_ops(usize::MAX).is_err());
    assert!(three.with_prob(1.1).is_err() && three.with_magnitude_std(f64::NAN).is_err());
    // As uneven as can be, a magnitude is still one.
    let wild = three.with_magnitude_std(f64::MAX).unwrap();
    (0..100).for_each(|seed| wild.apply(&mut image, &mut rng(seed)));
}
