//! The content of an image's hidden pixels.

use candle_core::{DType, Tensor};
use rand_distr::{Distribution, StandardNormal};
use rayon::prelude::*;

use super::Mask;
use crate::error::{Error, Result};
use crate::key::{Purpose, StepKey};
use crate::ops;

/// Content of hidden pixels.
#[derive(Clone, Debug, PartialEq)]
pub enum Fill {
    /// 0: the data set's mean colour where images are normalised. What the paper's ResNet branch uses.
    Zero,
    /// The mean of each channel over the whole image it stands in.
    Mean,
    /// Standard normal noise, drawn for every pixel and channel.
    Noise,
    /// One value per channel.
    Value(Vec<f32>),
}

impl Mask {
    /// Hides the blocks of `images` `[B, C, H, W]` whose position is not kept: the grid lies over the whole image, so a
    /// block is H / grid.height by W / grid.width pixels. Kept pixels stay as they are, bit for bit.
    ///
    /// `key` is what [`Fill::Noise`] draws from.
    ///
    /// # Errors
    /// [`Error::Shape`] when `images` is not `[B, C, H, W]` with this mask's B and sides that are multiples of its grid's;
    /// [`Error::InvalidArgument`] when [`Fill::Value`] has not C values; [`Error::DType`] for the mean of integers and
    /// noise among them.
    pub fn fill(&self, images: &Tensor, fill: &Fill, key: StepKey) -> Result<Tensor> {
        let grid = self.grid();
        let fits = |side: usize, blocks: usize| side > 0 && side.is_multiple_of(blocks);
        let (channels, height, width) = match *images.dims() {
            [b, c, h, w] if b == self.batch() && fits(h, grid.height) && fits(w, grid.width) => (c, h, w),
            _ => {
                let expected = format!(
                    "[{}, C, a multiple of {}, a multiple of {}]",
                    self.batch(),
                    grid.height,
                    grid.width
                );
                return Err(Error::shape("images", images.dims(), expected));
            }
        };
        if matches!(fill, Fill::Mean | Fill::Noise) && !images.dtype().is_float() {
            return Err(Error::DType {
                argument: "images",
                got: images.dtype(),
                expected: format!("a float dtype to be filled with {fill:?}"),
            });
        }
        let filling = match fill {
            Fill::Zero => images.zeros_like()?,
            Fill::Mean => means(images)?.broadcast_as(images.shape())?.contiguous()?,
            Fill::Noise => noise(images, key)?,
            Fill::Value(values) if values.len() == channels => {
                Tensor::from_slice(values, (1, channels, 1, 1), images.device())?
                    .to_dtype(images.dtype())?
                    .broadcast_as(images.shape())?
                    .contiguous()?
            }
            Fill::Value(values) => {
                let given = format!("{} values", values.len());
                return Err(Error::invalid(
                    "fill",
                    given,
                    format!("one per channel, {channels} in all"),
                ));
            }
        };
        // A choice, not arithmetic, so that what is hidden cannot leak through an infinity or NaN.
        let over_blocks = (self.batch(), channels, grid.height, height / grid.height, width);
        let kept = self
            .to_dense(DType::U8, images.device())?
            .reshape((self.batch(), 1, grid.height, grid.width, 1))?
            .broadcast_as((self.batch(), 1, grid.height, grid.width, width / grid.width))?
            .reshape((self.batch(), 1, grid.height, 1, width))?
            .broadcast_as(over_blocks)?
            .reshape(images.shape())?;
        Ok(kept.where_cond(images, &filling)?)
    }
}

/// The mean of each channel, `[B, C, 1, 1]`.
fn means(images: &Tensor) -> Result<Tensor> {
    // A sum in half precision stops growing long before the last pixel.
    let wide = if ops::is_half(images) {
        images.to_dtype(DType::F32)?
    } else {
        images.clone()
    };
    Ok(wide.mean_keepdim((2, 3))?.to_dtype(images.dtype())?)
}

fn noise(images: &Tensor, key: StepKey) -> Result<Tensor> {
    let batch = images.dims()[0];
    // At least 1, for images without channels.
    let per_sample = (images.elem_count() / batch).max(1);
    let mut noise = vec![0f32; images.elem_count()];
    noise
        .par_chunks_mut(per_sample)
        .enumerate()
        .for_each(|(sample, pixels)| {
            let mut rng = key.rng(sample, Purpose::FILL);
            pixels.fill_with(|| StandardNormal.sample(&mut rng));
        });
    Ok(Tensor::from_vec(noise, images.shape(), images.device())?.to_dtype(images.dtype())?)
}
