//! Blends of an image with a plainer version of itself: brightness, contrast, saturation, sharpness, greyscale.
//!
//! A factor of 0 is the plain version, 1 the image, more than 1 goes beyond it. Values are truncated, as Pillow does
//! it.

use super::image::{Image, CHANNELS};
use super::simd::{byte, vectorized};
use super::tone;

/// Blends with black.
pub(super) fn brightness(image: &mut Image, factor: f64) {
    blend_with_level(image, 0, factor);
}

/// Blends with the mean grey level.
pub(super) fn contrast(image: &mut Image, factor: f64) {
    let (pixels, _) = image.pixels.as_chunks::<CHANNELS>();
    let sum: u64 = pixels.iter().map(|&pixel| luma(pixel) as u64).sum();
    let mean = sum as f64 / pixels.len().max(1) as f64;
    blend_with_level(image, (mean + 0.5) as u8, factor);
}

/// Blends with greyscale.
pub(super) fn saturation(image: &mut Image, factor: f64) {
    // In blocks: what is interleaved does not vectorize, so that is kept apart from what does.
    const BLOCK: usize = 64;
    vectorized(
        #[inline(always)]
        || {
            let mut plain = [[0; CHANNELS]; BLOCK];
            for block in image.pixels.chunks_mut(BLOCK * CHANNELS) {
                let (pixels, _) = block.as_chunks::<CHANNELS>();
                plain
                    .iter_mut()
                    .zip(pixels)
                    .for_each(|(plain, pixel)| *plain = [luma(*pixel); CHANNELS]);
                let blended = block.iter_mut().zip(plain.as_flattened());
                blended.for_each(|(v, &plain)| *v = blend(plain, *v, factor as f32));
            }
        },
    );
}

/// Blends with a smoothed image: the mean of the nine pixels around, of which the middle one counts five times. The
/// outermost pixels stay as they are.
pub(super) fn sharpness(image: &mut Image, factor: f64) {
    let stride = image.width * CHANNELS;
    if image.width < 3 || image.height < 3 {
        return;
    }
    let source = image.pixels.clone();
    vectorized(
        #[inline(always)]
        || {
            for y in 1..image.height - 1 {
                let [above, row, below] = [y - 1, y, y + 1].map(|y| &source[y * stride..(y + 1) * stride]);
                let out = &mut image.pixels[y * stride + CHANNELS..(y + 1) * stride - CHANNELS];
                let [left, middle, right] = [0, CHANNELS, 2 * CHANNELS].map(|from| from..from + out.len());
                let column = |part: &std::ops::Range<usize>| {
                    let [above, row, below] = [above, row, below].map(|row| row[part.clone()].iter());
                    above
                        .zip(row)
                        .zip(below)
                        .map(|((&a, &b), &c)| a as u16 + b as u16 + c as u16)
                };
                let sums = column(&left).zip(column(&middle)).zip(column(&right));
                for ((out, ((a, b), c)), &v) in out.iter_mut().zip(sums).zip(&row[middle.clone()]) {
                    let sum = a + b + c + 4 * v as u16;
                    let smooth = byte(sum as f32 / 13.0 + 0.5);
                    *out = blend(smooth, v, factor as f32);
                }
            }
        },
    );
}

/// The grey level in all channels.
pub(super) fn grayscale(image: &mut Image) {
    let (pixels, _) = image.pixels.as_chunks_mut::<CHANNELS>();
    pixels.iter_mut().for_each(|pixel| *pixel = [luma(*pixel); CHANNELS]);
}

/// The grey level of a colour, of ITU-R 601 in sixteen bits of fraction. Of a grey it is the same grey.
#[inline(always)]
pub(super) fn luma([red, green, blue]: [u8; CHANNELS]) -> u8 {
    ((red as u32 * 19595 + green as u32 * 38470 + blue as u32 * 7471 + 0x8000) >> 16) as u8
}

fn blend_with_level(image: &mut Image, level: u8, factor: f64) {
    tone::map(
        image,
        #[inline(always)]
        |v| blend(level, v, factor as f32),
    );
}

#[inline(always)]
fn blend(plain: u8, value: u8, factor: f32) -> u8 {
    byte(plain as f32 + factor * (value as f32 - plain as f32))
}

#[cfg(test)]
mod tests {
    use super::super::testing::image;
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_factor_of_one_changes_nothing_and_zero_leaves_the_plain_version(
            width in 3usize..7,
            values in prop::collection::vec(any::<u8>(), 6 * 5 * 3),
        ) {
            let image = image(width, 5, values[..width * 5 * 3].to_vec());
            for op in [brightness, contrast, saturation, sharpness] {
                let mut same = image.clone();
                op(&mut same, 1.0);
                prop_assert_eq!(&same, &image);
            }
            let plain = |op: fn(&mut Image, f64)| {
                let mut plain = image.clone();
                op(&mut plain, 0.0);
                plain
            };
            prop_assert!(plain(brightness).pixels.iter().all(|&v| v == 0));
            let flat = plain(contrast);
            prop_assert!(flat.pixels.iter().all(|&v| v == flat.pixels[0]));
            let mut grey = image.clone();
            grayscale(&mut grey);
            prop_assert_eq!(&plain(saturation), &grey);
            // The smoothed one, pixel by pixel.
            let smooth = plain(sharpness);
            for (i, &v) in smooth.pixels.iter().enumerate() {
                let (x, y, c) = (i / 3 % width, i / 3 / width, i % 3);
                let at = |x: usize, y: usize| image.pixels[(y * width + x) * 3 + c] as f64;
                let expected = if x == 0 || y == 0 || x == width - 1 || y == 4 {
                    at(x, y)
                } else {
                    let sum: f64 = (0..9).map(|k| at(x + k % 3 - 1, y + k / 3 - 1)).sum();
                    ((sum + 4.0 * at(x, y)) / 13.0).round()
                };
                prop_assert_eq!(v as f64, expected);
            }
        }
    }

    #[test]
    fn greys_stay_what_they_are() {
        for v in 0..=255 {
            assert_eq!(luma([v; 3]), v);
        }
    }

    #[test]
    fn images_too_small_to_smooth_stay() {
        for (width, height) in [(1, 1), (1, 9), (2, 9), (9, 2)] {
            let image = image(width, height, (0..width * height * 3).map(|v| v as u8).collect());
            let mut same = image.clone();
            sharpness(&mut same, 0.0);
            assert_eq!(same, image);
        }
    }
}
