//! Random resized crop: Inception's, as torchvision and timm draw it.

use rand::Rng;

use super::image::Image;
use super::interpolation::Interpolation;
use super::rect::Rect;
use super::size::side;
use crate::error::{Error, Result};

/// Cuts a box of a drawn area and aspect out of an image, and resizes it to a square: torchvision's
/// `RandomResizedCrop`, timm's `RandomResizedCropAndInterpolation`.
///
/// C. Szegedy et al., "Going deeper with convolutions", 2014 (arXiv 1409.4842), section 6.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RandomResizedCrop {
    size: usize,
    scale: (f64, f64),
    ratio: (f64, f64),
    interpolation: Interpolation,
}

const TRIES: usize = 10;

impl RandomResizedCrop {
    /// Smallest and largest share of the image's area, where nothing else is said.
    pub const SCALE: (f64, f64) = (0.08, 1.0);
    /// Lowest and highest width / height, where nothing else is said.
    pub const RATIO: (f64, f64) = (3.0 / 4.0, 4.0 / 3.0);

    /// Squares of `size` pixels from boxes of 8 to 100 % of the area and of aspect 3/4 to 4/3, resized by bicubic
    /// interpolation.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] when `size` is not 1 to 2^15.
    pub fn new(size: usize) -> Result<Self> {
        Ok(Self {
            size: side("size", size)?,
            scale: Self::SCALE,
            ratio: Self::RATIO,
            interpolation: Interpolation::Bicubic,
        })
    }

    /// Takes boxes of `smallest` to `largest` of the image's area.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] unless 0 < smallest <= largest <= 1.
    pub fn with_scale(self, smallest: f64, largest: f64) -> Result<Self> {
        if 0.0 < smallest && smallest <= largest && largest <= 1.0 {
            let scale = (smallest, largest);
            return Ok(Self { scale, ..self });
        }
        let given = format!("({smallest}, {largest})");
        Err(Error::invalid("scale", given, "rising, above 0 and at most 1"))
    }

    /// Takes boxes of aspect (width / height) `lowest` to `highest`, evenly on a logarithmic scale.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] unless 0 < lowest <= highest < infinity.
    pub fn with_ratio(self, lowest: f64, highest: f64) -> Result<Self> {
        if 0.0 < lowest && lowest <= highest && highest.is_finite() {
            let ratio = (lowest, highest);
            return Ok(Self { ratio, ..self });
        }
        let given = format!("({lowest}, {highest})");
        Err(Error::invalid("ratio", given, "rising, above 0 and finite"))
    }

    /// Resizes by this interpolation.
    pub fn with_interpolation(self, interpolation: Interpolation) -> Self {
        Self { interpolation, ..self }
    }

    /// The square [size, size, 3]: the box is drawn first, then, where it is random, the filter.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] when the image cannot be resized; no such image is known.
    pub fn apply(&self, image: &Image, rng: &mut impl Rng) -> Result<Image> {
        let rect = self.draw(image, rng);
        image.resized_crop(rect, self.size, self.size, self.interpolation.draw(rng))
    }

    /// The box for an image of this size. Ten tries, then the largest centred one whose aspect is allowed.
    pub fn draw(&self, image: &Image, rng: &mut impl Rng) -> Rect {
        let (width, height) = (image.width, image.height);
        let (lowest, highest) = self.ratio;
        for _ in 0..TRIES {
            let area = (width * height) as f64 * rng.random_range(self.scale.0..=self.scale.1);
            let aspect = rng.random_range(lowest.ln()..=highest.ln()).exp();
            let w = (area * aspect).sqrt().round_ties_even() as usize;
            let h = (area / aspect).sqrt().round_ties_even() as usize;
            if (1..=width).contains(&w) && (1..=height).contains(&h) {
                let mut place = |room: usize| rng.random_range(0..=room as u32) as usize;
                let top = place(height - h);
                return Rect {
                    left: place(width - w),
                    top,
                    width: w,
                    height: h,
                };
            }
        }
        let aspect = (width as f64 / height as f64).clamp(lowest, highest);
        let w = width.min((height as f64 * aspect).round_ties_even() as usize).max(1);
        let h = height.min((width as f64 / aspect).round_ties_even() as usize).max(1);
        Rect {
            left: (width - w) / 2,
            top: (height - h) / 2,
            width: w,
            height: h,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{noise, rng};
    use super::*;

    #[test]
    fn boxes_have_the_allowed_area_and_aspect() {
        let (mut smallest, mut largest) = (f64::MAX, 0f64);
        let (mut rng, image) = (rng(0), noise(400, 300));
        let mut shares = Vec::new();
        for _ in 0..4000 {
            let rect = RandomResizedCrop::new(224).unwrap().draw(&image, &mut rng);
            assert!(rect.left + rect.width <= 400 && rect.top + rect.height <= 300);
            let share = (rect.width * rect.height) as f64 / (400.0 * 300.0);
            let aspect = rect.width as f64 / rect.height as f64;
            assert!(
                (0.0785..=1.0).contains(&share) && (0.73..1.36).contains(&aspect),
                "{rect:?}"
            );
            (smallest, largest) = (smallest.min(share), largest.max(share));
            shares.push(share);
        }
        assert!(smallest < 0.09 && largest > 0.95, "{smallest} {largest}");
        // Shares up to 0.56 fit whatever the aspect (3/4 is the tallest), so they come evenly: quarters of 0.08 to
        // 0.56.
        let quarter = |i: usize| {
            let from = 0.08 + 0.12 * i as f64;
            shares
                .iter()
                .filter(|&&share| (from..from + 0.12).contains(&share))
                .count()
        };
        let counts = [0, 1, 2, 3].map(quarter);
        assert!(counts.iter().all(|n| n.abs_diff(counts[0]) < 150), "{counts:?}");
        // standard deviation of a difference: 34
    }

    #[test]
    fn images_too_narrow_for_any_aspect_give_a_centred_box() {
        let (mut rng, crop) = (rng(0), RandomResizedCrop::new(8).unwrap());
        let rect = crop.draw(&noise(10, 1000), &mut rng);
        assert_eq!((rect.width, rect.left), (10, 0));
        assert!(
            (12..=14).contains(&rect.height) && (490..=496).contains(&rect.top),
            "{rect:?}"
        );
        let square = crop.apply(&noise(1, 1), &mut rng).unwrap();
        assert_eq!((square.width(), square.height()), (8, 8));
    }

    #[test]
    fn ranges_are_set_and_checked() {
        let crop = RandomResizedCrop::new(8).unwrap();
        let (mut rng, image) = (rng(0), noise(100, 100));
        let half = crop.with_scale(0.5, 0.5).unwrap().with_ratio(2.0, 2.0).unwrap();
        let rect = half.draw(&image, &mut rng);
        assert_eq!((rect.width, rect.height), (100, 50));
        for (low, high) in [
            (0.0, 1.0),
            (0.5, 0.4),
            (f64::NAN, 1.0),
            (0.1, f64::NAN),
            (0.1, f64::INFINITY),
        ] {
            assert!(crop.with_scale(low, high).is_err() && crop.with_ratio(low, high).is_err());
        }
        assert!(crop.with_scale(0.1, 1.001).is_err());
        assert!(RandomResizedCrop::new(0).is_err() && RandomResizedCrop::new((1 << 15) + 1).is_err());
        // As far from a square as numbers go.
        for (low, high) in [(f64::MIN_POSITIVE, f64::MAX), (f64::MAX, f64::MAX), (1e-300, 1e-300)] {
            crop.with_ratio(low, high).unwrap().apply(&image, &mut rng).unwrap();
        }
    }
}
