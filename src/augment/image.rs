//! An image in memory.

use std::fmt;

use super::rect::Rect;
use crate::error::{Error, Result};

/// Red, green and blue.
pub(super) const CHANNELS: usize = 3;

/// Pixels of the largest image: their places are numbered with 32 bits and a sign.
const MOST_PIXELS: usize = i32::MAX as usize;

/// An image of eight-bit RGB [H, W, 3], row by row: what Pillow's `convert("RGB")` gives. It has at least one pixel.
///
/// Sizes are told as Pillow and the crate `image` tell them, the width first. From that crate's `RgbImage`, and back:
///
/// ```
/// use masksub::augment::Image;
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let photo = image::RgbImage::from_pixel(500, 375, image::Rgb([200, 100, 50])); // or image::open(path)?.into_rgb8()
/// let image = Image::from_raw(photo.width() as usize, photo.height() as usize, photo.into_raw())?;
/// assert_eq!((image.width(), image.height()), (500, 375));
/// let photo = image::RgbImage::from_raw(image.width() as u32, image.height() as u32, image.into_raw());
/// # assert_eq!(photo.unwrap().get_pixel(7, 7).0, [200, 100, 50]);
/// # Ok(()) }
/// ```
#[derive(Clone, PartialEq, Eq)]
pub struct Image {
    pub(super) width: usize,
    pub(super) height: usize,
    pub(super) pixels: Vec<u8>,
}

impl Image {
    /// An image of `pixels` [H, W, 3], of which there must be as many as `width` and `height` say.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] when there is no pixel or there are 2^31 of them or more; [`Error::Shape`] when
    /// `pixels` has another length than H W 3.
    pub fn from_raw(width: usize, height: usize, pixels: Vec<u8>) -> Result<Self> {
        if num_values(width, height)? != pixels.len() {
            let expected = format!("[{height} * {width} * {CHANNELS}]");
            return Err(Error::shape("pixels", &[pixels.len()], expected));
        }
        Ok(Self { width, height, pixels })
    }

    /// W, at least 1.
    pub fn width(&self) -> usize {
        self.width
    }

    /// H, at least 1.
    pub fn height(&self) -> usize {
        self.height
    }

    /// The values [H, W, 3].
    pub fn as_raw(&self) -> &[u8] {
        &self.pixels
    }

    /// The values [H, W, 3], for operations of one's own.
    pub fn as_raw_mut(&mut self) -> &mut [u8] {
        &mut self.pixels
    }

    /// The memory, which the next image can be decoded into.
    pub fn into_raw(self) -> Vec<u8> {
        self.pixels
    }

    /// Exchanges left and right: Pillow's `ImageOps.mirror`, torchvision's `hflip`.
    pub fn mirror(&mut self) {
        let (pixels, _) = self.pixels.as_chunks_mut::<CHANNELS>();
        pixels.chunks_exact_mut(self.width).for_each(<[_]>::reverse);
    }

    pub(super) fn row(&self, y: usize) -> &[u8] {
        let stride = self.width * CHANNELS;
        &self.pixels[y * stride..(y + 1) * stride]
    }

    /// The box, if it lies in the image.
    pub(super) fn check_within(&self, rect: Rect) -> Result<()> {
        let (width, height) = (self.width, self.height);
        if rect.is_within(width, height) {
            return Ok(());
        }
        let allowed = format!("a box of at least one pixel within {width} x {height}");
        Err(Error::invalid("rect", format!("{rect:?}"), allowed))
    }

    /// An image whose pixel (x, y) is this one's at (columns\[x\], rows\[y\]).
    pub(super) fn gathered(&self, columns: &[usize], rows: &[usize]) -> Self {
        let mut pixels = Vec::with_capacity(columns.len() * rows.len() * CHANNELS);
        for &y in rows {
            let (row, _) = self.row(y).as_chunks::<CHANNELS>();
            pixels.extend(columns.iter().flat_map(|&x| row[x]));
        }
        Self {
            width: columns.len(),
            height: rows.len(),
            pixels,
        }
    }
}

// Not a million numbers.
impl fmt::Debug for Image {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Image {{ {} x {} }}", self.width, self.height)
    }
}

/// How many values an image of that size has.
///
/// # Errors
/// [`Error::InvalidArgument`] for a size that no image has.
pub(super) fn num_values(width: usize, height: usize) -> Result<usize> {
    let pixels = width.checked_mul(height).filter(|n| (1..=MOST_PIXELS).contains(n));
    let values = pixels.and_then(|pixels| pixels.checked_mul(CHANNELS));
    values.ok_or_else(|| Error::invalid("size", format!("{width} x {height}"), "1 to 2^31 - 1 pixels"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_pixels_agree() {
        assert!(Image::from_raw(4, 3, vec![0; 36]).is_ok());
        for (width, height) in [
            (0, 3),
            (4, 0),
            (0, 0),
            (usize::MAX, 2),
            (1 << 20, 1 << 20),
            (usize::MAX, usize::MAX),
        ] {
            let refused = Image::from_raw(width, height, vec![]);
            assert!(matches!(refused, Err(Error::InvalidArgument { argument: "size", .. })));
        }
        let message = Image::from_raw(4, 3, vec![0; 35]).unwrap_err().to_string();
        assert_eq!(message, "pixels has shape [35], but must be [3 * 4 * 3]");
    }

    #[test]
    fn mirroring_exchanges_left_and_right_alone() {
        let mut image = Image::from_raw(3, 2, (0..18).collect()).unwrap();
        image.mirror();
        assert_eq!(
            image.pixels,
            [6, 7, 8, 3, 4, 5, 0, 1, 2, 15, 16, 17, 12, 13, 14, 9, 10, 11]
        );
    }
}
