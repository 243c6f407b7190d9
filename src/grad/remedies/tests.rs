//! Each error of candle's backward, and the line that it is answered with.

use candle_core::{CpuStorage, CustomOp1, DType, Device, Layout, Result, Shape, Tensor, Var};
use candle_nn::{Conv1dConfig, Conv2dConfig, ConvTranspose1dConfig};

use crate::ops::testing::{random, relative};
use crate::{grad, ops, Error, Params};

fn var(shape: &[usize], seed: u64) -> Var {
    Var::from_tensor(&random(shape, seed).to_dtype(DType::F32).unwrap()).unwrap()
}

/// What a checked backward through `op` of a variable says.
fn backward(xs: &Var, op: impl Fn(&Tensor) -> Result<Tensor>) -> crate::Result<Tensor> {
    let params = Params::new([("xs".to_string(), xs.clone())]);
    let grads = grad::backward(&op(xs)?.sqr()?.sum_all()?, &params)?;
    Ok(grads.get(xs).expect("it was checked").clone())
}

fn remedy_for(xs: &Var, op: impl Fn(&Tensor) -> Result<Tensor>) -> &'static str {
    match backward(xs, op) {
        Err(Error::BackwardUnsupported { remedy, .. }) => remedy,
        other => panic!("{other:?}"),
    }
}

type Call<'a> = &'a dyn Fn(&Tensor) -> Result<Tensor>;

/// candle's call is refused with a remedy in which `line` stands, and the call that replaces it gives the same, and a
/// gradient.
fn assert_replaced(xs: &Var, candles: Call, line: &str, ours: Call) {
    let remedy = remedy_for(xs, candles);
    assert!(remedy.contains(line), "{remedy}");
    let error = relative(&ours(xs).unwrap(), &candles(xs).unwrap());
    assert!(error < 1e-6, "{line}: {error:e}");
    assert!(backward(xs, ours).is_ok(), "{line}");
}

#[test]
fn pooling_and_interpolation_name_what_replaces_them() {
    let (images, sequences) = (var(&[2, 3, 6, 7], 0), var(&[2, 3, 6], 1));
    assert_replaced(
        &images,
        &|xs| xs.max_pool2d_with_stride(3, 2),
        "masksub::ops::max_pool2d(&xs, kernel, stride, 0)",
        &|xs| ops::max_pool2d(xs, 3, 2, 0),
    );
    assert_replaced(
        &images,
        &|xs| xs.avg_pool2d_with_stride(3, 2),
        "masksub::ops::avg_pool2d(&xs, kernel, stride)",
        &|xs| ops::avg_pool2d(xs, 3, 2),
    );
    assert_replaced(
        &images,
        &|xs| xs.upsample_bilinear2d(9, 9, false),
        "masksub::ops::upsample_bilinear2d(&xs, h, w, align_corners)",
        &|xs| ops::upsample_bilinear2d(xs, 9, 9, false),
    );
    assert_replaced(
        &images,
        &|xs| xs.upsample_bilinear2d_with_scale(1.5, 1.5, true),
        "upsample_bilinear2d_with_scale",
        &|xs| ops::upsample_bilinear2d_with_scale(xs, 1.5, 1.5, true),
    );
    assert_replaced(
        &images,
        &|xs| xs.interpolate2d(12, 7),
        "masksub::ops::upsample_nearest2d(&xs, h, w)",
        &|xs| ops::upsample_nearest2d(xs, 12, 7),
    );
    assert_replaced(
        &sequences,
        &|xs| xs.upsample_nearest1d(8),
        "upsample_nearest1d(&xs, size)",
        &|xs| ops::upsample_nearest1d(xs, 8),
    );
}

#[test]
fn convolutions_name_what_replaces_them() {
    let (sequences, kernel) = (var(&[2, 3, 6], 1), var(&[3, 4, 3], 3));
    let transposed = ConvTranspose1dConfig {
        padding: 1,
        stride: 2,
        ..Default::default()
    };
    assert_replaced(
        &sequences,
        &|xs| xs.conv_transpose1d(&kernel, 1, 0, 2, 1, 1),
        "masksub::ops::conv_transpose1d(&xs, &weight, bias, config)",
        &|xs| ops::conv_transpose1d(xs, &kernel, None, transposed),
    );
    let (images, kernel) = (var(&[2, 3, 6, 7], 0), var(&[4, 3, 3, 3], 2));
    let strided = Conv2dConfig {
        stride: 2,
        ..Default::default()
    };
    assert_replaced(
        &images,
        &|xs| xs.conv2d(&kernel, 0, 2, 1, 1),
        "masksub::ops::conv2d(&xs, &weight, bias, config)",
        &|xs| ops::conv2d(xs, &kernel, None, strided),
    );
}

/// An operation of one's own whose gradient is a row too long, or that has none.
struct Own {
    too_long: bool,
}

impl CustomOp1 for Own {
    fn name(&self) -> &'static str {
        "own"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        Ok((storage.clone(), layout.shape().clone()))
    }

    fn bwd(&self, xs: &Tensor, _: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        match self.too_long {
            true => Tensor::cat(&[grad, &xs.narrow(0, 0, 1)?], 0).map(Some),
            false => Err(candle_core::Error::BackwardNotSupported { op: self.name() }),
        }
    }
}

#[test]
fn what_is_not_known_is_not_taken_for_another() {
    let xs = var(&[2, 3], 0);
    let remedy_for_own = |too_long| remedy_for(&xs, |xs| xs.apply_op1(Own { too_long })? + xs);
    assert_eq!(remedy_for_own(false), super::ANY);
    let too_long = remedy_for_own(true);
    assert!(too_long.contains("A custom operation whose bwd does"), "{too_long}");
    assert_eq!(super::remedy("out of memory"), None);
}

/// Gradients of Σ (xs given op)² by `op` and by `right`, how far apart.
fn difference(xs: &Var, op: impl Fn(&Tensor) -> Result<Tensor>, right: impl Fn(&Tensor) -> Result<Tensor>) -> f64 {
    let forward = relative(&op(xs).unwrap(), &right(xs).unwrap());
    assert!(forward < 1e-6, "not even the result is the same: {forward:e}");
    relative(&backward(xs, op).unwrap(), &backward(xs, right).unwrap())
}

/// Without a word. Where candle mends one of these, the table in the documentation of [`ops`] has a line too many.
#[test]
fn what_the_documentation_calls_wrong_in_candle_is_so() {
    let (images, sequences) = (var(&[2, 3, 6, 7], 0), var(&[2, 3, 6], 1));
    let filled = var(&[2, 3, 6, 8], 6);
    let pooled = difference(&filled, |xs| xs.max_pool2d(2), |xs| ops::max_pool2d(xs, 2, 2, 0));
    assert!((pooled - 0.75).abs() < 1e-6, "{pooled}");
    assert!(difference(&images, |xs| xs.avg_pool2d(2), |xs| ops::avg_pool2d(xs, 2, 2)) > 0.1);
    let twice = |upsampled: Tensor, xs: &Tensor| upsampled.sum_all()?.broadcast_mul(xs);
    let lost = difference(
        &images,
        |xs| twice(xs.upsample_nearest2d(12, 14)?, xs),
        |xs| twice(ops::upsample_nearest2d(xs, 12, 14)?, xs),
    );
    assert!(lost > 0.01, "{lost}");
    // The gradient of the weight, on the CPU.
    let weight = var(&[4, 3, 3], 2);
    let wrong = difference(
        &weight,
        |weight| sequences.conv1d(weight, 1, 1, 1, 1),
        |weight| {
            let config = Conv1dConfig {
                padding: 1,
                ..Default::default()
            };
            ops::conv1d(&sequences, weight, None, config)
        },
    );
    assert!(wrong > 0.1, "{wrong}");
    // Results.
    let (factor, kernel) = (random(&[4, 3], 3), random(&[3, 4, 3], 3));
    let batch = random(&[2, 4, 5], 4).transpose(1, 2).unwrap();
    let factor = factor.broadcast_left(2).unwrap();
    let [one, copy] = [&batch, &batch.contiguous().unwrap()].map(|xs| xs.matmul(&factor).unwrap());
    assert!(relative(&one, &copy) > 0.1);
    let transposed = |xs: &Tensor| xs.conv_transpose1d(&kernel, 0, 0, 1, 1, 1).unwrap();
    let both = random(&[2, 3, 6], 5);
    let second = transposed(&both.narrow(0, 1, 1).unwrap());
    assert!(relative(&transposed(&both).narrow(0, 1, 1).unwrap(), &second) > 0.1);
    let zero = Var::zeros(1, DType::F32, &Device::Cpu).unwrap();
    let at_0 = zero.relu().unwrap().sum_all().unwrap().backward().unwrap();
    assert_eq!(at_0.get(&zero).unwrap().to_vec1::<f32>().unwrap(), [1.0]);
    // What is written over has no part in the result; what is added to has all of it.
    let (indices, values) = (Tensor::new(&[0u32], &Device::Cpu).unwrap(), var(&[1], 4));
    let init = var(&[1], 5);
    let of_init = |ys: Tensor| {
        let grads = ys.sum_all().unwrap().backward().unwrap();
        grads.get(&init).unwrap().to_vec1::<f32>().unwrap()
    };
    assert_eq!(of_init(init.scatter(&indices, &values, 0).unwrap()), [1.0]);
    assert_eq!(of_init(init.scatter_add(&indices, &values, 0).unwrap()), [0.0]);
}
