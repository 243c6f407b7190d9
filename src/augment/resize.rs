//! Resizing as Pillow computes it: antialiased, on eight-bit values, to within 1/255.

use std::cell::RefCell;

use fast_image_resize::images::{TypedCroppedImage, TypedImage, TypedImageRef};
use fast_image_resize::pixels::U8x3;
use fast_image_resize::{FilterType, ImageView, ResizeAlg, ResizeOptions, Resizer};

use super::image::{num_values, Image};
use super::rect::Rect;
use crate::check;
use crate::error::{Error, Result};

/// Interpolation filter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Filter {
    /// Pillow's `BILINEAR`.
    Bilinear,
    /// Pillow's `BICUBIC`: the cubic with a = -1/2 where images are resized, with a = -1 where they are turned or
    /// moved.
    Bicubic,
}

thread_local! {
    // Keeps its buffers between images.
    static RESIZER: RefCell<Resizer> = RefCell::new(Resizer::new());
}

impl Image {
    /// This image at another size. Pillow's `Image.resize`.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] when a side is 0, or the image has more values than memory can hold.
    pub fn resized(&self, width: usize, height: usize, filter: Filter) -> Result<Self> {
        self.resized_window(width, height, Rect::whole(width, height), filter)
    }

    /// The box `rect` of this image at another size: pixels outside of it play no part. torchvision's `resized_crop`,
    /// Pillow's `crop` and then `resize`.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] when `rect` is empty or not within the image, or that size is no image's.
    pub fn resized_crop(&self, rect: Rect, width: usize, height: usize, filter: Filter) -> Result<Self> {
        self.check_within(rect)?;
        if rect == Rect::whole(self.width, self.height) {
            return self.resized(width, height, filter);
        }
        let [left, top, w, h] = [rect.left, rect.top, rect.width, rect.height].map(|n| n as u32);
        let source = TypedCroppedImage::new(self.view()?, left, top, w, h).map_err(refused)?;
        resize(&source, width, height, &options(filter))
    }

    /// The part `window` of what the whole image would be at `width` x `height`. Only that part is computed, which is
    /// what makes a strip of one pixel by a thousand affordable.
    pub(super) fn resized_window(&self, width: usize, height: usize, window: Rect, filter: Filter) -> Result<Self> {
        if window == Rect::whole(width, height) {
            return resize(&self.view()?, width, height, &options(filter));
        }
        let (x, y) = (self.width as f64 / width as f64, self.height as f64 / height as f64);
        // Rounding must not carry the right or lower edge over the image's.
        let (left, top) = (window.left as f64 * x, window.top as f64 * y);
        let columns = (window.width as f64 * x).min(self.width as f64 - left);
        let rows = (window.height as f64 * y).min(self.height as f64 - top);
        // One direction at a time, in the order and with the rounding of both at once. For those, fast_image_resize 6.1
        // takes the first pixel's leftmost source for the leftmost of all; where its weight is exactly 0 it is not, and
        // memory before the row is read.
        let reach = (REACH * x.max(1.0)).ceil() + 1.0;
        let first = (left - reach).floor().max(0.0);
        let end = (left + columns + reach).ceil().min(self.width as f64);
        let strip = options(filter).crop(first, top, end - first, rows);
        let strip = resize(&self.view()?, (end - first) as usize, window.height, &strip)?;
        let across = options(filter).crop(left - first, 0.0, columns, window.height as f64);
        resize(&strip.view()?, window.width, window.height, &across)
    }

    fn view(&self) -> Result<TypedImageRef<'_, U8x3>> {
        TypedImageRef::from_buffer(self.width as u32, self.height as u32, &self.pixels).map_err(refused)
    }
}

/// Pixels that the wider filter, the cubic, reaches to either side, where it is not widened.
const REACH: f64 = 2.0;

fn options(filter: Filter) -> ResizeOptions {
    let filter = match filter {
        Filter::Bilinear => FilterType::Bilinear,
        // Catmull and Rom's cubic (a = -1/2) is Pillow's BICUBIC for resizing.
        Filter::Bicubic => FilterType::CatmullRom,
    };
    ResizeOptions::new().resize_alg(ResizeAlg::Convolution(filter))
}

fn resize(
    source: &impl ImageView<Pixel = U8x3>,
    width: usize,
    height: usize,
    options: &ResizeOptions,
) -> Result<Image> {
    let values = num_values(width, height)?;
    // Weights of the pixels that each row and each column of the result is made of, in two precisions.
    let weights = |from: u32, to: usize| {
        let scale = f64::from(from) / to as f64;
        let taps = 2 * (REACH * scale.max(1.0)).ceil() as usize + 1;
        to.checked_mul(taps)?.checked_mul(2 * size_of::<f64>())
    };
    let tables = weights(source.width(), width).zip(weights(source.height(), height));
    // The image between the two directions, as wide as the new one and as high as the old.
    let between = width
        .checked_mul(source.height() as usize)
        .and_then(|pixels| pixels.checked_mul(3));
    let bytes = tables.zip(between).and_then(|((columns, rows), between)| {
        let tables = columns.checked_add(rows)?;
        values.checked_add(tables)?.checked_add(between)
    });
    check::fits_memory("size", format!("{width} x {height}"), bytes, 1)?;
    let mut pixels = vec![0; values];
    let target = TypedImage::<U8x3>::from_buffer(width as u32, height as u32, &mut pixels);
    let mut target = target.map_err(refused)?;
    let resized = RESIZER.with_borrow_mut(|resizer| resizer.resize_typed(source, &mut target, options));
    resized.map_err(refused)?;
    Image::from_raw(width, height, pixels)
}

/// What cannot happen after the checks above, as an error instead of a panic.
fn refused(error: impl std::fmt::Display) -> Error {
    Error::invalid("size", error, "one that can be resized")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Windows whose first or last pixel lies exactly on one of the source, where the cubic has zeros: read from before
    /// the row in fast_image_resize 6.1.0, and a crash for some sizes.
    #[test]
    fn windows_are_pieces_of_the_whole_wherever_they_lie() {
        for (w, h, width, height) in [
            (40, 1, 280, 7),
            (1, 40, 7, 280),
            (9, 5, 27, 15),
            (7, 9, 63, 27),
            (30, 20, 10, 7),
        ] {
            let image = super::super::testing::noise(w, h);
            for filter in [Filter::Bilinear, Filter::Bicubic] {
                let whole = image.resized(width, height, filter).unwrap();
                let side = width.min(height);
                for left in 0..=width - side {
                    let top = (left * 5) % (height - side + 1);
                    let window = Rect {
                        left,
                        top,
                        width: side,
                        height: side,
                    };
                    let part = image.resized_window(width, height, window, filter).unwrap();
                    for y in 0..side {
                        let expected = &whole.row(top + y)[left * 3..(left + side) * 3];
                        let far = part.row(y).iter().zip(expected).find(|(a, b)| a.abs_diff(**b) > 1);
                        assert!(far.is_none(), "{w} x {h} at {width} x {height}, {window:?}: {far:?}");
                    }
                }
            }
        }
    }

    #[test]
    fn resizing_is_antialiased_and_blind_to_what_lies_outside() {
        // Every eighth column is bright: an eighth of the light, wherever a pixel of the small image is sampled. Right
        // of the box all is bright, and must not leak in.
        let (width, height) = (64, 32);
        let bright = |x: usize| if x >= 32 || x.is_multiple_of(8) { 200 } else { 0 };
        let pixels = (0..width * height).flat_map(|i| [bright(i % width); 3]).collect();
        let stripes = Image::from_raw(width, height, pixels).unwrap();
        let small = stripes
            .resized_crop(Rect::whole(32, 32), 4, 4, Filter::Bicubic)
            .unwrap();
        let row: Vec<u8> = (0..4)
            .map(|at| widened_cubic(&|x| bright(x) as f64, 32, 4, at))
            .collect();
        assert!(row.iter().all(|v| (10..=40).contains(v)), "{row:?}");
        let off = |(at, v): (usize, &u8)| v.abs_diff(row[at / 3 % 4]);
        assert!(
            small.pixels.iter().enumerate().all(|pixel| off(pixel) <= 1),
            "{:?}",
            small.pixels
        );
    }

    /// Pixel `at` of `to`, from `from` pixels, by Pillow's rule: the cubic of Keys (a = -1/2), as wide as the
    /// reduction, cut at the border and normalised.
    fn widened_cubic(pixel: &dyn Fn(usize) -> f64, from: usize, to: usize, at: usize) -> u8 {
        let scale = from as f64 / to as f64;
        let cubic = |x: f64| match x.abs() {
            x if x < 1.0 => (1.5 * x - 2.5) * x * x + 1.0,
            x if x < 2.0 => ((-0.5 * x + 2.5) * x - 4.0) * x + 2.0,
            _ => 0.0,
        };
        let centre = (at as f64 + 0.5) * scale;
        let weights: Vec<f64> = (0..from).map(|x| cubic((x as f64 + 0.5 - centre) / scale)).collect();
        let sum: f64 = weights.iter().enumerate().map(|(x, w)| w * pixel(x)).sum();
        (sum / weights.iter().sum::<f64>()).round() as u8
    }

    #[test]
    fn sizes_and_boxes_that_do_not_exist_are_refused() {
        let image = Image::from_raw(4, 3, vec![7; 36]).unwrap();
        let argument = |refused: Result<Image>| match refused {
            Err(Error::InvalidArgument { argument, .. }) => argument,
            other => panic!("{other:?}"),
        };
        for (width, height) in [(0, 2), (2, 0), (1 << 31, 1), (usize::MAX, 2), (usize::MAX, usize::MAX)] {
            assert_eq!(argument(image.resized(width, height, Filter::Bilinear)), "size");
            let rect = Rect::whole(2, 2);
            assert_eq!(
                argument(image.resized_crop(rect, width, height, Filter::Bilinear)),
                "size"
            );
        }
        let whole = Rect::whole(4, 3);
        for rect in [
            Rect { width: 5, ..whole },
            Rect { height: 0, ..whole },
            Rect { left: 1, ..whole },
            Rect {
                left: usize::MAX,
                ..whole
            },
            Rect {
                top: 3,
                height: 1,
                ..whole
            },
            Rect {
                top: 1,
                height: usize::MAX,
                ..whole
            },
        ] {
            assert_eq!(argument(image.resized_crop(rect, 2, 2, Filter::Bicubic)), "rect");
        }
        assert_eq!(image.resized_crop(whole, 4, 3, Filter::Bicubic).unwrap(), image);
    }
}
