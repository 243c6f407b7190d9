//! 3-Augment: exactly one of greyscale, solarize and Gaussian blur.

use rand::Rng;

use super::image::Image;
use super::operation::{Kind, Operation};

/// Does exactly one of three things to an image, each as likely: greyscale, solarize from 128 on, or a Gaussian blur of
/// radius 0.1 to 2.
///
/// H. Touvron, M. Cord, H. Jégou, "DeiT III: Revenge of the ViT", 2022 (arXiv 2204.07118), section 3.2; DeiT's
/// `augment.py`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ThreeAugment;

impl ThreeAugment {
    /// Changes the image.
    pub fn apply(&self, image: &mut Image, rng: &mut impl Rng) {
        self.draw(rng).apply(image);
    }

    /// The operation for one image.
    pub fn draw(&self, rng: &mut impl Rng) -> Operation {
        Operation(match rng.random_range(0..3) {
            0 => Kind::Grayscale,
            1 => Kind::Solarize { threshold: 128 },
            _ => Kind::GaussianBlur {
                radius: rng.random_range(0.1..=2.0),
            },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::rng;
    use super::*;

    #[test]
    fn each_of_the_three_is_equally_likely() {
        let mut rng = rng(0);
        let (mut count, mut smallest, mut largest) = ([0; 3], f64::MAX, 0f64);
        for _ in 0..3000 {
            match ThreeAugment.draw(&mut rng).0 {
                Kind::Grayscale => count[0] += 1,
                Kind::Solarize { threshold: 128 } => count[1] += 1,
                Kind::GaussianBlur { radius } => {
                    count[2] += 1;
                    (smallest, largest) = (smallest.min(radius), largest.max(radius));
                }
                other => panic!("{other:?} is none of the three"),
            }
        }
        // 1000 expected, standard deviation 26.
        assert!(count.iter().all(|n| (880..1120).contains(n)), "{count:?}");
        assert!(
            (0.1..0.11).contains(&smallest) && (1.99..=2.0).contains(&largest),
            "{smallest} {largest}"
        );
    }
}
