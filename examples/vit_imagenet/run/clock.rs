//! Seconds that are spent in training steps: by the wall, and of the processors.

use cpu_time::ProcessTime;
use std::time::Instant;

/// Both, from one [`restart`](Clock::restart) to the next [`count`](Clock::count).
pub struct Clock {
    pub wall: f64,
    /// Of all threads of the process. Other programs that share the machine make the wall's time longer and hardly this.
    pub cpu: f64,
    since: Instant,
    /// None where the system has no such clock; then `cpu` is NaN.
    cpu_since: Option<ProcessTime>,
}

impl Clock {
    /// Goes on from seconds that were counted before.
    pub fn new(wall: f64, cpu: f64) -> Self {
        Self {
            wall,
            cpu,
            since: Instant::now(),
            cpu_since: ProcessTime::try_now().ok(),
        }
    }

    /// What was until now does not count.
    pub fn restart(&mut self) {
        *self = Self::new(self.wall, self.cpu);
    }

    /// What was since then counts.
    pub fn count(&mut self) {
        self.wall += self.since.elapsed().as_secs_f64();
        let cpu = self.cpu_since.and_then(|since| since.try_elapsed().ok());
        self.cpu += cpu.map_or(f64::NAN, |cpu| cpu.as_secs_f64());
        self.restart();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn waiting_takes_the_walls_time_alone() {
        let mut clock = Clock::new(1.0, 2.0);
        std::thread::sleep(Duration::from_millis(300));
        clock.restart();
        assert_eq!((clock.wall, clock.cpu), (1.0, 2.0));
        // Other tests compute in this process meanwhile, so that of what the processors do only the least is known.
        let since = ProcessTime::now();
        while since.elapsed() < Duration::from_millis(50) {
            std::hint::spin_loop();
        }
        std::thread::sleep(Duration::from_millis(300));
        clock.count();
        assert!(
            (2.05..).contains(&clock.cpu) && (1.3..).contains(&clock.wall),
            "{} {}",
            clock.cpu,
            clock.wall
        );
    }
}
