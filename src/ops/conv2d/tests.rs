//! The convolution beside its composition, and that beside the definition.

use super::*;
use crate::ops::testing::{check, check_derivative, random, rng};
use rand::Rng as _;

fn kernel(stride: usize, padding: usize) -> impl Fn(&[Tensor]) -> Result<Tensor> + Sync {
    move |args| conv2d(&args[0], &args[1], stride, padding)
}

fn reference(stride: usize, padding: usize) -> impl Fn(&[Tensor]) -> Result<Tensor> + Sync {
    move |args| composition(&args[0], &args[1], stride, padding)
}

fn check_conv(xs: [usize; 4], out_channels: usize, k: usize, stride: usize, padding: usize, seed: u64) {
    let weight = [out_channels, xs[1], k, k];
    check(
        &kernel(stride, padding),
        &reference(stride, padding),
        &[&xs, &weight],
        seed,
    );
}

#[test]
fn equals_its_composition() {
    let mut rng = rng(12);
    for seed in 0..12 {
        let mut size = |most| rng.random_range(1..=most);
        let (k, stride, padding): (usize, _, _) = (size(5), size(3), size(4) - 1);
        let side = |size: usize| size + k.saturating_sub(1 + 2 * padding);
        let xs = [size(4), size(9), side(size(15)), side(size(15))];
        check_conv(xs, size(9), k, stride, padding, seed);
    }
}

#[test]
fn equals_its_composition_at_the_edges() {
    // 1 x 1: the image itself, of one sample, of samples that go together, with a stride, with padding.
    check_conv([1, 3, 4, 5], 2, 1, 1, 0, 0);
    check_conv([3, 40, 7, 7], 70, 1, 1, 0, 1);
    check_conv([2, 20, 31, 33], 20, 1, 1, 0, 2);
    check_conv([2, 8, 9, 12], 5, 1, 2, 0, 3);
    check_conv([2, 3, 1, 1], 5, 1, 1, 1, 4);
    // More padding than kernel; a stride beyond the kernel; a kernel as large as the image.
    check_conv([2, 3, 4, 3], 5, 2, 1, 3, 5);
    check_conv([2, 3, 11, 12], 5, 2, 5, 0, 6);
    check_conv([2, 3, 6, 6], 5, 6, 1, 0, 7);
    check_conv([1, 1, 1, 1], 1, 1, 1, 0, 8);
    // Several blocks of positions, and many tasks.
    check_conv([2, 3, 50, 41], 16, 7, 2, 3, 9);
    check_conv([9, 70, 12, 11], 33, 3, 1, 1, 10);
    check_conv([13, 64, 5, 5], 24, 3, 1, 1, 11);
}

/// Convolution as its definition reads, one number at a time.
#[test]
fn composition_is_convolution() {
    for (k, stride, padding) in [(3, 2, 1), (2, 1, 0), (1, 1, 1), (3, 1, 4), (2, 3, 1)] {
        let (xs, weight) = (random(&[2, 3, 6, 9], 0), random(&[4, 3, k, k], 1));
        let ys = composition(&xs, &weight, stride, padding).unwrap();
        let (_, _, height, width) = ys.dims4().unwrap();
        assert_eq!(
            (height, width),
            ((6 + 2 * padding - k) / stride + 1, (9 + 2 * padding - k) / stride + 1)
        );
        let flat = |t: &Tensor| t.flatten_all().unwrap().to_vec1::<f64>().unwrap();
        let (xs, weight, ys) = (flat(&xs), flat(&weight), flat(&ys));
        for (at, y) in ys.iter().enumerate() {
            let (b, o) = (at / (4 * height * width), at / (height * width) % 4);
            let (i, j) = (at / width % height, at % width);
            let mut sum = 0.0;
            for (c, u, v) in (0..3 * k * k).map(|n| (n / (k * k), n / k % k, n % k)) {
                let (row, column) = (i * stride + u, j * stride + v);
                if (padding..padding + 6).contains(&row) && (padding..padding + 9).contains(&column) {
                    sum += xs[((b * 3 + c) * 6 + row - padding) * 9 + column - padding]
                        * weight[((o * 3 + c) * k + u) * k + v];
                }
            }
            assert!((y - sum).abs() < 1e-12);
        }
    }
}

#[test]
fn composition_has_the_right_derivative() {
    check_derivative(&reference(1, 1), &[&[2, 2, 4, 3], &[3, 2, 3, 3]], 0);
    check_derivative(&reference(2, 1), &[&[1, 2, 5, 6], &[2, 2, 3, 3]], 1);
    check_derivative(&reference(1, 1), &[&[1, 2, 1, 1], &[2, 2, 1, 1]], 2);
    check_derivative(&reference(3, 0), &[&[1, 1, 6, 7], &[2, 1, 2, 2]], 3);
}

#[test]
fn errors_name_the_argument() {
    let message = |xs: &[usize], weight: &[usize], stride, padding| {
        conv2d(&random(xs, 0), &random(weight, 0), stride, padding)
            .unwrap_err()
            .to_string()
    };
    let (xs, weight) = ([2, 3, 4, 5], [6, 3, 3, 3]);
    assert_eq!(
        message(&xs, &[6, 3, 3, 1], 1, 0),
        "weight has shape [6, 3, 3, 1], but must be [C', C, k, k], not empty"
    );
    assert_eq!(
        message(&xs, &[6, 3, 3], 1, 0),
        "weight has shape [6, 3, 3], but must be [C', C, k, k]"
    );
    assert_eq!(message(&xs, &weight, 0, 0), "stride is 0, but must be at least 1");
    let expected = "[B, 3, H, W], with sides of at least 3 for a kernel of 3 and a padding of 0";
    for xs in [
        &[2, 4, 4, 5][..],
        &[2, 3, 2, 5],
        &[2, 3, 4, 2],
        &[3, 4, 5],
        &[0, 3, 4, 5],
    ] {
        let error = message(xs, &weight, 1, 0);
        assert_eq!(error, format!("xs has shape {xs:?}, but must be {expected}"));
    }
    assert_eq!(
        message(&[2, 3, 0, 5], &weight, 1, 1),
        "xs has shape [2, 3, 0, 5], but must be [B, 3, H, W], not empty"
    );
    // The padded image is too large however few places a large stride leaves, or its side overflows.
    for (stride, padding) in [
        (1, 1 << 20),
        (1, 1 << 40),
        (1 << 40, 1 << 40),
        (1, usize::MAX / 2),
        (usize::MAX, usize::MAX),
    ] {
        let error = message(&xs, &weight, stride, padding);
        assert_eq!(
            error,
            format!("padding is {padding}, but must be so small that the result fits in memory")
        );
    }
}
