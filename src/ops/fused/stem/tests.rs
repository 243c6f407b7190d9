use candle_core::DType;

use super::*;
use crate::ops::testing::{check, check_derivative, random, relative};
use crate::ops::RunningStatistics;

const POOL: Pooling = Pooling {
    kernel: 3,
    stride: 2,
    padding: 1,
};

fn conv(params: &[Tensor], stride: usize) -> ConvNorm<'_> {
    ConvNorm {
        weight: &params[0],
        stride,
        padding: 1,
        norm: Affine {
            weight: &params[1],
            bias: &params[2],
        },
        eps: 1e-2,
        running: None,
    }
}

fn shapes(xs: [usize; 4], channels: usize, side: usize) -> [Vec<usize>; 4] {
    let weight = vec![channels, xs[1], side, side];
    [xs.to_vec(), weight, vec![channels], vec![channels]]
}

#[test]
fn equals_its_composition() {
    for (seed, (xs, channels, side, stride)) in (0..).zip([
        ([2, 3, 8, 7], 4, 3, 1),
        ([1, 1, 5, 5], 3, 3, 2),
        ([3, 2, 33, 40], 17, 7, 2),
        ([1, 3, 2, 2], 1, 1, 1),
    ]) {
        let shapes = shapes(xs, channels, side);
        let shapes = shapes.each_ref().map(Vec::as_slice);
        let kernel = |args: &[Tensor]| Ok(stem(&args[0], &conv(&args[1..], stride), POOL)?.0);
        let reference = |args: &[Tensor]| Ok(composition(&args[0], &conv(&args[1..], stride), POOL)?.0);
        check(&kernel, &reference, &shapes, seed);
    }
}

#[test]
fn equals_its_composition_in_evaluation() {
    let [mean, var] = [random(&[5], 8), random(&[5], 9).sqr().unwrap()];
    let running = Some(RunningStatistics { mean: &mean, var: &var });
    fn evaluated<'a>(params: &'a [Tensor], running: Option<RunningStatistics<'a>>) -> ConvNorm<'a> {
        ConvNorm {
            running,
            ..conv(params, 2)
        }
    }
    // One value per channel is enough.
    for (seed, xs) in (0..).zip([[3, 2, 9, 12], [1, 2, 1, 1]]) {
        let shapes = shapes(xs, 5, 3);
        let shapes = shapes.each_ref().map(Vec::as_slice);
        let kernel = |args: &[Tensor]| Ok(stem(&args[0], &evaluated(&args[1..], running), POOL)?.0);
        let reference = |args: &[Tensor]| Ok(composition(&args[0], &evaluated(&args[1..], running), POOL)?.0);
        check(&kernel, &reference, &shapes, seed);
        let args = shapes.map(|shape| random(shape, 1).to_dtype(DType::F32).unwrap());
        let (_, seen) = stem(&args[0], &evaluated(&args[1..], running), POOL).unwrap();
        assert!(seen.is_none());
    }
}

/// Of -1001 the nearest number in bf16 is -1000.
#[test]
fn running_statistics_are_not_rounded_to_half_precision() {
    let mut half = tensors(DType::BF16);
    half[2] = half[2].ones_like().unwrap();
    half[3] = (half[3].ones_like().unwrap() * -1004.0).unwrap();
    let mean = Tensor::full(-1001f32, 4, half[0].device()).unwrap();
    let var = mean.ones_like().unwrap();
    let conv = |args| {
        let running = Some(RunningStatistics { mean: &mean, var: &var });
        ConvNorm {
            running,
            ..conv(args, 1)
        }
    };
    let single: Vec<_> = half.iter().map(|t| t.to_dtype(DType::F32).unwrap()).collect();
    let (expected, _) = stem(&single[0], &conv(&single[1..]), POOL).unwrap();
    let conv = conv(&half[1..]);
    for got in [stem(&half[0], &conv, POOL), composition(&half[0], &conv, POOL)] {
        let (got, _) = got.unwrap();
        assert_eq!(got.dtype(), DType::BF16);
        assert!(relative(&got, &expected) < 0.03);
    }
}

#[test]
fn composition_has_the_right_derivative() {
    let shapes = shapes([2, 2, 5, 4], 2, 3);
    let shapes = shapes.each_ref().map(Vec::as_slice);
    let reference = |args: &[Tensor]| Ok(composition(&args[0], &conv(&args[1..], 1), POOL)?.0);
    check_derivative(&reference, &shapes, 0);
}

fn tensors(dtype: DType) -> Vec<Tensor> {
    let shapes = shapes([2, 3, 6, 5], 4, 3).into_iter().zip(0..);
    shapes
        .map(|(shape, seed)| random(&shape, seed).to_dtype(dtype).unwrap())
        .collect()
}

#[test]
fn statistics_are_those_of_the_norm() {
    let [single, wide, half] = [DType::F32, DType::F64, DType::BF16].map(tensors);
    let (_, expected) = composition(&wide[0], &conv(&wide[1..], 1), POOL).unwrap();
    let (_, seen) = stem(&single[0], &conv(&single[1..], 1), POOL).unwrap();
    let (seen, expected) = (seen.unwrap(), expected.unwrap());
    assert!(relative(&seen.mean, &expected.mean) < 1e-6);
    assert!(relative(&seen.unbiased_var, &expected.unbiased_var) < 1e-6);
    let (ys, seen) = stem(&half[0], &conv(&half[1..], 1), POOL).unwrap();
    assert!(ys.dtype() == DType::BF16 && seen.unwrap().mean.dtype() == DType::BF16);
}

#[test]
fn errors_name_the_argument() {
    let message = |at: usize, shape: &[usize], pool| {
        let mut args = tensors(DType::F32);
        args[at] = random(shape, 0).to_dtype(DType::F32).unwrap();
        stem(&args[0], &conv(&args[1..], 1), pool).unwrap_err().to_string()
    };
    assert_eq!(
        message(0, &[2, 3, 5], POOL),
        "xs has shape [2, 3, 5], but must be [B, 3, H, W], not empty"
    );
    assert_eq!(
        message(1, &[4, 2, 3, 3], POOL),
        "conv.weight has shape [4, 2, 3, 3], but must be [C', 3, k, k]"
    );
    assert_eq!(message(3, &[5], POOL), "conv.norm.bias has shape [5], but must be [4]");
    let args = tensors(DType::F32);
    let evaluated = |mean: &Tensor, var: &Tensor| {
        let running = Some(RunningStatistics { mean, var });
        let conv = ConvNorm {
            running,
            ..conv(&args[1..], 1)
        };
        stem(&args[0], &conv, POOL).unwrap_err().to_string()
    };
    let (four, five) = (random(&[4], 0), random(&[5], 0));
    assert_eq!(
        evaluated(&five, &four),
        "conv.running.mean has shape [5], but must be [4]"
    );
    let integers = four.to_dtype(DType::U32).unwrap();
    assert_eq!(
        evaluated(&four, &integers),
        "conv.running.var has dtype U32, but must be f32, f64, f16 or bf16"
    );
    let pool = Pooling { stride: 0, ..POOL };
    assert_eq!(message(3, &[4], pool), "stride is 0, but must be at least 1");
}
