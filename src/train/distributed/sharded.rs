//! An optimizer whose state is divided among the ranks.

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashSet};

use candle_core::backprop::GradStore;
use candle_core::{DType, Tensor};

use super::bucket::travel;
use super::{agree, Communicator};
use crate::error::Result;
use crate::train::optim::{Group, GroupOptimizer, ParamGroups, Rule};

/// An optimizer by rule `R` of which each rank keeps the moments, and the master copies, of its share of the parameters:
/// ZeRO's first stage (Rajbhandari et al., arXiv 1910.02054, P_os; `torch.distributed.optim.ZeroRedundancyOptimizer`).
/// Each rank updates its share and sends it to the others. Weights are, to the bit, those of a [`GroupOptimizer`] on each
/// rank, and so is the [state](Self::state), whatever the number of ranks; on one rank, [`Alone`](super::Alone), it is one.
///
/// A parameter is one rank's as a whole, so that LAMB's norms need no message.
pub struct ShardedOptimizer<'a, R> {
    ranks: &'a dyn Communicator,
    groups: ParamGroups,
    /// The rank of each group.
    owners: Vec<usize>,
    own: GroupOptimizer<R>,
}

impl<'a, R: Rule> ShardedOptimizer<'a, R> {
    /// As [`GroupOptimizer::new`]: with the same groups on all ranks.
    ///
    /// # Errors
    /// As there.
    pub fn new(ranks: &'a dyn Communicator, groups: impl Into<ParamGroups>, rule: R) -> Result<Self> {
        let groups = groups.into();
        // One of all of them says what is wrong with them.
        groups.check()?;
        let sizes: Vec<usize> = groups.0.iter().map(|group| group.var.elem_count()).collect();
        let owners = owners(&sizes, ranks.size());
        let own = owners.iter().zip(&groups.0).filter(|(&owner, _)| owner == ranks.rank());
        let own = ParamGroups(own.map(|(_, group)| group.clone()).collect());
        Ok(Self {
            ranks,
            own: GroupOptimizer::build(own, rule)?,
            owners,
            groups,
        })
    }

    /// The optimizer of this rank's share.
    pub fn own(&self) -> &GroupOptimizer<R> {
        &self.own
    }

    /// Changes the learning rate, on all ranks alike.
    pub fn set_learning_rate(&mut self, lr: f64) {
        self.own.set_learning_rate(lr)
    }

    /// Updates every parameter that has a gradient, of `grads` that are the same on all ranks.
    ///
    /// # Errors
    /// As [`GroupOptimizer::step`], on all ranks.
    pub fn step(&mut self, grads: &GradStore) -> Result<()> {
        self.own.step_among(grads, Some(&self.groups))?;
        if self.ranks.size() == 1 {
            return Ok(());
        }
        for owner in 0..self.ranks.size() {
            let sent: Vec<_> = self.of(owner).map(|group| &group.var).collect();
            let values: Vec<Tensor> = sent.iter().map(|var| var.as_detached_tensor()).collect();
            let put = |i: usize, value: Tensor| {
                if self.ranks.rank() == owner {
                    return Ok(());
                }
                Ok(sent[i].set(&value)?)
            };
            travel(&values, |bucket| self.ranks.broadcast(bucket, owner), put)?;
        }
        Ok(())
    }

    /// All that the optimizer remembers of all parameters, as [`GroupOptimizer::state`]: to be called by all ranks.
    ///
    /// # Errors
    /// When a tensor cannot be read.
    pub fn state(&self) -> Result<BTreeMap<String, Tensor>> {
        let own = agree(self.ranks, self.own.state())?;
        if self.ranks.size() == 1 {
            return Ok(own);
        }
        let mut all = BTreeMap::new();
        for owner in 0..self.ranks.size() {
            let parts = if self.ranks.rank() == owner {
                own.clone()
            } else {
                self.own.blank_state(self.of(owner))?
            };
            let (names, values): (Vec<String>, Vec<Tensor>) = parts.into_iter().unzip();
            // Numbers of updates are below 2^53.
            let float = |value: &Tensor| match value.dtype() {
                DType::I64 => value.to_dtype(DType::F64),
                _ => Ok(value.clone()),
            };
            let floats = values.iter().map(float).collect::<candle_core::Result<Vec<_>>>()?;
            travel(
                &floats,
                |bucket| self.ranks.broadcast(bucket, owner),
                |i, value| {
                    all.insert(names[i].clone(), value.to_dtype(values[i].dtype())?);
                    Ok(())
                },
            )?;
            let empty = names
                .into_iter()
                .zip(values)
                .filter(|(_, value)| value.elem_count() == 0);
            all.extend(empty);
        }
        Ok(all)
    }

    /// Takes over what [`state`](Self::state) gave, on any number of ranks, or [`GroupOptimizer::state`].
    ///
    /// # Errors
    /// As [`GroupOptimizer::load_state`], of the ranks whose share it is; all refuse it together, and keep what they had.
    pub fn load_state(&mut self, state: &BTreeMap<String, Tensor>) -> Result<()> {
        let rank = self.ranks.rank();
        let others = self
            .owners
            .iter()
            .zip(&self.groups.0)
            .filter(|(&owner, _)| owner != rank);
        let others: HashSet<&str> = others.map(|(_, group)| group.name.as_str()).collect();
        let of_other = |path: &str| path.rsplit_once('.').is_some_and(|(name, _)| others.contains(name));
        let own = state.iter().filter(|(path, _)| !of_other(path));
        let own = own.map(|(path, tensor)| (path.clone(), tensor.clone())).collect();
        let read = agree(self.ranks, self.own.read_state(&own))?;
        self.own.put_state(read);
        Ok(())
    }

    fn of(&self, owner: usize) -> impl Iterator<Item = &Group> {
        let owned = self.owners.iter().zip(&self.groups.0);
        owned.filter(move |(&of, _)| of == owner).map(|(_, group)| group)
    }
}

/// The rank of each parameter: the largest first, each to the rank that has the fewest elements.
fn owners(sizes: &[usize], ranks: usize) -> Vec<usize> {
    let mut largest_first: Vec<usize> = (0..sizes.len()).collect();
    largest_first.sort_by_key(|&i| Reverse(sizes[i]));
    let (mut owners, mut load) = (vec![0; sizes.len()], vec![0; ranks]);
    for i in largest_first {
        let least = (0..ranks).min_by_key(|&rank| load[rank]).unwrap_or(0);
        owners[i] = least;
        load[least] += sizes[i];
    }
    owners
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranks_have_nearly_as_much_each() {
        let sizes = [5, 100, 40, 60, 5, 1, 90];
        let owners = owners(&sizes, 3);
        let load = |rank| -> usize {
            sizes
                .iter()
                .zip(&owners)
                .filter(|(_, &of)| of == rank)
                .map(|(size, _)| size)
                .sum()
        };
        assert_eq!([0, 1, 2].map(load), [101, 100, 100]);
        assert_eq!(super::owners(&sizes, 1), [0; 7]);
        assert_eq!(super::owners(&[3], 2), [0]);
    }
}
