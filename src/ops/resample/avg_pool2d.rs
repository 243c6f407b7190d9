//! Average pooling, of windows that may overlap.

use candle_core::{Result, Tensor, ToUsize2};

use super::{images, Axis, Resample};
use crate::check;
use crate::error::Error;
use crate::ops::cpu::sliding::Sliding;

/// y\[b, c, i, j\] = the mean of x\[b, c, i stride + u, j stride + v\] for u and v below `kernel`.
///
/// [`Tensor::avg_pool2d_with_stride`] has a backward only where windows do not overlap, and one that is wrong where they
/// do not fill the image: what no window sees gets a gradient. In the place of `xs.avg_pool2d(k)` stands
/// `avg_pool2d(&xs, k, k)`.
///
/// # Arguments
///
/// - `xs`: [B, C, H, W]
/// - `kernel`: side of a window, or its height and width
/// - `stride`: at least 1, or one for each direction
///
/// Returns [B, C, H', W'], where H' = (H - kernel) / stride + 1, rounded down, and W' likewise.
///
/// # Derivative
///
/// Each element gets the gradient of every window that it is in, divided by the number of the window's elements.
///
/// # PyTorch
///
/// `torch.nn.functional.avg_pool2d(xs, kernel, stride)`
///
/// # Errors
///
/// If `xs` has another rank, no element or no floating-point dtype, `kernel` or `stride` is 0, or a window is larger
/// than the image, or the windows' weights do not fit in memory.
///
/// ```
/// use candle_core::{Device, Tensor};
/// let xs = Tensor::new(&[[[[1f32, 3.0, 5.0], [1.0, 3.0, 5.0]]]], &Device::Cpu)?;
/// let ys = masksub::ops::avg_pool2d(&xs, 2, 1)?;
/// assert_eq!(ys.flatten_all()?.to_vec1::<f32>()?, [2.0, 4.0]);
/// # Ok::<(), candle_core::Error>(())
/// ```
pub fn avg_pool2d(xs: &Tensor, kernel: impl ToUsize2, stride: impl ToUsize2) -> Result<Tensor> {
    of(xs, kernel.to_usize2(), stride.to_usize2())?.routed(xs)
}

/// [`avg_pool2d`] of candle's operations.
pub fn composition(xs: &Tensor, kernel: impl ToUsize2, stride: impl ToUsize2) -> Result<Tensor> {
    of(xs, kernel.to_usize2(), stride.to_usize2())?.compose(xs)
}

fn of(xs: &Tensor, kernel: (usize, usize), stride: (usize, usize)) -> crate::error::Result<Resample> {
    for (argument, sides) in [("kernel", kernel), ("stride", stride)] {
        check::at_least_one(argument, sides.0.min(sides.1))?;
    }
    let dims = images(xs)?;
    // Not more than the image, unless that is an expanded one.
    let count = dims.iter().try_fold(1usize, |count, &dim| count.checked_mul(dim));
    check::fits_memory("xs", format!("{dims:?}"), count, size_of::<f32>())?;
    let axis = |side, window, stride| {
        let axis = Sliding::new(side, window, stride, 0).ok_or_else(|| {
            let sides = check::sides(&[kernel.0, kernel.1]);
            Error::shape("xs", xs.dims(), format!("[B, C, H, W], with sides of at least {sides}"))
        })?;
        let weight = 1.0 / window as f64;
        let of_window = |at| (0..window).map(|tap| (at * stride + tap, weight)).collect();
        Axis::new(("kernel", window), side, window, axis.out, of_window)
    };
    let rows = axis(dims[2], kernel.0, stride.0)?;
    Ok(Resample::new(dims, [rows, axis(dims[3], kernel.1, stride.1)?]))
}
