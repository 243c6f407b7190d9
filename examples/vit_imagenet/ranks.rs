//! The ranks that share a run: those that `mpirun` started, or this process alone.

use crate::data::Part;
use crate::interrupt;
use anyhow::{ensure, Result};
use masksub::train::distributed::{self, Communicator};
use std::sync::atomic::{AtomicUsize, Ordering};

/// This process' rank.
static RANK: AtomicUsize = AtomicUsize::new(0);

/// True on the rank that tells how the run goes.
pub fn tells() -> bool {
    RANK.load(Ordering::Relaxed) == 0
}

/// What an error of this rank begins with.
pub fn prefix() -> String {
    match RANK.load(Ordering::Relaxed) {
        0 => "error: ".into(),
        rank => format!("error: rank {rank}: "),
    }
}

/// How this process was started.
pub struct Launch {
    #[cfg(feature = "mpi")]
    mpi: Option<distributed::mpi::Mpi>,
}

impl Launch {
    /// Joins the other processes, where `mpirun` has started this one.
    pub fn new() -> Result<Self> {
        // OpenMPI's launcher, and that of MPICH and its kin.
        let size = ["OMPI_COMM_WORLD_SIZE", "PMI_SIZE"]
            .into_iter()
            .find_map(std::env::var_os)
            // One by itself needs no MPI, which a process that it starts, as `--plan` does, could not join.
            .filter(|size| size != "1");
        #[cfg(feature = "mpi")]
        let launch = Self {
            mpi: size.map(|_| distributed::mpi::Mpi::init()).transpose()?,
        };
        #[cfg(not(feature = "mpi"))]
        let launch = {
            ensure!(
                size.is_none(),
                "mpirun needs the example built with --features mpi: without it, each process would train by itself"
            );
            Self {}
        };
        RANK.store(launch.ranks().rank(), Ordering::Relaxed);
        Ok(launch)
    }

    pub fn ranks(&self) -> &dyn Communicator {
        #[cfg(feature = "mpi")]
        if let Some(mpi) = &self.mpi {
            return mpi;
        }
        &distributed::Alone
    }

    /// Takes leave of the others. Who ends without it ends them, too.
    pub fn finish(self) {
        #[cfg(feature = "mpi")]
        if let Some(mpi) = self.mpi {
            mpi.finish();
        }
    }
}

/// NCCL between the devices of these ranks, where any of them has a CUDA device: then all have one each.
#[cfg(feature = "nccl")]
pub fn nccl<'a>(
    ranks: &'a dyn Communicator,
    device: &candle_core::Device,
) -> Result<Option<distributed::nccl::Nccl<'a>>> {
    let has_device = ranks.gather(&[device.is_cuda().into()])?;
    let is_needed = ranks.size() > 1 && has_device.iter().any(|has| has[..] == [1]);
    Ok(is_needed
        .then(|| distributed::nccl::Nccl::join(ranks, device))
        .transpose()?)
}

/// The part of each batch that this rank loads.
pub fn part(ranks: &dyn Communicator) -> Part {
    Part {
        rank: ranks.rank(),
        of: ranks.size(),
    }
}

/// True where a signal asks any rank to end. All ranks then end by it, which may not have come here yet.
pub fn asked(ranks: &dyn Communicator) -> Result<bool> {
    // SIGINT, SIGTERM and SIGHUP, by number.
    const SIGNALS: [i32; 3] = [2, 15, 1];
    let here = interrupt::signal();
    let mut counts = SIGNALS.map(|signal| f64::from(u8::from(signal == here)));
    distributed::sum(ranks, &mut counts)?;
    let first = counts.iter().position(|&count| count > 0.0);
    if let Some(first) = first {
        interrupt::ASKED.store(SIGNALS[first], Ordering::SeqCst);
    }
    Ok(first.is_some())
}

/// Has `tell` tell why this rank refuses to begin, `refusal`, unless rank 0 refuses in the same words: the ranks of an
/// `mpirun` have the same arguments. All of them call it, those that do not refuse with nothing.
pub fn tell_refusal(ranks: &dyn Communicator, refusal: Option<&str>, tell: impl FnOnce()) -> Result<()> {
    let own = refusal.unwrap_or_default().as_bytes();
    let all = ranks.gather(own)?;
    if refusal.is_some() && (ranks.rank() == 0 || all[0] != own) {
        tell();
    }
    // The first that ends has `mpirun` end the others, who may still have to tell.
    if all.iter().all(|refusal| !refusal.is_empty()) {
        ranks.gather(&[])?;
    }
    Ok(())
}

/// An error unless `text` is the same on all ranks.
pub fn check_same(ranks: &dyn Communicator, what: &str, text: &str) -> Result<()> {
    let digest = crc32fast::hash(text.as_bytes()).to_le_bytes();
    let all = ranks.gather(&digest)?;
    let other = all.iter().position(|theirs| *theirs != all[0]);
    ensure!(
        other.is_none(),
        "{what} of rank {} are others than of rank 0",
        other.unwrap_or(0)
    );
    Ok(())
}
