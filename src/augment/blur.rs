//! Gaussian blur as Pillow approximates it: three box blurs in each direction, whose boxes may end within a pixel.

use super::image::{Image, CHANNELS};
use super::simd::vectorized;

/// A box as wide as `2 * reach + 1` whole pixels and a part of the next one at both ends; weights in 1/2^24.
#[derive(Clone, Copy)]
struct Kernel {
    reach: usize,
    whole: u32,
    part: u32,
}

impl Kernel {
    /// The box of which `PASSES` in a row have the variance `radius`^2: P. Gwosdek et al., "Theoretical foundations of
    /// Gaussian convolution by extended box filtering", 2011.
    fn of(radius: f64) -> Self {
        let variance = radius * radius / PASSES as f64;
        let reach = (((12.0 * variance + 1.0).sqrt() - 1.0) / 2.0).floor();
        let wider = reach + 1.0;
        let part = (2.0 * reach + 1.0) * (reach * wider - 3.0 * variance) / (6.0 * (variance - wider * wider));
        let whole = (ONE as f64 / (2.0 * (reach + part) + 1.0)) as u32;
        let reach = reach as usize;
        Self {
            reach,
            whole,
            part: (ONE - (2 * reach as u32 + 1) * whole) / 2,
        }
    }
}

/// Largest radius: its box is wide, but its weights, in whole parts of 2^24, are still those of a Gaussian to 1/1000.
pub(super) const MOST_RADIUS: f64 = 1000.0;

const PASSES: usize = 3;
const ONE: u32 = 1 << 24;

/// Blurs with standard deviation `radius` in pixels; what lies outside looks like the outermost pixels.
pub(super) fn gaussian_blur(image: &mut Image, radius: f64) {
    if radius <= 0.0 {
        return;
    }
    let kernel = Kernel::of(radius);
    vectorized(
        #[inline(always)]
        || {
            blur_rows(image, kernel);
            blur_columns(image, kernel);
        },
    );
}

#[inline(always)]
fn blur_rows(image: &mut Image, kernel: Kernel) {
    let (stride, margin) = (image.width * CHANNELS, (kernel.reach + 1) * CHANNELS);
    let mut padded = vec![0; stride + 2 * margin];
    for row in image.pixels.chunks_exact_mut(stride) {
        for _ in 0..PASSES {
            padded[margin..margin + stride].copy_from_slice(row);
            for side in padded[..margin].chunks_exact_mut(CHANNELS) {
                side.copy_from_slice(&row[..CHANNELS]);
            }
            for side in padded[margin + stride..].chunks_exact_mut(CHANNELS) {
                side.copy_from_slice(&row[stride - CHANNELS..]);
            }
            let padded = &padded[..];
            average(
                row,
                kernel,
                #[inline(always)]
                |tap| &padded[tap * CHANNELS..][..stride],
            );
        }
    }
}

#[inline(always)]
fn blur_columns(image: &mut Image, kernel: Kernel) {
    let stride = image.width * CHANNELS;
    let mut source = image.pixels.clone();
    for pass in 0..PASSES {
        if pass > 0 {
            source.copy_from_slice(&image.pixels);
        }
        let last = image.height - 1;
        for (y, row) in image.pixels.chunks_exact_mut(stride).enumerate() {
            average(
                row,
                kernel,
                #[inline(always)]
                |tap| {
                    let from = (y + tap).saturating_sub(kernel.reach + 1).min(last);
                    &source[from * stride..][..stride]
                },
            );
        }
    }
}

/// Each value becomes the weighted mean of what stands at its place in `taps` 0 to 2 * reach + 2.
#[inline(always)]
fn average<'a>(out: &mut [u8], kernel: Kernel, taps: impl Fn(usize) -> &'a [u8]) {
    let Kernel { reach, whole, part } = kernel;
    let save = |whole_sum: u32, ends: u32| ((whole_sum * whole + ends * part + ONE / 2) >> 24) as u8;
    let n = out.len();
    let (first, last) = (&taps(0)[..n], &taps(2 * reach + 2)[..n]);
    match reach {
        // The two that radii up to 2 lead to, in one sweep.
        0 => {
            let middle = &taps(1)[..n];
            for i in 0..n {
                out[i] = save(middle[i] as u32, first[i] as u32 + last[i] as u32);
            }
        }
        1 => {
            let [a, b, c] = [1, 2, 3].map(|tap| &taps(tap)[..n]);
            for i in 0..n {
                out[i] = save(
                    a[i] as u32 + b[i] as u32 + c[i] as u32,
                    first[i] as u32 + last[i] as u32,
                );
            }
        }
        _ => {
            let mut sums = vec![0u32; n];
            for tap in 1..2 * reach + 2 {
                sums.iter_mut().zip(taps(tap)).for_each(|(sum, &v)| *sum += v as u32);
            }
            for i in 0..n {
                out[i] = save(sums[i], first[i] as u32 + last[i] as u32);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::image;
    use super::*;

    /// A bright dot in the dark.
    fn dot(side: usize) -> Image {
        let mut pixels = vec![0; side * side * 3];
        pixels[(side / 2 * side + side / 2) * 3..][..3].fill(255);
        image(side, side, pixels)
    }

    #[test]
    fn the_box_has_the_variance_of_the_gaussian() {
        for radius in [0.1, 0.5, 1.0, 1.5, 2.0, 3.7, 8.0] {
            let Kernel { reach, whole, part } = Kernel::of(radius);
            let weight = |k: usize| (if k <= reach { whole } else { part }) as f64 / ONE as f64;
            let sum: f64 = weight(0) + 2.0 * (1..=reach + 1).map(weight).sum::<f64>();
            let variance: f64 = 2.0 * (1..=reach + 1).map(|k| weight(k) * (k * k) as f64).sum::<f64>();
            assert!((sum - 1.0).abs() < 1e-6, "{radius}: {sum}");
            let wanted = radius * radius;
            assert!(
                (PASSES as f64 * variance - wanted).abs() < 1e-3 * wanted.max(0.1),
                "{radius}: {variance}"
            );
        }
    }

    #[test]
    fn a_dot_becomes_a_bell_of_the_same_light() {
        for radius in [0.6, 1.3, 1.9, 3.0] {
            let side = 41;
            let mut image = dot(side);
            gaussian_blur(&mut image, radius);
            for c in 0..3 {
                let at = |x: usize, y: usize| image.pixels[(y * side + x) * 3 + c] as f64;
                let centre = at(20, 20);
                let expected = 255.0 / (2.0 * std::f64::consts::PI * radius * radius);
                assert!(
                    (centre - expected).abs() < 0.2 * expected + 1.0,
                    "{radius}: {centre} {expected}"
                );
                assert_eq!(at(19, 20), at(21, 20));
                assert!((at(20, 19) - at(19, 20)).abs() <= 1.0); // rows are rounded before columns are blurred
                assert!(at(20, 20) >= at(21, 20) && at(21, 20) >= at(22, 20));
            }
        }
    }

    #[test]
    fn flat_images_of_any_size_stay() {
        for (width, height) in [(1, 1), (2, 1), (1, 5), (9, 4)] {
            for radius in [0.0, 0.1, 1.2, 2.0, 9.0] {
                let flat = image(width, height, vec![201; width * height * 3]);
                let mut blurred = flat.clone();
                gaussian_blur(&mut blurred, radius);
                assert_eq!(blurred, flat, "{radius}");
            }
        }
    }
}
