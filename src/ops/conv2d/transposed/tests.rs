//! Transposed convolutions beside their compositions, and those beside candle's.

use super::*;
use crate::ops::testing::{check, check_derivative, random, relative, rng};
use rand::Rng as _;

fn kernel(config: ConvTranspose2dConfig) -> impl Fn(&[Tensor]) -> Result<Tensor> + Sync {
    move |args| conv_transpose2d(&args[0], &args[1], args.get(2), config)
}

fn reference(config: ConvTranspose2dConfig) -> impl Fn(&[Tensor]) -> Result<Tensor> + Sync {
    move |args| composition(&args[0], &args[1], args.get(2), config)
}

fn kernel_1d(config: ConvTranspose1dConfig) -> impl Fn(&[Tensor]) -> Result<Tensor> + Sync {
    move |args| conv_transpose1d(&args[0], &args[1], args.get(2), config)
}

fn reference_1d(config: ConvTranspose1dConfig) -> impl Fn(&[Tensor]) -> Result<Tensor> + Sync {
    move |args| composition_1d(&args[0], &args[1], args.get(2), config)
}

#[test]
fn equals_its_composition() {
    let mut rng = rng(24);
    for seed in 0..12 {
        let mut size = |most| rng.random_range(1..=most);
        let config = ConvTranspose2dConfig {
            padding: size(3) - 1,
            output_padding: size(3) - 1,
            stride: size(3),
            dilation: size(2),
        };
        let weight = [size(5), size(5), 2 + size(3), 2 + size(3)];
        let xs = [size(3), weight[0], 1 + size(8), 1 + size(8)];
        let shapes: [&[usize]; 3] = [&xs, &weight, &weight[1..2]];
        check(
            &kernel(config),
            &reference(config),
            &shapes[..2 + seed as usize % 2],
            seed,
        );
    }
}

#[test]
fn of_sequences_equals_its_composition() {
    let mut rng = rng(25);
    for seed in 0..12 {
        let mut size = |most| rng.random_range(1..=most);
        let config = ConvTranspose1dConfig {
            padding: size(3) - 1,
            output_padding: size(3) - 1,
            stride: size(3),
            dilation: size(2),
            groups: size(3),
        };
        // Of which some are depthwise.
        let weight = [config.groups * size(2), size(2), 2 + size(3)];
        let xs = [size(3), weight[0], 1 + size(20)];
        let shapes: [&[usize]; 3] = [&xs, &weight, &[config.groups * weight[1]]];
        check(&kernel_1d(config), &reference_1d(config), &shapes, seed);
    }
}

#[test]
fn equals_its_composition_at_the_edges() {
    let config = ConvTranspose2dConfig::default();
    let check = |config, shapes: [&[usize]; 3], seed| check(&kernel(config), &reference(config), &shapes, seed);
    check(config, [&[1, 1, 1, 1], &[1, 1, 1, 1], &[1]], 0);
    // A segmenter's: the kernel is as large as the step.
    let doubled = ConvTranspose2dConfig { stride: 2, ..config };
    check(doubled, [&[3, 40, 14, 13], &[40, 24, 2, 2], &[24]], 1);
    // The image itself, and more of it on one side.
    check(config, [&[2, 3, 4, 5], &[3, 6, 1, 1], &[6]], 2);
    let padded = ConvTranspose2dConfig {
        output_padding: 2,
        ..config
    };
    check(padded, [&[2, 3, 4, 5], &[3, 6, 1, 1], &[6]], 3);
}

#[test]
fn composition_is_candles() {
    for (stride, padding, output_padding, dilation) in [(1, 0, 0, 1), (2, 1, 1, 1), (3, 2, 0, 2), (1, 1, 0, 3)] {
        let config = ConvTranspose2dConfig {
            padding,
            output_padding,
            stride,
            dilation,
        };
        let (xs, weight) = (random(&[2, 3, 5, 4], 0), random(&[3, 4, 3, 2], 1));
        let candles = xs
            .conv_transpose2d(&weight, padding, output_padding, stride, dilation)
            .unwrap();
        assert!(relative(&composition(&xs, &weight, None, config).unwrap(), &candles) < 1e-14);

        for groups in [1, 2] {
            let config = ConvTranspose1dConfig {
                padding,
                output_padding,
                stride,
                dilation,
                groups,
            };
            // Of more than one sample, candle's may be wrong.
            let (xs, weight) = (random(&[1, 4, 7], 0), random(&[4, 3, 3], 1));
            let candles = xs
                .conv_transpose1d(&weight, padding, output_padding, stride, dilation, groups)
                .unwrap();
            let error = relative(&composition_1d(&xs, &weight, None, config).unwrap(), &candles);
            assert!(error < 1e-14, "{config:?}: {error:e}");
        }
    }
}

#[test]
fn composition_has_the_right_derivative() {
    for (seed, stride, padding, output_padding, dilation) in [(0, 1, 0, 0, 1), (1, 2, 1, 1, 1), (2, 3, 2, 2, 2)] {
        let config = ConvTranspose2dConfig {
            padding,
            output_padding,
            stride,
            dilation,
        };
        check_derivative(&reference(config), &[&[2, 2, 3, 4], &[2, 3, 3, 3], &[3]], seed);
        let config = ConvTranspose1dConfig {
            padding,
            output_padding,
            stride,
            dilation,
            groups: 2,
        };
        check_derivative(&reference_1d(config), &[&[2, 4, 3], &[4, 3, 3], &[6]], seed);
    }
}

#[test]
fn errors_name_the_argument() {
    let message = |xs: &[usize], weight: &[usize], config| {
        conv_transpose2d(&random(xs, 0), &random(weight, 0), None, config)
            .unwrap_err()
            .to_string()
    };
    let config = ConvTranspose2dConfig::default();
    assert_eq!(
        message(&[1, 2, 3, 3], &[2, 3, 2], config),
        "weight has shape [2, 3, 2], but must be [C, C', kH, kW], not empty"
    );
    for xs in [&[1, 3, 3, 3][..], &[1, 2, 3], &[1, 2, 0, 3]] {
        assert_eq!(
            message(xs, &[2, 3, 2, 2], config),
            format!("xs has shape {xs:?}, but must be [B, 2, H, W], not empty")
        );
    }
    for padding in [2, 1 << 40, usize::MAX] {
        let config = ConvTranspose2dConfig { padding, ..config };
        let expected = "so small that something of the result is left";
        assert_eq!(
            message(&[1, 2, 2, 2], &[2, 3, 3, 3], config),
            format!("padding is {padding}, but must be {expected}")
        );
    }
    let error = conv_transpose1d(
        &random(&[1, 3, 4], 0),
        &random(&[3, 1, 2], 0),
        None,
        ConvTranspose1dConfig {
            groups: 2,
            ..Default::default()
        },
    );
    assert_eq!(
        error.unwrap_err().to_string(),
        "groups is 2, but must be a divisor of C = 3"
    );
    for step in [1 << 40, usize::MAX] {
        let (stride, dilation, output_padding) = (step, step, step);
        for (argument, config) in [
            ("stride", ConvTranspose2dConfig { stride, ..config }),
            ("dilation", ConvTranspose2dConfig { dilation, ..config }),
            (
                "output_padding",
                ConvTranspose2dConfig {
                    output_padding,
                    ..config
                },
            ),
        ] {
            assert_eq!(
                message(&[1, 2, 3, 3], &[2, 3, 2, 2], config),
                format!("{argument} is {step}, but must be so small that the result fits in memory")
            );
        }
    }
}
