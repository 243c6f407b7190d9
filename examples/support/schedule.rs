//! The learning rate of a step: linear warm-up, then a half cosine down to 0.

use std::f64::consts::PI;

pub struct CosineSchedule {
    pub peak: f64,
    pub warmup_steps: usize,
    pub total_steps: usize,
}

impl CosineSchedule {
    /// The rate of step `step`, counted from 0. The first of the warm-up is `peak / warmup_steps`, the first after it is
    /// `peak`, and the rate would be 0 at `total_steps`.
    pub fn at(&self, step: usize) -> f64 {
        if step < self.warmup_steps {
            return self.peak * (step + 1) as f64 / self.warmup_steps as f64;
        }
        let after = self.total_steps.saturating_sub(self.warmup_steps).max(1);
        let progress = ((step - self.warmup_steps) as f64 / after as f64).min(1.);
        self.peak * (1. + (PI * progress).cos()) / 2.
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn schedule(warmup_steps: usize, total_steps: usize) -> CosineSchedule {
        CosineSchedule {
            peak: 2e-3,
            warmup_steps,
            total_steps,
        }
    }

    fn close(a: f64, b: f64) -> bool {
        (a - b).abs() < 1e-15
    }

    #[test]
    fn warms_up_to_the_peak_and_falls_to_zero() {
        let schedule = schedule(100, 1100);
        assert!(close(schedule.at(0), 2e-5));
        assert!(close(schedule.at(49), 1e-3));
        assert!(close(schedule.at(99), 2e-3));
        assert!(close(schedule.at(100), 2e-3));
        assert!(close(schedule.at(350), 2e-3 * (1. + 0.5f64.sqrt()) / 2.));
        assert!(close(schedule.at(600), 1e-3));
        assert!(close(schedule.at(1100), 0.));
        assert!(close(schedule.at(5000), 0.));
        assert!((100..1100).all(|t| schedule.at(t + 1) < schedule.at(t)));
    }

    #[test]
    fn works_without_warm_up_and_when_the_run_is_shorter_than_it() {
        assert!(close(schedule(0, 10).at(0), 2e-3));
        assert!(close(schedule(100, 10).at(9), 2e-4));
        assert!(schedule(0, 0).at(0).is_finite());
    }
}
