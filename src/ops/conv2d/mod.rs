//! Convolution of images, for training.

mod blocks;
pub(crate) mod channels_last;
mod depthwise;
mod geometry;
mod im2col;
mod products;
#[cfg(test)]
mod tests;
mod transposed;

use candle_core::{Result, Tensor, D};
use candle_nn::Conv2dConfig;
use rayon::prelude::*;

use super::autograd::{apply, Backward, Operation, ParamGrads};
use super::cpu::kernel::{self, rows_per_piece};
use super::cpu::sliding::Sliding;
use super::cpu::write::Write;
use super::route::{in_f32, Route};
use crate::check;
use depthwise::Depthwise;

pub(crate) use geometry::Conv2d;
pub use transposed::{
    composition as composition_transposed, composition_1d as composition_transposed_1d, conv_transpose1d,
    conv_transpose2d,
};

/// y\[b, o, i, j\] = bias\[o\] + Σ x\[b, c, i stride + u dilation - padding, j stride + v dilation - padding\]
/// weight\[o, c, u, v\], with zeros outside of the image.
///
/// With `groups` above 1, channels are cut in as many groups, and those of a group of the result see that group of the
/// input alone: with one channel each, a depthwise convolution.
///
/// [`Tensor::conv2d`] computes the same. Its gradients are wrong, an error or a panic for some paddings, and where a
/// stride leaves unlike remainders of the two sides; its groups are computed one after the other.
///
/// # Arguments
///
/// - `xs`: [B, C, H, W]
/// - `weight`: [C', C / groups, kH, kW]
/// - `bias`: `[C']`
/// - `config`: as candle-nn's layer has it; `padding` is of zeros around the image, on each side
///
/// Returns [B, C', H', W'], where H' = (H + 2 padding - dilation (kH - 1) - 1) / stride + 1, rounded down, and W'
/// likewise.
///
/// # Derivative
///
/// With X the matrix of what the kernel sees at each position ([C kH kW, H' W'], "im2col"), W the weight as a matrix
/// [C', C kH kW] and G the gradient of the result as one, [C', H' W']: dX = Wᵀ G, each element added to where it came
/// from, dW = Σ G Xᵀ over the batch, and dbias = Σ G over batch and positions. The CPU kernel holds X for some positions
/// at a time only, one such piece for each thread, and makes none where a 1 x 1 kernel sees just the image, or each
/// channel has a kernel of its own. Gradients that are not asked for are not computed: the first convolution of a
/// network needs none by the image.
///
/// # PyTorch
///
/// `torch.nn.functional.conv2d(xs, weight, bias, stride, padding, dilation, groups)`
///
/// # Errors
///
/// If the shapes do not fit or something is empty, the kernel is larger than the padded image, `stride`, `dilation` or
/// `groups` is 0, `groups` does not divide the channels, or the dtypes differ or are no floating-point ones.
///
/// ```
/// use candle_core::{Device, Tensor};
/// use candle_nn::Conv2dConfig;
/// let xs = Tensor::new(&[[[[1f32, 2.0], [3.0, 4.0]]]], &Device::Cpu)?;
/// let weight = Tensor::ones((1, 1, 3, 3), xs.dtype(), &Device::Cpu)?;
/// let ys = masksub::ops::conv2d(&xs, &weight, None, Conv2dConfig { padding: 1, ..Default::default() })?;
/// assert_eq!(ys.flatten_all()?.to_vec1::<f32>()?, [10.0; 4]);
/// # Ok::<(), candle_core::Error>(())
/// ```
pub fn conv2d(xs: &Tensor, weight: &Tensor, bias: Option<&Tensor>, config: Conv2dConfig) -> Result<Tensor> {
    let conv = Conv2d::new(["xs", "weight"], xs.dims(), weight.dims(), config)?;
    check(xs, weight, bias, &conv)?;
    routed(xs, weight, bias, conv)
}

/// Checks what sizes do not tell.
pub(super) fn check(xs: &Tensor, weight: &Tensor, bias: Option<&Tensor>, conv: &Conv2d) -> crate::error::Result<()> {
    check_tensors(xs, weight, bias, conv.num_outputs())
}

fn check_tensors(xs: &Tensor, weight: &Tensor, bias: Option<&Tensor>, outputs: usize) -> crate::error::Result<()> {
    check::float("xs", xs)?;
    check::same_dtype("weight", weight, "xs", xs)?;
    if let Some(bias) = bias {
        check::same_dtype("bias", bias, "xs", xs)?;
        check::vector("bias", bias, outputs)?;
    }
    Ok(())
}

/// [`conv2d`] of arguments that fit.
pub(crate) fn routed(xs: &Tensor, weight: &Tensor, bias: Option<&Tensor>, conv: Conv2d) -> Result<Tensor> {
    let params: Vec<_> = [weight].into_iter().chain(bias).collect();
    let tensors: Vec<_> = [xs].into_iter().chain(params.iter().copied()).collect();
    match Route::of(&tensors) {
        Route::Kernel => apply(Convolution(conv), xs, &params),
        Route::InF32 => in_f32(&tensors, |t| routed(&t[0], &t[1], t.get(2), conv)),
        Route::Composition => compose(xs, weight, bias, conv),
    }
}

/// [`conv2d`] of candle's operations.
pub fn composition(xs: &Tensor, weight: &Tensor, bias: Option<&Tensor>, config: Conv2dConfig) -> Result<Tensor> {
    let conv = Conv2d::new(["xs", "weight"], xs.dims(), weight.dims(), config)?;
    compose(xs, weight, bias, conv)
}

pub(super) fn compose(xs: &Tensor, weight: &Tensor, bias: Option<&Tensor>, conv: Conv2d) -> Result<Tensor> {
    // candle's backward is wrong, an error or a panic for some paddings, and where the stride leaves unlike remainders
    // of the two sides: neither is left to it.
    let fit = |xs: &Tensor, dim: D, axis: Sliding| -> Result<Tensor> {
        let padded = xs.pad_with_zeros(dim, axis.padding, axis.padding)?;
        padded.narrow(dim, 0, (axis.out - 1) * axis.stride + axis.extent())
    };
    let xs = fit(&fit(xs, D::Minus1, conv.columns)?, D::Minus2, conv.rows)?.contiguous()?;
    // Both axes have the same step, unless there is one row only, of which any step makes one.
    let Sliding { stride, dilation, .. } = conv.columns;
    let ys = xs.conv2d_with_algo(weight, 0, stride, dilation, conv.groups, conv.algorithm)?;
    add_bias(ys, bias)
}

fn add_bias(ys: Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    match bias {
        Some(bias) => ys.broadcast_add(&bias.reshape((1, (), 1, 1))?),
        None => Ok(ys),
    }
}

impl Conv2d {
    /// Writes the result to `ys`.
    pub(crate) fn forward(&self, xs: &[f32], weight: &[f32], bias: Option<&[f32]>, ys: &mut [f32]) {
        if self.is_depthwise() {
            Depthwise::new(self).forward(xs, weight, bias, ys);
        } else {
            self.products(xs, weight, bias, ys);
        }
    }

    /// The gradient by the input: written to `dxs`, or added to it.
    pub(crate) fn backward_xs(&self, weight: &[f32], grads: &[f32], dxs: &mut [f32], write: Write) {
        if self.is_depthwise() {
            Depthwise::new(self).backward_xs(weight, grads, dxs, write);
        } else {
            self.products_backward_xs(weight, grads, dxs, write);
        }
    }

    /// The gradient by the weight: written to `dweight`, or added to it. Shares of it are added in an order that the
    /// shapes alone decide.
    pub(crate) fn backward_weight(&self, xs: &[f32], grads: &[f32], dweight: &mut [f32], write: Write) {
        if self.is_depthwise() {
            Depthwise::new(self).backward_weight(xs, grads, dweight, write);
        } else {
            self.products_backward_weight(xs, grads, dweight, write);
        }
    }
}

/// The sums over batch and positions of each of `channels` channels: the gradient of a bias.
pub(super) fn sum_positions(grads: &[f32], channels: usize, positions: usize) -> Vec<f32> {
    let planes: Vec<f32> = grads
        .par_chunks(positions)
        .with_min_len(rows_per_piece(positions))
        .map(sum)
        .collect();
    let of_channel = |channel| {
        planes
            .iter()
            .skip(channel)
            .step_by(channels)
            .map(|&plane| f64::from(plane))
    };
    (0..channels)
        .map(|channel| of_channel(channel).sum::<f64>() as f32)
        .collect()
}

kernel::simd_fn! {
    fn sum<S>(xs: &[f32]) -> f32 {
        kernel::sum_by([xs], |[x]| x)
    }
}

/// Where the parameters stand.
const WEIGHT: usize = 0;
const BIAS: usize = 1;

struct Convolution(Conv2d);

impl Operation for Convolution {
    const NAME: &'static str = "conv2d";

    type Kept = ();

    fn result_dims(&self) -> Vec<usize> {
        self.0.result_dims().to_vec()
    }

    fn forward(&self, xs: &[f32], params: &[&[f32]], _: bool) -> Result<(Vec<f32>, ())> {
        let mut ys = vec![0f32; self.0.result_len()];
        self.0.forward(xs, params[WEIGHT], params.get(BIAS).copied(), &mut ys);
        Ok((ys, ()))
    }

    fn recompute(&self, _: &[f32], _: &[&[f32]]) -> Result<()> {
        Ok(())
    }

    fn backward(&self, of: Backward, _: (), param_grads: &mut ParamGrads) -> Result<Vec<f32>> {
        let Backward { xs, grads, .. } = of;
        let mut dxs = Vec::new();
        if of.wants_dxs {
            dxs.resize(xs.len(), 0.0);
            self.0.backward_xs(of.params[WEIGHT], grads, &mut dxs, Write::Replace);
        }
        param_grads.write(WEIGHT, |out, write| self.0.backward_weight(xs, grads, out, write))?;
        if param_grads.wants(BIAS) {
            param_grads.set(BIAS, sum_positions(grads, self.0.num_outputs(), self.0.positions()))?;
        }
        Ok(dxs)
    }
}
