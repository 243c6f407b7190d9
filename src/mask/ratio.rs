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

/// The share of positions that is masked, at least 0 and below 1: fixed, a schedule, or drawn anew in every step; and at
/// the end of training, if wanted, none.
///
/// It is the same for all samples of a step, because all samples of a batch keep as many positions, and depends on the
/// step of the key alone (on the seed, too, where it is drawn): a run that is resumed goes on with it.
///
/// ```
/// use masksub::{MaskRatio, RandomMasking, Seed};
/// let fixed = RandomMasking::new(0.5)?;
/// let drawn = RandomMasking::with_ratio(MaskRatio::drawn(rand_distr::Uniform::new(0.3, 0.7).unwrap()));
/// // From three quarters to a quarter in 8000 steps, and to nothing in the 1000 that end with step 10000.
/// let ratio = MaskRatio::cosine(0.75, 0.25, 8000)?.with_warm_down(9000, 1000);
/// let at = |step| ratio.at(Seed::new(0).at(step)).unwrap();
/// assert_eq!([at(0), at(8000), at(9500), at(10_000)], [0.75, 0.25, 0.125, 0.0]);
/// # Ok::<(), masksub::Error>(())
/// ```
#[derive(Clone)]
pub struct MaskRatio {
    kind: Kind,
    warm_down: Option<WarmDown>,
}

#[derive(Clone)]
enum Kind {
    Fixed(f64),
    Ramp(Ramp),
    Drawn(Arc<dyn Fn(&mut KeyedRng) -> f64 + Send + Sync>),
}

/// A way between two ratios.
#[derive(Clone, Copy, Debug)]
struct Ramp {
    from: f64,
    to: f64,
    steps: usize,
    curve: Curve,
}

#[derive(Clone, Copy, Debug)]
enum Curve {
    Linear,
    Cosine,
}

#[derive(Clone, Copy, Debug)]
struct WarmDown {
    first_step: usize,
    steps: usize,
}

impl MaskRatio {
    /// The same ratio in every step.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`](crate::Error::InvalidArgument) when `mask_ratio` is NaN or outside [0, 1).
    pub fn fixed(mask_ratio: f64) -> Result<Self> {
        Ok(Self::of(Kind::Fixed(check::rate("mask_ratio", mask_ratio)?)))
    }

    /// A ratio that is `from` at step 0 and goes to `to` in equal parts; from step `steps` on it is `to`.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`](crate::Error::InvalidArgument) when `from` or `to` is NaN or outside [0, 1), or `steps`
    /// is 0.
    pub fn linear(from: f64, to: f64, steps: usize) -> Result<Self> {
        Self::ramp(from, to, steps, Curve::Linear)
    }

    /// As [`linear`](Self::linear), by half a cosine: slow at both ends.
    ///
    /// # Errors
    /// As [`linear`](Self::linear).
    pub fn cosine(from: f64, to: f64, steps: usize) -> Result<Self> {
        Self::ramp(from, to, steps, Curve::Cosine)
    }

    fn ramp(from: f64, to: f64, steps: usize, curve: Curve) -> Result<Self> {
        Ok(Self::of(Kind::Ramp(Ramp {
            from: check::rate("from", from)?,
            to: check::rate("to", to)?,
            steps: check::at_least_one("steps", steps)?,
            curve,
        })))
    }

    /// A ratio drawn once per step from any distribution of `rand_distr`, or one of your own. A draw outside [0, 1) is
    /// an error of that step.
    pub fn drawn(distribution: impl Distribution<f64> + Send + Sync + 'static) -> Self {
        Self::of(Kind::Drawn(Arc::new(move |rng| distribution.sample(rng))))
    }

    fn of(kind: Kind) -> Self {
        let warm_down = None;
        Self { kind, warm_down }
    }

    /// Multiplies the ratio by a factor that falls from 1 at `first_step` to 0 in `steps` steps and stays there: training
    /// ends on whole inputs (FLIP, arXiv 2212.00794, has such unmasked tuning). With 0 steps it is 0 at
    /// once.
    pub fn with_warm_down(self, first_step: usize, steps: usize) -> Self {
        let warm_down = Some(WarmDown { first_step, steps });
        Self { warm_down, ..self }
    }

    /// The ratio of a step.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`](crate::Error::InvalidArgument) when the draw is NaN or outside [0, 1).
    pub fn at(&self, key: StepKey) -> Result<f64> {
        let mask_ratio = match &self.kind {
            Kind::Fixed(mask_ratio) => *mask_ratio,
            Kind::Ramp(ramp) => ramp.at(key.step()),
            Kind::Drawn(sample) => check::rate("mask_ratio", sample(&mut key.step_rng(Purpose::MASK_RATIO)))?,
        };
        Ok(match &self.warm_down {
            Some(warm_down) => mask_ratio * warm_down.at(key.step()),
            None => mask_ratio,
        })
    }
}

impl Ramp {
    fn at(self, step: usize) -> f64 {
        let Self { from, to, steps, curve } = self;
        if step >= steps {
            return to;
        }
        let passed = step as f64 / steps as f64;
        let passed = match curve {
            Curve::Linear => passed,
            Curve::Cosine => 0.5 - 0.5 * (std::f64::consts::PI * passed).cos(),
        };
        // Between the two, whatever rounding does.
        (from + (to - from) * passed).clamp(from.min(to), from.max(to))
    }
}

impl WarmDown {
    fn at(self, step: usize) -> f64 {
        let passed = step.saturating_sub(self.first_step);
        if step < self.first_step {
            1.0
        } else if passed >= self.steps {
            0.0
        } else {
            1.0 - passed as f64 / self.steps as f64
        }
    }
}

impl std::fmt::Debug for MaskRatio {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.kind {
            Kind::Fixed(mask_ratio) => write!(f, "MaskRatio({mask_ratio}")?,
            Kind::Ramp(ramp) => write!(f, "MaskRatio({ramp:?}")?,
            Kind::Drawn(_) => f.write_str("MaskRatio(drawn")?,
        }
        match &self.warm_down {
            Some(warm_down) => write!(f, ", {warm_down:?})"),
            None => f.write_str(")"),
        }
    }
}
