//! Convolution of sequences, for training.

use candle_core::{Result, Tensor};
use candle_nn::{Conv1dConfig, Conv2dConfig};

use super::conv2d::{self, Conv2d};

/// y\[b, o, i\] = bias\[o\] + Σ x\[b, c, i stride + u dilation - padding\] weight\[o, c, u\], with zeros outside of the
/// sequence: [`conv2d`](super::conv2d()) of images of one row.
///
/// [`Tensor::conv1d`] computes the same. On the CPU its gradient by the weight is wrong for more than one sample, for it
/// takes the elements of a kernel in the wrong order if that is not contiguous.
///
/// # Arguments
///
/// - `xs`: [B, C, L]
/// - `weight`: [C', C / groups, k]
/// - `bias`: `[C']`
/// - `config`: as candle-nn's layer has it; `padding` is of zeros on each side
///
/// Returns [B, C', L'], where L' = (L + 2 padding - dilation (k - 1) - 1) / stride + 1, rounded down.
///
/// # Derivative
///
/// As that of [`conv2d`](super::conv2d()).
///
/// # PyTorch
///
/// `torch.nn.functional.conv1d(xs, weight, bias, stride, padding, dilation, groups)`
///
/// # Errors
///
/// As those of [`conv2d`](super::conv2d()).
///
/// ```
/// use candle_core::{Device, Tensor};
/// let xs = Tensor::new(&[[[1f32, 2.0, 3.0]]], &Device::Cpu)?;
/// let weight = Tensor::new(&[[[1f32, 10.0]]], &Device::Cpu)?;
/// let ys = masksub::ops::conv1d(&xs, &weight, None, Default::default())?;
/// assert_eq!(ys.flatten_all()?.to_vec1::<f32>()?, [21.0, 32.0]);
/// # Ok::<(), candle_core::Error>(())
/// ```
pub fn conv1d(xs: &Tensor, weight: &Tensor, bias: Option<&Tensor>, config: Conv1dConfig) -> Result<Tensor> {
    let conv = Conv2d::of_sequences(["xs", "weight"], xs.dims(), weight.dims(), of_images(config))?;
    conv2d::check(xs, weight, bias, &conv)?;
    conv2d::routed(&xs.unsqueeze(2)?, &weight.unsqueeze(2)?, bias, conv)?.squeeze(2)
}

/// [`conv1d`] of candle's operations.
pub fn composition(xs: &Tensor, weight: &Tensor, bias: Option<&Tensor>, config: Conv1dConfig) -> Result<Tensor> {
    let conv = Conv2d::of_sequences(["xs", "weight"], xs.dims(), weight.dims(), of_images(config))?;
    conv2d::compose(&xs.unsqueeze(2)?, &weight.unsqueeze(2)?, bias, conv)?.squeeze(2)
}

fn of_images(config: Conv1dConfig) -> Conv2dConfig {
    let Conv1dConfig {
        padding,
        stride,
        dilation,
        groups,
        cudnn_fwd_algo,
    } = config;
    Conv2dConfig {
        padding,
        stride,
        dilation,
        groups,
        cudnn_fwd_algo,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::{check, check_derivative, random, rng};
    use rand::Rng as _;

    fn config(stride: usize, padding: usize, dilation: usize, groups: usize) -> Conv1dConfig {
        Conv1dConfig {
            padding,
            stride,
            dilation,
            groups,
            cudnn_fwd_algo: None,
        }
    }

    fn kernel(config: Conv1dConfig) -> impl Fn(&[Tensor]) -> Result<Tensor> + Sync {
        move |args| conv1d(&args[0], &args[1], args.get(2), config)
    }

    fn reference(config: Conv1dConfig) -> impl Fn(&[Tensor]) -> Result<Tensor> + Sync {
        move |args| composition(&args[0], &args[1], args.get(2), config)
    }

    #[test]
    fn equals_its_composition() {
        let mut rng = rng(23);
        for seed in 0..16 {
            let mut size = |most| rng.random_range(1..=most);
            let config = Conv1dConfig {
                padding: size(4) - 1,
                stride: size(3),
                dilation: size(3),
                groups: size(4),
                cudnn_fwd_algo: None,
            };
            let (k, inputs, outputs) = (size(5), size(3), size(3));
            let length = size(40) + ((k - 1) * config.dilation).saturating_sub(2 * config.padding);
            let xs = [size(3), config.groups * inputs, length];
            let weight = [config.groups * outputs, inputs, k];
            check(&kernel(config), &reference(config), &[&xs, &weight, &weight[..1]], seed);
        }
    }

    /// So long that a sample is computed in several blocks.
    #[test]
    fn long_sequences_equal_their_composition() {
        for (seed, batch, length, stride, padding, dilation, groups) in [
            (0, 2, 1700, 1, 1, 1, 1),
            (1, 1, 2600, 2, 2, 3, 1),
            (2, 2, 1100, 1, 700, 2, 2),
        ] {
            let config = config(stride, padding, dilation, groups);
            let weight = [2 * groups, 2, 3];
            check(
                &kernel(config),
                &reference(config),
                &[&[batch, 2 * groups, length], &weight, &weight[..1]],
                seed,
            );
        }
    }

    /// candle's forward, which is another code than its `conv2d`.
    #[test]
    fn composition_is_candles() {
        for (stride, padding, dilation, groups) in [(1, 1, 1, 1), (2, 1, 1, 1), (2, 2, 3, 2), (3, 0, 1, 4)] {
            let config = config(stride, padding, dilation, groups);
            let (xs, weight) = (random(&[2, 4, 17], 0), random(&[8, 4 / groups, 3], 1));
            let ours = composition(&xs, &weight, None, config).unwrap();
            let candles = xs.conv1d(&weight, padding, stride, dilation, groups).unwrap();
            assert!(crate::ops::testing::relative(&ours, &candles) < 1e-14);
        }
    }

    #[test]
    fn composition_has_the_right_derivative() {
        for (seed, stride, padding, dilation, groups) in [(0, 1, 1, 1, 1), (1, 2, 3, 1, 1), (2, 3, 2, 2, 2)] {
            let config = config(stride, padding, dilation, groups);
            check_derivative(&reference(config), &[&[2, 4, 9], &[4, 4 / groups, 3], &[4]], seed);
        }
    }

    #[test]
    fn errors_name_the_argument() {
        let message = |xs: &[usize], weight: &[usize], config| {
            conv1d(&random(xs, 0), &random(weight, 0), None, config)
                .unwrap_err()
                .to_string()
        };
        let config = Conv1dConfig::default();
        assert_eq!(
            message(&[2, 3, 4], &[5, 3, 3, 3], config),
            "weight has shape [5, 3, 3, 3], but must be [C', C, k], not empty"
        );
        for xs in [&[2, 3, 4][..], &[2, 2, 9], &[3, 9]] {
            let expected = "[B, 3, L], with sides of at least 5 for a kernel of 5 and a padding of 0";
            assert_eq!(
                message(xs, &[5, 3, 5], config),
                format!("xs has shape {xs:?}, but must be {expected}")
            );
        }
        let config = Conv1dConfig {
            padding: 1 << 40,
            ..config
        };
        assert!(message(&[2, 3, 4], &[5, 3, 3], config).starts_with("padding is 1099511627776, but must be so small"));
    }
}
