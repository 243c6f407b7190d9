//! The share of training in which the model waits for its data.

use std::cell::Cell;
use std::rc::Rc;
use std::time::{Duration, Instant};

/// Adds up over the epochs' batches.
#[derive(Clone, Debug, Default)]
pub struct DataWait {
    waited: Rc<Cell<Duration>>,
    total: Rc<Cell<Duration>>,
}

impl DataWait {
    /// `batches`, and the clock on it: from now until it ends or is dropped. What happens after that (evaluation) does not
    /// count.
    pub fn timed<I>(&self, batches: I) -> Timed<I> {
        Timed {
            batches,
            wait: self.clone(),
            since: Instant::now(),
        }
    }

    /// 0 to 1; NaN before the first epoch.
    pub fn share(&self) -> f64 {
        self.waited.get().as_secs_f64() / self.total.get().as_secs_f64()
    }
}

pub struct Timed<I> {
    batches: I,
    wait: DataWait,
    since: Instant,
}

impl<I: Iterator> Iterator for Timed<I> {
    type Item = I::Item;

    fn next(&mut self) -> Option<I::Item> {
        let asked = Instant::now();
        let batch = self.batches.next();
        self.wait.waited.set(self.wait.waited.get() + asked.elapsed());
        batch
    }
}

impl<I> Drop for Timed<I> {
    fn drop(&mut self) {
        self.wait.total.set(self.wait.total.get() + self.since.elapsed());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::thread::sleep;

    // A third of the time is waiting. Sleeps only ever take longer, so the bounds are wide.
    #[test]
    fn waiting_and_working_are_told_apart() {
        let wait = DataWait::default();
        assert!(wait.share().is_nan());
        for _ in 0..2 {
            let batches = (0..5).inspect(|_| sleep(Duration::from_millis(10)));
            for _ in wait.timed(batches) {
                sleep(Duration::from_millis(20));
            }
            sleep(Duration::from_millis(50)); // evaluation
        }
        assert!((0.2..0.5).contains(&wait.share()), "{}", wait.share());
        let idle = DataWait::default();
        idle.timed(0..3).for_each(|_| sleep(Duration::from_millis(5)));
        assert!(idle.share() < 0.1, "{}", idle.share());
    }
}
