//! Rotations, shears and translations: affine maps from a place in the result to one in the image.

use std::cell::RefCell;

use super::image::{Image, CHANNELS};
use super::resize::Filter;
use super::simd::{byte, vectorized};

/// How pixels are made up where an image is turned or moved: from its own by `filter`, and outside of it `fill`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Resample {
    pub(super) filter: Filter,
    pub(super) fill: [u8; CHANNELS],
}

/// Counter-clockwise about the centre.
pub(super) fn rotate(image: &Image, degrees: f64, resample: Resample) -> Image {
    let (sin, cos) = (-degrees.to_radians()).sin_cos();
    let (x, y) = (image.width as f64 / 2.0, image.height as f64 / 2.0);
    let map = [cos, sin, x - cos * x - sin * y, -sin, cos, y + sin * x - cos * y];
    transform(image, map, resample)
}

/// Each row is moved left by `factor` times its height below the top.
pub(super) fn shear_x(image: &Image, factor: f64, resample: Resample) -> Image {
    transform(image, [1.0, factor, 0.0, 0.0, 1.0, 0.0], resample)
}

/// Each column is moved up by `factor` times its distance from the left.
pub(super) fn shear_y(image: &Image, factor: f64, resample: Resample) -> Image {
    transform(image, [1.0, 0.0, 0.0, factor, 1.0, 0.0], resample)
}

/// To the left by `share` of the width.
pub(super) fn translate_x(image: &Image, share: f64, resample: Resample) -> Image {
    let pixels = share * image.width as f64;
    transform(image, [1.0, 0.0, pixels, 0.0, 1.0, 0.0], resample)
}

/// Up by `share` of the height.
pub(super) fn translate_y(image: &Image, share: f64, resample: Resample) -> Image {
    let pixels = share * image.height as f64;
    transform(image, [1.0, 0.0, 0.0, 0.0, 1.0, pixels], resample)
}

/// Image that a filter looks at, along one axis.
const TAPS: usize = 4;

thread_local! {
    // Fresh memory of this size would cost a good part of what the filter does.
    static SOURCE: RefCell<Source> = RefCell::default();
}

/// The result's pixel (x, y) shows the image at (a x + b y + c, d x + e y + f), of pixels' centres; the fill where that
/// is outside. Nothing is antialiased, and the outermost pixels go on behind the edge.
fn transform(image: &Image, map: [f64; 6], resample: Resample) -> Image {
    let (width, height) = (image.width, image.height);
    let mut pixels = vec![0; image.pixels.len()];
    SOURCE.with_borrow_mut(|source| {
        vectorized(
            #[inline(always)]
            || {
                source.fill(image);
                let (pixels, _) = pixels.as_chunks_mut::<CHANNELS>();
                let [red, green, blue] = resample.fill;
                let mut line = vec![[0; LANES]; width];
                for (y, row) in pixels.chunks_exact_mut(width).enumerate() {
                    for (x, out) in line.iter_mut().enumerate() {
                        let (x, y) = (x as f64 + 0.5, y as f64 + 0.5);
                        let (x, y) = (map[0] * x + map[1] * y + map[2], map[3] * x + map[4] * y + map[5]);
                        let inside = x >= 0.0 && x < width as f64 && y >= 0.0 && y < height as f64;
                        *out = if inside {
                            source.sample(x - 0.5, y - 0.5, resample.filter)
                        } else {
                            [red, green, blue, 0]
                        };
                    }
                    row.iter_mut()
                        .zip(&line)
                        .for_each(|(out, &[red, green, blue, _])| *out = [red, green, blue]);
                }
            },
        );
    });
    Image { width, height, pixels }
}

/// A pixel as a register holds it. The fourth value is idle, but computed and stored like the others: the compiler
/// would split the register where it knows that nobody looks at it.
type Lanes = [f32; LANES];
const LANES: usize = 4;

/// The image with its outermost pixels repeated around it, as far as a filter reaches from a place in it.
#[derive(Default)]
struct Source {
    pixels: Vec<Lanes>,
    stride: usize,
}

impl Source {
    const MARGIN: usize = TAPS / 2;

    #[inline(always)]
    fn fill(&mut self, image: &Image) {
        self.stride = image.width + 2 * Self::MARGIN;
        self.pixels.clear();
        let lanes = |&[r, g, b]: &[u8; CHANNELS]| [r as f32, g as f32, b as f32, 0.0];
        for y in 0..image.height + 2 * Self::MARGIN {
            let y = y.saturating_sub(Self::MARGIN).min(image.height - 1);
            let (row, _) = image.row(y).as_chunks::<CHANNELS>();
            let ends = [row.first(), row.last()].map(|end| end.map(lanes).unwrap_or_default());
            self.pixels.extend([ends[0]; Self::MARGIN]);
            self.pixels.extend(row.iter().map(lanes));
            self.pixels.extend([ends[1]; Self::MARGIN]);
        }
    }

    /// The value at (x, y), where whole numbers are pixels' centres, less than half a pixel outside at the most.
    #[inline(always)]
    fn sample(&self, x: f64, y: f64, filter: Filter) -> [u8; LANES] {
        let (left, top) = (x.floor(), y.floor());
        let (across, down) = (weights((x - left) as f32, filter), weights((y - top) as f32, filter));
        // The first tap is one pixel before; -1 is the first place of the margin's second pixel.
        let (left, top) = ((left as i32 + 1) as usize, (top as i32 + 1) as usize);
        // Between whole rows or columns (shears, translations) only one counts.
        let rows = if down[1] == 1.0 { 1..2 } else { 0..TAPS };
        let mut sum: Lanes = [0.0; LANES];
        for row in rows {
            let taps = &self.pixels[(top + row) * self.stride + left..][..TAPS];
            let mut along: Lanes = [0.0; LANES];
            for tap in 0..TAPS {
                for lane in 0..LANES {
                    along[lane] += across[tap] * taps[tap][lane];
                }
            }
            for lane in 0..LANES {
                sum[lane] += down[row] * along[lane];
            }
        }
        // Truncated, but a whole number that rounding has put a hair below itself stays.
        sum.map(|v| byte(v + 1e-3))
    }
}

/// What the four pixels around a place count, `at` of the way from the second to the third. Pillow's bicubic transform
/// is the cubic with a = -1, unlike its resizing.
#[inline(always)]
fn weights(at: f32, filter: Filter) -> [f32; TAPS] {
    match filter {
        Filter::Bilinear => [0.0, 1.0 - at, at, 0.0],
        Filter::Bicubic => {
            let (square, cube) = (at * at, at * at * at);
            [
                -at + 2.0 * square - cube,
                1.0 - 2.0 * square + cube,
                at + square - cube,
                cube - square,
            ]
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::image;
    use super::*;
    use proptest::prelude::*;

    const FILL: [u8; 3] = [9, 8, 7];

    fn ramp(width: usize, height: usize) -> Image {
        let pixel = |i: usize| [(i % width * 9) as u8, (i / width * 7) as u8, 50];
        image(width, height, (0..width * height).flat_map(pixel).collect())
    }

    #[test]
    fn whole_steps_move_pixels_exactly_and_fill_the_rest() {
        let image = ramp(20, 10);
        for filter in [Filter::Bilinear, Filter::Bicubic] {
            let resample = Resample { filter, fill: FILL };
            let moved = translate_x(&image, 0.15, resample); // three pixels
            for y in 0..10 {
                let (row, from) = (moved.row(y), image.row(y));
                assert_eq!(row[..17 * 3], from[3 * 3..]);
                assert_eq!(row[17 * 3..], FILL.repeat(3));
            }
            let moved = translate_y(&image, -0.2, resample);
            assert_eq!(moved.pixels[..2 * 60], FILL.repeat(40));
            assert_eq!(moved.pixels[2 * 60..], image.pixels[..8 * 60]);
            assert_eq!(rotate(&image, 0.0, resample), image);
            let mut half_turn = image.clone();
            half_turn.pixels = image.pixels.rchunks(3).flatten().copied().collect();
            assert_eq!(rotate(&image, 180.0, resample), half_turn);
        }
    }

    proptest! {
        // The definition, tap by tap in f64, with Pillow's nesting of the cubic.
        #[test]
        fn every_pixel_is_the_cubic_of_its_sixteen_neighbours(
            width in 1usize..24,
            height in 1usize..24,
            degrees in -180f64..180.,
            seed in any::<u64>(),
        ) {
            let noise = |i: usize| (seed.wrapping_mul(i as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8;
            let image = image(width, height, (0..width * height * 3).map(noise).collect());
            let turned = rotate(&image, degrees, Resample { filter: Filter::Bicubic, fill: FILL });
            let (sin, cos) = degrees.to_radians().sin_cos();
            let (cx, cy) = (width as f64 / 2.0, height as f64 / 2.0);
            for (i, &v) in turned.pixels.iter().enumerate() {
                let (px, py, c) = (i / 3 % width, i / 3 / width, i % 3);
                let (dx, dy) = (px as f64 + 0.5 - cx, py as f64 + 0.5 - cy);
                let (x, y) = (cos * dx - sin * dy + cx, sin * dx + cos * dy + cy);
                let near_edge = |at: f64, side: usize| at.abs() < 1e-9 || (at - side as f64).abs() < 1e-9;
                if near_edge(x, width) || near_edge(y, height) {
                    continue; // inside or outside by rounding
                }
                if x < 0.0 || y < 0.0 || x > width as f64 || y > height as f64 {
                    prop_assert_eq!(v, FILL[c]);
                    continue;
                }
                let at = |x: f64, y: f64| {
                    let (x, y) = (x.clamp(0.0, width as f64 - 1.0), y.clamp(0.0, height as f64 - 1.0));
                    image.pixels[(y as usize * width + x as usize) * 3 + c] as f64
                };
                let cubic = |v: [f64; 4], d: f64| {
                    let [p, q, r, s] = v;
                    q + d * (r - p + d * (2.0 * (p - q) + r - s + d * (q - p - r + s)))
                };
                let (x, y) = (x - 0.5, y - 0.5);
                let rows = [-1.0, 0.0, 1.0, 2.0].map(|j| {
                    cubic([-1.0, 0.0, 1.0, 2.0].map(|i| at(x.floor() + i, y.floor() + j)), x - x.floor())
                });
                let expected = cubic(rows, y - y.floor()).clamp(0.0, 255.0);
                prop_assert!((v as f64 - expected.floor()).abs() <= 1.0, "{} {} {}", i, v, expected);
            }
        }
    }
}
