//! Where a random draw comes from: a seed, a step, a sample and a purpose, and nothing else.
//!
//! There is no generator that is passed along and advanced. Every draw starts a generator of its own from the four
//! numbers, so a run resumes at any step, a micro-batch draws what the whole batch would, and what one layer draws does
//! not move what another one does. After the habit of JAX's keys (`jax.random.fold_in`).

use rand::{RngCore, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// The seed of a run.
///
/// ```
/// use masksub::Seed;
/// let seed = Seed::new(7);
/// assert_eq!(seed.at(3), seed.at(3));
/// assert_ne!(seed.at(3), seed.at(4));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Seed(u64);

impl Seed {
    /// A seed. All values are good ones.
    pub const fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The number it was made from.
    pub const fn value(self) -> u64 {
        self.0
    }

    /// The key of training step `step`, or of any other count, such as an epoch.
    pub const fn at(self, step: usize) -> StepKey {
        StepKey {
            seed: self.0,
            step: step as u64,
            first_sample: 0,
            replica: 0,
        }
    }

    /// A generator for something that has a name instead of a step, such as the initial value of a weight.
    pub fn rng_for(self, name: &str) -> KeyedRng {
        let (low, high) = (fnv1a(name, 0xcbf2_9ce4_8422_2325), fnv1a(name, 0x6c62_272e_07bb_0142));
        KeyedRng::new([self.0, low, high, Purpose::NAMED.0], 0)
    }
}

/// The key of one training step. It is a value without state: copied, passed by value, and the same wherever it comes
/// from, so that a run resumes at `(seed, step)`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct StepKey {
    seed: u64,
    step: u64,
    first_sample: u64,
    replica: u64,
}

impl StepKey {
    /// The key of a micro-batch, or of one rank's share, whose first sample is number `first_sample` of the whole
    /// batch. Its samples draw what they draw in the whole batch.
    pub const fn with_first_sample(self, first_sample: usize) -> Self {
        Self {
            first_sample: first_sample as u64,
            ..self
        }
    }

    /// The key of one of several [replicas](crate::train::replicas), or ranks, that draw by themselves: what its samples
    /// draw, and what they share, is drawn by no other. Its samples count from 0, and
    /// [`with_first_sample`](Self::with_first_sample) tells where a micro-batch stands in its own share. Replica 0 draws
    /// as if there were no others. (Ranks that are to draw what the whole batch would, each for its part of it, take
    /// [`with_first_sample`](Self::with_first_sample) alone.)
    pub const fn with_replica(self, replica: usize) -> Self {
        Self {
            replica: replica as u64,
            ..self
        }
    }

    /// The key of one sample of this (micro-)batch by itself.
    pub(crate) const fn of_sample(self, sample: usize) -> Self {
        Self {
            first_sample: self.first_sample.wrapping_add(sample as u64),
            ..self
        }
    }

    /// The step this key belongs to.
    pub const fn step(self) -> usize {
        self.step as usize
    }

    /// The generator for `purpose` in sample `sample` of this (micro-)batch.
    pub fn rng(self, sample: usize, purpose: Purpose) -> KeyedRng {
        let sample = self.first_sample.wrapping_add(sample as u64);
        KeyedRng::new([self.seed, self.step, sample, purpose.0], self.replica)
    }

    /// The generator for a draw that all samples of the step share, whichever micro-batch they are in: all of the
    /// replica, where there are several.
    pub fn step_rng(self, purpose: Purpose) -> KeyedRng {
        KeyedRng::new([self.seed, self.step, u64::MAX, purpose.0], self.replica)
    }
}

/// Purpose of a draw. Draws of different purposes are independent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Purpose(u64);

impl Purpose {
    /// The choice of positions that are kept.
    pub const MASK: Self = Self::of(1, 0);
    /// The share that is masked, where it is drawn.
    pub const MASK_RATIO: Self = Self::of(2, 0);
    /// The noise that fills hidden pixels.
    pub const FILL: Self = Self::of(3, 0);
    const NAMED: Self = Self::of(4, 0);
    /// The mixing of the images of a batch.
    pub const MIX: Self = Self::of(5, 0);

    /// A purpose of your own, for draws beside those that are named above: numbered from 0. Two uses of the same index in
    /// one step draw the same numbers. (The positions of a generator of your own are [`Purpose::MASK`].)
    pub const fn custom(index: u32) -> Self {
        Self::of(16, index)
    }

    /// Dropout in the `site`-th place of a pass where it is applied.
    pub(crate) const fn dropout(pass: u32, site: u32) -> Self {
        Self::of(32 + pass, site)
    }

    /// Drop path in the `site`-th residual branch of a pass.
    pub(crate) const fn drop_path(pass: u32, site: u32) -> Self {
        Self::of(64 + pass, site)
    }

    const fn of(kind: u32, index: u32) -> Self {
        Self(((kind as u64) << 32) | index as u64)
    }
}

/// A generator that was started from a key: ChaCha with 8 rounds, the same numbers on every platform.
///
/// It implements [`rand::RngCore`] of `rand` 0.9, so everything in that version and in `rand_distr` 0.5 samples from it.
#[derive(Clone, Debug)]
pub struct KeyedRng(ChaCha8Rng);

impl KeyedRng {
    // The four numbers are ChaCha's 256-bit key as they are, and the fifth its nonce, so different keys are different
    // streams for certain.
    fn new(words: [u64; 4], replica: u64) -> Self {
        let mut seed = [0u8; 32];
        for (bytes, word) in seed.chunks_exact_mut(8).zip(words) {
            bytes.copy_from_slice(&word.to_le_bytes());
        }
        let mut rng = ChaCha8Rng::from_seed(seed);
        rng.set_stream(replica);
        Self(rng)
    }
}

impl RngCore for KeyedRng {
    fn next_u32(&mut self) -> u32 {
        self.0.next_u32()
    }
    fn next_u64(&mut self) -> u64 {
        self.0.next_u64()
    }
    fn fill_bytes(&mut self, dest: &mut [u8]) {
        self.0.fill_bytes(dest)
    }
}

// http://www.isthe.com/chongo/tech/comp/fnv/: a hash that is the same on every platform and in every release.
fn fnv1a(text: &str, basis: u64) -> u64 {
    text.bytes().fold(basis, |hash, byte| {
        (hash ^ byte as u64).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn every_part_of_the_key_counts() {
        let key = Seed::new(1).at(2);
        let mut first = HashSet::new();
        for rng in [
            key.rng(0, Purpose::MASK),
            key.rng(1, Purpose::MASK),
            key.rng(0, Purpose::FILL),
            key.rng(0, Purpose::custom(0)),
            key.rng(0, Purpose::dropout(0, 0)),
            key.rng(0, Purpose::dropout(1, 0)),
            key.rng(0, Purpose::dropout(0, 1)),
            key.rng(0, Purpose::drop_path(0, 0)),
            key.step_rng(Purpose::MASK),
            key.with_replica(1).step_rng(Purpose::MASK),
            key.with_replica(1).rng(0, Purpose::MASK),
            key.with_replica(usize::MAX).rng(0, Purpose::MASK),
            Seed::new(1).at(3).rng(0, Purpose::MASK),
            Seed::new(2).at(2).rng(0, Purpose::MASK),
            Seed::new(1).rng_for("a"),
            Seed::new(1).rng_for("b"),
        ] {
            let mut rng = rng;
            assert!(first.insert(rng.next_u64()));
        }
    }

    #[test]
    fn micro_batches_draw_what_the_whole_batch_does() {
        let key = Seed::new(5).at(9);
        let whole = key.rng(6, Purpose::MASK).next_u64();
        assert_eq!(key.with_first_sample(4).rng(2, Purpose::MASK).next_u64(), whole);
    }

    #[test]
    fn replicas_count_their_own_samples_and_the_first_draws_as_if_alone() {
        let (key, draw) = (Seed::new(5).at(9), |key: StepKey, sample| {
            key.rng(sample, Purpose::MASK).next_u64()
        });
        assert_eq!(key.with_replica(0), key);
        let third = key.with_replica(2);
        assert_eq!(draw(third.with_first_sample(4), 2), draw(third, 6));
        assert_ne!(draw(third, 6), draw(key, 6));
    }

    // Recorded on x86-64: any platform and release must give these.
    #[test]
    fn numbers_are_portable() {
        let mut rng = Seed::new(42).at(7).rng(3, Purpose::MASK);
        assert_eq!(rng.next_u64(), NUMBER_OF_STEP);
        assert_eq!(
            Seed::new(42).rng_for("blocks.0.norm1.weight").next_u64(),
            NUMBER_OF_NAME
        );
    }
    const NUMBER_OF_STEP: u64 = 8761544568715399911;
    const NUMBER_OF_NAME: u64 = 9504953279161158555;
}
