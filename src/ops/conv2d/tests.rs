//! The convolution beside its composition, and that beside the definition.

use super::blocks::Block;
use super::*;
use crate::ops::testing::{check, check_derivative, random, rng};
use rand::Rng as _;

fn config(stride: usize, padding: usize) -> Conv2dConfig {
    Conv2dConfig {
        stride,
        padding,
        ..Default::default()
    }
}

fn groups(groups: usize) -> Conv2dConfig {
    Conv2dConfig {
        groups,
        ..Default::default()
    }
}

fn kernel(config: Conv2dConfig) -> impl Fn(&[Tensor]) -> Result<Tensor> + Sync {
    move |args| conv2d(&args[0], &args[1], args.get(2), config)
}

fn reference(config: Conv2dConfig) -> impl Fn(&[Tensor]) -> Result<Tensor> + Sync {
    move |args| composition(&args[0], &args[1], args.get(2), config)
}

/// With a bias where the seed is odd.
fn check_weight(xs: [usize; 4], weight: [usize; 4], config: Conv2dConfig, seed: u64) {
    let shapes: [&[usize]; 3] = [&xs, &weight, &weight[..1]];
    let shapes = &shapes[..2 + seed as usize % 2];
    check(&kernel(config), &reference(config), shapes, seed);
}

fn check_conv(xs: [usize; 4], out_channels: usize, k: usize, stride: usize, padding: usize, seed: u64) {
    check_weight(xs, [out_channels, xs[1], k, k], config(stride, padding), seed);
}

/// A convolution in which each of `xs`'s channels has a kernel of its own.
fn check_depthwise(xs: [usize; 4], kernel: [usize; 2], config: Conv2dConfig, seed: u64) {
    let groups = xs[1];
    check_weight(
        xs,
        [groups, 1, kernel[0], kernel[1]],
        Conv2dConfig { groups, ..config },
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

// Few rows, or one, of which each is cut.
#[test]
fn wide_maps_equal_their_composition() {
    for (seed, xs, kernel, config) in [
        (0, [2, 2, 1, 2060], [1, 3], config(1, 0)),
        (1, [1, 2, 2, 1100], [2, 3], config(1, 1)),
        (2, [1, 1, 1, 1025], [1, 1], config(1, 0)),
        (3, [1, 2, 3, 1601], [3, 4], config(2, 1)),
    ] {
        check_weight(xs, [3, xs[1], kernel[0], kernel[1]], config, seed);
    }
}

#[test]
fn a_block_is_small_whatever_the_map() {
    for (height, width) in [
        (1, 1),
        (1, 100_000),
        (2, 50_000),
        (7, 1030),
        (300, 300),
        (1500, 1),
        (1, 1023),
    ] {
        let conv = Conv2d::new(["xs", "weight"], &[3, 4, height, width], &[4, 2, 1, 1], groups(2)).unwrap();
        let blocks = conv.blocks();
        assert!(conv.widest(&blocks) < 1024, "{height} x {width}");
        // Every position of every group and sample once.
        assert_eq!(blocks.iter().map(Block::width).sum::<usize>(), 3 * 2 * height * width);
        let mut seen = vec![0; height * width];
        for block in blocks
            .iter()
            .filter(|block| block.group == 1 && block.samples.contains(&2))
        {
            let start = conv.start_of(&block.part);
            let len = block.width() / block.samples.len();
            seen[start..start + len].iter_mut().for_each(|seen| *seen += 1);
        }
        assert!(seen.iter().all(|&seen| seen == 1), "{height} x {width}");
    }
}

#[test]
fn equals_its_composition_with_groups_and_dilation() {
    let mut rng = rng(21);
    for seed in 0..16 {
        let mut size = |most| rng.random_range(1..=most);
        let config = Conv2dConfig {
            stride: size(3),
            padding: size(4) - 1,
            dilation: size(3),
            groups: size(4),
            cudnn_fwd_algo: None,
        };
        let kernel = [size(4), size(4)];
        let [height, width] = kernel.map(|k| size(12) + ((k - 1) * config.dilation).saturating_sub(2 * config.padding));
        // Of which some have one channel in and one out, and are depthwise.
        let (inputs, outputs) = (size(3), size(3));
        let weight = [config.groups * outputs, inputs, kernel[0], kernel[1]];
        check_weight([size(3), config.groups * inputs, height, width], weight, config, seed);
    }
}

#[test]
fn depthwise_equals_its_composition() {
    let mut rng = rng(22);
    for seed in 0..16 {
        let mut size = |most| rng.random_range(1..=most);
        let config = Conv2dConfig {
            stride: size(4),
            padding: size(5) - 1,
            dilation: size(2),
            ..Default::default()
        };
        let kernel = [size(7), size(7)];
        let [height, width] = kernel.map(|k| size(16) + ((k - 1) * config.dilation).saturating_sub(2 * config.padding));
        check_depthwise([size(3), size(9), height, width], kernel, config, seed);
    }
}

#[test]
fn depthwise_equals_its_composition_at_the_edges() {
    // ConvNeXt's and EfficientNet's, a map of one element, more padding than kernel, a stride beyond the kernel, one
    // that is left to matrix products, and many pieces of work.
    check_depthwise([2, 5, 14, 14], [7, 7], config(1, 3), 0);
    check_depthwise([2, 6, 7, 7], [7, 7], config(1, 3), 1);
    check_depthwise([2, 6, 15, 14], [5, 5], config(2, 2), 2);
    check_depthwise([2, 6, 14, 15], [3, 3], config(2, 1), 3);
    check_depthwise([3, 4, 1, 1], [3, 3], config(1, 1), 4);
    check_depthwise([2, 3, 4, 3], [2, 2], config(1, 3), 5);
    check_depthwise([2, 3, 11, 12], [1, 2], config(3, 0), 6);
    check_depthwise([2, 3, 11, 12], [2, 2], config(5, 0), 7);
    check_depthwise([3, 12, 33, 31], [3, 3], config(1, 1), 8);
    check_depthwise([3, 12, 33, 31], [5, 5], config(2, 2), 9);
    check_depthwise([1, 1, 3, 3], [3, 3], config(1, 0), 10);
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
    check_conv([1, 1, 1, 1], 2, 1, 1, 0, 8);
    // Several blocks of positions, and many tasks.
    check_conv([2, 3, 50, 41], 16, 7, 2, 3, 9);
    check_conv([9, 70, 12, 11], 33, 3, 1, 1, 10);
    check_conv([13, 64, 5, 5], 24, 3, 1, 1, 11);
    // Groups of several blocks, and of samples that go together.
    check_weight(
        [2, 6, 50, 41],
        [8, 3, 3, 3],
        Conv2dConfig {
            groups: 2,
            ..config(1, 1)
        },
        12,
    );
    check_weight(
        [5, 64, 7, 7],
        [64, 2, 3, 3],
        Conv2dConfig {
            groups: 32,
            ..config(1, 1)
        },
        13,
    );
    check_weight(
        [3, 4, 7, 7],
        [12, 1, 3, 3],
        Conv2dConfig {
            groups: 4,
            ..config(1, 1)
        },
        15,
    );
}

/// Convolution as its definition reads, one number at a time.
#[test]
fn composition_is_convolution() {
    for (kernel, stride, padding, dilation, groups) in [
        ([3, 3], 2, 1, 1, 1),
        ([2, 2], 1, 0, 1, 1),
        ([1, 1], 1, 1, 1, 1),
        ([3, 3], 1, 4, 1, 1),
        ([2, 2], 3, 1, 1, 1),
        ([3, 2], 1, 2, 2, 2),
        ([2, 3], 2, 1, 2, 4),
    ] {
        let config = Conv2dConfig {
            stride,
            padding,
            dilation,
            groups,
            cudnn_fwd_algo: None,
        };
        let (inputs, [k, l]) = (4 / groups, kernel);
        let (xs, weight, bias) = (random(&[2, 4, 6, 9], 0), random(&[8, inputs, k, l], 1), random(&[8], 2));
        let ys = composition(&xs, &weight, Some(&bias), config).unwrap();
        let (_, _, height, width) = ys.dims4().unwrap();
        let places = |side, k| (side + 2 * padding - dilation * (k - 1) - 1) / stride + 1;
        assert_eq!((height, width), (places(6, k), places(9, l)));
        let flat = |t: &Tensor| t.flatten_all().unwrap().to_vec1::<f64>().unwrap();
        let [xs, weight, bias, ys] = [&xs, &weight, &bias, &ys].map(flat);
        for (at, y) in ys.iter().enumerate() {
            let (b, o) = (at / (8 * height * width), at / (height * width) % 8);
            let (i, j) = (at / width % height, at % width);
            let mut sum = bias[o];
            for (c, u, v) in (0..inputs * k * l).map(|n| (n / (k * l), n / l % k, n % l)) {
                let (row, column) = (i * stride + u * dilation, j * stride + v * dilation);
                if (padding..padding + 6).contains(&row) && (padding..padding + 9).contains(&column) {
                    let channel = o / (8 / groups) * inputs + c;
                    sum += xs[((b * 4 + channel) * 6 + row - padding) * 9 + column - padding]
                        * weight[((o * inputs + c) * k + u) * l + v];
                }
            }
            assert!((y - sum).abs() < 1e-12);
        }
    }
}

#[test]
fn composition_has_the_right_derivative() {
    check_derivative(&reference(config(1, 1)), &[&[2, 2, 4, 3], &[3, 2, 3, 3], &[3]], 0);
    check_derivative(&reference(config(2, 1)), &[&[1, 2, 5, 6], &[2, 2, 3, 3]], 1);
    check_derivative(&reference(config(1, 1)), &[&[1, 2, 1, 1], &[2, 2, 1, 1]], 2);
    check_derivative(&reference(config(3, 0)), &[&[1, 1, 6, 7], &[2, 1, 2, 2]], 3);
    // What candle's own backward gets wrong when it is given padding and remainders: dilation, groups, a stride.
    for (seed, dilation, groups) in [(4, 2, 1), (5, 1, 2), (6, 2, 2), (7, 3, 4)] {
        let config = Conv2dConfig {
            dilation,
            groups,
            ..config(2, 2)
        };
        check_derivative(&reference(config), &[&[1, 4, 6, 7], &[4, 4 / groups, 3, 2], &[4]], seed);
    }
}

#[test]
fn errors_name_the_argument() {
    let message = |xs: &[usize], weight: &[usize], config| {
        conv2d(&random(xs, 0), &random(weight, 0), None, config)
            .unwrap_err()
            .to_string()
    };
    let (xs, weight) = ([2, 3, 4, 5], [6, 3, 3, 3]);
    assert_eq!(
        message(&xs, &[6, 3, 3, 0], config(1, 0)),
        "weight has shape [6, 3, 3, 0], but must be [C', C, kH, kW], not empty"
    );
    assert_eq!(
        message(&xs, &[6, 3, 3], config(1, 0)),
        "weight has shape [6, 3, 3], but must be [C', C, kH, kW], not empty"
    );
    assert_eq!(
        message(&xs, &weight, config(0, 0)),
        "stride is 0, but must be at least 1"
    );
    let expected = "[B, 3, H, W], with sides of at least 3 for a kernel of 3 and a padding of 0";
    for xs in [
        &[2, 4, 4, 5][..],
        &[2, 3, 2, 5],
        &[2, 3, 4, 2],
        &[3, 4, 5],
        &[0, 3, 4, 5],
    ] {
        let error = message(xs, &weight, config(1, 0));
        assert_eq!(error, format!("xs has shape {xs:?}, but must be {expected}"));
    }
    assert_eq!(
        message(&[2, 3, 0, 5], &weight, config(1, 1)),
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
        let error = message(&xs, &weight, config(stride, padding));
        assert_eq!(
            error,
            format!("padding is {padding}, but must be so small that the result fits in memory")
        );
    }
}

#[test]
fn errors_name_groups_dilation_and_bias() {
    let error = |weight: &[usize], dilation, groups| {
        let config = Conv2dConfig {
            dilation,
            groups,
            ..config(1, 0)
        };
        let error = conv2d(
            &random(&[2, 4, 4, 5], 0),
            &random(weight, 0),
            Some(&random(&[5], 0)),
            config,
        );
        error.unwrap_err().to_string()
    };
    assert_eq!(error(&[6, 4, 3, 3], 0, 1), "dilation is 0, but must be at least 1");
    assert_eq!(error(&[6, 4, 3, 3], 1, 0), "groups is 0, but must be at least 1");
    assert_eq!(
        error(&[6, 1, 3, 3], 1, 4),
        "groups is 4, but must be a divisor of C' = 6"
    );
    assert_eq!(
        error(&[6, 4, 3], 1, 2),
        "weight has shape [6, 4, 3], but must be [C', C / groups, kH, kW], not empty"
    );
    assert_eq!(
        error(&[6, 4, 3, 3], 1, 2),
        "xs has shape [2, 4, 4, 5], but must be [B, 8, H, W], with sides of at least 3 for a kernel of 3 and a padding of 0"
    );
    assert_eq!(
        error(&[6, 2, 3, 2], 2, 2),
        "xs has shape [2, 4, 4, 5], but must be [B, 4, H, W], with sides of at least [5, 3] for a kernel of [3, 2], a \
         dilation of 2 and a padding of 0"
    );
    assert!(
        error(&[6, 4, 3, 3], usize::MAX, 1).starts_with("xs has shape [2, 4, 4, 5], but must be [B, 4, H, W], with")
    );
    assert_eq!(error(&[6, 2, 3, 3], 1, 2), "bias has shape [5], but must be [6]");
}
