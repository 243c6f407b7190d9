//! The replicas of one rank.

use std::fmt::Display;

use candle_core::backprop::GradStore;
use candle_core::Tensor;

use super::agreement::exchange;
use super::bucket::travel;
use super::gradients::{mean_told, tell};
use super::Communicator;
use crate::error::{Error, Result};
use crate::params::Params;
use crate::train::replicas::{Combine, Replicas, RunningStatistics};

/// The part of R replicas that one of G ranks runs: those with the numbers g, g + G, ... for rank g.
///
/// Of a batch of B rows in a row it takes rows g, g + G, ..., B / G of them (`share.of_rank().positions(g, B)`); of those
/// each of its replicas takes its part (`share.replicas().share(&rows, local)`), and draws with the key of its number
/// among all (`key.with_replica(share.number(local))`). So a replica sees and draws the same, whoever runs it. See the
/// [module](super) for a step.
#[derive(Clone, Copy)]
pub struct Share<'a> {
    ranks: &'a dyn Communicator,
    local: Replicas,
    of_rank: Replicas,
}

impl<'a> Share<'a> {
    /// The share of this rank.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] unless the number of ranks divides that of the replicas.
    pub fn of(ranks: &'a dyn Communicator, replicas: Replicas) -> Result<Self> {
        let (count, size) = (replicas.count(), ranks.size());
        if !count.is_multiple_of(size) {
            let allowed = format!("a multiple of {size}, the number of ranks");
            return Err(Error::invalid("replicas", count, allowed));
        }
        Ok(Self {
            ranks,
            local: Replicas::new(count / size)?,
            of_rank: Replicas::new(size)?,
        })
    }

    /// The ranks.
    pub fn ranks(&self) -> &'a dyn Communicator {
        self.ranks
    }

    /// The number of replicas that all ranks run, R.
    pub fn count(&self) -> usize {
        self.local.count() * self.ranks.size()
    }

    /// The replicas that this rank runs, R / G: which of its rows each takes.
    pub fn replicas(&self) -> Replicas {
        self.local
    }

    /// The ranks as takers of a batch: which of its rows each takes.
    pub fn of_rank(&self) -> Replicas {
        self.of_rank
    }

    /// The number among all replicas of this rank's `local`-th: that of its draws.
    pub fn number(&self, local: usize) -> usize {
        self.ranks.rank() + local * self.ranks.size()
    }

    /// One step: runs this rank's replicas one after the other, as [`Replicas::run`] does, and returns the mean of the
    /// gradients of all replicas, and the rest of this rank's. `replica` gets 0 to R / G - 1, to be
    /// [numbered](Self::number).
    ///
    /// # Errors
    /// Those of `replica`, on the rank that has them; [`Error::OtherRank`] on all others, which then refuse the step
    /// together. Running statistics are as they were before the step.
    pub fn run<T, E: From<Error> + Display>(
        &self,
        params: &Params,
        statistics: &RunningStatistics,
        combine: Combine,
        replica: impl FnMut(usize) -> std::result::Result<(GradStore, T), E>,
    ) -> std::result::Result<(GradStore, Vec<T>), E> {
        let before = statistics.read()?;
        let run = self.local.run(params, statistics, combine, replica);
        let step = run.and_then(|step| {
            let told = tell(&step.0, params)?;
            Ok((step, told))
        });
        let together = exchange(self.ranks, step).and_then(|((mut grads, rests), told)| {
            mean_told(self.ranks, &mut grads, params, &told)?;
            self.combine(statistics, combine)?;
            Ok((grads, rests))
        });
        together.or_else(|error| {
            statistics.write(&before)?;
            Err(error)
        })
    }

    fn combine(&self, statistics: &RunningStatistics, combine: Combine) -> Result<()> {
        if self.ranks.size() == 1 {
            return Ok(());
        }
        let own = statistics.read()?;
        let mut combined = own.clone();
        let send = |bucket: &Tensor| match combine {
            Combine::First => self.ranks.broadcast(bucket, 0),
            Combine::Mean => Ok((self.ranks.sum(bucket)? / self.ranks.size() as f64)?),
        };
        travel(&own, send, |i, value| {
            combined[i] = value;
            Ok(())
        })?;
        statistics.write(&combined)
    }
}
