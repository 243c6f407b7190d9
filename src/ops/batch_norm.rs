//! Batch normalisation (Ioffe and Szegedy 2015, arXiv 1502.03167).

use std::sync::{Arc, OnceLock};

use candle_core::{CpuStorage, CustomOp3, DType, Layout, Result, Shape, Tensor};

use super::cpu::channels::{ChannelNorm, Dims, Moments, Upstream};
use super::cpu::kernel::{self, Elements};
use super::route::{in_f32, to_f32, Route};
use crate::check;
use crate::error::Error;

/// What a batch norm saw of a mini-batch, detached.
#[derive(Clone, Debug)]
pub struct BatchStatistics {
    /// Mean of each channel, `[C]`.
    pub mean: Tensor,
    /// Unbiased variance of each channel, `[C]`: what a running average takes up. (The biased one normalises.)
    pub unbiased_var: Tensor,
}

impl BatchStatistics {
    /// Of channels of `count` values each.
    pub(crate) fn of(moments: &[Moments], count: usize) -> Result<Self> {
        // What makes the variance of a sample that of what it was drawn from.
        let unbiased = count as f64 / (count - 1) as f64;
        let vector = |of: &dyn Fn(&Moments) -> f64| {
            let data: Vec<f32> = moments.iter().map(|m| of(m) as f32).collect();
            kernel::tensor(data, &[moments.len()])
        };
        Ok(Self {
            mean: vector(&|m| m.mean)?,
            unbiased_var: vector(&|m| m.var * unbiased)?,
        })
    }

    pub(crate) fn to_dtype(&self, dtype: DType) -> Result<Self> {
        Ok(Self {
            mean: self.mean.to_dtype(dtype)?,
            unbiased_var: self.unbiased_var.to_dtype(dtype)?,
        })
    }
}

/// y = (x - mean(x)) / sqrt(var(x) + eps) * weight + bias in each channel, with the mean and the biased variance over the
/// batch and all positions; and those statistics.
///
/// [`crate::nn::BatchNorm`] is the layer, which keeps running averages of them.
///
/// # Arguments
///
/// - `xs`: [B, C, ..]
/// - `weight`, `bias`: `[C]`
/// - `eps`: added to the variance
///
/// Returns [B, C, ..], and the statistics, through which no gradient flows.
///
/// # Derivative
///
/// With x̂ the normalised input, g the gradient of the result, and means and sums over the batch and all positions:
/// dx = weight (g - mean(g) - x̂ mean(g x̂)) / sqrt(var(x) + eps); dweight = Σ g x̂, dbias = Σ g.
///
/// # PyTorch
///
/// `torch.nn.functional.batch_norm(xs, running_mean, running_var, weight, bias, training=True, eps=eps)`, where the
/// running ones are the caller's.
///
/// # Errors
///
/// If the shapes do not fit, `eps` is negative or not finite, the dtypes differ or are no floating-point ones, or there is only one
/// value per channel: its variance would be 0, whatever the value. (PyTorch refuses it, too.)
///
/// ```
/// use candle_core::{Device, Tensor};
/// let xs = Tensor::new(&[[1f32, 10.0], [3.0, 10.0]], &Device::Cpu)?;
/// let (weight, bias) = (Tensor::new(&[1f32, 1.0], &Device::Cpu)?, Tensor::new(&[0f32, 5.0], &Device::Cpu)?);
/// let (ys, statistics) = masksub::ops::batch_norm(&xs, &weight, &bias, 1e-12)?;
/// assert_eq!(ys.to_vec2::<f32>()?, [[-1.0, 5.0], [1.0, 5.0]]);
/// assert_eq!(statistics.unbiased_var.to_vec1::<f32>()?, [2.0, 0.0]);
/// # Ok::<(), candle_core::Error>(())
/// ```
pub fn batch_norm(xs: &Tensor, weight: &Tensor, bias: &Tensor, eps: f64) -> Result<(Tensor, BatchStatistics)> {
    batch_norm_then(Then::Nothing, xs, weight, bias, eps)
}

/// What follows a batch norm in the same operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Then {
    Nothing,
    /// max(y, 0). What it lets through is seen from its result: its input is not kept.
    Relu,
}

impl Then {
    fn composition(self, ys: Tensor) -> Result<Tensor> {
        match self {
            Self::Nothing => Ok(ys),
            Self::Relu => ys.relu(),
        }
    }

    /// The least value.
    fn floor(self) -> f32 {
        match self {
            Self::Nothing => f32::NEG_INFINITY,
            Self::Relu => 0.0,
        }
    }
}

/// As [`batch_norm`](batch_norm()), and what follows it.
pub(crate) fn batch_norm_then(
    then: Then,
    xs: &Tensor,
    weight: &Tensor,
    bias: &Tensor,
    eps: f64,
) -> Result<(Tensor, BatchStatistics)> {
    let dims = check(xs, &[("weight", weight), ("bias", bias)], eps)?;
    if dims.count() < 2 {
        let expected = "[B, C, ..] with more than one value per channel in training";
        return Err(Error::shape("xs", xs.dims(), expected).into());
    }
    routed(dims, then, [xs, weight, bias], eps)
}

/// [`batch_norm_then`] of tensors that fit: the input, weight and bias.
fn routed(dims: Dims, then: Then, tensors: [&Tensor; 3], eps: f64) -> Result<(Tensor, BatchStatistics)> {
    let [xs, weight, bias] = tensors;
    match Route::precise(&tensors) {
        Route::Kernel => {
            let moments = Arc::new(OnceLock::new());
            let op = BatchNorm {
                dims,
                eps,
                training: true,
                then,
                moments: moments.clone(),
            };
            let ys = xs
                .contiguous()?
                .apply_op3(&weight.contiguous()?, &bias.contiguous()?, op)?;
            let statistics = BatchStatistics::of(moments.get().map_or(&[][..], Vec::as_slice), dims.count())?;
            Ok((ys, statistics))
        }
        Route::InF32 => {
            // The statistics of f32 are rounded as the result is.
            let wide = to_f32(&tensors)?;
            let (ys, seen) = routed(dims, then, [&wide[0], &wide[1], &wide[2]], eps)?;
            Ok((ys.to_dtype(xs.dtype())?, seen.to_dtype(xs.dtype())?))
        }
        Route::Composition => {
            let (ys, seen) = composition(xs, weight, bias, eps)?;
            Ok((then.composition(ys)?, seen))
        }
    }
}

/// y = (x - mean) / sqrt(var + eps) * weight + bias in each channel, with statistics that are given.
///
/// As [`batch_norm`](batch_norm()), in evaluation, or with frozen statistics in training.
///
/// # Arguments
///
/// - `xs`: [B, C, ..]
/// - `mean`, `var`, `weight`, `bias`: `[C]`
/// - `eps`: added to the variance
///
/// Returns [B, C, ..].
///
/// # Derivative
///
/// With x̂ the normalised input and g the gradient of the result: dx = weight g / sqrt(var + eps); dweight = Σ g x̂ and
/// dbias = Σ g over the batch and all positions. `mean` and `var` are constants: they get no gradient.
///
/// # PyTorch
///
/// `torch.nn.functional.batch_norm(xs, mean, var, weight, bias, training=False, eps=eps)`
///
/// # Errors
///
/// If the shapes do not fit, `eps` is negative or not finite, or the dtypes differ or are no floating-point ones.
///
/// ```
/// use candle_core::{Device, Tensor};
/// let vector = |x: f32| Tensor::new(&[x], &Device::Cpu);
/// let xs = Tensor::new(&[[5f32], [9.0]], &Device::Cpu)?;
/// let ys = masksub::ops::batch_norm_eval(&xs, &vector(5.0)?, &vector(4.0)?, &vector(1.0)?, &vector(0.5)?, 0.0)?;
/// assert_eq!(ys.to_vec2::<f32>()?, [[0.5], [2.5]]);
/// # Ok::<(), candle_core::Error>(())
/// ```
pub fn batch_norm_eval(
    xs: &Tensor,
    mean: &Tensor,
    var: &Tensor,
    weight: &Tensor,
    bias: &Tensor,
    eps: f64,
) -> Result<Tensor> {
    batch_norm_eval_then(Then::Nothing, xs, mean, var, weight, bias, eps)
}

/// As [`batch_norm_eval`], and what follows it.
pub(crate) fn batch_norm_eval_then(
    then: Then,
    xs: &Tensor,
    mean: &Tensor,
    var: &Tensor,
    weight: &Tensor,
    bias: &Tensor,
    eps: f64,
) -> Result<Tensor> {
    let vectors = [("weight", weight), ("bias", bias), ("mean", mean), ("var", var)];
    let dims = check(xs, &vectors, eps)?;
    routed_eval(dims, then, [xs, mean, var, weight, bias], eps)
}

/// [`batch_norm_eval_then`] of tensors that fit: the input, mean, variance, weight and bias.
fn routed_eval(dims: Dims, then: Then, tensors: [&Tensor; 5], eps: f64) -> Result<Tensor> {
    let [xs, mean, var, weight, bias] = tensors;
    match Route::precise(&tensors) {
        Route::Kernel => {
            let op = BatchNorm {
                dims,
                eps,
                training: false,
                then,
                moments: Arc::new(OnceLock::from(Moments::of(mean, var)?)),
            };
            xs.contiguous()?
                .apply_op3(&weight.contiguous()?, &bias.contiguous()?, op)
        }
        Route::InF32 => in_f32(&tensors, |t| {
            routed_eval(dims, then, [&t[0], &t[1], &t[2], &t[3], &t[4]], eps)
        }),
        Route::Composition => then.composition(composition_eval(xs, mean, var, weight, bias, eps)?),
    }
}

fn check(xs: &Tensor, vectors: &[(&'static str, &Tensor)], eps: f64) -> crate::error::Result<Dims> {
    check::float("xs", xs)?;
    let [batch, channels, positions @ ..] = xs.dims() else {
        return Err(Error::shape("xs", xs.dims(), "[B, C, ..]"));
    };
    if xs.elem_count() == 0 {
        return Err(Error::shape("xs", xs.dims(), "[B, C, ..], not empty"));
    }
    for &(argument, tensor) in vectors {
        check::vector(argument, tensor, *channels)?;
        check::same_dtype(argument, tensor, xs)?;
    }
    check::non_negative("eps", eps)?;
    Ok(Dims {
        batch: *batch,
        channels: *channels,
        positions: positions.iter().product(),
    })
}

/// [`batch_norm`](batch_norm()) of candle's operations.
pub fn composition(xs: &Tensor, weight: &Tensor, bias: &Tensor, eps: f64) -> Result<(Tensor, BatchStatistics)> {
    let channels = xs.dim(1)?;
    let count = xs.elem_count() / channels;
    // One dimension at a time: candle adds one number after another, and of long sums in f32 too little would be right.
    let mean_of = |xs: &Tensor| -> Result<Tensor> {
        let mut dims = (0..xs.rank()).rev().filter(|&dim| dim != 1);
        let sum = dims.try_fold(xs.clone(), |sum, dim| sum.sum_keepdim(dim))?;
        sum / count as f64
    };
    let mean = mean_of(xs)?;
    let centred = xs.broadcast_sub(&mean)?;
    let var = mean_of(&centred.sqr()?)?;
    let ys = affine(&centred, &var, weight, bias, eps)?;
    let statistics = BatchStatistics {
        mean: mean.flatten_all()?.detach(),
        unbiased_var: (var.flatten_all()? * (count as f64 / (count - 1) as f64))?.detach(),
    };
    Ok((ys, statistics))
}

/// [`batch_norm_eval`] of candle's operations.
pub fn composition_eval(
    xs: &Tensor,
    mean: &Tensor,
    var: &Tensor,
    weight: &Tensor,
    bias: &Tensor,
    eps: f64,
) -> Result<Tensor> {
    let (mean, var) = (per_channel(&mean.detach(), xs)?, per_channel(&var.detach(), xs)?);
    affine(&xs.broadcast_sub(&mean)?, &var, weight, bias, eps)
}

/// `vector` `[C]` in the shape that is broadcast to that of `xs` [B, C, ..].
fn per_channel(vector: &Tensor, xs: &Tensor) -> Result<Tensor> {
    let mut shape = vec![1; xs.rank()];
    shape[1] = vector.elem_count();
    vector.reshape(shape)
}

fn affine(centred: &Tensor, var: &Tensor, weight: &Tensor, bias: &Tensor, eps: f64) -> Result<Tensor> {
    centred
        .broadcast_div(&(var + eps)?.sqrt()?)?
        .broadcast_mul(&per_channel(weight, centred)?)?
        .broadcast_add(&per_channel(bias, centred)?)
}

struct BatchNorm {
    dims: Dims,
    eps: f64,
    /// Whether the moments are those of the input, and depend on it.
    training: bool,
    then: Then,
    moments: Arc<OnceLock<Vec<Moments>>>,
}

impl BatchNorm {
    fn norm<'a>(&self, weight: &'a [f32], bias: &'a [f32]) -> ChannelNorm<'a> {
        ChannelNorm {
            dims: self.dims,
            eps: self.eps,
            weight,
            bias,
        }
    }
}

impl CustomOp3 for BatchNorm {
    fn name(&self) -> &'static str {
        "batch-norm"
    }

    fn cpu_fwd(
        &self,
        s1: &CpuStorage,
        l1: &Layout,
        s2: &CpuStorage,
        l2: &Layout,
        s3: &CpuStorage,
        l3: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let xs = kernel::elements(s1, l1)?;
        let norm = self.norm(kernel::elements(s2, l2)?, kernel::elements(s3, l3)?);
        let mut ys = vec![0f32; xs.len()];
        let given = self.moments.get().map(Vec::as_slice);
        let moments = norm.forward(xs, given, self.then.floor(), &mut ys);
        self.moments.get_or_init(|| moments);
        Ok((CpuStorage::F32(ys), l1.shape().clone()))
    }

    fn bwd(
        &self,
        xs: &Tensor,
        weight: &Tensor,
        bias: &Tensor,
        ys: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let Some(moments) = self.moments.get() else {
            candle_core::bail!("the backward of masksub's batch norm was called before its forward");
        };
        let grad = grad.contiguous()?;
        let (x, y, g) = (Elements::of(xs)?, Elements::of(ys)?, Elements::of(&grad)?);
        let (w, b) = (Elements::of(weight)?, Elements::of(bias)?);
        let upstream = Upstream {
            grads: Some(&g),
            relu: (self.then == Then::Relu).then_some(&*y),
            factors: None,
        };
        let mut dxs = vec![0f32; x.len()];
        let [dweight, dbias] = self
            .norm(&w, &b)
            .backward(&x, moments, self.training, upstream, &mut dxs);
        let wanted = |like: &Tensor, gradient| match like.track_op() {
            true => kernel::tensor(gradient, like.dims()).map(Some),
            false => Ok(None),
        };
        Ok((wanted(xs, dxs)?, wanted(weight, dweight)?, wanted(bias, dbias)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::{check, check_derivative, check_on, random, relative, rng};
    use candle_core::Device;
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
        Ok(batch_norm_then(Then::Relu, &args[0], &args[1], &args[2], 1e-5)?.0)
    }

    fn reference_relu(args: &[Tensor]) -> Result<Tensor> {
        reference(args)?.relu()
    }

    fn kernel_eval_relu(args: &[Tensor]) -> Result<Tensor> {
        let [mean, var] = given(args)?;
        batch_norm_eval_then(Then::Relu, &args[0], &mean, &var, &args[1], &args[2], 1e-5)
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
        let (ys, _) = batch_norm_then(Then::Relu, &xs, &zero, &bias, 1e-5).unwrap();
        let grads = ys.sum_all().unwrap().backward().unwrap();
        assert_eq!(grads.get(&bias).unwrap().to_vec1::<f32>().unwrap(), [0.0; 2]);
        // What is undefined stays so.
        let xs = Tensor::new(&[[f32::NAN], [1.0]], &Device::Cpu).unwrap();
        let one = Tensor::ones(1, DType::F32, &Device::Cpu).unwrap();
        let (ys, _) = batch_norm_then(Then::Relu, &xs, &one, &one, 1e-5).unwrap();
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
}
