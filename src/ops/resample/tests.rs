//! Average pooling and interpolation beside their compositions, and those beside candle's forward.

use super::*;
use crate::ops::testing::{check, check_derivative, random, relative, rng};
use candle_core::{DType, Device};
use rand::Rng as _;

#[test]
fn average_pooling_equals_its_composition() {
    let mut rng = rng(41);
    for seed in 0..10 {
        let mut size = |most| rng.random_range(1..=most);
        let (k, s) = ((size(4), size(4)), (size(4), size(4)));
        let xs = [size(3), size(5), k.0 + size(12) - 1, k.1 + size(12) - 1];
        let kernel = |args: &[Tensor]| avg_pool2d(&args[0], k, s);
        let reference = |args: &[Tensor]| composition_avg_pool2d(&args[0], k, s);
        check(&kernel, &reference, &[&xs], seed);
    }
    // Many pieces of work.
    let kernel = |args: &[Tensor]| avg_pool2d(&args[0], 3, 2);
    let reference = |args: &[Tensor]| composition_avg_pool2d(&args[0], 3, 2);
    check(&kernel, &reference, &[&[3, 20, 33, 31]], 10);
}

#[test]
fn interpolation_equals_its_composition() {
    let mut rng = rng(42);
    for seed in 0..10 {
        let mut size = |most: usize| rng.random_range(1..=most);
        let (h, w, align) = (size(20), size(20), size(2) == 1);
        let xs = [size(3), size(4), size(12), size(12)];
        let nearest = |args: &[Tensor]| upsample_nearest2d(&args[0], h, w);
        check(&nearest, &|args| composition_nearest2d(&args[0], h, w), &[&xs], seed);
        let bilinear = |args: &[Tensor]| upsample_bilinear2d(&args[0], h, w, align);
        check(
            &bilinear,
            &|args| composition_bilinear2d(&args[0], h, w, align),
            &[&xs],
            seed,
        );
    }
    let bilinear = |args: &[Tensor]| upsample_bilinear2d(&args[0], 56, 60, false);
    check(
        &bilinear,
        &|args| composition_bilinear2d(&args[0], 56, 60, false),
        &[&[2, 20, 14, 15]],
        10,
    );
}

#[test]
fn compositions_are_candles() {
    for (k, s) in [((2, 2), (2, 2)), ((3, 3), (2, 2)), ((2, 4), (3, 1)), ((1, 1), (4, 4))] {
        let xs = random(&[2, 3, 9, 11], 0);
        let candles = xs.avg_pool2d_with_stride(k, s).unwrap();
        assert!(relative(&composition_avg_pool2d(&xs, k, s).unwrap(), &candles) < 1e-14);
    }
    for (from, to) in [
        ((4, 5), (8, 10)),
        ((4, 5), (7, 3)),
        ((6, 7), (1, 20)),
        ((1, 1), (3, 2)),
        ((5, 5), (5, 5)),
    ] {
        let xs = random(&[2, 3, from.0, from.1], 0);
        let candles = xs.upsample_nearest2d(to.0, to.1).unwrap();
        assert!(relative(&composition_nearest2d(&xs, to.0, to.1).unwrap(), &candles) < 1e-14);
        for align in [false, true] {
            let candles = xs.upsample_bilinear2d(to.0, to.1, align).unwrap();
            let error = relative(&composition_bilinear2d(&xs, to.0, to.1, align).unwrap(), &candles);
            assert!(error < 1e-14, "{from:?} to {to:?}, {align}: {error:e}");
        }
    }
    for (scales, align) in [
        ((2.0, 1.5), false),
        ((2.3, 0.6), false),
        ((2.3, 0.6), true),
        ((1.0, 1.1), false),
    ] {
        let xs = random(&[2, 3, 5, 6], 0);
        let candles = xs.upsample_bilinear2d_with_scale(scales.0, scales.1, align).unwrap();
        let ours = upsample_bilinear2d_with_scale(&xs, scales.0, scales.1, align).unwrap();
        assert!(relative(&ours, &candles) < 1e-14, "{scales:?}");
    }
    let xs = random(&[2, 3, 5], 0);
    let candles = xs.upsample_nearest1d(12).unwrap();
    assert!(relative(&upsample_nearest1d(&xs, 12).unwrap(), &candles) < 1e-14);
}

// Sizes at which the quotient of the sides is rounded down, and so its multiples.
#[test]
fn nearest_elements_are_exact() {
    for (side, target) in [(2, 98), (3, 147), (6, 94), (5, 245), (10, 154), (7, 7), (1, 3), (9, 4)] {
        let xs = Tensor::arange(0.0, side as f64, &Device::Cpu).unwrap();
        let xs = xs.reshape((1, 1, side)).unwrap();
        // The last element that begins at or before the place.
        let element = |place: usize| (0..side).rfind(|element| element * target <= place * side);
        let expected: Vec<_> = (0..target).map(|place| element(place).unwrap() as f64).collect();
        let got = upsample_nearest1d(&xs, target).unwrap().flatten_all().unwrap();
        assert_eq!(got.to_vec1::<f64>().unwrap(), expected, "{side} to {target}");
    }
}

// 0 times them would be NaN everywhere.
#[test]
fn what_is_not_finite_stays_where_it_is() {
    for dtype in [DType::F32, DType::F64] {
        for value in [f64::NEG_INFINITY, f64::NAN] {
            let at = |place: usize| {
                let mut elements = [1.0; 16];
                elements[place] = value;
                let xs = Tensor::new(&elements, &Device::Cpu).unwrap().to_dtype(dtype).unwrap();
                xs.reshape((1, 1, 4, 4)).unwrap()
            };
            let xs = at(15);
            let spoilt = |ys: Result<Tensor>| {
                let ys = ys.unwrap().to_dtype(DType::F64).unwrap().flatten_all().unwrap();
                let ys = ys.to_vec1::<f64>().unwrap();
                ys.iter()
                    .enumerate()
                    .filter_map(|(i, y)| (!y.is_finite()).then_some(i))
                    .collect::<Vec<_>>()
            };
            let message = format!("{value} {dtype:?}");
            assert_eq!(spoilt(avg_pool2d(&xs, 2, 2)), [3], "{message}");
            assert_eq!(spoilt(avg_pool2d(&xs, 2, 1)), [8], "{message}");
            assert_eq!(spoilt(upsample_nearest2d(&xs, 2, 8)), [0; 0], "{message}");
            assert_eq!(spoilt(upsample_nearest2d(&xs, 4, 8)), [30, 31], "{message}");
            assert_eq!(spoilt(upsample_bilinear2d(&xs, 2, 2, false)), [3], "{message}");
            assert_eq!(spoilt(upsample_bilinear2d(&xs, 2, 2, true)), [3], "{message}");
            // Places at the edge see nothing of what is before it.
            assert_eq!(spoilt(upsample_bilinear2d(&at(10), 2, 2, true)), [0; 0], "{message}");
        }
    }
}

#[test]
fn compositions_have_the_right_derivative() {
    check_derivative(
        &|args| composition_avg_pool2d(&args[0], (3, 2), (2, 3)),
        &[&[2, 2, 6, 5]],
        0,
    );
    check_derivative(&|args| composition_nearest2d(&args[0], 5, 7), &[&[2, 2, 3, 4]], 1);
    check_derivative(
        &|args| composition_bilinear2d(&args[0], 5, 2, false),
        &[&[1, 2, 3, 4]],
        2,
    );
    check_derivative(
        &|args| composition_bilinear2d(&args[0], 2, 7, true),
        &[&[1, 2, 3, 4]],
        3,
    );
    check_derivative(
        &|args| upsample_bilinear2d_with_scale(&args[0], 1.7, 0.8, false),
        &[&[1, 2, 3, 4]],
        4,
    );
    check_derivative(&|args| upsample_nearest1d(&args[0], 7), &[&[2, 2, 3]], 5);
}

#[test]
fn errors_name_the_argument() {
    let images = |shape: &[usize]| random(shape, 0);
    let xs = images(&[2, 3, 4, 5]);
    let message = |result: Result<Tensor>| result.unwrap_err().to_string();
    assert_eq!(
        message(avg_pool2d(&xs, (2, 0), 1)),
        "kernel is 0, but must be at least 1"
    );
    assert_eq!(message(avg_pool2d(&xs, 2, 0)), "stride is 0, but must be at least 1");
    assert_eq!(
        message(avg_pool2d(&xs, (2, 6), 1)),
        "xs has shape [2, 3, 4, 5], but must be [B, C, H, W], with sides of at least [2, 6]"
    );
    for xs in [&[3, 4, 5][..], &[2, 0, 4, 5]] {
        let expected = format!("xs has shape {xs:?}, but must be [B, C, H, W], not empty");
        assert_eq!(message(avg_pool2d(&images(xs), 1, 1)), expected);
        assert_eq!(message(upsample_nearest2d(&images(xs), 1, 1)), expected);
        assert_eq!(message(upsample_bilinear2d(&images(xs), 1, 1, true)), expected);
    }
    assert_eq!(
        message(upsample_nearest2d(&xs, 0, 1)),
        "target_h is 0, but must be at least 1"
    );
    assert_eq!(
        message(upsample_bilinear2d(&xs, 1, 0, true)),
        "target_w is 0, but must be at least 1"
    );
    for target in [1 << 40, usize::MAX] {
        let expected = format!("target_h is {target}, but must be so small that the result fits in memory");
        assert_eq!(message(upsample_nearest2d(&xs, target, 1)), expected);
        assert_eq!(message(upsample_bilinear2d(&xs, target, 1, false)), expected);
    }
    // As many weights as windows have elements in all.
    let wide = Tensor::zeros((1, 1, 1, 1 << 21), DType::F32, &Device::Cpu).unwrap();
    let expected = "kernel is 1048576, but must be so small that the result fits in memory";
    assert_eq!(message(avg_pool2d(&wide, (1, 1 << 20), 1)), expected);
    let expanded = xs.narrow(0, 0, 1).unwrap().expand((1 << 40, 3, 4, 5)).unwrap();
    assert!(message(avg_pool2d(&expanded, 1, 1)).starts_with("xs is [1099511627776, 3, 4, 5], but must be so small"));
    let scaled = |scale| message(upsample_bilinear2d_with_scale(&xs, scale, 1.0, false));
    assert_eq!(scaled(0.1), "scale_h is 0.1, but must be at least 1 / 4");
    assert_eq!(scaled(f64::NAN), "scale_h is NaN, but must be above 0 and finite");
    assert_eq!(
        message(upsample_nearest1d(&xs, 3)),
        "xs has shape [2, 3, 4, 5], but must be [B, C, L], not empty"
    );
    let integers = Tensor::zeros((1, 1, 2, 2), DType::U8, &Device::Cpu).unwrap();
    assert!(message(avg_pool2d(&integers, 1, 1)).starts_with("xs has dtype U8"));
}
