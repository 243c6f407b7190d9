//! How kernels are launched: on the memory of candle's tensors, on its device and stream.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use candle_core::backend::{BackendDevice as _, BackendStorage as _};
use candle_core::cuda_backend::cudarc::driver::{
    CudaSlice, CudaStream, DevicePtr, DevicePtrMut, LaunchConfig, PushKernelArg as _, SyncOnDrop,
};
use candle_core::cuda_backend::cudarc::nvrtc;
use candle_core::cuda_backend::{CudaStorageSlice as Slice, WrapErr as _};
use candle_core::op::BackpropOp;
use candle_core::{CudaDevice, CudaStorage, DType, Layout, Result, Shape, Storage, Tensor};

use super::launch::{Address, Element, Launch};
use super::source::source;
use crate::ops::cpu::kernel::with_storages;

/// candle's name for all kernels here together.
const MODULE: &str = "masksub";

/// An argument of candle's custom operations.
pub(crate) type Input<'a> = (&'a CudaStorage, &'a Layout);

/// Whether operations run kernels: unless `MASKSUB_CUDA_KERNELS=off`, for whoever wants to compare, or has no NVRTC.
pub(crate) fn kernels_are_on() -> bool {
    static ON: std::sync::OnceLock<bool> = std::sync::OnceLock::new();
    *ON.get_or_init(|| std::env::var("MASKSUB_CUDA_KERNELS").map_or(true, |value| value != "off"))
}

/// The kernels for a device, compiled once in a process: code that its driver and those of later devices translate.
fn compiled(device: &CudaDevice) -> Result<String> {
    static COMPILED: Mutex<Option<HashMap<i32, String>>> = Mutex::new(None);
    let (major, minor) = device.cuda_stream().context().compute_capability().w()?;
    // Nothing here needs more than the first of these; an older NVRTC may not know the device's own.
    let capability = (10 * major + minor).min(80);
    let mut compiled = COMPILED.lock().unwrap_or_else(PoisonError::into_inner);
    let compiled = compiled.get_or_insert_default();
    if let Some(ptx) = compiled.get(&capability) {
        return Ok(ptx.clone());
    }
    let ptx = compile(capability)?;
    compiled.insert(capability, ptx.clone());
    Ok(ptx)
}

fn compile(capability: i32) -> Result<String> {
    let options = nvrtc::CompileOptions {
        options: vec![format!("--gpu-architecture=compute_{capability}"), "--std=c++17".into()],
        name: Some("masksub.cu".into()),
        ..Default::default()
    };
    match nvrtc::compile_ptx_with_opts(source(), options) {
        Ok(ptx) => Ok(ptx.to_src()),
        Err(error) => candle_core::bail!("NVRTC refuses masksub's kernels: {error}"),
    }
}

/// Puts launches on the device's stream, one after the other.
fn launch(device: &CudaDevice, launches: &[Launch]) -> Result<()> {
    let ptx = compiled(device)?;
    for Launch {
        kernel,
        grid,
        block,
        args,
    } in launches
    {
        let function = device.get_or_load_custom_func(kernel, MODULE, &ptx)?;
        let config = LaunchConfig {
            grid_dim: (grid[0], grid[1], 1),
            block_dim: (block[0], block[1], 1),
            shared_mem_bytes: 0,
        };
        let mut builder = function.builder();
        // Of which the driver takes as much as the kernel's struct has.
        builder.arg(args);
        // SAFETY: `launch.rs` makes arguments and grids for the kernel of that name, on memory that `run` holds.
        unsafe { builder.launch(config) }.w()?;
    }
    Ok(())
}

/// The kernels' dtype.
pub(crate) fn element(dtype: DType) -> Result<Element> {
    match Element::of(dtype) {
        Some(element) => Ok(element),
        None => candle_core::bail!("there is no kernel for CUDA for {dtype:?}"),
    }
}

/// Runs `launches`, which is given the addresses of `inputs` (0 for none) and of fresh memory for `outputs`; that is
/// returned.
pub(crate) fn run<const I: usize, const O: usize>(
    inputs: [Option<Input>; I],
    outputs: [(Shape, DType); O],
    launches: impl FnOnce([Address; I], [Address; O]) -> Vec<Launch>,
) -> Result<[CudaStorage; O]> {
    let Some((first, _)) = inputs.iter().flatten().next() else {
        candle_core::bail!("a kernel for CUDA was called without a tensor");
    };
    let device = first.device().clone();
    let stream = device.cuda_stream();
    // SAFETY: kernels write all of it, or it is theirs alone.
    let fresh = |(shape, dtype): (Shape, DType)| unsafe { device.alloc_uninit(&shape, dtype) };
    let mut fresh = array(outputs.into_iter().map(fresh).collect::<Result<Vec<_>>>()?)?;
    {
        // What is dropped behind the launches tells other streams of them.
        let (mut read, mut written) = (vec![], vec![]);
        let mut of = [0; I];
        for (input, of) in inputs.iter().zip(&mut of) {
            if let Some((storage, layout)) = input {
                let (address, sync) = address_of(storage, layout, &stream)?;
                *of = address;
                read.push(sync);
            }
        }
        let mut to = [0; O];
        for (storage, to) in fresh.iter_mut().zip(&mut to) {
            let (address, sync) = address_mut(storage, &stream)?;
            *to = address;
            written.push(sync);
        }
        launch(&device, &launches(of, to))?;
    }
    Ok(fresh)
}

/// [`run`] on tensors, contiguous ones on one device.
pub(crate) fn run_on<const I: usize, const O: usize>(
    inputs: [Option<&Tensor>; I],
    outputs: [(Shape, DType); O],
    launches: impl FnOnce([Address; I], [Address; O]) -> Vec<Launch>,
) -> Result<[Tensor; O]> {
    let shapes = outputs.each_ref().map(|(shape, _)| shape.clone());
    let tensors: Vec<_> = inputs.iter().flatten().copied().collect();
    let storages = with_storages(&tensors, |storages| {
        let mut opened = storages.iter().zip(&tensors);
        let mut of = [None; I];
        for (of, _) in of.iter_mut().zip(&inputs).filter(|(_, input)| input.is_some()) {
            *of = match opened.next() {
                Some((Storage::Cuda(storage), tensor)) => Some((storage, tensor.layout())),
                _ => candle_core::bail!("a kernel for CUDA was called with a tensor that is elsewhere"),
            };
        }
        run(of, outputs, launches)
    })?;
    let tensors = storages.into_iter().zip(shapes);
    let tensors =
        tensors.map(|(storage, shape)| Tensor::from_storage(Storage::Cuda(storage), shape, BackpropOp::none(), false));
    array(tensors.collect())
}

fn array<T, const N: usize>(items: Vec<T>) -> Result<[T; N]> {
    match items.try_into() {
        Ok(items) => Ok(items),
        Err(_) => candle_core::bail!("a kernel for CUDA has not as many results as it should"),
    }
}

/// Where the elements of a contiguous tensor are, for kernels on `stream`, once what is returned with it is dropped
/// behind them.
pub(crate) fn address_of<'a>(
    storage: &'a CudaStorage,
    layout: &Layout,
    stream: &'a CudaStream,
) -> Result<(Address, SyncOnDrop<'a>)> {
    fn at<'a, T>(slice: &'a CudaSlice<T>, first: usize, stream: &'a CudaStream) -> (Address, SyncOnDrop<'a>) {
        let (address, sync) = slice.device_ptr(stream);
        (address + (first * size_of::<T>()) as Address, sync)
    }
    let Some((first, _)) = layout.contiguous_offsets() else {
        candle_core::bail!("a kernel for CUDA was called with a tensor that is not contiguous");
    };
    match &storage.slice {
        Slice::F32(slice) => Ok(at(slice, first, stream)),
        Slice::F64(slice) => Ok(at(slice, first, stream)),
        Slice::BF16(slice) => Ok(at(slice, first, stream)),
        Slice::U32(slice) => Ok(at(slice, first, stream)),
        Slice::I64(slice) => Ok(at(slice, first, stream)),
        _ => candle_core::bail!("there is no kernel for CUDA for {:?}", storage.dtype()),
    }
}

/// Where a fresh storage begins.
fn address_mut<'a>(storage: &'a mut CudaStorage, stream: &'a CudaStream) -> Result<(Address, SyncOnDrop<'a>)> {
    match &mut storage.slice {
        Slice::F32(slice) => Ok(slice.device_ptr_mut(stream)),
        Slice::F64(slice) => Ok(slice.device_ptr_mut(stream)),
        Slice::BF16(slice) => Ok(slice.device_ptr_mut(stream)),
        _ => candle_core::bail!("kernels for CUDA write f32, f64 and bf16"),
    }
}
