//! The share of positions that is masked.

use std::sync::Arc;

use rand_distr::Distribution;

use crate::check;
use crate::error::Result;
use crate::key::{KeyedRng, Purpose, StepKey};

/// Number of the `len` positions that are kept at a mask ratio r: `max(1, floor(len * (1 - r) + 1e-6))`.
///
/// The small term saves the position that rounding would lose where the product is whole (100 positions at .9 keep 10).
///
/// # Errors
/// [`Error::InvalidArgument`](crate::Error::InvalidArgument) when `len` is 0, or `mask_ratio` is NaN or outside [0, 1).
pub fn num_keep(len: usize, mask_ratio: f64) -> Result<usize> {
    let len = check::at_least_one("len", len)?;
    let kept = (len as f64 * (1.0 - check::rate("mask_ratio", mask_ratio)?) + 1e-6).floor() as usize;
    // (A float does not tell every large `len`.)
    Ok(kept.clamp(1, len))
}

/// The share of positions that is masked, at least 0 and below 1: fixed, or drawn anew in every step.
///
/// A drawn ratio is the same for all samples of a step, because all samples of a batch keep as many positions.
///
/// ```
/// use masksub::{MaskRatio, RandomMasking};
/// let fixed = RandomMasking::new(0.5)?;
/// let drawn = RandomMasking::with_ratio(MaskRatio::drawn(rand_distr::Uniform::new(0.3, 0.7).unwrap()));
/// # Ok::<(), masksub::Error>(())
/// ```
#[derive(Clone)]
pub struct MaskRatio(Kind);

#[derive(Clone)]
enum Kind {
    Fixed(f64),
    Drawn(Arc<dyn Fn(&mut KeyedRng) -> f64 + Send + Sync>),
}

impl MaskRatio {
    /// The same ratio in every step.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`](crate::Error::InvalidArgument) when `mask_ratio` is NaN or outside [0, 1).
    pub fn fixed(mask_ratio: f64) -> Result<Self> {
        check::rate("mask_ratio", mask_ratio).map(Kind::Fixed).map(Self)
    }

    /// A ratio drawn once per step from any distribution of `rand_distr`, or one of your own. A draw outside [0, 1) is
    /// an error of that step.
    pub fn drawn(distribution: impl Distribution<f64> + Send + Sync + 'static) -> Self {
        Self(Kind::Drawn(Arc::new(move |rng| distribution.sample(rng))))
    }

    /// The ratio of a step.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`](crate::Error::InvalidArgument) when the draw is NaN or outside [0, 1).
    pub fn at(&self, key: StepKey) -> Result<f64> {
        match &self.0 {
            Kind::Fixed(mask_ratio) => Ok(*mask_ratio),
            Kind::Drawn(sample) => check::rate("mask_ratio", sample(&mut key.step_rng(Purpose::MASK_RATIO))),
        }
    }
}

impl std::fmt::Debug for MaskRatio {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0 {
            Kind::Fixed(mask_ratio) => write!(f, "MaskRatio({mask_ratio})"),
            Kind::Drawn(_) => f.write_str("MaskRatio(drawn)"),
        }
    }
}
