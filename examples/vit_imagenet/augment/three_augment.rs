//! 3-Augment: exactly one of greyscale, solarize and Gaussian blur.
//!
//! H. Touvron, M. Cord, H. Jégou, "DeiT III: Revenge of the ViT", 2022 (arXiv 2204.07118), section 3.2.

use super::op::Op;
use rand::Rng;

pub fn three_augment(rng: &mut impl Rng) -> Op {
    match rng.random_range(0..3) {
        0 => Op::Greyscale,
        1 => Op::Solarize { threshold: 128 },
        _ => Op::GaussianBlur {
            radius: rng.random_range(0.1..=2.),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng;
    use rand_chacha::ChaCha8Rng;

    #[test]
    fn each_of_the_three_is_equally_likely() {
        let mut rng = ChaCha8Rng::seed_from_u64(0);
        let (mut count, mut smallest, mut largest) = ([0; 3], f64::MAX, 0f64);
        for _ in 0..3000 {
            match three_augment(&mut rng) {
                Op::Greyscale => count[0] += 1,
                Op::Solarize { threshold: 128 } => count[1] += 1,
                Op::GaussianBlur { radius } => {
                    count[2] += 1;
                    (smallest, largest) = (smallest.min(radius), largest.max(radius));
                }
                other => panic!("{other:?} is none of the three"),
            }
        }
        // 1000 expected, standard deviation 26.
        assert!(count.iter().all(|n| (880..1120).contains(n)), "{count:?}");
        assert!(
            (0.1..0.11).contains(&smallest) && (1.99..=2.).contains(&largest),
            "{smallest} {largest}"
        );
    }
}
