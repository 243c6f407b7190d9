//! Simple random crop: DeiT-III's.

use rand::Rng;

use super::image::Image;
use super::interpolation::Interpolation;
use super::rect::Rect;
use super::resize::Filter;
use super::size::{shorter_side_to, side};
use crate::error::{Error, Result};

/// Resizes the shorter side to the square's, reflects a margin on all around, and cuts a random square: torchvision's
/// `Resize(size)` and `RandomCrop(size, padding=4, padding_mode="reflect")`.
///
/// H. Touvron, M. Cord, H. Jégou, "DeiT III: Revenge of the ViT", 2022 (arXiv 2204.07118), section 3.2; DeiT's
/// `augment.py`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SimpleRandomCrop {
    size: usize,
    padding: usize,
    interpolation: Interpolation,
}

impl SimpleRandomCrop {
    /// Pixels of the margin, where nothing else is said.
    pub const PADDING: usize = 4;

    /// Squares of `size` pixels, with a margin of 4, resized by bicubic interpolation.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] when `size` is not 5 to 2^15: a margin is reflected without the edge itself, and
    /// needs that many pixels.
    pub fn new(size: usize) -> Result<Self> {
        let crop = Self {
            size: side("size", size)?,
            padding: 0,
            interpolation: Interpolation::Bicubic,
        };
        crop.with_padding(Self::PADDING)
    }

    /// Reflects a margin of `padding` pixels; 0 reflects none.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] when `padding` is not below the square's side.
    pub fn with_padding(self, padding: usize) -> Result<Self> {
        if padding < self.size {
            return Ok(Self { padding, ..self });
        }
        let allowed = format!("below {}, the size: a margin of reflected pixels", self.size);
        Err(Error::invalid("padding", padding, allowed))
    }

    /// Resizes by this interpolation.
    pub fn with_interpolation(self, interpolation: Interpolation) -> Self {
        Self { interpolation, ..self }
    }

    /// The square [size, size, 3]: its place is drawn first, then, where it is random, the filter.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] when the image cannot be resized; no such image is known.
    pub fn apply(&self, image: &Image, rng: &mut impl Rng) -> Result<Image> {
        let (width, height) = shorter_side_to(image, self.size);
        let mut place = |length: usize| {
            let room = length + 2 * self.padding - self.size;
            rng.random_range(0..=u32::try_from(room).unwrap_or(u32::MAX)) as usize
        };
        let top = place(height);
        let left = place(width);
        self.crop_at(image, left, top, self.interpolation.draw(rng))
    }

    /// The square whose corner is in column `left` and row `top` of the resized image with its margin, whose own corner
    /// is (0, 0).
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] when the square leaves the margin.
    pub fn crop_at(&self, image: &Image, left: usize, top: usize, filter: Filter) -> Result<Image> {
        let (width, height) = shorter_side_to(image, self.size);
        let mut columns = self.reflected("left", left, width)?;
        let mut rows = self.reflected("top", top, height)?;
        // Only what is looked at is resized.
        let bounds = |places: &[usize]| {
            let first = places.iter().copied().min().unwrap_or(0);
            (first, places.iter().copied().max().unwrap_or(0) - first + 1)
        };
        let ((left, w), (top, h)) = (bounds(&columns), bounds(&rows));
        columns.iter_mut().for_each(|x| *x -= left);
        rows.iter_mut().for_each(|y| *y -= top);
        let window = Rect {
            left,
            top,
            width: w,
            height: h,
        };
        let resized = image.resized_window(width, height, window, filter)?;
        Ok(resized.gathered(&columns, &rows))
    }

    /// The places, of `length` in a row, that the square shows from `from` on.
    fn reflected(&self, argument: &'static str, from: usize, length: usize) -> Result<Vec<usize>> {
        let last = length + 2 * self.padding - self.size;
        if from > last {
            return Err(Error::invalid(argument, from, format!("at most {last}")));
        }
        let place = |at: usize| {
            let at = at.abs_diff(self.padding);
            at.min((2 * (length - 1)).saturating_sub(at))
        };
        Ok((from..from + self.size).map(place).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{noise, rng};
    use super::*;
    use std::collections::BTreeSet;

    // Resized as a whole, padded pixel by pixel, cut: no window, no bounds.
    #[test]
    fn a_crop_is_a_piece_of_the_padded_image() {
        for (width, height, side) in [(40, 30, 16), (30, 70, 20), (12, 12, 6)] {
            let image = noise(width, height);
            let (w, h) = shorter_side_to(&image, side);
            let whole = image.resized(w, h, Filter::Bicubic).unwrap();
            let crop = SimpleRandomCrop::new(side).unwrap();
            let reflect = |at: isize, length: usize| match at {
                ..0 => -at as usize,
                at if at >= length as isize => (2 * (length as isize - 1) - at) as usize,
                at => at as usize,
            };
            for (left, top) in (0..w + 9 - side).flat_map(|left| (0..h + 9 - side).map(move |top| (left, top))) {
                let cut = crop.crop_at(&image, left, top, Filter::Bicubic).unwrap();
                for (i, &ours) in cut.as_raw().iter().enumerate() {
                    let (x, y, c) = (i / 3 % side, i / 3 / side, i % 3);
                    let fx = reflect((left + x) as isize - 4, w);
                    let fy = reflect((top + y) as isize - 4, h);
                    let theirs = whole.as_raw()[(fy * w + fx) * 3 + c];
                    assert!(ours.abs_diff(theirs) <= 1, "{x} {y}");
                }
            }
            for (left, top) in [(w + 9 - side, 0), (0, h + 9 - side), (usize::MAX, 0)] {
                assert!(crop.crop_at(&image, left, top, Filter::Bicubic).is_err());
            }
        }
    }

    // Of a ramp that is not resized, the middle tells where it was cut.
    #[test]
    fn every_place_is_drawn() {
        let ramp = (0..16 * 16).flat_map(|i| [i % 16, i / 16, 0]).map(|v| v as u8);
        let image = Image::from_raw(16, 16, ramp.collect()).unwrap();
        let (crop, mut rng) = (SimpleRandomCrop::new(16).unwrap(), rng(3));
        let mut seen = BTreeSet::new();
        for _ in 0..2000 {
            let cut = crop.apply(&image, &mut rng).unwrap();
            let middle = (8 * 16 + 8) * 3;
            seen.insert((cut.as_raw()[middle], cut.as_raw()[middle + 1]));
        }
        assert_eq!(seen.len(), 81); // -4 to 4 in both directions
        assert!(seen.contains(&(4, 4)) && seen.contains(&(12, 12)), "{seen:?}");
    }

    // Resized as a whole it would be 224 x 22400000 pixels.
    #[test]
    fn a_hair_costs_no_more_than_its_square() {
        let cut = SimpleRandomCrop::new(224)
            .unwrap()
            .apply(&noise(1, 100_000), &mut rng(0));
        let cut = cut.unwrap();
        assert_eq!((cut.width(), cut.height()), (224, 224));
    }

    #[test]
    fn a_margin_needs_as_many_pixels() {
        assert!(SimpleRandomCrop::new(4).is_err() && SimpleRandomCrop::new(5).is_ok());
        let crop = SimpleRandomCrop::new(8).unwrap();
        let message = crop.with_padding(8).unwrap_err().to_string();
        assert!(message.starts_with("padding is 8, but must be below 8"), "{message}");
        let bare = crop.with_padding(0).unwrap();
        let image = noise(8, 8);
        assert_eq!(bare.apply(&image, &mut rng(0)).unwrap(), image);
    }
}
