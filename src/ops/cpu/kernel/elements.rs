//! The elements of tensors as slices, and back.

use std::ops::{Deref, Range};

use candle_core::{CpuStorage, Layout, Result, Storage, StorageRef, Tensor};

/// Where the elements of a contiguous tensor lie in its storage. (candle's own answer for an empty one may begin behind
/// the storage's end.)
pub(crate) fn contiguous_range(layout: &Layout) -> Option<Range<usize>> {
    match layout.contiguous_offsets()? {
        (start, end) if start == end => Some(0..0),
        (start, end) => Some(start..end),
    }
}

/// The elements of a contiguous `f32` argument of a custom op.
pub(crate) fn elements<'a>(storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [f32]> {
    match (storage, contiguous_range(layout)) {
        (CpuStorage::F32(data), Some(range)) => Ok(&data[range]),
        _ => candle_core::bail!("a CPU kernel of masksub was called with a tensor that is not contiguous f32"),
    }
}

/// Read access to the elements of a contiguous `f32` tensor on the CPU.
pub(crate) struct Elements<'a>(StorageRef<'a>, &'a Layout);

impl<'a> Elements<'a> {
    pub(crate) fn of(tensor: &'a Tensor) -> Result<Self> {
        let (storage, layout) = tensor.storage_and_layout();
        match &*storage {
            Storage::Cpu(cpu) => elements(cpu, layout)?,
            _ => candle_core::bail!("a CPU kernel of masksub was called with a tensor on another device"),
        };
        Ok(Self(storage, layout))
    }
}

impl Deref for Elements<'_> {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        match &*self.0 {
            // `of` has made sure of both.
            Storage::Cpu(cpu) => elements(cpu, self.1).unwrap_or_default(),
            _ => &[],
        }
    }
}

/// Whether two contiguous `f32` tensors on the CPU have elements in common.
pub(crate) fn shares_memory(a: &Tensor, b: &Tensor) -> Result<bool> {
    // One after the other: a lock that is waited for between two holds of the same one would never be given.
    let a = Elements::of(a)?.as_ptr_range();
    let b = Elements::of(b)?.as_ptr_range();
    Ok(a.start < b.end && b.start < a.end)
}

/// A tensor on the CPU from its elements.
pub(crate) fn tensor(data: Vec<f32>, shape: &[usize]) -> Result<Tensor> {
    Tensor::from_vec(data, shape, &candle_core::Device::Cpu)
}
