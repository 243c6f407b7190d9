//! The learning rate of a step.
//!
//! A schedule is a function of the step and nothing else: a run resumes anywhere, and a schedule can be drawn before
//! the run. Values come from [`Constant`], [`Cosine`] or any closure `|step: usize| -> f64`; they compose by
//! [`Schedule`]'s methods.
//!
//! ```
//! use masksub::train::schedule::{Cosine, Schedule};
//! # fn main() -> Result<(), masksub::Error> {
//! // DeiT-III, 400 epochs of 625 steps: both warm-up and cosine go by whole epochs.
//! let deit3 = Cosine::new(3e-3, 400)?.with_warmup(5, 1e-6)?.with_floor(1e-5)?.per_epoch(625)?;
//! assert_eq!(deit3.at(0), 1e-6);
//! assert_eq!(deit3.at(10 * 625), deit3.at(11 * 625 - 1));
//! // Three times as fast for the first 100 steps.
//! let head_start = deit3.clone().scaled(3.).then(100, deit3);
//! # Ok(()) }
//! ```

use std::f64::consts::PI;

use crate::check;
use crate::error::Result;

/// The learning rate of each step, counted from 0.
pub trait Schedule {
    /// The learning rate of step `step`.
    fn at(&self, step: usize) -> f64;

    /// The same schedule with epochs for steps: constant within each epoch, as timm's schedulers are by default.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`](crate::Error::InvalidArgument) when `steps_per_epoch` is 0.
    fn per_epoch(self, steps_per_epoch: usize) -> Result<PerEpoch<Self>>
    where
        Self: Sized,
    {
        check::at_least_one("steps_per_epoch", steps_per_epoch)?;
        Ok(PerEpoch {
            schedule: self,
            steps_per_epoch,
        })
    }

    /// This schedule `steps` steps late, its first learning rate until then: of a trainer that steps its scheduler after
    /// the optimizer, and by the number of what is done. DeiT's `main.py` does so for epochs (`lr_scheduler.step(epoch)`:
    /// epochs 0 and 1 both have the first rate of the warm-up), Swin's for steps (`step_update(epoch * num_steps + idx)`).
    fn delayed(self, steps: usize) -> Delayed<Self>
    where
        Self: Sized,
    {
        Delayed { schedule: self, steps }
    }

    /// This schedule for `steps` steps, and from then on `next`, whose steps count from there.
    fn then<S: Schedule>(self, steps: usize, next: S) -> Then<Self, S>
    where
        Self: Sized,
    {
        Then {
            first: self,
            steps,
            next,
        }
    }

    /// This schedule times `factor`: the linear scaling rule's batch size / 256, say. (An optimizer refuses the
    /// learning rates of a factor that is negative or not finite.)
    fn scaled(self, factor: f64) -> Scaled<Self>
    where
        Self: Sized,
    {
        Scaled { schedule: self, factor }
    }
}

impl<F: Fn(usize) -> f64> Schedule for F {
    fn at(&self, step: usize) -> f64 {
        self(step)
    }
}

impl Schedule for Box<dyn Schedule> {
    fn at(&self, step: usize) -> f64 {
        (**self).at(step)
    }
}

impl Schedule for Box<dyn Schedule + Send + Sync> {
    fn at(&self, step: usize) -> f64 {
        (**self).at(step)
    }
}

/// One learning rate throughout.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Constant(
    /// The learning rate.
    pub f64,
);

impl Schedule for Constant {
    fn at(&self, _: usize) -> f64 {
        self.0
    }
}

/// Half a cosine from a peak down to a floor (arXiv 1608.03983, without restarts), after a linear warm-up.
///
/// Over T steps with W of warm-up, step t is
///
/// ```text
/// start + (peak - start) t / W                          while t < W
/// floor + (peak - floor) (1 + cos(pi t / T)) / 2        until T, and the floor from there on
/// ```
///
/// so the warm-up is laid over the cosine's beginning, as in timm, DeiT-III, RSB and Swin. MAE's cosine starts after
/// it: [`after_warmup`](Self::after_warmup).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Cosine {
    peak: f64,
    total_steps: usize,
    warmup_steps: usize,
    warmup_start: f64,
    floor: f64,
    after_warmup: bool,
}

impl Cosine {
    /// From `peak` to 0 in `total_steps`, without warm-up.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`](crate::Error::InvalidArgument) when `peak` is negative, infinite or NaN.
    pub fn new(peak: f64, total_steps: usize) -> Result<Self> {
        Ok(Self {
            peak: check::non_negative("peak", peak)?,
            total_steps,
            warmup_steps: 0,
            warmup_start: 0.0,
            floor: 0.0,
            after_warmup: false,
        })
    }

    /// Begins with `steps` steps of a straight line from `start`, which would reach the peak at step `steps`.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`](crate::Error::InvalidArgument) when `start` is negative, infinite or NaN.
    pub fn with_warmup(self, steps: usize, start: f64) -> Result<Self> {
        Ok(Self {
            warmup_steps: steps,
            warmup_start: check::non_negative("start", start)?,
            ..self
        })
    }

    /// Ends at `floor`.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`](crate::Error::InvalidArgument) when `floor` is negative, infinite or NaN.
    pub fn with_floor(self, floor: f64) -> Result<Self> {
        Ok(Self {
            floor: check::non_negative("floor", floor)?,
            ..self
        })
    }

    /// Lets the cosine begin after the warm-up, at its peak, and run over the T - W steps that are left: MAE's. (timm's
    /// `warmup_prefix` runs over T more: it is this with a T that is larger by W.)
    pub fn after_warmup(self) -> Self {
        Self {
            after_warmup: true,
            ..self
        }
    }
}

impl Schedule for Cosine {
    fn at(&self, step: usize) -> f64 {
        if step < self.warmup_steps {
            let progress = step as f64 / self.warmup_steps as f64;
            return self.warmup_start + (self.peak - self.warmup_start) * progress;
        }
        let before = if self.after_warmup { self.warmup_steps } else { 0 };
        let total = self.total_steps.saturating_sub(before).max(1);
        let progress = ((step - before) as f64 / total as f64).min(1.0);
        // Halved first: the largest peak times two would be infinite.
        self.floor + (self.peak - self.floor) * ((1.0 + (PI * progress).cos()) / 2.0)
    }
}

/// See [`Schedule::per_epoch`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PerEpoch<S> {
    schedule: S,
    steps_per_epoch: usize,
}

impl<S: Schedule> Schedule for PerEpoch<S> {
    fn at(&self, step: usize) -> f64 {
        self.schedule.at(step / self.steps_per_epoch)
    }
}

/// See [`Schedule::delayed`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Delayed<S> {
    schedule: S,
    steps: usize,
}

impl<S: Schedule> Schedule for Delayed<S> {
    fn at(&self, step: usize) -> f64 {
        self.schedule.at(step.saturating_sub(self.steps))
    }
}

/// See [`Schedule::then`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Then<A, B> {
    first: A,
    steps: usize,
    next: B,
}

impl<A: Schedule, B: Schedule> Schedule for Then<A, B> {
    fn at(&self, step: usize) -> f64 {
        match step.checked_sub(self.steps) {
            None => self.first.at(step),
            Some(step) => self.next.at(step),
        }
    }
}

/// See [`Schedule::scaled`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Scaled<S> {
    schedule: S,
    factor: f64,
}

impl<S: Schedule> Schedule for Scaled<S> {
    fn at(&self, step: usize) -> f64 {
        self.factor * self.schedule.at(step)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn close(a: f64, b: f64) -> bool {
        (a - b).abs() < 1e-12
    }

    // What timm 1.0's CosineLRScheduler(t_initial=10, lr_min=1e-5, warmup_t=3, warmup_lr_init=1e-6) gives at a peak of
    // 4e-3, epochs 0 to 10, by its formula worked out by hand for 3, 5 and 10.
    #[test]
    fn warm_up_lies_over_the_cosine() {
        let cosine = Cosine::new(4e-3, 10).unwrap();
        let cosine = cosine.with_warmup(3, 1e-6).unwrap().with_floor(1e-5).unwrap();
        for (step, expected) in [
            (0, 1e-6),
            (1, 1e-6 + 3.999e-3 / 3.0),
            (2, 1e-6 + 2.0 * 3.999e-3 / 3.0),
            (3, 1e-5 + 3.99e-3 * 0.793_892_626_146_236_6),
            (5, 2.005e-3),
            (10, 1e-5),
            (11, 1e-5),
        ] {
            assert!(close(cosine.at(step), expected), "{step}: {}", cosine.at(step));
        }
    }

    #[test]
    fn or_the_cosine_begins_after_it() {
        let mae = Cosine::new(1e-3, 11)
            .unwrap()
            .with_warmup(3, 0.0)
            .unwrap()
            .after_warmup();
        assert_eq!(mae.at(0), 0.0);
        assert!(close(mae.at(2), 2e-3 / 3.0));
        assert_eq!(mae.at(3), 1e-3);
        assert!(close(mae.at(7), 5e-4));
        assert!(close(mae.at(11), 0.0));
    }

    #[test]
    fn runs_shorter_than_their_warm_up_and_empty_ones_are_finite() {
        let short = Cosine::new(1.0, 2).unwrap().with_warmup(5, 0.0).unwrap();
        for schedule in [short, short.after_warmup(), Cosine::new(1.0, 0).unwrap()] {
            assert!((0..9).all(|step| (0.0..=1.0).contains(&schedule.at(step))));
        }
    }

    #[test]
    fn the_largest_peak_is_one() {
        let schedule = Cosine::new(f64::MAX, 4).unwrap();
        assert_eq!(schedule.at(0), f64::MAX);
        assert!((0..9).all(|step| schedule.at(step).is_finite()));
    }

    #[test]
    fn schedules_compose() {
        let line = |step: usize| step as f64;
        let composed = line
            .scaled(2.0)
            .then(3, Constant(7.0).then(1, line))
            .per_epoch(2)
            .unwrap();
        let rates: Vec<f64> = (0..14).map(|step| composed.at(step)).collect();
        assert_eq!(
            rates,
            [0.0, 0.0, 2.0, 2.0, 4.0, 4.0, 7.0, 7.0, 0.0, 0.0, 1.0, 1.0, 2.0, 2.0]
        );
        let boxed: Box<dyn Schedule> = Box::new(composed);
        assert_eq!(boxed.at(5), 4.0);
    }

    // lr_scheduler.step(epoch) after epoch `epoch`, of timm's scheduler, which starts at its first rate.
    #[test]
    fn a_late_schedule_repeats_its_first_rate() {
        let warmup = Cosine::new(4e-3, 10).unwrap().with_warmup(3, 1e-6).unwrap();
        let late = warmup.delayed(1).per_epoch(2).unwrap();
        let mut lr = warmup.at(0);
        for epoch in 0..12 {
            assert_eq!([late.at(2 * epoch), late.at(2 * epoch + 1)], [lr; 2], "{epoch}");
            lr = warmup.at(epoch);
        }
        assert_eq!(warmup.delayed(0).at(5), warmup.at(5));
    }

    #[test]
    fn rates_that_are_none_are_refused() {
        for rate in [-1.0, f64::NAN, f64::INFINITY] {
            assert!(Cosine::new(rate, 1).is_err());
            assert!(Cosine::new(1.0, 1).unwrap().with_floor(rate).is_err());
            assert!(Cosine::new(1.0, 1).unwrap().with_warmup(1, rate).is_err());
        }
        assert!(Constant(1.0).per_epoch(0).is_err());
    }
}
