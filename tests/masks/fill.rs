//! Images with hidden pixels, which must not leak.

use std::collections::BTreeSet;

use candle_core::{DType, Tensor, Var};
use masksub::{Fill, Grid, Mask};

use super::{key, some_mask};
use crate::common::{bits, numbers, randn, CPU};

const SHAPE: (usize, usize, usize, usize) = (3, 2, 4, 12);

/// A mask on a grid of 2 x 3 blocks of 2 x 4 pixels, and for each pixel whether it is kept, worked out by loops.
fn blocks() -> (Mask, Vec<bool>) {
    let mask = some_mask(3, Grid::new(2, 3), 0.5);
    let mut kept = vec![];
    for row in mask.rows() {
        for _channel in 0..2 {
            for y in 0..4 {
                kept.extend((0..12).map(|x| row.contains(&((y / 2 * 3 + x / 4) as u32))));
            }
        }
    }
    (mask, kept)
}

fn fill(mask: &Mask, images: &Tensor, fill: Fill) -> Vec<f32> {
    let filled = mask.fill(images, &fill, key(1)).unwrap();
    assert_eq!((filled.dims(), filled.dtype()), (images.dims(), images.dtype()));
    filled.flatten_all().unwrap().to_vec1().unwrap()
}

#[test]
fn keeps_kept_pixels_bit_for_bit_and_hides_the_others() {
    let (mask, kept) = blocks();
    let images = randn(SHAPE, "fill");
    let pixels: Vec<f32> = images.flatten_all().unwrap().to_vec1().unwrap();
    let means: Vec<f64> = pixels
        .chunks(48)
        .map(|c| c.iter().map(|&p| p as f64).sum::<f64>() / 48.0)
        .collect();
    type Expected<'a> = Box<dyn Fn(usize, f32) -> bool + 'a>;
    let cases: [(Fill, Expected); 4] = [
        (Fill::Zero, Box::new(|_, hidden| hidden.to_bits() == 0)),
        (
            Fill::Value(vec![0.25, -3.0]),
            Box::new(|at, hidden| hidden == [0.25, -3.0][at / 48 % 2]),
        ),
        (
            Fill::Mean,
            Box::new(|at, hidden| (hidden as f64 - means[at / 48]).abs() < 1e-6),
        ),
        (
            Fill::Noise,
            Box::new(|at, hidden| hidden != pixels[at] && hidden.is_finite()),
        ),
    ];
    for (what, expected) in cases {
        let filled = fill(&mask, &images, what.clone());
        for (at, (&got, &was)) in filled.iter().zip(&pixels).enumerate() {
            if kept[at] {
                assert_eq!(got.to_bits(), was.to_bits(), "{what:?}: kept pixel {at}")
            } else {
                assert!(expected(at, got), "{what:?}: hidden pixel {at} is {got}")
            }
        }
    }
}

#[test]
fn noise_is_standard_normal_and_drawn_per_pixel() {
    let mask = Mask::from_keep_indices(Grid::new(1, 2), &[[0], [1]]).unwrap();
    let images = randn((2, 3, 64, 128), "noise").affine(0.0, 9.0).unwrap();
    let hidden: Vec<f64> = numbers(&mask.fill(&images, &Fill::Noise, key(0)).unwrap())
        .into_iter()
        .filter(|&pixel| pixel != 9.0)
        .collect();
    let n = hidden.len() as f64;
    assert_eq!(hidden.len(), 2 * 3 * 64 * 64);
    let mean = hidden.iter().sum::<f64>() / n;
    let variance = hidden.iter().map(|pixel| (pixel - mean).powi(2)).sum::<f64>() / n;
    let fourth = hidden.iter().map(|pixel| (pixel - mean).powi(4)).sum::<f64>() / n;
    assert!(mean.abs() < 4.5 / n.sqrt(), "{mean}");
    assert!((variance - 1.0).abs() < 4.5 * (2.0 / n).sqrt(), "{variance}");
    assert!((fourth - 3.0).abs() < 4.5 * (96.0 / n).sqrt(), "{fourth}");
    let distinct: BTreeSet<u64> = hidden.iter().map(|pixel| pixel.to_bits()).collect();
    assert!(distinct.len() as f64 > 0.99 * n, "{} of {n}", distinct.len());
    // Other steps draw other noise, the same step the same.
    let at = |step| mask.fill(&images, &Fill::Noise, key(step)).unwrap();
    assert_eq!(bits(&at(1)), bits(&at(1)));
    assert_ne!(bits(&at(1)), bits(&at(2)));
}

#[test]
fn hidden_pixels_do_not_leak() {
    let (mask, kept) = blocks();
    let clean = randn(SHAPE, "leak");
    let pixels: Vec<f32> = clean.flatten_all().unwrap().to_vec1().unwrap();
    for poison in [f32::NAN, f32::INFINITY, f32::MAX] {
        let poisoned = pixels
            .iter()
            .zip(&kept)
            .map(|(&pixel, &kept)| if kept { pixel } else { poison });
        let poisoned = Tensor::from_iter(poisoned, &CPU).unwrap().reshape(SHAPE).unwrap();
        for what in [Fill::Zero, Fill::Noise, Fill::Value(vec![1.0, 2.0])] {
            let (clean, poisoned) = (fill(&mask, &clean, what.clone()), fill(&mask, &poisoned, what.clone()));
            assert_eq!(clean, poisoned, "{what:?}, {poison}");
        }
    }
    // Nor do kept ones get lost: a NaN that is kept stays.
    let kept_nan = pixels
        .iter()
        .zip(&kept)
        .map(|(&pixel, &kept)| if kept { f32::NAN } else { pixel });
    let kept_nan = Tensor::from_iter(kept_nan, &CPU).unwrap().reshape(SHAPE).unwrap();
    let filled = fill(&mask, &kept_nan, Fill::Zero);
    assert!(filled.iter().zip(&kept).all(|(pixel, &kept)| pixel.is_nan() == kept));
}

#[test]
fn gradients_reach_kept_pixels_only() {
    let (mask, kept) = blocks();
    let var = Var::from_tensor(&randn(SHAPE, "gradient")).unwrap();
    let filled = mask.fill(&var, &Fill::Zero, key(0)).unwrap();
    let grads = filled.sum_all().unwrap().backward().unwrap();
    let expected: Vec<f64> = kept.iter().map(|&kept| f64::from(u8::from(kept))).collect();
    assert_eq!(numbers(grads.get(&var).unwrap()), expected);
}

#[test]
fn half_precision_images_keep_their_dtype_and_mean() {
    // 0.1 * 64 * 64 overflows nothing, but a sum in half precision stops growing long before.
    for dtype in [DType::F16, DType::BF16, DType::F64] {
        let mask = Mask::from_keep_indices(Grid::new(1, 2), &[[0]]).unwrap();
        let images = (Tensor::ones((1, 1, 256, 256), DType::F32, &CPU).unwrap() * 3.0).unwrap();
        let filled = mask
            .fill(&images.to_dtype(dtype).unwrap(), &Fill::Mean, key(0))
            .unwrap();
        assert_eq!(filled.dtype(), dtype);
        assert!(
            numbers(&filled).iter().all(|pixel| (pixel - 3.0).abs() < 0.02),
            "{dtype:?}: {:?}",
            numbers(&filled).last()
        );
    }
}

#[test]
fn images_that_are_not_contiguous_are_filled_alike() {
    let (mask, _) = blocks();
    let channels_last = randn((3, 4, 12, 2), "channels last").permute((0, 3, 1, 2)).unwrap();
    for what in [Fill::Zero, Fill::Mean, Fill::Noise, Fill::Value(vec![1.0, 2.0])] {
        let as_is = fill(&mask, &channels_last, what.clone());
        let plain = fill(&mask, &channels_last.contiguous().unwrap(), what.clone());
        // The order in which a mean is summed differs.
        let close = |(a, b): (&f32, &f32)| (a - b).abs() < 1e-6;
        assert!(as_is.iter().zip(&plain).all(close), "{what:?}");
    }
}
