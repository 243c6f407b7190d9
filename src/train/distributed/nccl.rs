//! Ranks that have a CUDA device each: NCCL, by candle's own binding to it ([`candle_core::cuda_backend::cudarc`]).
//!
//! ```no_run
//! use candle_core::Device;
//! use masksub::train::distributed::{nccl::Nccl, threads, Communicator};
//! // Of MPI's processes the same: `Nccl::join(&mpi, &device)`.
//! threads::run(2, |threads| {
//!     let device = Device::new_cuda(threads.rank())?;
//!     let ranks = Nccl::join(threads, &device)?;
//!     println!("rank {} of {}", ranks.rank(), ranks.size());
//!     Ok::<_, masksub::Error>(())
//! })?;
//! # Ok::<(), masksub::Error>(())
//! ```
//!
//! It has been compiled, and has not been run.

use std::ffi::c_char;

use candle_core::backend::BackendStorage;
use candle_core::cuda_backend::cudarc::driver::{CudaSlice, CudaView, DeviceRepr, ValidAsZeroBits};
use candle_core::cuda_backend::cudarc::nccl::result::NcclError;
use candle_core::cuda_backend::cudarc::nccl::{Comm, Id, NcclType, ReduceOp};
use candle_core::cuda_backend::CudaDType;
use candle_core::{CpuStorage, CudaStorage, CustomOp1, DType, Device, DeviceLocation, Layout, Shape, Tensor};

use super::agreement::exchange;
use super::{agree, check_root, Communicator};
use crate::error::{Error, Result};

/// Ranks that another communicator has brought together, processes (`mpi::Mpi`) or threads of one
/// ([`threads`](super::threads)), each with a CUDA device of its own. Tensors on these devices are summed and sent by NCCL
/// from device to device; what is on the CPU, and bytes, goes by the other communicator.
///
/// As with any communicator, all ranks call the same operations in the same order, and with tensors of the same kind of
/// device. A rank that is gone leaves NCCL's others waiting, until the other communicator ends them: `mpirun` does.
pub struct Nccl<'a> {
    ranks: &'a dyn Communicator,
    device: DeviceLocation,
    comm: Comm,
}

impl<'a> Nccl<'a> {
    /// Joins the devices of all `ranks`, of which this one's is `device`. Two ranks cannot share one.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for a device that is not CUDA's; candle's, with what NCCL says. An error of one rank is
    /// one of all ([`Error::OtherRank`]), but for what NCCL itself notices on some of them.
    pub fn join(ranks: &'a dyn Communicator, device: &Device) -> Result<Self> {
        let stream = match device {
            Device::Cuda(device) => Ok(device.cuda_stream()),
            _ => Err(Error::invalid(
                "device",
                format!("{:?}", device.location()),
                "a CUDA device",
            )),
        };
        // The first rank's name for all of them together.
        let id = |()| match ranks.rank() {
            0 => Id::new()
                .map(|id| id.internal().map(|c| c as u8).to_vec())
                .map_err(failed),
            _ => Ok(vec![]),
        };
        let named = stream.and_then(|stream| Ok((stream, id(())?)));
        let (stream, ids) = exchange(ranks, named)?;
        let id: [u8; 128] = ids[0][..]
            .try_into()
            .map_err(|_| super::agreement::other(0, "it does not call the same operation"))?;
        let joined = stream
            .context()
            .bind_to_thread()
            .map_err(|error| candle_core::Error::msg(error).into())
            .and_then(|()| {
                Comm::from_rank(
                    stream,
                    ranks.rank(),
                    ranks.size(),
                    Id::uninit(id.map(|byte| byte as c_char)),
                )
                .map_err(failed)
            });
        Ok(Self {
            ranks,
            device: device.location(),
            comm: agree(ranks, joined)?,
        })
    }

    /// True where NCCL takes `values`.
    fn takes(&self, values: &Tensor) -> Result<bool> {
        let device = values.device();
        if device.is_cuda() && device.location() != self.device {
            let allowed = format!("on {:?}, the device of this rank, or on the CPU", self.device);
            return Err(Error::invalid("values", format!("on {:?}", device.location()), allowed));
        }
        Ok(device.is_cuda())
    }
}

impl Communicator for Nccl<'_> {
    fn rank(&self) -> usize {
        self.ranks.rank()
    }

    fn size(&self) -> usize {
        self.ranks.size()
    }

    fn sum(&self, values: &Tensor) -> Result<Tensor> {
        if !self.takes(values)? {
            return self.ranks.sum(values);
        }
        Ok(values.contiguous()?.apply_op1_no_bwd(&Sum(&self.comm))?)
    }

    fn broadcast(&self, values: &Tensor, root: usize) -> Result<Tensor> {
        check_root(self, root)?;
        if !self.takes(values)? {
            return self.ranks.broadcast(values, root);
        }
        let comm = &self.comm;
        Ok(values.contiguous()?.apply_op1_no_bwd(&Broadcast { comm, root })?)
    }

    fn gather(&self, bytes: &[u8]) -> Result<Vec<Vec<u8>>> {
        self.ranks.gather(bytes)
    }
}

/// What NCCL says. Its errors have a number and no words.
fn failed(error: NcclError) -> Error {
    candle_core::Error::msg(format!("NCCL: {error:?}")).into()
}

/// Of all ranks, by NCCL.
struct Sum<'a>(&'a Comm);

struct Broadcast<'a> {
    comm: &'a Comm,
    root: usize,
}

impl Sum<'_> {
    fn of<T: OnCuda>(&self, own: &CudaStorage, layout: &Layout) -> candle_core::Result<CudaStorage> {
        computed::<T, _>(own, layout, |own, sum| self.0.all_reduce(own, sum, &ReduceOp::Sum))
    }
}

impl Broadcast<'_> {
    fn of<T: OnCuda>(&self, own: &CudaStorage, layout: &Layout) -> candle_core::Result<CudaStorage> {
        computed::<T, _>(own, layout, |own, values| {
            self.comm.broadcast(Some(own), values, self.root as i32)
        })
    }
}

trait OnCuda: CudaDType + DeviceRepr + ValidAsZeroBits + NcclType {}

impl OnCuda for f32 {}
impl OnCuda for f64 {}

/// What `f` makes of the values of this rank, as many.
fn computed<T: OnCuda, R>(
    own: &CudaStorage,
    layout: &Layout,
    f: impl FnOnce(&CudaView<T>, &mut CudaSlice<T>) -> std::result::Result<R, NcclError>,
) -> candle_core::Result<CudaStorage> {
    let (own, device) = (own.as_cuda_slice::<T>()?.slice(range(layout)?), own.device());
    let mut values = device.alloc_zeros::<T>(layout.shape().elem_count())?;
    f(&own, &mut values).map_err(|error| candle_core::Error::msg(failed(error)))?;
    Ok(CudaStorage::wrap_cuda_slice(values, device.clone()))
}

/// Where the values of a contiguous tensor lie.
fn range(layout: &Layout) -> candle_core::Result<std::ops::Range<usize>> {
    match layout.contiguous_offsets() {
        Some((start, end)) => Ok(start..end),
        None => candle_core::bail!("values of {:?} are not contiguous", layout.shape()),
    }
}

macro_rules! on_cuda {
    ($op:ty, $name:literal) => {
        impl CustomOp1 for $op {
            fn name(&self) -> &'static str {
                $name
            }

            fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> candle_core::Result<(CpuStorage, Shape)> {
                candle_core::bail!("{} is of tensors on a CUDA device", $name)
            }

            fn cuda_fwd(&self, own: &CudaStorage, layout: &Layout) -> candle_core::Result<(CudaStorage, Shape)> {
                let values = match own.dtype() {
                    DType::F64 => self.of::<f64>(own, layout)?,
                    _ => self.of::<f32>(own, layout)?,
                };
                Ok((values, layout.shape().clone()))
            }
        }
    };
}

on_cuda!(Sum<'_>, "nccl-sum");
on_cuda!(Broadcast<'_>, "nccl-broadcast");
