//! Random masking: every set of K positions is as likely as any other.

use rand::Rng;

use super::{num_keep, Mask, MaskGenerator, MaskRatio};
use crate::error::{Error, Result};
use crate::grid::Grid;
use crate::key::{Purpose, StepKey};

/// No batch needs more, and any host can count them.
const MOST_INDICES: usize = u32::MAX as usize;

/// Keeps a uniformly random set of positions, exactly as many in every sample (the random masking of MAE,
/// arXiv 2111.06377, and MaskSub, arXiv 2306.11339). Kept positions are ascending.
///
/// Costs O(L) a sample: nothing is sorted.
///
/// ```
/// use masksub::{Grid, MaskGenerator, RandomMasking, Seed};
/// let masking = RandomMasking::new(0.75)?;
/// let mask = masking.generate(2, Grid::new(14, 14), Seed::new(0).at(0))?;
/// assert_eq!((mask.batch(), mask.num_keep()), (2, 49));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug)]
pub struct RandomMasking {
    mask_ratio: MaskRatio,
}

impl RandomMasking {
    /// Masks the share `mask_ratio` of all positions; [`num_keep`] says how many that keeps.
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

impl MaskGenerator for RandomMasking {
    fn generate(&self, batch: usize, grid: Grid, key: StepKey) -> candle_core::Result<Mask> {
        let len = grid.len();
        if batch == 0 {
            return Err(Error::invalid("batch", batch, "at least 1").into());
        }
        grid.check_numbered()?;
        if batch.checked_mul(len).is_none_or(|indices| indices > MOST_INDICES) {
            let allowed = format!("at most {} samples of {grid} positions", MOST_INDICES / len);
            return Err(Error::invalid("batch", batch, allowed).into());
        }
        let num_keep = num_keep(len, self.mask_ratio.at(key)?)?;
        // The smaller side is drawn: the kept positions or the dropped ones.
        let num_drawn = num_keep.min(len - num_keep);
        let drawn_are_kept = num_drawn == num_keep;
        let mut keep = Vec::with_capacity(batch * num_keep);
        let mut drawn = vec![false; len];
        for sample in 0..batch {
            let mut rng = key.rng(sample, Purpose::MASK);
            drawn.fill(false);
            // Floyd's algorithm (Bentley, Communications of the ACM 30(9), 1987): a uniform set in as many draws as it
            // has members, without a permutation to keep.
            for last in len - num_drawn..len {
                let pick = rng.random_range(0..=last as u32) as usize;
                let pick = if drawn[pick] { last } else { pick };
                drawn[pick] = true;
            }
            keep.extend((0..len as u32).filter(|&at| drawn[at as usize] == drawn_are_kept));
        }
        Ok(Mask::trusted(grid, batch, keep))
    }
}
