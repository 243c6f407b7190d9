//! A data set as the training loop sees it: batches of images with their labels.

use anyhow::Result;
use candle_core::Tensor;
use masksub::{KeyedRng, Seed};
use rand::Rng;

/// Images `[B, C, H, W]` f32, normalised, and their class indices `[B]` u32.
pub struct Batch {
    pub images: Tensor,
    pub labels: Tensor,
}

pub type Batches<'a> = Box<dyn Iterator<Item = Result<Batch>> + 'a>;

/// Images to train on and others to test on.
pub trait Dataset {
    fn num_classes(&self) -> usize;

    /// C, the channels of an image.
    fn channels(&self) -> usize;

    fn train_len(&self) -> usize;

    fn test_len(&self) -> usize;

    /// Every training image once, in an order that `(seed, epoch)` decides. The last batch may be smaller, and the one
    /// before it by one: see [`training_batches`].
    fn train_batches(&self, seed: u64, epoch: usize, batch_size: usize) -> Batches<'_>;

    /// Every test image once, in a fixed order. The last batch may be smaller.
    fn test_batches(&self, batch_size: usize) -> Batches<'_>;

    /// How many different images were left out so far because they could not be read.
    fn skipped(&self) -> usize {
        0
    }
}

/// What a draw is for. Two purposes never see the same numbers.
#[derive(Clone, Copy)]
#[repr(u32)]
pub enum Purpose {
    Split,
    Subset,
    Order,
    Augment,
}

/// A generator that depends on nothing but its key, so that threads and earlier draws change nothing.
pub fn rng(seed: u64, epoch: usize, index: usize, purpose: Purpose) -> KeyedRng {
    let purpose = masksub::Purpose::custom(purpose as u32);
    Seed::new(seed).at(epoch).rng(index, purpose)
}

/// The numbers below `n` in random order (Fisher-Yates; u32 draws, which are the same on 32- and 64-bit platforms).
pub fn permutation(n: usize, rng: &mut impl Rng) -> Vec<usize> {
    let mut order: Vec<usize> = (0..n).collect();
    for i in (1..n).rev() {
        order.swap(i, rng.random_range(0..=i as u32) as usize);
    }
    order
}

/// `order` in batches for training. The last may be smaller, but is not a single image where another could spare one:
/// batch norm of one image whose map is a single pixel has no variance to divide by.
pub fn training_batches(order: &[usize], batch_size: usize) -> Vec<Vec<usize>> {
    let mut batches: Vec<Vec<usize>> = order.chunks(batch_size).map(<[usize]>::to_vec).collect();
    if let [.., before, last] = &mut batches[..] {
        if last.len() == 1 && before.len() > 2 {
            last.splice(0..0, before.pop());
        }
    }
    batches
}

/// `n` of the numbers below `pool`, drawn by `seed`, sorted.
pub fn subset(pool: usize, n: usize, seed: u64) -> Result<Vec<usize>> {
    anyhow::ensure!(
        (1..=pool).contains(&n),
        "--train-size is {n}, but must be at least 1 and at most {pool}, the number of training images"
    );
    let mut drawn = permutation(pool, &mut rng(seed, 0, 0, Purpose::Subset));
    drawn.truncate(n);
    drawn.sort_unstable();
    Ok(drawn)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn permutation_holds_every_number_once() {
        let mut order = permutation(1000, &mut rng(1, 2, 0, Purpose::Order));
        assert_ne!(order, (0..1000).collect::<Vec<_>>());
        order.sort_unstable();
        assert_eq!(order, (0..1000).collect::<Vec<_>>());
        assert!(permutation(0, &mut rng(1, 2, 0, Purpose::Order)).is_empty());
    }

    #[test]
    fn every_part_of_the_key_counts() {
        let order = |seed, epoch, index, purpose| permutation(50, &mut rng(seed, epoch, index, purpose));
        let first = order(1, 2, 3, Purpose::Order);
        assert_eq!(first, order(1, 2, 3, Purpose::Order));
        for other in [
            order(2, 2, 3, Purpose::Order),
            order(1, 3, 3, Purpose::Order),
            order(1, 2, 4, Purpose::Order),
            order(1, 2, 3, Purpose::Subset),
        ] {
            assert_ne!(first, other);
        }
    }

    // Each of the 6 orders of 3 numbers: 1000 expected, standard deviation 29.
    #[test]
    fn permutations_are_equally_likely() {
        let mut count = std::collections::HashMap::new();
        for epoch in 0..6000 {
            *count
                .entry(permutation(3, &mut rng(0, epoch, 0, Purpose::Order)))
                .or_insert(0) += 1;
        }
        assert_eq!(count.len(), 6);
        assert!(count.values().all(|&n| (850..1150).contains(&n)), "{count:?}");
    }

    #[test]
    fn a_single_image_gets_company_from_the_batch_before() {
        let sizes = |images: usize, batch_size| {
            let order: Vec<usize> = (0..images).rev().collect();
            let batches = training_batches(&order, batch_size);
            assert_eq!(batches.concat(), order);
            // As many steps as the schedule counts.
            assert_eq!(batches.len(), images.div_ceil(batch_size));
            batches.iter().map(Vec::len).collect::<Vec<_>>()
        };
        assert_eq!(sizes(65, 64), [63, 2]);
        assert_eq!(sizes(129, 64), [64, 63, 2]);
        assert_eq!(sizes(66, 64), [64, 2]);
        assert_eq!(sizes(64, 64), [64]);
        assert_eq!(sizes(7, 3), [3, 2, 2]);
        // There is no other image, or none can be spared.
        assert_eq!(sizes(1, 64), [1]);
        assert_eq!(sizes(5, 2), [2, 2, 1]);
        assert_eq!(sizes(3, 1), [1, 1, 1]);
        assert!(sizes(0, 64).is_empty());
    }

    #[test]
    fn subset_is_sorted_distinct_and_of_the_asked_size() {
        let drawn = subset(1200, 300, 7).unwrap();
        assert_eq!(drawn.len(), 300);
        assert!(drawn.windows(2).all(|pair| pair[0] < pair[1]) && drawn[299] < 1200);
        assert_ne!(drawn, subset(1200, 300, 8).unwrap());
        assert_eq!(subset(5, 5, 0).unwrap(), [0, 1, 2, 3, 4]);
        assert_eq!(
            subset(1200, 1201, 0).unwrap_err().to_string(),
            "--train-size is 1201, but must be at least 1 and at most 1200, the number of training images"
        );
        assert!(subset(10, 0, 0).is_err());
    }
}
