//! What a step costs on 1 to 1024 ranks: on paper, from measured compute and bandwidth, and simulated, with ranks that are
//! not equally fast.
//!
//!     cargo run --release --example scale -- --step 1.98 --parameters 22e6 --bandwidth 1.25e9 --latency 20e-6
//!
//! Each rank has a batch of its own of the same size, whatever their number. Gradients travel in a ring, of which each rank
//! sends and receives 2 (G - 1) / G of them in 2 (G - 1) messages for each bucket (Patarasu and Yuan, "Bandwidth optimal all-reduce
//! algorithms", 2009; what OpenMPI and NCCL choose for large ones).

use clap::Parser;
use masksub::{Purpose, Seed};
use rand_distr::{Distribution, StandardNormal};

#[derive(Parser)]
struct Flags {
    /// Seconds of a step on one rank. Default: DeiT-III small, batch 8, two cores (PERFORMANCE.md)
    #[arg(long, default_value_t = 1.98)]
    step: f64,
    /// Standard deviation of a rank's step from one to the next, as a share of it. Default: assumed
    #[arg(long, default_value_t = 0.02)]
    spread: f64,
    /// Share of the step in which gradients come into being, at the end of it: what is sent meanwhile costs no time. Default:
    /// assumed, the backward half of a sub-branch that computes half of the tokens
    #[arg(long, default_value_t = 0.2)]
    last_backward: f64,
    /// Parameters of the model, of four bytes each
    #[arg(long, default_value_t = 22e6)]
    parameters: f64,
    /// Bytes that a rank sends in a second while it receives as many. Default: Ethernet of 10 Gbit/s
    #[arg(long, default_value_t = 1.25e9)]
    bandwidth: f64,
    /// Seconds until a message is there. Default: assumed
    #[arg(long, default_value_t = 20e-6)]
    latency: f64,
    /// Buckets in which gradients travel
    #[arg(long, default_value_t = 2)]
    buckets: usize,
    /// Steps that are simulated
    #[arg(long, default_value_t = 200)]
    steps: usize,
}

impl Flags {
    /// Seconds in which a bucket is summed over `ranks`.
    fn bucket(&self, ranks: usize) -> f64 {
        let (ranks, bytes) = (ranks as f64, 4.0 * self.parameters / self.buckets as f64);
        2.0 * (ranks - 1.0) * (self.latency + bytes / ranks / self.bandwidth)
    }

    /// Seconds of a step of equally fast ranks that compute first and send then.
    fn on_paper(&self, ranks: usize) -> f64 {
        self.step + self.buckets as f64 * self.bucket(ranks)
    }

    /// Mean seconds of a step: a sum begins when the slowest rank has come to it. First without overlap, then with: the
    /// buckets are ready one after the other while the last backward runs.
    fn simulated(&self, ranks: usize) -> [f64; 2] {
        let (bucket, mut total) = (self.bucket(ranks), [0.0; 2]);
        for step in 0..self.steps {
            let slowest = (0..ranks).map(|rank| {
                let draw: f64 = StandardNormal.sample(&mut Seed::new(0).at(step).rng(rank, Purpose::custom(0)));
                self.step * (1.0 + self.spread * draw).max(0.0)
            });
            let slowest = slowest.fold(0.0, f64::max);
            total[0] += slowest + self.buckets as f64 * bucket;
            let (begin, length) = (slowest * (1.0 - self.last_backward), slowest * self.last_backward);
            let ready = |i: usize| begin + length * (i + 1) as f64 / self.buckets as f64;
            total[1] += (0..self.buckets).fold(0.0, |free: f64, i| free.max(ready(i)) + bucket);
        }
        total.map(|seconds| seconds / self.steps as f64)
    }
}

fn main() {
    let flags = Flags::parse();
    println!("| ranks | on paper, s | simulated, s | with overlap, s | of ranks' images a second | with overlap |");
    println!("|---|---|---|---|---|---|");
    for ranks in (0..=10).map(|power| 1 << power) {
        let (paper, [plain, overlapped]) = (flags.on_paper(ranks), flags.simulated(ranks));
        let share = |seconds: f64| 100.0 * flags.step / seconds;
        println!(
            "| {ranks} | {paper:.3} | {plain:.3} | {overlapped:.3} | {:.1} % | {:.1} % |",
            share(plain),
            share(overlapped)
        );
    }
}
