//! The first layers of a ResNet (He et al. 2016, arXiv 1512.03385) as one operation.

use std::sync::{Arc, OnceLock};

use candle_core::{CpuStorage, CustomOp2, DType, Layout, Result, Shape, Tensor};

use super::conv_norm::{Bound, ConvNorm, Layer, Names, Sink};
use super::residual::Affine;
use crate::check;
use crate::ops::autograd::deliver::Deliveries;
use crate::ops::batch_norm::{BatchStatistics, Then};
use crate::ops::cpu::buffer::{Buffer, Kept};
use crate::ops::cpu::channels::{Moments, Upstream};
use crate::ops::cpu::kernel::{self, Elements};
use crate::ops::cpu::write::Write;
use crate::ops::max_pool2d::{max_pool2d, MaxPool2d};
use crate::ops::route;

/// The windows of a max pooling, see [`max_pool2d`](crate::ops::max_pool2d()).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pooling {
    /// Side of a window.
    pub kernel: usize,
    /// From one window to the next, at least 1.
    pub stride: usize,
    /// Positions around the image, on each side, that never win; at most half of `kernel`.
    pub padding: usize,
}

/// y = maxpool(max(norm(conv(x)), 0)); and what the batch norm saw.
///
/// The same as the operations one by one, with less memory: for the backward only the result of the convolution is kept,
/// of which normalised values are computed again. Gradients of all parameters arrive as ever. (As in PyTorch, parameters
/// must not change between a forward and its backward.)
///
/// # Arguments
///
/// - `xs`: [B, C, H, W]
/// - `conv`: the convolution and its norm
/// - `pool`: the pooling
///
/// Returns [B, C', H', W'], and the statistics of the norm, if it normalises by them (see [`ConvNorm::running`]); no gradient
/// flows through them.
///
/// # PyTorch
///
/// ```text
/// ys = F.conv2d(xs, weight, stride=conv.stride, padding=conv.padding)
/// F.max_pool2d(F.relu(bn(ys)), pool.kernel, pool.stride, pool.padding)
/// ```
///
/// # Errors
///
/// If shapes do not fit or something is empty, a stride or the pooling's kernel is 0, its padding is more than half of that,
/// the norm has one value per channel only to normalise by, `eps` is negative or not finite, or dtypes differ or are no
/// floating-point ones.
///
/// ```
/// use candle_core::{DType, Device, Tensor};
/// use masksub::ops::{stem, Affine, ConvNorm, Pooling};
/// let tensor = |shape: &[usize]| Tensor::ones(shape, DType::F32, &Device::Cpu);
/// let (weight, zero, one) = (tensor(&[2, 3, 7, 7])?, (tensor(&[2])? * 0.)?, tensor(&[2])?);
/// let norm = Affine { weight: &zero, bias: &one };
/// let conv = ConvNorm { weight: &weight, stride: 2, padding: 3, norm, eps: 1e-5, running: None };
/// let pool = Pooling { kernel: 3, stride: 2, padding: 1 };
/// let (ys, _) = stem(&tensor(&[1, 3, 16, 16])?, &conv, pool)?;
/// assert_eq!(ys.flatten_all()?.to_vec1::<f32>()?, [1.; 32]);
/// # Ok::<(), candle_core::Error>(())
/// ```
pub fn stem(xs: &Tensor, conv: &ConvNorm, pool: Pooling) -> Result<(Tensor, Option<BatchStatistics>)> {
    check::float("xs", xs)?;
    let names = Names {
        input: "xs",
        weight: "conv.weight",
        norm: ["conv.norm.weight", "conv.norm.bias"],
        running: ["conv.running.mean", "conv.running.var"],
    };
    let layer = Layer::new(&names, conv, xs.dims(), xs)?;
    let windows = MaxPool2d::new(&layer.conv.result_dims(), pool.kernel, pool.stride, pool.padding)?;
    let params = [conv.weight, conv.norm.weight, conv.norm.bias];
    if xs.device().is_cpu() && route::is_half(xs) {
        // As in the other operations, rounded once at the end.
        let dtype = xs.dtype();
        let [xs, weight, norm_weight, norm_bias] =
            [xs, conv.weight, conv.norm.weight, conv.norm.bias].map(|t| t.to_dtype(DType::F32));
        let conv = ConvNorm {
            weight: &weight?,
            norm: Affine {
                weight: &norm_weight?,
                bias: &norm_bias?,
            },
            ..*conv
        };
        let (ys, seen) = stem(&xs?, &conv, pool)?;
        let seen = seen.map(|seen| seen.to_dtype(dtype)).transpose()?;
        return Ok((ys.to_dtype(dtype)?, seen));
    }
    if !route::on_cpu_f32(&params) || !route::on_cpu_f32(&[xs]) {
        return composition(xs, conv, pool);
    }
    let (ticket, params) = Deliveries::new(&params)?;
    let moments = Arc::new(OnceLock::new());
    let count = layer.count_seen();
    let op = Op {
        layer,
        pool: windows,
        keep: xs.track_op() || ticket.track_op(),
        params,
        moments: moments.clone(),
        kept: Kept::default(),
    };
    let ys = xs.contiguous()?.apply_op2(&ticket, op)?;
    let seen = moments.get().zip(count);
    let seen = seen.map(|(moments, count)| BatchStatistics::of(moments, count));
    Ok((ys, seen.transpose()?))
}

/// [`stem`] of the operations one by one.
pub fn composition(xs: &Tensor, conv: &ConvNorm, pool: Pooling) -> Result<(Tensor, Option<BatchStatistics>)> {
    let (ys, seen) = conv.composition(Then::Relu, xs)?;
    Ok((max_pool2d(&ys, pool.kernel, pool.stride, pool.padding)?, seen))
}

struct Op {
    layer: Layer,
    pool: MaxPool2d,
    params: Deliveries,
    /// Whether there will be a backward.
    keep: bool,
    moments: Arc<OnceLock<Vec<Moments>>>,
    /// What the convolution gave.
    kept: Kept<Buffer>,
}

impl Op {
    fn with_layer<T>(&self, f: impl FnOnce(Bound) -> Result<T>) -> Result<T> {
        let elements: Vec<_> = self.params.params().iter().map(Elements::of).collect::<Result<_>>()?;
        f(self.layer.bind(&elements)?)
    }
}

impl CustomOp2 for Op {
    fn name(&self) -> &'static str {
        "stem"
    }

    fn cpu_fwd(&self, s1: &CpuStorage, l1: &Layout, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        let xs = kernel::elements(s1, l1)?;
        let dims = self.pool.result_dims();
        let mut ys = vec![0f32; dims.iter().product()];
        self.with_layer(|layer| {
            let conv = layer.convolve(xs);
            let (active, moments) = layer.activate(&conv, None);
            self.pool.forward(&active, &mut ys);
            self.moments.get_or_init(|| moments);
            if self.keep {
                self.kept.keep(conv);
            }
            Ok(())
        })?;
        Ok((CpuStorage::F32(ys), Shape::from(&dims)))
    }

    fn bwd(
        &self,
        xs: &Tensor,
        ticket: &Tensor,
        node: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let Some(moments) = self.moments.get() else {
            candle_core::bail!("the backward of masksub's stem was called before its forward");
        };
        let grad = grad.contiguous()?;
        let (x, y, g) = (Elements::of(xs)?, Elements::of(node)?, Elements::of(&grad)?);
        let (dxs, gradients) = self.with_layer(|layer| {
            let kept = self.kept.take().unwrap_or_else(|| layer.convolve(&x));
            let (active, _) = layer.activate(&kept, Some(moments));
            let mut grads = Buffer::new(active.len());
            self.pool.backward(&active, &y, &g, &mut grads);
            let upstream = Upstream {
                grads: None,
                relu: Some(&active),
                factors: None,
            };
            let mut sink = Sink::new(&self.params, node);
            sink.layer(0, &layer, [&x, &kept], moments, upstream, &mut grads)?;
            drop((active, kept));
            // Images need no gradient, as a rule.
            let mut dxs = vec![0f32; if xs.track_op() { x.len() } else { 0 }];
            if xs.track_op() {
                layer.conv.backward_xs(layer.weight, &grads, &mut dxs, Write::Replace);
            }
            Ok((dxs, sink.gradients))
        })?;
        self.params.give(ticket, gradients, dxs, xs)
    }
}

#[cfg(test)]
mod tests {
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
        half[3] = (half[3].ones_like().unwrap() * -1004.).unwrap();
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
}
