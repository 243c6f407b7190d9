//! Random erasing: a box of noise in a normalised image.

use rand::Rng;
use rand_distr::{Distribution, StandardNormal};

use super::rect::Rect;
use crate::check;
use crate::error::{Error, Result};

/// Replaces one box of a normalised image by normal noise, pixel by pixel: timm's `RandomErasing(mode="pixel")`, of 2 %
/// to a third of the area and of aspect 0.3 to 1/0.3.
///
/// Z. Zhong et al., "Random Erasing Data Augmentation", 2017 (arXiv 1708.04896), with timm's ranges.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RandomErasing {
    prob: f64,
}

const AREA: (f64, f64) = (0.02, 1.0 / 3.0);
const ASPECT: (f64, f64) = (0.3, 1.0 / 0.3);
const TRIES: usize = 10;

impl RandomErasing {
    /// Erases with probability `prob`: 0.25 in the recipes.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] when `prob` is not within [0, 1].
    pub fn new(prob: f64) -> Result<Self> {
        Ok(Self {
            prob: check::share("prob", prob)?,
        })
    }

    /// Changes an image `values` [C, H, W] of `size` (H, W), whose values are normalised, in all channels; or leaves
    /// it. No box fits into a very small image.
    ///
    /// ```
    /// use candle_core::{Device, Tensor};
    /// use masksub::augment::{Image, Normalize, RandomErasing};
    /// use masksub::{Purpose, Seed};
    /// let image = Image::from_raw(24, 16, vec![128; 24 * 16 * 3])?;
    /// let mut values = Normalize::IMAGENET.to_vec(&image);
    /// let mut rng = Seed::new(0).at(0).rng(0, Purpose::custom(4));
    /// RandomErasing::new(0.25)?.apply(&mut values, (16, 24), &mut rng)?;
    /// let tensor = Tensor::from_vec(values, (3, 16, 24), &Device::Cpu)?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::Shape`] when the number of values is no multiple of H W, or that is 0.
    pub fn apply(&self, values: &mut [f32], size: (usize, usize), rng: &mut impl Rng) -> Result<()> {
        let (height, width) = size;
        let plane = height
            .checked_mul(width)
            .filter(|&n| n > 0 && values.len().is_multiple_of(n));
        let Some(plane) = plane else {
            let expected = format!("[C * {height} * {width}], of at least one pixel");
            return Err(Error::shape("values", &[values.len()], expected));
        };
        let Some(rect) = self.draw(height, width, rng) else {
            return Ok(());
        };
        for plane in values.chunks_exact_mut(plane) {
            for row in plane.chunks_exact_mut(width).skip(rect.top).take(rect.height) {
                let noise = StandardNormal.sample_iter(&mut *rng);
                row[rect.left..][..rect.width]
                    .iter_mut()
                    .zip(noise)
                    .for_each(|(v, noise)| *v = noise);
            }
        }
        Ok(())
    }

    /// The box, if there is one: none when no try fits.
    fn draw(&self, height: usize, width: usize, rng: &mut impl Rng) -> Option<Rect> {
        if !rng.random_bool(self.prob) {
            return None;
        }
        for _ in 0..TRIES {
            let area = (height * width) as f64 * rng.random_range(AREA.0..=AREA.1);
            let aspect = rng.random_range(ASPECT.0.ln()..=ASPECT.1.ln()).exp();
            let h = (area * aspect).sqrt().round_ties_even() as usize;
            let w = (area / aspect).sqrt().round_ties_even() as usize;
            if w < width && h < height {
                let mut place = |room: usize| rng.random_range(0..=u32::try_from(room).unwrap_or(u32::MAX)) as usize;
                let top = place(height - h);
                return Some(Rect {
                    left: place(width - w),
                    top,
                    width: w,
                    height: h,
                });
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::rng;
    use super::*;

    #[test]
    fn one_box_of_allowed_size_is_noise_and_the_rest_stays() {
        const SIDE: usize = 40;
        let (mut erased, mut smallest, mut largest) = (0, 1f64, 0f64);
        let (mut sum, mut squares, mut n) = (0f64, 0f64, 0f64);
        let erasing = RandomErasing::new(0.25).unwrap();
        for seed in 0..2000 {
            let mut image = vec![7f32; 3 * SIDE * SIDE];
            erasing.apply(&mut image, (SIDE, SIDE), &mut rng(seed)).unwrap();
            let changed = |y: usize, x: usize, c: usize| image[(c * SIDE + y) * SIDE + x] != 7.0;
            let rows: Vec<usize> = (0..SIDE).filter(|&y| (0..SIDE).any(|x| changed(y, x, 0))).collect();
            let columns: Vec<usize> = (0..SIDE).filter(|&x| (0..SIDE).any(|y| changed(y, x, 0))).collect();
            let (Some(top), Some(left)) = (rows.first(), columns.first()) else {
                assert!(image.iter().all(|&v| v == 7.0));
                continue;
            };
            erased += 1;
            // All of the box, in all channels, and nothing else.
            let (bottom, right) = (top + rows.len(), left + columns.len());
            for c in 0..3 {
                for y in 0..SIDE {
                    for x in 0..SIDE {
                        let inside = (*top..bottom).contains(&y) && (*left..right).contains(&x);
                        assert_eq!(changed(y, x, c), inside, "{seed}: {x} {y} {c}");
                    }
                }
            }
            let (height, width) = (rows.len() as f64, columns.len() as f64);
            let share = height * width / (SIDE * SIDE) as f64;
            (smallest, largest) = (smallest.min(share), largest.max(share));
            // Sides are rounded to whole pixels.
            assert!((height + 0.5) / (width - 0.5) > 0.3 && (height - 0.5) / (width + 0.5) < 1.0 / 0.3);
            for &v in image.iter().filter(|&&v| v != 7.0) {
                (sum, squares, n) = (sum + v as f64, squares + (v as f64).powi(2), n + 1.0);
            }
        }
        assert!((420..580).contains(&erased), "{erased} of 2000 with probability 1/4");
        assert!(
            (0.013..0.03).contains(&smallest) && (0.31..0.355).contains(&largest),
            "{smallest} {largest}"
        );
        let (mean, variance) = (sum / n, squares / n);
        assert!(mean.abs() < 0.01 && (variance - 1.0).abs() < 0.02, "{mean} {variance}");
    }

    #[test]
    fn images_too_small_for_a_box_stay() {
        let certain = RandomErasing::new(1.0).unwrap();
        for seed in 0..100 {
            let mut image = vec![7f32; 3];
            certain.apply(&mut image, (1, 1), &mut rng(seed)).unwrap();
            assert_eq!(image, [7.0; 3]); // a box of no pixels at the most
        }
    }

    #[test]
    fn images_need_not_be_square_and_their_size_must_fit() {
        let certain = RandomErasing::new(1.0).unwrap();
        let mut erased = 0;
        for seed in 0..100 {
            let mut image = vec![7f32; 2 * 12 * 30];
            certain.apply(&mut image, (12, 30), &mut rng(seed)).unwrap();
            let columns = (0..30).filter(|x| (0..12).any(|y| image[y * 30 + x] != 7.0)).count();
            erased += usize::from(columns > 12);
        }
        assert!(erased > 10, "{erased} boxes wider than the image is high");
        for (len, size) in [(5, (2, 3)), (4, (0, 2)), (4, (2, 0)), (4, (usize::MAX, 2)), (0, (0, 0))] {
            let refused = certain.apply(&mut vec![7.0; len], size, &mut rng(0));
            assert!(
                matches!(refused, Err(Error::Shape { argument: "values", .. })),
                "{size:?}"
            );
        }
        assert!(certain.apply(&mut [], (2, 2), &mut rng(0)).is_ok()); // no channel
        assert!(RandomErasing::new(1.1).is_err());
    }
}
