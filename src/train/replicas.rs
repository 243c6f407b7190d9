//! G replicas of a model that make one step together: what each takes of a batch, draws and keeps.
//!
//! This defines what G devices compute that train as PyTorch's `DistributedDataParallel` does, and the published recipes
//! with it. One device computes it by running the replicas one after the other ([`Replicas::run`]); G ranks compute it when
//! each runs its own share with its own key, and they average the gradients and [combine](Combine::of) the statistics.
//!
//! - **Images.** Replica r takes positions r, r + G, r + 2G, ... of the epoch's order, as PyTorch's `DistributedSampler`,
//!   DeiT's `RASampler` (`samplers.py`) and timm's `RepeatAugSampler` do. A batch of B positions in a row so gives each
//!   replica its rows r, r + G, ...: B / G of them ([`Replicas::share`]). Where copies of an image stand side by side in
//!   that order, as with repeated augmentation, up to G of them go to different replicas.
//! - **Draws.** Each has its own: of mixup, cutmix, masks, dropout and drop path
//!   ([`StepKey::with_replica`](crate::StepKey::with_replica)). The sources add the rank to the seed (DeiT `main.py`,
//!   timm `train.py`, MAE `main_finetune.py`).
//! - **Batch norm** sees a replica's own share. Of its running statistics, see [`Combine`].
//! - **Gradients** are averaged over the replicas, all with the same weight, and one step of the optimizer follows.
//!
//! With one replica all of it is what a batch does without this module, to the bit.

use candle_core::backprop::GradStore;
use candle_core::{Tensor, Var};
use candle_nn::VarMap;

use super::accumulate::Accumulator;
use crate::check;
use crate::error::{Error, Result};
use crate::params::{self, Params};

/// The number of replicas, G. See the [module](self).
///
/// ```
/// use masksub::train::replicas::{Combine, Replicas, RunningStatistics};
/// # use candle_core::{DType, Device, Tensor};
/// # use masksub::{train::mix::Mix, Criterion, MaskSub, Params, PatchDrop, RandomMasking, Seed, Weights};
/// # fn main() -> Result<(), masksub::Error> {
/// # let weights = Weights::seeded(Seed::new(0));
/// # let vb = weights.var_builder(DType::F32, &Device::Cpu);
/// # let net = candle_nn::seq().add_fn(|xs| xs.flatten_from(1)).add(candle_nn::linear(64, 10, vb.pp("fc"))?);
/// # let params = Params::from_varmap(weights.varmap());
/// # let model = MaskSub::wrap(net, PatchDrop::new(RandomMasking::new(0.5)?, 4)?, &params);
/// # let (criterion, mix) = (Criterion::cross_entropy(), Mix::new(10, 0.8, 1.0)?);
/// # let images = Tensor::ones((8, 1, 8, 8), DType::F32, &Device::Cpu)?;
/// # let labels = Tensor::new(&[3u32, 7, 1, 1, 0, 2, 9, 4], &Device::Cpu)?;
/// let replicas = Replicas::new(4)?;
/// let statistics = RunningStatistics::of(weights.varmap());
/// let key = Seed::new(7).at(0);
/// let (grads, losses) = replicas.run(&params, &statistics, Combine::First, |replica| {
///     let key = key.with_replica(replica);
///     let (xs, ys) = (replicas.share(&images, replica)?, replicas.share(&labels, replica)?);
///     let mixed = mix.apply(&xs, &ys, key)?;
///     let step = model.backward(&mixed.images, key, |logits| criterion.forward(logits, &mixed.targets))?;
///     Ok::<_, masksub::Error>((step.grads, step.main_loss))
/// })?; // `grads` are for the optimizer
/// assert_eq!(losses.len(), 4);
/// # Ok(()) }
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Replicas {
    count: usize,
}

/// The choice of running statistics of batch norms after a step in which each replica has seen its own share.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Combine {
    /// Those of replica 0 are everybody's: PyTorch's `DistributedDataParallel` sends rank 0's buffers to all before each
    /// forward pass (`broadcast_buffers`, its default, which DeiT, MAE and timm leave as it is), so that no other rank's
    /// are ever used.
    First,
    /// Their mean over the replicas: timm's `distribute_bn` with `--dist-bn reduce`, its default (`train.py`,
    /// `utils/distributed.py`). It is called at the end of each epoch, so that this is for an epoch's last step;
    /// variances are averaged like means.
    Mean,
}

impl Replicas {
    /// So many replicas.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] when `count` is not 1 to 2^20.
    pub fn new(count: usize) -> Result<Self> {
        check::counts([("replicas", count)])?;
        Ok(Self { count })
    }

    /// G.
    pub fn count(self) -> usize {
        self.count
    }

    /// Samples of a batch that each replica takes.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] when the replicas cannot share `batch` samples evenly, or there are none.
    pub fn samples_of(self, batch: usize) -> Result<usize> {
        if batch == 0 || !batch.is_multiple_of(self.count) {
            let allowed = format!("a multiple of {}, the number of replicas", self.count);
            return Err(Error::invalid("batch", batch, allowed));
        }
        Ok(batch / self.count)
    }

    /// Positions below `len`, of an epoch or a batch, that are replica `replica`'s: r, r + G, ...
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] when there is no such replica.
    pub fn positions(self, replica: usize, len: usize) -> Result<impl ExactSizeIterator<Item = usize>> {
        self.check(replica)?;
        Ok((replica..len.max(replica)).step_by(self.count))
    }

    /// Rows of a batch [B, ...] that are replica `replica`'s: [B / G, ...].
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] when there is no such replica; [`Error::Shape`] when G does not divide B.
    pub fn share(self, xs: &Tensor, replica: usize) -> Result<Tensor> {
        self.check(replica)?;
        let dims = xs.dims();
        let samples = dims.first().map(|&batch| self.samples_of(batch));
        let Some(Ok(samples)) = samples else {
            let expected = format!("[B, ...] with B a multiple of {}, the number of replicas", self.count);
            return Err(Error::shape("xs", dims, expected));
        };
        if self.count == 1 {
            return Ok(xs.clone());
        }
        let rest = dims.get(1..).unwrap_or_default();
        let apart = [&[samples, self.count], rest].concat();
        let share = xs.reshape(apart)?.narrow(1, replica, 1)?;
        Ok(share.reshape([&[samples], rest].concat())?.contiguous()?)
    }

    /// A batch of what the replicas made of their shares, G times [B / G, ...], in the order of the batch: [B, ...].
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] when there are not as many as replicas; candle's when their shapes differ.
    pub fn interleave(self, shares: &[Tensor]) -> Result<Tensor> {
        match shares {
            [only] if self.count == 1 => Ok(only.clone()),
            _ if shares.len() == self.count => Ok(Tensor::stack(shares, 1)?.flatten(0, 1)?),
            _ => {
                let allowed = format!("{}, as many as replicas", self.count);
                Err(Error::invalid("shares", shares.len(), allowed))
            }
        }
    }

    /// Runs the replicas of one step one after the other: `replica` gives the gradients of the one whose number it gets,
    /// and whatever else is wanted of it. Returns the mean of the gradients, and the rest in the replicas' order.
    ///
    /// Each begins with the running statistics that there were before the step, and `combine` says which there are
    /// afterwards.
    ///
    /// # Errors
    /// Those of `replica`, with all running statistics as they were before the step, and those of the [`Accumulator`].
    pub fn run<T, E: From<Error>>(
        self,
        params: &Params,
        statistics: &RunningStatistics,
        combine: Combine,
        mut replica: impl FnMut(usize) -> std::result::Result<(GradStore, T), E>,
    ) -> std::result::Result<(GradStore, Vec<T>), E> {
        let before = statistics.read()?;
        if self.count == 1 {
            let (grads, rest) = replica(0).or_else(|error| {
                statistics.write(&before)?;
                Err(error)
            })?;
            return Ok((grads, vec![rest]));
        }
        let (mut mean, mut seen, mut rests) = (Accumulator::new(params), vec![], vec![]);
        for number in 0..self.count {
            let step = replica(number).and_then(|(grads, rest)| {
                mean.add(&grads, 1)?;
                seen.push(statistics.read()?);
                rests.push(rest);
                Ok(())
            });
            statistics.write(&before)?;
            step?;
        }
        // Written last: what fails before leaves them as they were.
        let (grads, combined) = (mean.take()?, combine.of(&seen)?);
        statistics.write(&combined)?;
        Ok((grads, rests))
    }

    fn check(self, replica: usize) -> Result<()> {
        if replica < self.count {
            return Ok(());
        }
        Err(Error::invalid("replica", replica, format!("within 0..{}", self.count)))
    }
}

impl Combine {
    /// The statistics after a step, of those that each replica has: for every replica the same tensors in the same order.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] when there is no replica, or one has more tensors than another; candle's when shapes
    /// differ.
    pub fn of(self, replicas: &[Vec<Tensor>]) -> Result<Vec<Tensor>> {
        let Some((first, others)) = replicas.split_first() else {
            return Err(Error::invalid("replicas", 0, "at least 1"));
        };
        if let Some(other) = others.iter().find(|other| other.len() != first.len()) {
            let allowed = format!("lists of {} statistics, as the first has", first.len());
            return Err(Error::invalid(
                "replicas",
                format!("a list of {}", other.len()),
                allowed,
            ));
        }
        match self {
            Self::First => Ok(first.clone()),
            Self::Mean => {
                let mean = |(i, tensor): (usize, &Tensor)| {
                    let mut others = others.iter().map(|replica| &replica[i]);
                    let sum = others.try_fold(tensor.clone(), |sum, other| sum + other)?;
                    Ok((sum / replicas.len() as f64)?)
                };
                first.iter().enumerate().map(mean).collect()
            }
        }
    }
}

/// The running statistics of a model's batch norms, which a step of each replica changes: variables called
/// `running_mean` or `running_var`, in the order of their names.
#[derive(Clone, Debug, Default)]
pub struct RunningStatistics {
    vars: Vec<Var>,
}

impl RunningStatistics {
    /// All that `varmap` has now, so after the model is made.
    pub fn of(varmap: &VarMap) -> Self {
        let data = params::lock(varmap);
        let mut named: Vec<_> = data.iter().filter(|(name, _)| params::is_statistic(name)).collect();
        named.sort_unstable_by_key(|(name, _)| *name);
        Self {
            vars: named.into_iter().map(|(_, var)| var.clone()).collect(),
        }
    }

    /// A copy of their values: what a rank sends to the others.
    ///
    /// # Errors
    /// When they cannot be read.
    pub fn read(&self) -> Result<Vec<Tensor>> {
        let values = self.vars.iter().map(|var| var.as_detached_tensor().copy());
        Ok(values.collect::<candle_core::Result<_>>()?)
    }

    /// Sets them.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] when there are not as many values; candle's when shapes differ.
    pub fn write(&self, values: &[Tensor]) -> Result<()> {
        if values.len() != self.vars.len() {
            let allowed = format!("{}, as many as running statistics", self.vars.len());
            return Err(Error::invalid("values", values.len(), allowed));
        }
        let pairs = self.vars.iter().zip(values);
        Ok(pairs.into_iter().try_for_each(|(var, value)| var.set(value))?)
    }
}
