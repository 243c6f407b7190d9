//! Ranks that make one step together: threads of a process, or processes of one or several machines.
//!
//! [`replicas`](super::replicas) defines what R replicas compute; G ranks compute the same, to rounding, each running R / G
//! of them ([`Share`]). So the number of ranks is no part of a recipe: a run may go on with another one. A rank takes
//! positions g, g + G, ... of the epoch's order, as PyTorch's `DistributedSampler` and DeiT's `RASampler` do.
//!
//! There is no scheduler here, and no protocol: a [`Communicator`] sums, sends and collects. [`threads`] is one within a
//! process, [`Alone`] one for a single rank, and `mpi`, behind the feature of that name, is MPI's. (docs.rs has no MPI, and so
//! no page of it: `cargo doc --features mpi` makes one. `mpi::Mpi::init()` joins the other processes and gives the
//! communicator, which `finish()` takes leave by.) Ranks of either kind that have a CUDA device each reach each other's by
//! NCCL, behind the feature `nccl`: `nccl::Nccl::join(&ranks, &device)`.
//!
//! ```
//! use masksub::train::distributed::{self, threads, Communicator, Share};
//! use masksub::train::optim::{AdamW, AdamWConfig};
//! use masksub::train::replicas::{Combine, Replicas, RunningStatistics};
//! # use candle_core::{DType, Device, Tensor};
//! # use masksub::{Criterion, Error, MaskSub, Params, PatchDrop, RandomMasking, Seed, Weights};
//! # let images = Tensor::ones((8, 1, 8, 8), DType::F32, &Device::Cpu)?;
//! # let labels = Tensor::new(&[3u32, 7, 1, 1, 0, 2, 9, 4], &Device::Cpu)?;
//! let ended = threads::run(2, |ranks| {
//!     let seed = Seed::new(7);
//!     let weights = Weights::seeded(seed);
//! #   let vb = weights.var_builder(DType::F32, &Device::Cpu);
//! #   let net = candle_nn::seq().add_fn(|xs| xs.flatten_from(1)).add(candle_nn::linear(64, 10, vb.pp("fc"))?);
//!     let params = Params::from_varmap(weights.varmap());
//! #   let model = MaskSub::wrap(net, PatchDrop::new(RandomMasking::new(0.5)?, 4)?, &params);
//! #   let criterion = Criterion::cross_entropy();
//!     distributed::synchronize(ranks, weights.varmap())?; // the first rank's weights are everybody's, before any is copied
//!     let statistics = RunningStatistics::of(weights.varmap());
//!     let mut opt = AdamW::new(&params, AdamWConfig::default())?;
//!     let share = Share::of(ranks, Replicas::new(4)?)?; // each rank runs two of the four
//!     for t in 0..3 {
//!         // The rows of the batch that are this rank's; a loader reads no others.
//!         let (xs, ys) = (share.of_rank().share(&images, ranks.rank())?, share.of_rank().share(&labels, ranks.rank())?);
//!         let (grads, losses) = share.run(&params, &statistics, Combine::First, |local| {
//!             let key = seed.at(t).with_replica(share.number(local));
//!             let (xs, ys) = (share.replicas().share(&xs, local)?, share.replicas().share(&ys, local)?);
//!             let step = model.backward(&xs, key, |logits| criterion.forward(logits, &ys))?;
//!             Ok::<_, Error>((step.grads, step.main_loss))
//!         })?; // the mean over all four replicas, the same bits on each rank
//!         opt.step(&grads)?;
//!         let mut loss = [losses.iter().sum::<f64>()];
//!         distributed::sum(ranks, &mut loss)?;
//!     }
//!     Ok::<_, Error>(())
//! })?;
//! ended.into_iter().collect::<Result<Vec<_>, _>>()?;
//! # Ok::<(), Error>(())
//! ```
//!
//! # When a rank fails
//!
//! An error of one rank in [`Share::run`], such as a loss that is not finite, and whatever else goes through [`agree`], is
//! an error of all: [`Error::OtherRank`] names the rank and its reason, and no weight has changed. What a rank keeps to
//! itself and ends with also ends the others: [`threads::run`] tells them, and of MPI's processes `mpirun` does when one
//! leaves without having taken leave (`mpi::Mpi::finish`).

mod agreement;
mod bucket;
mod gradients;
#[cfg(feature = "mpi")]
pub mod mpi;
#[cfg(feature = "nccl")]
pub mod nccl;
mod sharded;
mod share;
pub mod threads;

pub use agreement::agree;
pub use gradients::{mean_gradients, sum, synchronize};
pub use sharded::ShardedOptimizer;
pub use share::Share;

use candle_core::Tensor;

use crate::error::{Error, Result};

/// Ranks that can reach each other. All of them call the same operations in the same order, and wait in each for the
/// others.
///
/// Implement it for another library than MPI: what this module does with it needs no more than these. Every rank must
/// get the same bits of a sum.
///
/// Ranks that call different operations, or give other lengths or dtypes, break this contract. An implementation may
/// notice, as [`threads`] does; MPI need not, and may wait for ever, mix up values or end the process. What this module
/// itself sends it compares first, where ranks can differ in it.
pub trait Communicator {
    /// The number of this rank, from 0.
    fn rank(&self) -> usize;

    /// The number of ranks, G.
    fn size(&self) -> usize;

    /// The sum over the ranks of their `values` `[N]`, f32 or f64, all of one length. Where they lie on the device, the sum
    /// does.
    ///
    /// # Errors
    /// When one is gone, or does not call the same operation, where that is noticed. (MPI ends the processes in the one
    /// case, and does not notice the other.)
    fn sum(&self, values: &Tensor) -> Result<Tensor>;

    /// The `values` `[N]`, f32 or f64, of rank `root`; those of the others say dtype, length and device alone.
    ///
    /// # Errors
    /// As [`sum`](Self::sum).
    fn broadcast(&self, values: &Tensor, root: usize) -> Result<Tensor>;

    /// The bytes of all ranks, in the order of the ranks: a few, of any number.
    ///
    /// # Errors
    /// As [`sum`](Self::sum).
    fn gather(&self, bytes: &[u8]) -> Result<Vec<Vec<u8>>>;
}

/// One rank by itself: what runs on several runs on one, at no cost.
#[derive(Clone, Copy, Debug, Default)]
pub struct Alone;

impl Communicator for Alone {
    fn rank(&self) -> usize {
        0
    }

    fn size(&self) -> usize {
        1
    }

    fn sum(&self, values: &Tensor) -> Result<Tensor> {
        Ok(values.clone())
    }

    fn broadcast(&self, values: &Tensor, root: usize) -> Result<Tensor> {
        check_root(self, root)?;
        Ok(values.clone())
    }

    fn gather(&self, bytes: &[u8]) -> Result<Vec<Vec<u8>>> {
        Ok(vec![bytes.to_vec()])
    }
}

/// An error unless there is such a rank.
fn check_root(ranks: &dyn Communicator, root: usize) -> Result<()> {
    if root < ranks.size() {
        return Ok(());
    }
    Err(Error::invalid("root", root, format!("within 0..{}", ranks.size())))
}
