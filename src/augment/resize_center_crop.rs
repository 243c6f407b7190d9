//! Resize and centre crop: evaluation's.

use super::image::Image;
use super::rect::Rect;
use super::resize::Filter;
use super::size::{shorter_side_to, side};
use crate::check;
use crate::error::{Error, Result};

/// Resizes the shorter side and takes the centre: torchvision's `Resize` and `CenterCrop`, computed as one. Nothing is
/// drawn.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ResizeCenterCrop {
    size: usize,
    shorter: usize,
    filter: Filter,
}

impl ResizeCenterCrop {
    /// Squares of `size` pixels that show the whole of the shorter side, resized by bicubic interpolation.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] when `size` is not 1 to 2^15.
    pub fn new(size: usize) -> Result<Self> {
        Ok(Self {
            size: side("size", size)?,
            shorter: size,
            filter: Filter::Bicubic,
        })
    }

    /// Shows this share of the shorter side, which is resized to size / `crop_pct`: a share (0.875), in spite of the
    /// name that timm gives it.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] when `crop_pct` is not above 0 and at most 1, or so small that the shorter side would
    /// have more than 2^15 pixels.
    pub fn with_crop_pct(self, crop_pct: f64) -> Result<Self> {
        let crop_pct = check::positive_share("crop_pct", crop_pct)?;
        self.with_shorter_side((self.size as f64 / crop_pct) as usize)
    }

    /// Resizes the shorter side to `shorter` pixels: torchvision's `Resize(256)` before `CenterCrop(224)`.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] when `shorter` is less than the square's side or more than 2^15.
    pub fn with_shorter_side(self, shorter: usize) -> Result<Self> {
        if shorter < self.size {
            let allowed = format!("at least {}, the size", self.size);
            return Err(Error::invalid("shorter_side", shorter, allowed));
        }
        let shorter = side("shorter_side", shorter)?;
        Ok(Self { shorter, ..self })
    }

    /// Resizes by this filter.
    pub fn with_filter(self, filter: Filter) -> Self {
        Self { filter, ..self }
    }

    /// The square [size, size, 3].
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] when the image cannot be resized; no such image is known.
    pub fn apply(&self, image: &Image) -> Result<Image> {
        let (width, height) = shorter_side_to(image, self.shorter);
        let centre = |length: usize| ((length - self.size) as f64 / 2.0).round_ties_even() as usize;
        let window = Rect {
            left: centre(width),
            top: centre(height),
            width: self.size,
            height: self.size,
        };
        image.resized_window(width, height, window, self.filter)
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::noise;
    use super::*;

    #[test]
    fn the_centre_is_that_of_the_resized_image() {
        for (width, height, side, crop_pct) in [(50, 40, 16, 0.875), (33, 90, 24, 1.0), (20, 20, 16, 0.5)] {
            let image = noise(width, height);
            let crop = ResizeCenterCrop::new(side).unwrap().with_crop_pct(crop_pct).unwrap();
            let (w, h) = shorter_side_to(&image, crop.shorter);
            let whole = image.resized(w, h, Filter::Bicubic).unwrap();
            let left = ((w - side) as f64 / 2.0).round_ties_even() as usize;
            let top = ((h - side) as f64 / 2.0).round_ties_even() as usize;
            let cut = crop.apply(&image).unwrap();
            assert_eq!((cut.width(), cut.height()), (side, side));
            for y in 0..side {
                let centre = &whole.row(top + y)[left * 3..(left + side) * 3];
                assert!(cut.row(y).iter().zip(centre).all(|(a, b)| a.abs_diff(*b) <= 1));
            }
        }
    }

    #[test]
    fn the_shorter_side_is_told_by_its_length_or_by_a_share() {
        let crop = ResizeCenterCrop::new(224).unwrap();
        assert_eq!(crop.with_crop_pct(0.875).unwrap(), crop.with_shorter_side(256).unwrap());
        assert_eq!(crop.with_crop_pct(1.0).unwrap(), crop);
        for crop_pct in [0.0, 1.01, f64::NAN, 1e-9, f64::MIN_POSITIVE] {
            assert!(crop.with_crop_pct(crop_pct).is_err(), "{crop_pct}");
        }
        assert!(crop.with_shorter_side(223).is_err() && crop.with_shorter_side(1 << 16).is_err());
    }

    // Resized as a whole it would be 256 x 25600000 pixels.
    #[test]
    fn a_hair_costs_no_more_than_its_square() {
        let crop = ResizeCenterCrop::new(224).unwrap().with_crop_pct(0.875).unwrap();
        let cut = crop.apply(&noise(1, 100_000)).unwrap();
        assert_eq!((cut.width(), cut.height()), (224, 224));
    }
}
