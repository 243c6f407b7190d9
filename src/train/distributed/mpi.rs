//! Ranks that are processes, started by `mpirun`: MPI by the crate [`mpi`](::mpi), on OpenMPI or MPICH.
//!
//! ```text
//! mpirun -n 4 target/release/my_training
//! ```
//!
//! ```no_run
//! use masksub::train::distributed::{mpi::Mpi, Communicator};
//! let ranks = Mpi::init()?;
//! println!("rank {} of {}", ranks.rank(), ranks.size());
//! ranks.finish(); // at the end, and only where all went well
//! # Ok::<(), masksub::Error>(())
//! ```
//!
//! OpenMPI binds each process to a core of its own when there are one or two; `--bind-to none` or `--map-by slot:PE=8`
//! gives it more, and rayon as many threads as it finds cores.

use std::marker::PhantomData;
use std::mem::ManuallyDrop;

use ::mpi::collective::SystemOperation;
use ::mpi::datatype::PartitionMut;
use ::mpi::environment::Universe;
use ::mpi::topology::{Communicator as _, SimpleCommunicator};
use ::mpi::traits::{CommunicatorCollectives as _, Equivalence, Root as _};
use ::mpi::{Count, Threading};
use candle_core::{DType, Tensor, WithDType};

use super::agreement::other;
use super::{check_root, Communicator};
use crate::error::{Error, Result};

/// All processes of an `mpirun` (MPI's `COMM_WORLD`). Tensors that are not on the CPU travel by way of it.
///
/// A process that ends without [`finish`](Self::finish), by an error, a panic or a signal, has `mpirun` end all others
/// and exit with a code that is not 0. MPI's own errors end the process.
pub struct Mpi {
    world: SimpleCommunicator,
    /// Dropped, it waits for all other ranks, which may wait for this one in something else.
    universe: ManuallyDrop<Universe>,
    /// Of the thread that made it.
    thread: PhantomData<*const ()>,
}

impl Mpi {
    /// Joins the other processes: once in a process, on its main thread. Started without `mpirun`, a process is alone.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] the second time.
    pub fn init() -> Result<Self> {
        // One thread calls MPI, and rayon's are there beside it.
        let Some((universe, _)) = ::mpi::initialize_with_threading(Threading::Funneled) else {
            return Err(Error::invalid(
                "mpi",
                "initialised",
                "not so yet: it is once in a process",
            ));
        };
        Ok(Self {
            world: universe.world(),
            universe: ManuallyDrop::new(universe),
            thread: PhantomData,
        })
    }

    /// Takes leave of the other ranks, which do the same.
    pub fn finish(self) {
        drop(ManuallyDrop::into_inner(self.universe));
    }

    fn sum_of<T: WithDType + Equivalence>(&self, values: &Tensor) -> Result<Tensor> {
        let own = values.to_vec1::<T>()?;
        let mut sum = vec![T::zero(); own.len()];
        self.world
            .all_reduce_into(&own[..], &mut sum[..], SystemOperation::sum());
        Ok(Tensor::from_vec(sum, own.len(), values.device())?)
    }

    fn broadcast_of<T: WithDType + Equivalence>(&self, values: &Tensor, root: usize) -> Result<Tensor> {
        let mut values_of_root = values.to_vec1::<T>()?;
        let process = self.world.process_at_rank(root as i32);
        process.broadcast_into(&mut values_of_root[..]);
        Ok(Tensor::from_vec(values_of_root, values.shape(), values.device())?)
    }

    /// A number of values that MPI can count, the same on all ranks.
    fn check(&self, values: &Tensor) -> Result<()> {
        let n = values.dims1()?;
        if Count::try_from(n).is_err() {
            return Err(Error::shape("values", values.dims(), "[N] with N below 2^31"));
        }
        Ok(())
    }
}

impl Communicator for Mpi {
    fn rank(&self) -> usize {
        self.world.rank() as usize
    }

    fn size(&self) -> usize {
        self.world.size() as usize
    }

    fn sum(&self, values: &Tensor) -> Result<Tensor> {
        self.check(values)?;
        match values.dtype() {
            DType::F64 => self.sum_of::<f64>(values),
            _ => self.sum_of::<f32>(values),
        }
    }

    fn broadcast(&self, values: &Tensor, root: usize) -> Result<Tensor> {
        self.check(values)?;
        check_root(self, root)?;
        match values.dtype() {
            DType::F64 => self.broadcast_of::<f64>(values, root),
            _ => self.broadcast_of::<f32>(values, root),
        }
    }

    fn gather(&self, bytes: &[u8]) -> Result<Vec<Vec<u8>>> {
        // What is more than MPI can count is no few bytes: the error goes to all.
        let size = self.size();
        let mut lengths = vec![0u64; size];
        self.world.all_gather_into(&(bytes.len() as u64), &mut lengths[..]);
        let mut displacements = Vec::with_capacity(size);
        let mut counts = Vec::with_capacity(size);
        let mut end: Count = 0;
        for (rank, &length) in lengths.iter().enumerate() {
            let count = Count::try_from(length).ok();
            let Some((count, next)) = count.and_then(|count| Some((count, end.checked_add(count)?))) else {
                return Err(other(rank, format!("its {length} bytes are too many")));
            };
            displacements.push(end);
            counts.push(count);
            end = next;
        }
        let mut all = vec![0u8; end as usize];
        // OpenMPI refuses to gather nothing at all.
        if end > 0 {
            let mut parts = PartitionMut::new(&mut all[..], &counts[..], &displacements[..]);
            self.world.all_gather_varcount_into(bytes, &mut parts);
        }
        let part = |(&start, &count): (&Count, &Count)| all[start as usize..(start + count) as usize].to_vec();
        Ok(displacements.iter().zip(&counts).map(part).collect())
    }
}
