//! Convolution of images, for training.

mod blocks;
mod geometry;
mod im2col;
mod products;
#[cfg(test)]
mod tests;

use candle_core::{CpuStorage, CustomOp2, Layout, Result, Shape, Tensor, D};

use super::cpu::kernel::{self, Elements};
use super::cpu::write::Write;
use super::route::{in_f32, Route};
use crate::check;

pub(crate) use geometry::Conv2d;

/// y[b, o, i, j] = Σ x[b, c, i * stride + u - padding, j * stride + v - padding] weight[o, c, u, v], with zeros outside
/// of the image.
///
/// No bias, no groups and no dilation: ResNet, for which this is, has a batch norm behind each convolution and neither
/// groups nor dilation.
///
/// # Arguments
///
/// - `xs`: [B, C, H, W]
/// - `weight`: [C', C, k, k]
/// - `stride`: at least 1
/// - `padding`: zeros around the image, on each side
///
/// Returns [B, C', H', W'], where H' = (H + 2 padding - k) / stride + 1, rounded down, and W' likewise.
///
/// # Derivative
///
/// With X the matrix of what the kernel sees at each position ([C k k, H' W'], "im2col"), W the weight as a matrix
/// [C', C k k] and G the gradient of the result as one, [C', H' W']: dX = Wᵀ G, each element added to where it came
/// from, and dW = Σ G Xᵀ over the batch. The CPU kernel holds X for some positions at a time only, one such piece for
/// each thread, and makes none where a 1 x 1 kernel sees just the image. Gradients that are not asked for are not
/// computed: the first convolution of a network needs none by the image.
///
/// # PyTorch
///
/// `torch.nn.functional.conv2d(xs, weight, stride=stride, padding=padding)`
///
/// # Errors
///
/// If the shapes do not fit or something is empty, the kernel is not square or larger than the padded image, the stride
/// is 0, or the dtypes differ or are no floating-point ones.
///
/// ```
/// use candle_core::{Device, Tensor};
/// let xs = Tensor::new(&[[[[1f32, 2.0], [3.0, 4.0]]]], &Device::Cpu)?;
/// let weight = Tensor::ones((1, 1, 3, 3), xs.dtype(), &Device::Cpu)?;
/// let ys = masksub::ops::conv2d(&xs, &weight, 1, 1)?;
/// assert_eq!(ys.flatten_all()?.to_vec1::<f32>()?, [10.0; 4]);
/// # Ok::<(), candle_core::Error>(())
/// ```
pub fn conv2d(xs: &Tensor, weight: &Tensor, stride: usize, padding: usize) -> Result<Tensor> {
    check::float("xs", xs)?;
    check::same_dtype("weight", weight, "xs", xs)?;
    let conv = Conv2d::new(["xs", "weight"], xs.dims(), weight.dims(), stride, padding)?;
    routed(xs, weight, conv)
}

/// [`conv2d`] of arguments that fit.
pub(crate) fn routed(xs: &Tensor, weight: &Tensor, conv: Conv2d) -> Result<Tensor> {
    match Route::of(&[xs, weight]) {
        Route::Kernel => xs.contiguous()?.apply_op2(&weight.contiguous()?, conv),
        Route::InF32 => in_f32(&[xs, weight], |t| routed(&t[0], &t[1], conv)),
        Route::Composition => composition(xs, weight, conv.rows.stride, conv.rows.padding),
    }
}

/// [`conv2d`] of candle's operations.
pub fn composition(xs: &Tensor, weight: &Tensor, stride: usize, padding: usize) -> Result<Tensor> {
    let kernel = weight.dim(2)?;
    // candle's backward is wrong, an error or a panic for some paddings, and where the stride leaves unlike remainders
    // of the two sides: neither is left to it.
    let fit = |xs: Tensor, dim: D| -> Result<Tensor> {
        let padded = xs.pad_with_zeros(dim, padding, padding)?;
        let side = padded.dim(dim)?;
        padded.narrow(dim, 0, side - (side - kernel) % stride)
    };
    let xs = fit(fit(xs.clone(), D::Minus1)?, D::Minus2)?.contiguous()?;
    xs.conv2d(weight, 0, stride, 1, 1)
}

impl CustomOp2 for Conv2d {
    fn name(&self) -> &'static str {
        "conv2d"
    }

    fn cpu_fwd(&self, s1: &CpuStorage, l1: &Layout, s2: &CpuStorage, l2: &Layout) -> Result<(CpuStorage, Shape)> {
        let mut ys = vec![0f32; self.result_len()];
        self.forward(kernel::elements(s1, l1)?, kernel::elements(s2, l2)?, &mut ys);
        Ok((CpuStorage::F32(ys), Shape::from(&self.result_dims())))
    }

    fn bwd(&self, xs: &Tensor, weight: &Tensor, _: &Tensor, grad: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let grad = grad.contiguous()?;
        let g = Elements::of(&grad)?;
        let fresh = |like: &Tensor, write: &dyn Fn(&mut [f32]) -> Result<()>| -> Result<Option<Tensor>> {
            if !like.track_op() {
                return Ok(None);
            }
            let mut gradient = vec![0f32; like.elem_count()];
            write(&mut gradient)?;
            kernel::tensor(gradient, like.dims()).map(Some)
        };
        let dxs = fresh(xs, &|dxs| {
            self.backward_xs(&Elements::of(weight)?, &g, dxs, Write::Replace);
            Ok(())
        })?;
        let dweight = fresh(weight, &|dweight| {
            self.backward_weight(&Elements::of(xs)?, &g, dweight, Write::Replace);
            Ok(())
        })?;
        Ok((dxs, dweight))
    }
}
