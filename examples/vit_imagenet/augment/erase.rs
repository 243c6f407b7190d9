//! Random erasing: a box of noise in a normalised image.
//!
//! Z. Zhong et al., "Random Erasing Data Augmentation", 2017 (arXiv 1708.04896), with timm's ranges.

use super::pixels::Area;
use rand::Rng;
use rand_distr::{Distribution, StandardNormal};

/// With probability `prob` one box of 2 % to a third of the area and of aspect 0.3 to 1/0.3.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RandomErasing {
    pub prob: f64,
}

const AREA: (f64, f64) = (0.02, 1. / 3.);
const ASPECT: (f64, f64) = (0.3, 1. / 0.3);
const TRIES: usize = 10;

impl RandomErasing {
    /// Fills the box with normal noise, in every channel of `image` `[C, side, side]`.
    pub fn apply(self, image: &mut [f32], side: usize, rng: &mut impl Rng) {
        let Some(area) = self.draw(side, rng) else { return };
        for plane in image.chunks_exact_mut(side * side) {
            for row in plane.chunks_exact_mut(side).skip(area.top).take(area.height) {
                let noise = StandardNormal.sample_iter(&mut *rng);
                row[area.left..][..area.width]
                    .iter_mut()
                    .zip(noise)
                    .for_each(|(v, noise)| *v = noise);
            }
        }
    }

    /// The box, if there is one: none when no try fits, as in a very small image.
    fn draw(self, side: usize, rng: &mut impl Rng) -> Option<Area> {
        if !rng.random_bool(self.prob) {
            return None;
        }
        for _ in 0..TRIES {
            let area = (side * side) as f64 * rng.random_range(AREA.0..=AREA.1);
            let aspect = rng.random_range(ASPECT.0.ln()..=ASPECT.1.ln()).exp();
            let height = (area * aspect).sqrt().round_ties_even() as usize;
            let width = (area / aspect).sqrt().round_ties_even() as usize;
            if width < side && height < side {
                return Some(Area {
                    top: rng.random_range(0..=(side - height) as u32) as usize,
                    left: rng.random_range(0..=(side - width) as u32) as usize,
                    width,
                    height,
                });
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng;
    use rand_chacha::ChaCha8Rng;

    #[test]
    fn one_box_of_allowed_size_is_noise_and_the_rest_stays() {
        const SIDE: usize = 40;
        let (mut erased, mut smallest, mut largest) = (0, 1f64, 0f64);
        let (mut sum, mut squares, mut n) = (0f64, 0f64, 0f64);
        for seed in 0..2000 {
            let mut image = vec![7f32; 3 * SIDE * SIDE];
            RandomErasing { prob: 0.25 }.apply(&mut image, SIDE, &mut ChaCha8Rng::seed_from_u64(seed));
            let changed = |y: usize, x: usize, c: usize| image[(c * SIDE + y) * SIDE + x] != 7.;
            let rows: Vec<usize> = (0..SIDE).filter(|&y| (0..SIDE).any(|x| changed(y, x, 0))).collect();
            let columns: Vec<usize> = (0..SIDE).filter(|&x| (0..SIDE).any(|y| changed(y, x, 0))).collect();
            let (Some(top), Some(left)) = (rows.first(), columns.first()) else {
                assert!(image.iter().all(|&v| v == 7.));
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
            assert!((height + 0.5) / (width - 0.5) > 0.3 && (height - 0.5) / (width + 0.5) < 1. / 0.3);
            for &v in image.iter().filter(|&&v| v != 7.) {
                (sum, squares, n) = (sum + v as f64, squares + (v as f64).powi(2), n + 1.);
            }
        }
        assert!((420..580).contains(&erased), "{erased} of 2000 with probability 1/4");
        assert!(
            (0.013..0.03).contains(&smallest) && (0.31..0.355).contains(&largest),
            "{smallest} {largest}"
        );
        let (mean, variance) = (sum / n, squares / n);
        assert!(mean.abs() < 0.01 && (variance - 1.).abs() < 0.02, "{mean} {variance}");
    }

    #[test]
    fn images_too_small_for_a_box_stay() {
        for seed in 0..100 {
            let mut image = vec![7f32; 3];
            RandomErasing { prob: 1. }.apply(&mut image, 1, &mut ChaCha8Rng::seed_from_u64(seed));
            assert_eq!(image, [7.; 3]); // a box of no pixels at the most
        }
    }
}
