//! From an image of any size to a square: random resized crop, simple random crop, and evaluation's centre.

use super::pixels::{Area, Filter, Pixels};
use anyhow::{ensure, Result};
use rand::Rng;

/// Inception's crop, as torchvision draws it: a box of a drawn area and aspect, resized.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RandomResizedCrop {
    /// Smallest and largest share of the image's area.
    pub scale: (f64, f64),
    /// Lowest and highest width / height.
    pub aspect: (f64, f64),
}

impl Default for RandomResizedCrop {
    /// What all recipes take.
    fn default() -> Self {
        Self {
            scale: (0.08, 1.),
            aspect: (3. / 4., 4. / 3.),
        }
    }
}

impl RandomResizedCrop {
    /// Ten tries at a box, then the largest centred one whose aspect is allowed.
    pub fn draw(&self, width: usize, height: usize, rng: &mut impl Rng) -> Area {
        let (lowest, highest) = self.aspect;
        for _ in 0..10 {
            let area = (width * height) as f64 * rng.random_range(self.scale.0..=self.scale.1);
            let aspect = rng.random_range(lowest.ln()..=highest.ln()).exp();
            let w = (area * aspect).sqrt().round_ties_even() as usize;
            let h = (area / aspect).sqrt().round_ties_even() as usize;
            if (1..=width).contains(&w) && (1..=height).contains(&h) {
                let mut place = |room: usize| rng.random_range(0..=room as u32) as usize;
                let top = place(height - h);
                return Area {
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
        Area {
            left: (width - w) / 2,
            top: (height - h) / 2,
            width: w,
            height: h,
        }
    }
}

/// DeiT-III's simple random crop: the shorter side resized to the result's, a margin reflected on, a random square cut.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SimpleCrop {
    pub pad: usize,
}

impl Default for SimpleCrop {
    fn default() -> Self {
        Self { pad: 4 }
    }
}

impl SimpleCrop {
    /// Where the square lies, counted from the corner of the margin.
    pub fn draw(self, image: &Pixels, side: usize, rng: &mut impl Rng) -> (usize, usize) {
        let (width, height) = shorter_side_to(image, side);
        let mut place = |length: usize| rng.random_range(0..=(length + 2 * self.pad - side) as u32) as usize;
        let top = place(height);
        (place(width), top)
    }

    pub fn cut(self, image: &Pixels, side: usize, (left, top): (usize, usize), filter: Filter) -> Result<Pixels> {
        let (width, height) = shorter_side_to(image, side);
        // Reflection without the edge itself needs that many pixels.
        ensure!(
            self.pad < side,
            "images of {side} pixels cannot be padded with {} reflected ones",
            self.pad
        );
        let reflected = |from: usize, length: usize| -> Vec<usize> {
            let place = |at: usize| {
                let at = (at as isize - self.pad as isize).unsigned_abs();
                at.min((2 * (length - 1)).saturating_sub(at))
            };
            (from..from + side).map(place).collect()
        };
        let (mut columns, mut rows) = (reflected(left, width), reflected(top, height));
        // Only what is looked at is resized.
        let bounds = |places: &[usize]| {
            let first = places.iter().copied().min().unwrap_or(0);
            (first, places.iter().copied().max().unwrap_or(0) - first + 1)
        };
        let ((left, w), (top, h)) = (bounds(&columns), bounds(&rows));
        columns.iter_mut().for_each(|x| *x -= left);
        rows.iter_mut().for_each(|y| *y -= top);
        let window = Area {
            left,
            top,
            width: w,
            height: h,
        };
        Ok(image
            .resized_window(width, height, window, filter)?
            .gathered(&columns, &rows))
    }
}

/// The shorter side resized to `shorter`, then the centre: torchvision's `Resize` and `CenterCrop`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct CentreCrop {
    /// Length of the shorter side, at least the square's.
    pub shorter: usize,
}

impl CentreCrop {
    /// Such that the square is `share` of the shorter side.
    pub fn of_share(side: usize, share: f64) -> Self {
        Self {
            shorter: ((side as f64 / share) as usize).max(side),
        }
    }

    pub fn cut(self, image: &Pixels, side: usize, filter: Filter) -> Result<Pixels> {
        let (width, height) = shorter_side_to(image, self.shorter);
        let centre = |length: usize| ((length - side) as f64 / 2.).round_ties_even() as usize;
        let window = Area {
            left: centre(width),
            top: centre(height),
            width: side,
            height: side,
        };
        image.resized_window(width, height, window, filter)
    }
}

/// The size at which the shorter side is `side`.
fn shorter_side_to(image: &Pixels, side: usize) -> (usize, usize) {
    let longer = |long: usize, short: usize| (side * long / short).max(side);
    match image.width <= image.height {
        true => (side, longer(image.height, image.width)),
        false => (longer(image.width, image.height), side),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng;
    use rand_chacha::ChaCha8Rng;

    fn noise(width: usize, height: usize) -> Pixels {
        let value = |i: usize| ((i as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8;
        Pixels {
            width,
            height,
            values: (0..width * height * 3).map(value).collect(),
        }
    }

    #[test]
    fn boxes_have_the_allowed_area_and_aspect() {
        let (mut smallest, mut largest) = (f64::MAX, 0f64);
        let mut rng = ChaCha8Rng::seed_from_u64(0);
        let mut shares = Vec::new();
        for _ in 0..4000 {
            let area = RandomResizedCrop::default().draw(400, 300, &mut rng);
            assert!(area.left + area.width <= 400 && area.top + area.height <= 300);
            let share = (area.width * area.height) as f64 / (400. * 300.);
            let aspect = area.width as f64 / area.height as f64;
            assert!(
                (0.0785..=1.).contains(&share) && (0.73..1.36).contains(&aspect),
                "{area:?}"
            );
            (smallest, largest) = (smallest.min(share), largest.max(share));
            shares.push(share);
        }
        assert!(smallest < 0.09 && largest > 0.95, "{smallest} {largest}");
        // Shares up to 0.56 fit whatever the aspect (3/4 is the tallest), so they come evenly: quarters of 0.08 to 0.56.
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
        let mut rng = ChaCha8Rng::seed_from_u64(0);
        let area = RandomResizedCrop::default().draw(10, 1000, &mut rng);
        assert_eq!((area.width, area.left), (10, 0));
        assert!(
            (12..=14).contains(&area.height) && (490..=496).contains(&area.top),
            "{area:?}"
        );
        RandomResizedCrop::default().draw(1, 1, &mut rng);
    }

    // Resized as a whole, padded pixel by pixel, cut: no window, no bounds.
    #[test]
    fn a_simple_crop_is_a_piece_of_the_padded_image() {
        for (width, height, side) in [(40, 30, 16), (30, 70, 20), (12, 12, 6)] {
            let image = noise(width, height);
            let (w, h) = shorter_side_to(&image, side);
            let whole = image.resized(image.whole(), w, h, Filter::Bicubic).unwrap();
            let crop = SimpleCrop::default();
            let mut rng = ChaCha8Rng::seed_from_u64(3);
            let mut seen = std::collections::BTreeSet::new();
            for _ in 0..300 {
                let (left, top) = crop.draw(&image, side, &mut rng);
                assert!(left <= w + 8 - side && top <= h + 8 - side);
                seen.insert((left, top));
                let cut = crop.cut(&image, side, (left, top), Filter::Bicubic).unwrap();
                let reflect = |at: isize, length: usize| match at {
                    ..0 => -at,
                    at if at >= length as isize => 2 * (length as isize - 1) - at,
                    at => at,
                };
                for y in 0..side {
                    for x in 0..side {
                        let (fx, fy) = (
                            reflect((left + x) as isize - 4, w) as usize,
                            reflect((top + y) as isize - 4, h) as usize,
                        );
                        for c in 0..3 {
                            let (ours, theirs) =
                                (cut.values[(y * side + x) * 3 + c], whole.values[(fy * w + fx) * 3 + c]);
                            assert!(ours.abs_diff(theirs) <= 1, "{x} {y}");
                        }
                    }
                }
            }
            assert!(seen.len() > 50, "{}", seen.len());
        }
        assert!(SimpleCrop::default()
            .cut(&noise(9, 9), 4, (0, 0), Filter::Bicubic)
            .is_err());
    }

    #[test]
    fn evaluation_takes_the_centre_of_the_resized_image() {
        for (width, height, side, share) in [(50, 40, 16, 0.875), (33, 90, 24, 1.), (20, 20, 16, 0.5)] {
            let image = noise(width, height);
            let crop = CentreCrop::of_share(side, share);
            let (w, h) = shorter_side_to(&image, crop.shorter);
            let whole = image.resized(image.whole(), w, h, Filter::Bicubic).unwrap();
            let centre = whole.cropped(Area {
                left: ((w - side) as f64 / 2.).round_ties_even() as usize,
                top: ((h - side) as f64 / 2.).round_ties_even() as usize,
                width: side,
                height: side,
            });
            let cut = crop.cut(&image, side, Filter::Bicubic).unwrap();
            assert!(cut.values.iter().zip(&centre.values).all(|(a, b)| a.abs_diff(*b) <= 1));
        }
    }

    // Resized as a whole it would be 224 x 22400000 pixels.
    #[test]
    fn a_hair_costs_no_more_than_its_square() {
        let hair = noise(1, 100_000);
        let cut = CentreCrop::of_share(224, 0.875)
            .cut(&hair, 224, Filter::Bicubic)
            .unwrap();
        assert_eq!((cut.width, cut.height), (224, 224));
        let mut rng = ChaCha8Rng::seed_from_u64(0);
        let place = SimpleCrop::default().draw(&hair, 224, &mut rng);
        let cut = SimpleCrop::default().cut(&hair, 224, place, Filter::Bicubic).unwrap();
        assert_eq!((cut.width, cut.height), (224, 224));
    }
}
