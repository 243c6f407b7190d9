//! Random masking: every set of K positions is as likely as any other.

use std::hint::select_unpredictable;
use std::sync::Arc;

use rand::{Rng, RngCore};
use rayon::prelude::*;

use super::{num_keep, Mask, MaskGenerator, MaskRatio};
use crate::check;
use crate::error::{Error, Result};
use crate::grid::Grid;
use crate::key::{Purpose, StepKey};

/// No batch needs more, and any host can count them.
const MOST_INDICES: usize = u32::MAX as usize;

/// The least grid of which a part is hidden.
const HIDES: &str = "at least 2 positions: a single one is always kept";

/// The error of a mask for blocks `block` wide, in the words of who chose the block: where there is a single one, which is
/// always kept, the block is at fault and not the grid.
pub(crate) fn name_block(error: candle_core::Error, block: usize, unit: &str) -> candle_core::Error {
    match Error::from(error) {
        Error::InvalidArgument {
            argument: "grid",
            allowed,
            ..
        } if allowed.starts_with(HIDES) => {
            let value = format!("{block} {unit}, one block for the whole grid, which is always kept");
            // Each side is one block.
            let smaller = (1..block).rev().find(|smaller| block.is_multiple_of(*smaller));
            let allowed = match smaller {
                Some(smaller) => format!("a smaller divisor of both sides, such as {smaller} {unit}"),
                None => "smaller than the grid, of which nothing can be hidden".to_string(),
            };
            Error::invalid("block", value, allowed).into()
        }
        error => error.into(),
    }
}

/// Positions that one thread should have at least: for fewer it would not be worth waking one up.
const FEWEST_POSITIONS: usize = 8 * 1024;

/// Keeps a uniformly random set of positions, exactly as many in every sample (the random masking of MAE,
/// arXiv 2111.06377, and MaskSub, arXiv 2306.11339). Kept positions are ascending.
///
/// Costs O(L) a sample: nothing is sorted.
///
/// ```
/// use masksub::{Grid, MaskGenerator, RandomMasking, Seed};
/// let masking = RandomMasking::new(0.5)?; // MaskSub's ratio
/// let mask = masking.generate(2, Grid::new(14, 14), Seed::new(0).at(0))?;
/// assert_eq!((mask.batch(), mask.num_keep()), (2, 98));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug)]
pub struct RandomMasking {
    mask_ratio: MaskRatio,
}

impl RandomMasking {
    /// Masks the share `mask_ratio` of all positions; [`num_keep`] says how many that keeps. (A single position would be kept
    /// at any ratio: a mask for a grid of one is refused unless the ratio is 0.)
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] when `mask_ratio` is NaN or outside [0, 1).
    pub fn new(mask_ratio: f64) -> Result<Self> {
        MaskRatio::fixed(mask_ratio).map(Self::with_ratio)
    }

    /// Masks a share that may be drawn in every step.
    pub fn with_ratio(mask_ratio: MaskRatio) -> Self {
        Self { mask_ratio }
    }
}

/// A uniform number below `range` from a random `word`, and from one more in the rare case that this one cannot tell
/// (Canon's method, as `Rng::random_range` has it): of words that are drawn all at once, which takes a third of the time.
#[inline(always)]
fn below(range: u32, word: u32, rng: &mut impl RngCore) -> u32 {
    let wide = |word: u32| u64::from(word) * u64::from(range);
    let product = wide(word);
    let (pick, low) = ((product >> 32) as u32, product as u32);
    if low > range.wrapping_neg() {
        let more = (wide(rng.next_u32()) >> 32) as u32;
        return pick + u32::from(low.checked_add(more).is_none());
    }
    pick
}

impl MaskGenerator for RandomMasking {
    fn generate(&self, batch: usize, grid: Grid, key: StepKey) -> candle_core::Result<Mask> {
        let len = grid.len();
        check::at_least_one("batch", batch)?;
        grid.check_numbered()?;
        if batch.checked_mul(len).is_none_or(|indices| indices > MOST_INDICES) {
            let allowed = format!("at most {} samples of {grid} positions", MOST_INDICES / len);
            return Err(Error::invalid("batch", batch, allowed).into());
        }
        check::fits_memory("batch", batch, batch.checked_mul(len), Mask::BYTES)?;
        let mask_ratio = self.mask_ratio.at(key)?;
        if len == 1 && mask_ratio > 0.0 {
            return Err(Error::invalid("grid", grid, format!("{HIDES}, for a mask ratio of {mask_ratio}")).into());
        }
        let num_keep = num_keep(len, mask_ratio)?;
        // The smaller side is drawn: the kept positions or the dropped ones.
        let num_drawn = num_keep.min(len - num_keep);
        let drawn_are_kept = num_drawn == num_keep;
        // In the memory it stays in: to write it elsewhere and copy it would cost as much as to draw it.
        let mut keep: Arc<[u32]> = std::iter::repeat_n(0, batch * num_keep).collect();
        // (Nobody else has it yet.)
        let rows = Arc::get_mut(&mut keep).unwrap_or_default();
        let samples = rows.par_chunks_exact_mut(num_keep).enumerate();
        samples.with_min_len(FEWEST_POSITIONS.div_ceil(len)).for_each_init(
            <(Vec<u32>, Vec<u64>)>::default,
            |(picks, drawn), (sample, keep)| {
                let mut rng = key.rng(sample, Purpose::MASK);
                // Floyd's algorithm (Bentley, Communications of the ACM 30(9), 1987): a uniform set in as many draws as it
                // has members, without a permutation to keep.
                let lasts = (len - num_drawn) as u32..len as u32;
                picks.resize(num_drawn, 0);
                rng.fill(&mut picks[..]);
                drawn.clear();
                drawn.resize(len.div_ceil(64), 0u64);
                for (last, &word) in lasts.zip(picks.iter()) {
                    let pick = below(last + 1, word, &mut rng);
                    let bit = |at: u32| ((at / 64) as usize, 1 << (at % 64));
                    let (word, mask) = bit(pick);
                    let (word, mask) = bit(select_unpredictable(drawn[word] & mask != 0, last, pick));
                    drawn[word] |= mask;
                }
                let mut places = keep.iter_mut();
                for (first, word) in (0..).step_by(64).zip(drawn.iter()) {
                    let mut kept = if drawn_are_kept { *word } else { !*word };
                    while kept != 0 {
                        let Some(place) = places.next() else { break };
                        *place = first + kept.trailing_zeros();
                        kept &= kept - 1;
                    }
                }
            },
        );
        Ok(Mask::trusted(grid, batch, keep))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Gives the words of a list.
    struct Words(Vec<u32>);

    impl RngCore for Words {
        fn next_u32(&mut self) -> u32 {
            self.0.pop().unwrap()
        }
        fn next_u64(&mut self) -> u64 {
            unreachable!()
        }
        fn fill_bytes(&mut self, _: &mut [u8]) {
            unreachable!()
        }
    }

    #[test]
    fn draws_what_rand_draws() {
        let mut corrected = 0;
        for range in [1, 2, 3, 196, 3 << 20, u32::MAX / 2 + 2, u32::MAX] {
            for word in [0, 1, 17 << 24, 1 << 31, u32::MAX - 1, u32::MAX].map(|word| word / range * range) {
                for more in [0, 1 << 31, u32::MAX] {
                    for word in [word, word.wrapping_sub(1)] {
                        let expected = Words(vec![more, word]).random_range(0..range);
                        let mut rest = Words(vec![more]);
                        assert_eq!(below(range, word, &mut rest), expected, "{range} {word} {more}");
                        corrected += usize::from(rest.0.is_empty());
                    }
                }
            }
        }
        assert!(corrected > 0);
    }
}
