//! Images cut in patches: what turns a patch embedding's convolution into a matrix product.

use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor};
use rayon::prelude::*;

use super::cpu::kernel::{self, Elements};
use super::route::Route;
use crate::check;
use crate::error::Error;

/// The patches of images as rows, each in the order of a convolution's kernel.
///
/// Pixels right and below of the last whole patch are ignored, as a strided convolution does.
///
/// # Arguments
///
/// - `images`: [B, C, H, W]
/// - `patch_size`: p, the side of a patch
///
/// Returns [B, L, C p p], where L = (H / p) (W / p), each rounded down.
///
/// # Derivative
///
/// Each pixel gets its element's gradient, one that is ignored gets 0.
///
/// # PyTorch
///
/// `torch.nn.functional.unfold(images, patch_size, stride=patch_size).transpose(1, 2)`
///
/// # Errors
///
/// If `patch_size` is 0, or `images` has another rank or a side of less than one patch.
///
/// ```
/// use candle_core::{Device, Tensor};
/// let images = Tensor::arange(0f32, 8.0, &Device::Cpu)?.reshape((1, 1, 2, 4))?;
/// let patches = masksub::ops::patchify(&images, 2)?;
/// assert_eq!(patches.to_vec3::<f32>()?, [[[0.0, 1.0, 4.0, 5.0], [2.0, 3.0, 6.0, 7.0]]]);
/// # Ok::<(), candle_core::Error>(())
/// ```
pub fn patchify(images: &Tensor, patch_size: usize) -> Result<Tensor> {
    routed(images, check(images, patch_size)?)
}

/// [`patchify`] of images that fit.
pub(crate) fn routed(images: &Tensor, patches: Patchify) -> Result<Tensor> {
    match Route::of(&[images]) {
        Route::Kernel => images.contiguous()?.apply_op1(patches),
        // Pixels are moved, in any dtype.
        Route::InF32 | Route::Composition => compose(images, patches),
    }
}

pub(crate) fn check(images: &Tensor, patch_size: usize) -> crate::error::Result<Patchify> {
    check::at_least_one("patch_size", patch_size)?;
    match *images.dims() {
        [batch, channels, height, width] if height >= patch_size && width >= patch_size => Ok(Patchify {
            batch,
            channels,
            height,
            width,
            patch_size,
        }),
        _ => {
            let expected = format!("[B, C, H, W] with sides of at least one patch, {patch_size} pixels");
            Err(Error::shape("images", images.dims(), expected))
        }
    }
}

/// [`patchify`] of candle's operations.
pub fn composition(images: &Tensor, patch_size: usize) -> Result<Tensor> {
    compose(images, check(images, patch_size)?)
}

fn compose(images: &Tensor, patches: Patchify) -> Result<Tensor> {
    let (rows, columns, p) = (patches.rows(), patches.columns(), patches.patch_size);
    images
        .narrow(2, 0, rows * p)?
        .narrow(3, 0, columns * p)?
        .reshape((patches.batch, patches.channels, rows, p, columns, p))?
        .permute((0, 2, 4, 1, 3, 5))?
        .reshape((patches.batch, rows * columns, patches.patch()))
}

#[derive(Clone, Copy)]
pub(crate) struct Patchify {
    batch: usize,
    channels: usize,
    height: usize,
    width: usize,
    patch_size: usize,
}

impl Patchify {
    fn rows(&self) -> usize {
        self.height / self.patch_size
    }

    fn columns(&self) -> usize {
        self.width / self.patch_size
    }

    pub(crate) fn batch(&self) -> usize {
        self.batch
    }

    /// Patches of an image.
    pub(crate) fn count(&self) -> usize {
        self.rows() * self.columns()
    }

    /// Elements of a patch.
    pub(crate) fn patch(&self) -> usize {
        self.channels * self.patch_size * self.patch_size
    }

    /// Elements of an image.
    pub(crate) fn image(&self) -> usize {
        self.channels * self.height * self.width
    }

    /// Where the patch at `position` has its rows in an image, channel by channel: the first pixel of each.
    fn lines(self, position: usize) -> impl Iterator<Item = usize> {
        let (row, column) = (position / self.columns(), position % self.columns());
        let p = self.patch_size;
        (0..self.channels * p).map(move |line| {
            let (channel, down) = (line / p, line % p);
            (channel * self.height + row * p + down) * self.width + column * p
        })
    }

    /// Writes the patch at `position` of a sample to `patch`.
    pub(crate) fn copy_patch(&self, images: &[f32], sample: usize, position: usize, patch: &mut [f32]) {
        let image = &images[sample * self.image()..];
        for (pixels, line) in patch.chunks_exact_mut(self.patch_size).zip(self.lines(position)) {
            pixels.copy_from_slice(&image[line..][..self.patch_size]);
        }
    }

    /// Adds a patch to the one at `position` of an image.
    pub(crate) fn add_patch(&self, patch: &[f32], position: usize, image: &mut [f32]) {
        for (pixels, line) in patch.chunks_exact(self.patch_size).zip(self.lines(position)) {
            for (sum, pixel) in image[line..].iter_mut().zip(pixels) {
                *sum += pixel;
            }
        }
    }

    fn forward(&self, images: &[f32]) -> Vec<f32> {
        let p = self.patch_size;
        let mut patches = vec![0f32; self.batch * self.rows() * self.columns() * self.patch()];
        // A row of patches at a time.
        let width = self.columns() * self.patch();
        patches.par_chunks_mut(width).enumerate().for_each(|(i, patches)| {
            let (sample, row) = (i / self.rows(), i % self.rows());
            for line in 0..self.channels * p {
                let (channel, down) = (line / p, line % p);
                let pixels = ((sample * self.channels + channel) * self.height + row * p + down) * self.width;
                let pixels = images[pixels..][..self.width].chunks_exact(p);
                for (patch, pixels) in patches.chunks_exact_mut(self.patch()).zip(pixels) {
                    patch[line * p..][..p].copy_from_slice(pixels);
                }
            }
        });
        patches
    }

    fn backward(&self, grads: &[f32]) -> Vec<f32> {
        let p = self.patch_size;
        let width = self.columns() * self.patch();
        let mut dimages = vec![0f32; self.batch * self.channels * self.height * self.width];
        // A channel of an image at a time.
        let planes = dimages.par_chunks_mut(self.height * self.width);
        planes.enumerate().for_each(|(i, plane)| {
            let (sample, channel) = (i / self.channels, i % self.channels);
            let whole = plane.chunks_exact_mut(self.width).take(self.rows() * p);
            for (y, pixels) in whole.enumerate() {
                let patches = grads[(sample * self.rows() + y / p) * width..][..width].chunks_exact(self.patch());
                for (pixels, patch) in pixels.chunks_exact_mut(p).zip(patches) {
                    pixels.copy_from_slice(&patch[(channel * p + y % p) * p..][..p]);
                }
            }
        });
        dimages
    }
}

impl CustomOp1 for Patchify {
    fn name(&self) -> &'static str {
        "patchify"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let patches = self.forward(kernel::elements(storage, layout)?);
        let shape = (self.batch, self.rows() * self.columns(), self.patch());
        Ok((CpuStorage::F32(patches), shape.into()))
    }

    fn bwd(&self, images: &Tensor, _: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let grad = grad.contiguous()?;
        let dimages = self.backward(&Elements::of(&grad)?);
        kernel::tensor(dimages, images.dims()).map(Some)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::{check, check_derivative, random};
    use candle_core::{DType, Device};

    #[test]
    fn equals_its_composition() {
        for (seed, (shape, p)) in (0..).zip([
            ([2, 3, 8, 12], 4),
            ([1, 1, 1, 1], 1),
            ([1, 3, 7, 9], 1),
            ([3, 2, 6, 6], 6),
            // With pixels that are ignored.
            ([2, 3, 11, 10], 4),
            ([2, 3, 37, 45], 16),
        ]) {
            check(
                &|args| patchify(&args[0], p),
                &|args| composition(&args[0], p),
                &[&shape],
                seed,
            );
        }
    }

    /// What a convolution with the patch's size as stride multiplies its kernel with.
    #[test]
    fn a_product_with_patches_is_a_convolution() {
        let (images, kernel) = (random(&[2, 3, 9, 8], 0), random(&[5, 3, 4, 4], 1));
        let convolved = images.conv2d(&kernel, 0, 4, 1, 1).unwrap();
        let product = composition(&images, 4)
            .unwrap()
            .broadcast_matmul(&kernel.reshape((5, 48)).unwrap().t().unwrap())
            .unwrap();
        let product = product.transpose(1, 2).unwrap().reshape((2, 5, 2, 2)).unwrap();
        assert!(crate::ops::testing::relative(&product, &convolved) < 1e-14);
    }

    #[test]
    fn composition_has_the_right_derivative() {
        check_derivative(&|args| composition(&args[0], 2), &[&[2, 2, 5, 4]], 0);
    }

    #[test]
    fn takes_any_dtype_and_nothing() {
        let pixels = Tensor::zeros((1, 3, 4, 4), DType::U8, &Device::Cpu).unwrap();
        assert_eq!(patchify(&pixels, 2).unwrap().dtype(), DType::U8);
        let nothing = Tensor::zeros((0, 3, 4, 4), DType::F32, &Device::Cpu).unwrap();
        assert_eq!(patchify(&nothing, 2).unwrap().dims(), [0, 4, 12]);
    }

    #[test]
    fn errors_name_the_argument() {
        let message = |images: &[usize], p| patchify(&random(images, 0), p).unwrap_err().to_string();
        assert_eq!(message(&[1, 3, 4, 4], 0), "patch_size is 0, but must be at least 1");
        let expected = "[B, C, H, W] with sides of at least one patch, 4 pixels";
        for images in [&[1, 3, 4, 3][..], &[1, 3, 3, 4], &[3, 4, 4]] {
            let error = message(images, 4);
            assert_eq!(error, format!("images has shape {images:?}, but must be {expected}"));
        }
    }
}
