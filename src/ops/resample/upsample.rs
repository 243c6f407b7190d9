//! Interpolation of images to another size.

use candle_core::{Result, Tensor};

use super::{images, Axis, Resample};
use crate::check;
use crate::error::Error;

/// y\[b, c, i, j\] = x\[b, c, ⌊i H / H'⌋, ⌊j W / W'⌋\]: each place of an image of another size is the element that it
/// lies in. (Computed in integers. candle multiplies i by a rounded quotient, and is one element lower at some places of
/// some sizes: at 49 of 98, say, for 2.)
///
/// [`Tensor::upsample_nearest2d`], which is also called `interpolate2d`, has a backward only where both sides grow by
/// the same whole number; that one forgets what the input gets from elsewhere.
///
/// # Arguments
///
/// - `xs`: [B, C, H, W]
/// - `target_h`, `target_w`: H' and W', at least 1
///
/// Returns [B, C, H', W'].
///
/// # Derivative
///
/// Each element gets the sum of the gradients of the places that it is at.
///
/// # PyTorch
///
/// `torch.nn.functional.interpolate(xs, (target_h, target_w), mode="nearest")`
///
/// # Errors
///
/// If `xs` has another rank, no element or no floating-point dtype, or a target is 0 or so large that the result does
/// not fit in memory.
///
/// ```
/// use candle_core::{Device, Tensor};
/// let xs = Tensor::new(&[[[[1f32, 2.0]]]], &Device::Cpu)?;
/// let ys = masksub::ops::upsample_nearest2d(&xs, 1, 3)?;
/// assert_eq!(ys.flatten_all()?.to_vec1::<f32>()?, [1.0, 1.0, 2.0]);
/// # Ok::<(), candle_core::Error>(())
/// ```
pub fn upsample_nearest2d(xs: &Tensor, target_h: usize, target_w: usize) -> Result<Tensor> {
    nearest(xs, target_h, target_w)?.routed(xs)
}

/// y\[b, c, i\] = x\[b, c, ⌊i L / L'⌋\]: [`upsample_nearest2d`] of sequences.
///
/// [`Tensor::upsample_nearest1d`] has a backward only where L' is a multiple of L.
///
/// # Arguments
///
/// - `xs`: [B, C, L]
/// - `target_size`: L', at least 1
///
/// Returns [B, C, L'].
///
/// # Derivative
///
/// As that of [`upsample_nearest2d`].
///
/// # PyTorch
///
/// `torch.nn.functional.interpolate(xs, target_size, mode="nearest")`
///
/// # Errors
///
/// As those of [`upsample_nearest2d`].
///
/// ```
/// use candle_core::{Device, Tensor};
/// let xs = Tensor::new(&[[[1f32, 2.0]]], &Device::Cpu)?;
/// let ys = masksub::ops::upsample_nearest1d(&xs, 3)?;
/// assert_eq!(ys.flatten_all()?.to_vec1::<f32>()?, [1.0, 1.0, 2.0]);
/// # Ok::<(), candle_core::Error>(())
/// ```
pub fn upsample_nearest1d(xs: &Tensor, target_size: usize) -> Result<Tensor> {
    check::at_least_one("target_size", target_size)?;
    if xs.rank() != 3 || xs.elem_count() == 0 {
        return Err(Error::shape("xs", xs.dims(), "[B, C, L], not empty").into());
    }
    upsample_nearest2d(&xs.unsqueeze(2)?, 1, target_size)?.squeeze(2)
}

/// Bilinear interpolation of images to another size: each place is a mean of the four elements around it, by how near
/// they are.
///
/// [`Tensor::upsample_bilinear2d`] has no backward.
///
/// # Arguments
///
/// - `xs`: [B, C, H, W]
/// - `target_h`, `target_w`: H' and W', at least 1
/// - `align_corners`: if true, the centres of the outermost elements and places coincide; if false, their outer edges
///
/// Returns [B, C, H', W'].
///
/// # Derivative
///
/// Each element gets the gradients of the places that it is a part of, by the same weights.
///
/// # PyTorch
///
/// `torch.nn.functional.interpolate(xs, (target_h, target_w), mode="bilinear", align_corners=align_corners)`
///
/// # Errors
///
/// As those of [`upsample_nearest2d`].
///
/// ```
/// use candle_core::{Device, Tensor};
/// let xs = Tensor::new(&[[[[0f32, 4.0]]]], &Device::Cpu)?;
/// let flat = |ys: Tensor| ys.flatten_all()?.to_vec1::<f32>();
/// assert_eq!(flat(masksub::ops::upsample_bilinear2d(&xs, 1, 4, false)?)?, [0.0, 1.0, 3.0, 4.0]);
/// assert_eq!(flat(masksub::ops::upsample_bilinear2d(&xs, 1, 5, true)?)?, [0.0, 1.0, 2.0, 3.0, 4.0]);
/// # Ok::<(), candle_core::Error>(())
/// ```
pub fn upsample_bilinear2d(xs: &Tensor, target_h: usize, target_w: usize, align_corners: bool) -> Result<Tensor> {
    bilinear(xs, [target_h, target_w], [None; 2], align_corners)?.routed(xs)
}

/// [`upsample_bilinear2d`] to H' = ⌊H `scale_h`⌋ and W' = ⌊W `scale_w`⌋, where places are as far apart as the scales,
/// not the rounded sizes, say.
///
/// [`Tensor::upsample_bilinear2d_with_scale`] has no backward.
///
/// # Arguments
///
/// - `xs`: [B, C, H, W]
/// - `scale_h`, `scale_w`: above 0 and finite, and so large that a place is left in each direction
/// - `align_corners`: as that of [`upsample_bilinear2d`], where the rounded sizes tell how far apart places are
///
/// Returns [B, C, H', W'].
///
/// # Derivative
///
/// As that of [`upsample_bilinear2d`].
///
/// # PyTorch
///
/// `torch.nn.functional.interpolate(xs, scale_factor=(scale_h, scale_w), mode="bilinear", align_corners=align_corners)`
///
/// # Errors
///
/// As those of [`upsample_nearest2d`]; if a scale is not above 0 and finite, or leaves nothing.
///
/// ```
/// use candle_core::{Device, Tensor};
/// let xs = Tensor::new(&[[[[0f32, 4.0]]]], &Device::Cpu)?;
/// let ys = masksub::ops::upsample_bilinear2d_with_scale(&xs, 1.0, 2.5, false)?;
/// assert_eq!(ys.dims(), [1, 1, 1, 5]);
/// # Ok::<(), candle_core::Error>(())
/// ```
pub fn upsample_bilinear2d_with_scale(xs: &Tensor, scale_h: f64, scale_w: f64, align_corners: bool) -> Result<Tensor> {
    let [_, _, height, width] = images(xs)?;
    let target = |argument, side: usize, scale| {
        let target = (side as f64 * check::positive(argument, scale)?).floor();
        match target >= 1.0 {
            true => Ok(target as usize),
            false => Err(Error::invalid(argument, scale, format!("at least 1 / {side}"))),
        }
    };
    let targets = [target("scale_h", height, scale_h)?, target("scale_w", width, scale_w)?];
    if targets == [height, width] {
        // As candle and PyTorch do it.
        return Ok(xs.clone());
    }
    bilinear(xs, targets, [Some(scale_h), Some(scale_w)], align_corners)?.routed(xs)
}

/// [`upsample_nearest2d`] of candle's operations.
pub fn composition_nearest2d(xs: &Tensor, target_h: usize, target_w: usize) -> Result<Tensor> {
    nearest(xs, target_h, target_w)?.compose(xs)
}

/// [`upsample_bilinear2d`] of candle's operations.
pub fn composition_bilinear2d(xs: &Tensor, target_h: usize, target_w: usize, align_corners: bool) -> Result<Tensor> {
    bilinear(xs, [target_h, target_w], [None; 2], align_corners)?.compose(xs)
}

/// The images' dimensions, once the result is known to be possible.
fn check(xs: &Tensor, [target_h, target_w]: [usize; 2]) -> crate::error::Result<[usize; 4]> {
    let dims = images(xs)?;
    let [batch, channels, _, _] = dims;
    let of_width = batch.saturating_mul(channels).checked_mul(target_w);
    let of_all = of_width.and_then(|count| count.checked_mul(target_h));
    for (argument, target, elements) in [("target_w", target_w, of_width), ("target_h", target_h, of_all)] {
        check::at_least_one(argument, target)?;
        check::fits_memory(argument, target, elements, size_of::<f64>())?;
    }
    Ok(dims)
}

fn nearest(xs: &Tensor, target_h: usize, target_w: usize) -> crate::error::Result<Resample> {
    let dims = check(xs, [target_h, target_w])?;
    let axis = |argument, side: usize, target: usize| {
        let element = |place| (place as u128 * side as u128 / target as u128) as usize;
        Axis::new((argument, target), side, 1, target, |place| vec![(element(place), 1.0)])
    };
    let rows = axis("target_h", dims[2], target_h)?;
    Ok(Resample::new(dims, [rows, axis("target_w", dims[3], target_w)?]))
}

fn bilinear(
    xs: &Tensor,
    targets: [usize; 2],
    scales: [Option<f64>; 2],
    align_corners: bool,
) -> crate::error::Result<Resample> {
    let dims = check(xs, targets)?;
    let axis = |argument, i: usize| {
        let (side, target, scale) = (dims[2 + i], targets[i], scales[i]);
        let step = match scale {
            _ if align_corners && target == 1 => 0.0,
            _ if align_corners => (side - 1) as f64 / (target - 1) as f64,
            Some(scale) => 1.0 / scale,
            None => side as f64 / target as f64,
        };
        let place = |place| {
            let at = match align_corners {
                true => place as f64 * step,
                false => ((place as f64 + 0.5) * step - 0.5).max(0.0),
            };
            let below = (at as usize).min(side - 1);
            let part = (at - below as f64).min(1.0);
            vec![(below, 1.0 - part), ((below + 1).min(side - 1), part)]
        };
        Axis::new((argument, target), side, 2, target, place)
    };
    Ok(Resample::new(dims, [axis("target_h", 0)?, axis("target_w", 1)?]))
}
