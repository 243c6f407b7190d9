//! Where the data's random draws come from: each from a key of its own.

use masksub::{KeyedRng, Seed};

/// What a draw is for. Two purposes never see the same numbers.
#[derive(Clone, Copy)]
#[repr(u32)]
pub enum Purpose {
    Split,
    Subset,
    Order,
    Crop,
    Flip,
    AutoAugment,
    Jitter,
    Erase,
}

/// A generator that depends on nothing but its key, so that threads and earlier draws change nothing.
pub fn rng(seed: u64, epoch: usize, index: usize, purpose: Purpose) -> KeyedRng {
    let purpose = masksub::Purpose::custom(purpose as u32);
    Seed::new(seed).at(epoch).rng(index, purpose)
}

/// The same for an image that an epoch shows several times. The first is what [`rng`] gives.
pub fn repeat_rng(seed: u64, epoch: usize, index: usize, repeat: usize, purpose: Purpose) -> KeyedRng {
    const PURPOSES: u32 = 1 << 8;
    let purpose = masksub::Purpose::custom(purpose as u32 + PURPOSES * repeat as u32);
    Seed::new(seed).at(epoch).rng(index, purpose)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::order::permutation;

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
        // No repeat draws what another purpose does.
        let repeat = |repeat, purpose| permutation(50, &mut repeat_rng(1, 2, 3, repeat, purpose));
        assert_eq!(repeat(0, Purpose::Order), first);
        for purpose in [Purpose::Split, Purpose::Order, Purpose::Crop, Purpose::Erase] {
            assert!((1..4).all(|n| repeat(n, purpose) != first && repeat(n, purpose) != repeat(n + 1, purpose)));
        }
    }
}
