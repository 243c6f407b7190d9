//! Images cut in patches: what turns a patch embedding's convolution into a matrix product.

use candle_core::{Result, Tensor};

use crate::Error;

/// `images` [B, C, H, W] as rows of `patch_size` x `patch_size` pixels, each in the order of a convolution's kernel:
/// [B, L, C p p]. Pixels right and below of the last whole patch are ignored, as a strided convolution does.
///
/// # Errors
/// [`Error::Shape`] when `images` is not [B, C, H, W] with sides of at least one patch.
pub fn patchify(images: &Tensor, patch_size: usize) -> Result<Tensor> {
    let p = patch_size;
    let (batch, channels, height, width) = match *images.dims() {
        [b, c, h, w] if p > 0 && h >= p && w >= p => (b, c, h, w),
        _ => {
            let expected = format!("[B, C, H, W] with sides of at least one patch, {p} pixels");
            return Err(Error::shape("images", images.dims(), expected).into());
        }
    };
    let (rows, columns) = (height / p, width / p);
    let whole = match (rows * p, columns * p) {
        (h, w) if (h, w) == (height, width) => images.clone(),
        (h, w) => images.narrow(2, 0, h)?.narrow(3, 0, w)?,
    };
    whole
        .reshape((batch, channels, rows, p, columns, p))?
        .permute((0, 2, 4, 1, 3, 5))?
        .reshape((batch, rows * columns, channels * p * p))
}
