//! The first layers of a ResNet (He et al. 2016, arXiv 1512.03385) as one operation.

use std::sync::{Arc, OnceLock};

use candle_core::{Result, Tensor};

use super::affine::Affine;
use super::conv_norm::{ConvNorm, Layer, Names};
use crate::check;
use crate::error::Result as OurResult;
use crate::ops::autograd::{apply, Backward, Operation, ParamGrads};
use crate::ops::batch_norm::{BatchStatistics, Epilogue};
use crate::ops::cpu::buffer::Buffer;
use crate::ops::cpu::channels::{Moments, Upstream};
use crate::ops::cpu::write::Write;
use crate::ops::max_pool2d::{self, MaxPool2d};
use crate::ops::route::{to_f32, Route};

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

/// y = maxpool(max(norm(conv(x)), 0)), and the statistics of the batch.
///
/// The same as the operations one by one, with less memory: for the backward only the result of the convolution is
/// kept, of which normalised values are computed again. All parameters get gradients. (As in PyTorch,
/// parameters must not change between a forward and its backward.)
///
/// # Arguments
///
/// - `xs`: [B, C, H, W]
/// - `conv`: the convolution and its norm
/// - `pool`: the pooling
///
/// Returns [B, C', H', W'], and the statistics of the norm, if it normalises by them (see [`ConvNorm::running`]); no
/// gradient flows through them.
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
/// If shapes do not fit or something is empty, a stride or the pooling's kernel is 0, its padding is more than half of
/// that, the norm has one value per channel only to normalise by, `eps` is negative or not finite, or dtypes differ or
/// are no floating-point ones.
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
    let (layer, windows) = check(xs, conv, pool)?;
    routed(xs, conv, layer, windows)
}

/// The layer and the windows behind it, once all fits.
fn check(xs: &Tensor, conv: &ConvNorm, pool: Pooling) -> OurResult<(Layer, MaxPool2d)> {
    check::float("xs", xs)?;
    let names = Names {
        input: "xs",
        weight: "conv.weight",
        norm: ["conv.norm.weight", "conv.norm.bias"],
        running: ["conv.running.mean", "conv.running.var"],
    };
    let layer = Layer::new(&names, conv, xs.dims(), xs)?;
    let windows = MaxPool2d::new(&layer.conv.result_dims(), pool.kernel, pool.stride, pool.padding)?;
    Ok((layer, windows))
}

/// [`stem`] of arguments that fit.
fn routed(xs: &Tensor, conv: &ConvNorm, layer: Layer, windows: MaxPool2d) -> Result<(Tensor, Option<BatchStatistics>)> {
    let params = [conv.weight, conv.norm.weight, conv.norm.bias];
    let tensors = [xs, conv.weight, conv.norm.weight, conv.norm.bias];
    match Route::of(&tensors) {
        Route::Kernel => {
            let moments = Arc::new(OnceLock::new());
            let count = layer.count_seen();
            let op = Op {
                layer,
                pool: windows,
                moments: moments.clone(),
            };
            let ys = apply(op, xs, &params)?;
            let seen = moments.get().zip(count);
            let seen = seen.map(|(moments, count)| BatchStatistics::of(moments, count));
            Ok((ys, seen.transpose()?))
        }
        Route::InF32 => {
            let wide = to_f32(&tensors)?;
            let norm = Affine {
                weight: &wide[2],
                bias: &wide[3],
            };
            let conv = ConvNorm {
                weight: &wide[1],
                norm,
                ..*conv
            };
            let (ys, seen) = routed(&wide[0], &conv, layer, windows)?;
            let seen = seen.map(|seen| seen.to_dtype(xs.dtype())).transpose()?;
            Ok((ys.to_dtype(xs.dtype())?, seen))
        }
        Route::Composition => compose(xs, conv, &layer, windows),
    }
}

/// [`stem`] of the operations one by one.
pub fn composition(xs: &Tensor, conv: &ConvNorm, pool: Pooling) -> Result<(Tensor, Option<BatchStatistics>)> {
    let (layer, windows) = check(xs, conv, pool)?;
    compose(xs, conv, &layer, windows)
}

fn compose(
    xs: &Tensor,
    conv: &ConvNorm,
    layer: &Layer,
    windows: MaxPool2d,
) -> Result<(Tensor, Option<BatchStatistics>)> {
    let (ys, seen) = conv.compose(layer, Epilogue::Relu, xs)?;
    Ok((max_pool2d::routed(&ys, windows)?, seen))
}

struct Op {
    layer: Layer,
    pool: MaxPool2d,
    /// What the norm normalises by, from the forward on.
    moments: Arc<OnceLock<Vec<Moments>>>,
}

impl Operation for Op {
    const NAME: &'static str = "stem";

    /// What the convolution gave.
    type Kept = Buffer;

    fn result_dims(&self) -> Vec<usize> {
        self.pool.result_dims().to_vec()
    }

    fn forward(&self, xs: &[f32], params: &[&[f32]], _: bool) -> Result<(Vec<f32>, Buffer)> {
        let layer = self.layer.with_params(params)?;
        let conv = layer.convolve(xs);
        let (active, moments) = layer.activate(&conv, None);
        self.moments.get_or_init(|| moments);
        let mut ys = vec![0f32; self.result_dims().iter().product()];
        self.pool.forward(&active, &mut ys);
        Ok((ys, conv))
    }

    fn recompute(&self, xs: &[f32], params: &[&[f32]]) -> Result<Buffer> {
        Ok(self.layer.with_params(params)?.convolve(xs))
    }

    fn backward(&self, of: Backward, kept: Buffer, param_grads: &mut ParamGrads) -> Result<Vec<f32>> {
        let layer = self.layer.with_params(of.params)?;
        let moments = self.moments.get().map_or(&[][..], Vec::as_slice);
        let (active, _) = layer.activate(&kept, Some(moments));
        let mut grads = Buffer::new(active.len());
        self.pool.backward(&active, of.ys, of.grads, &mut grads);
        let upstream = Upstream {
            grads: None,
            relu: Some(&active),
            factors: None,
        };
        layer.backward([of.xs, &kept], moments, upstream, &mut grads, param_grads)?;
        drop((active, kept));
        let mut dxs = Vec::new();
        // Images need no gradient, as a rule.
        if of.wants_dxs {
            dxs.resize(of.xs.len(), 0.0);
            layer.conv.backward_xs(layer.weight, &grads, &mut dxs, Write::Replace);
        }
        Ok(dxs)
    }
}

#[cfg(test)]
mod tests;
