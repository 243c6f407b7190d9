//! Batch norms beside their compositions, with and without a ReLU.

use super::evaluation::batch_norm_eval_with;
use super::training::batch_norm_with;
use super::*;
use crate::ops::testing::{check, check_derivative, check_on, random, relative, rng};
use candle_core::{DType, Device};
use rand::Rng as _;

fn kernel(args: &[Tensor]) -> Result<Tensor> {
    Ok(batch_norm(&args[0], &args[1], &args[2], 1e-5)?.0)
}

fn reference(args: &[Tensor]) -> Result<Tensor> {
    Ok(composition(&args[0], &args[1], &args[2], 1e-5)?.0)
}

/// Statistics that the input does not have.
fn given(args: &[Tensor]) -> Result<[Tensor; 2]> {
    let channels = args[1].elem_count();
    // Exact in every dtype: rounded, they would let other values through a ReLU.
    let like = |t: Tensor| t.to_dtype(DType::BF16)?.to_dtype(args[0].dtype());
    Ok([
        like(random(&[channels], 91))?,
        like((random(&[channels], 92).sqr()? + 0.1)?)?,
    ])
}

fn kernel_eval(args: &[Tensor]) -> Result<Tensor> {
    let [mean, var] = given(args)?;
    batch_norm_eval(&args[0], &mean, &var, &args[1], &args[2], 1e-5)
}

fn reference_eval(args: &[Tensor]) -> Result<Tensor> {
    let [mean, var] = given(args)?;
    composition_eval(&args[0], &mean, &var, &args[1], &args[2], 1e-5)
}

fn kernel_relu(args: &[Tensor]) -> Result<Tensor> {
    Ok(batch_norm_with(Epilogue::Relu, &args[0], &args[1], &args[2], 1e-5)?.0)
}

fn reference_relu(args: &[Tensor]) -> Result<Tensor> {
    reference(args)?.relu()
}

fn kernel_eval_relu(args: &[Tensor]) -> Result<Tensor> {
    let [mean, var] = given(args)?;
    batch_norm_eval_with(Epilogue::Relu, &args[0], &mean, &var, &args[1], &args[2], 1e-5)
}

fn reference_eval_relu(args: &[Tensor]) -> Result<Tensor> {
    reference_eval(args)?.relu()
}

fn check_all(shape: &[usize], seed: u64) {
    let c = [shape[1]];
    let shapes: [&[usize]; 3] = [shape, &c, &c];
    check(&kernel, &reference, &shapes, seed);
    check(&kernel_eval, &reference_eval, &shapes, seed);
    check(&kernel_relu, &reference_relu, &shapes, seed);
    check(&kernel_eval_relu, &reference_eval_relu, &shapes, seed);
}

#[test]
fn equals_its_composition() {
    let mut rng = rng(11);
    for seed in 0..6 {
        let mut size = |most| rng.random_range(1..=most);
        check_all(&[size(4), size(20), 3 + size(10), 3 + size(10)], seed);
    }
}

#[test]
fn relu_lets_nothing_through_where_it_is_0() {
    // A weight and bias of 0 make every value 0: PyTorch's gradient there is 0, and so is this.
    let zero = Tensor::zeros(2, DType::F32, &Device::Cpu).unwrap();
    let bias = candle_core::Var::from_tensor(&zero).unwrap();
    let xs = random(&[3, 2, 4], 1).to_dtype(DType::F32).unwrap();
    let (ys, _) = batch_norm_with(Epilogue::Relu, &xs, &zero, &bias, 1e-5).unwrap();
    let grads = ys.sum_all().unwrap().backward().unwrap();
    assert_eq!(grads.get(&bias).unwrap().to_vec1::<f32>().unwrap(), [0.0; 2]);
    // What is undefined stays so.
    let xs = Tensor::new(&[[f32::NAN], [1.0]], &Device::Cpu).unwrap();
    let one = Tensor::ones(1, DType::F32, &Device::Cpu).unwrap();
    let (ys, _) = batch_norm_with(Epilogue::Relu, &xs, &one, &one, 1e-5).unwrap();
    assert!(ys.to_vec2::<f32>().unwrap()[0][0].is_nan());
}

#[test]
fn equals_its_composition_at_the_edges() {
    // Of any rank, one sample, one channel, one position, and many pieces of work.
    for (seed, shape) in (0..).zip([
        &[9, 5][..],
        &[1, 3, 17],
        &[4, 1, 40],
        &[33, 40, 1, 1],
        &[2, 3, 2, 5, 4],
        &[3, 70, 33, 31],
    ]) {
        check_all(shape, seed);
    }
    check(&kernel_eval, &reference_eval, &[&[1, 3], &[3], &[3]], 9);
}

#[test]
fn statistics_are_pytorchs() {
    let xs = Tensor::new(&[[[1f64, 2.0], [0.0, 4.0]], [[3.0, 6.0], [4.0, 0.0]]], &Device::Cpu).unwrap();
    for dtype in [DType::F32, DType::F64, DType::BF16, DType::F16] {
        let one = Tensor::ones(2, dtype, &Device::Cpu).unwrap();
        let (_, seen) = batch_norm(&xs.to_dtype(dtype).unwrap(), &one, &one, 1e-5).unwrap();
        assert_eq!(seen.mean.dtype(), dtype);
        let value = |t: Tensor| t.to_dtype(DType::F32).unwrap().to_vec1::<f32>().unwrap();
        assert_eq!(value(seen.mean), [3.0, 2.0]);
        let var = value(seen.unbiased_var);
        // 14 / 3 and 16 / 3.
        assert!(
            (var[0] - 4.6667).abs() < 2e-2 && (var[1] - 5.3333).abs() < 2e-2,
            "{var:?}"
        );
    }
}

#[test]
fn statistics_carry_no_gradient() {
    let xs = candle_core::Var::from_tensor(&random(&[3, 2], 0).to_dtype(DType::F32).unwrap()).unwrap();
    let one = Tensor::ones(2, DType::F32, &Device::Cpu).unwrap();
    for seen in [
        batch_norm(&xs, &one, &one, 1e-5).unwrap().1,
        composition(&xs, &one, &one, 1e-5).unwrap().1,
    ] {
        assert!(!seen.mean.track_op() && !seen.unbiased_var.track_op());
    }
}

/// A mean a thousand times the deviations from it, in sums of ten thousand numbers.
#[test]
fn does_not_suffer_from_a_large_mean() {
    let single = (random(&[4, 2, 50, 50], 0) + 1000.0)
        .unwrap()
        .to_dtype(DType::F32)
        .unwrap();
    let wide = single.to_dtype(DType::F64).unwrap();
    let [w, b] = [1, 2].map(|seed| random(&[2], seed));
    let (exact, exact_seen) = composition(&wide, &w, &b, 1e-5).unwrap();
    let [w, b] = [w, b].map(|t| t.to_dtype(DType::F32).unwrap());
    let (ys, seen) = batch_norm(&single, &w, &b, 1e-5).unwrap();
    for (got, want) in [
        (&ys, &exact),
        (&seen.mean, &exact_seen.mean),
        (&seen.unbiased_var, &exact_seen.unbiased_var),
    ] {
        let error = relative(got, want);
        assert!(error < 1e-6, "{error:e}");
    }
    let inputs = [
        (random(&[4, 2, 30], 0) + 8.0).unwrap(),
        random(&[2], 1),
        random(&[2], 2),
    ];
    check_on(&kernel, &reference, &inputs, 0);
}

#[test]
fn a_constant_channel_becomes_its_bias() {
    let xs = Tensor::full(0.1f32, (3, 2, 5), &Device::Cpu).unwrap();
    let one = Tensor::ones(2, DType::F32, &Device::Cpu).unwrap();
    let (ys, seen) = batch_norm(&xs, &one, &one, 1e-5).unwrap();
    assert_eq!(seen.unbiased_var.to_vec1::<f32>().unwrap(), [0.0; 2]);
    assert!(ys
        .flatten_all()
        .unwrap()
        .to_vec1::<f32>()
        .unwrap()
        .iter()
        .all(|&y| y == 1.0));
}

#[test]
fn what_is_undefined_stays_undefined() {
    for odd in [f32::NAN, f32::INFINITY] {
        let xs = Tensor::new(&[[odd, 1.0], [1.0, 3.0]], &Device::Cpu).unwrap();
        let one = Tensor::ones(2, DType::F32, &Device::Cpu).unwrap();
        let (ys, seen) = batch_norm(&xs, &one, &one, 1e-5).unwrap();
        let ys = ys.to_vec2::<f32>().unwrap();
        assert!(ys[0][0].is_nan() && ys[1][0].is_nan() && ys[0][1].is_finite());
        assert!(seen.unbiased_var.to_vec1::<f32>().unwrap()[0].is_nan());
    }
}

#[test]
fn composition_has_the_right_derivative() {
    check_derivative(&reference, &[&[2, 3, 2, 2], &[3], &[3]], 0);
    check_derivative(&reference, &[&[5, 2], &[2], &[2]], 1);
    check_derivative(&reference_eval, &[&[2, 3, 4], &[3], &[3]], 2);
}

#[test]
fn errors_name_the_argument() {
    let message = |xs: &[usize], weight: &[usize], bias: &[usize], eps| {
        batch_norm(&random(xs, 0), &random(weight, 0), &random(bias, 0), eps)
            .unwrap_err()
            .to_string()
    };
    let ok = [2, 3, 4];
    assert_eq!(message(&ok, &[4], &[3], 0.0), "weight has shape [4], but must be [3]");
    assert_eq!(
        message(&ok, &[3], &[1, 3], 0.0),
        "bias has shape [1, 3], but must be [3]"
    );
    assert_eq!(
        message(&ok, &[3], &[3], -1.0),
        "eps is -1, but must be at least 0 and finite"
    );
    assert_eq!(
        message(&ok, &[3], &[3], f64::NAN),
        "eps is NaN, but must be at least 0 and finite"
    );
    assert_eq!(
        message(&[3], &[3], &[3], 0.0),
        "xs has shape [3], but must be [B, C, ..]"
    );
    assert_eq!(
        message(&[0, 3, 4], &[3], &[3], 0.0),
        "xs has shape [0, 3, 4], but must be [B, C, ..], not empty"
    );
    assert_eq!(
        message(&[1, 3, 1, 1], &[3], &[3], 0.0),
        "xs has shape [1, 3, 1, 1], but must be [B, C, ..] with more than one value per channel in training"
    );
    let xs = random(&[2, 3], 0);
    let (good, bad) = (random(&[3], 0), random(&[2], 0));
    let error = batch_norm_eval(&xs, &good, &bad, &good, &good, 0.0).unwrap_err();
    assert_eq!(error.to_string(), "var has shape [2], but must be [3]");
}
