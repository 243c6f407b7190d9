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
        cpu_elements(&storage, layout)?;
        Ok(Self(storage, layout))
    }
}

impl Deref for Elements<'_> {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        // `of` has made sure of it.
        cpu_elements(&self.0, self.1).unwrap_or_default()
    }
}

/// Calls `f` with the elements of contiguous `f32` tensors on the CPU.
pub(crate) fn with_elements<T>(tensors: &[&Tensor], f: impl FnOnce(&[&[f32]]) -> Result<T>) -> Result<T> {
    with_storages(tensors, |storages| {
        let both = storages.iter().zip(tensors);
        let slices = both.map(|(storage, tensor)| cpu_elements(storage, tensor.layout()));
        f(&slices.collect::<Result<Vec<_>>>()?)
    })
}

/// Calls `f` with the storages of tensors.
///
/// A storage that several of them share is locked once: a lock that is taken again by who holds it is never given where
/// another thread (an optimizer's, of the same weights) waits in between to write.
pub(crate) fn with_storages<T>(tensors: &[&Tensor], f: impl FnOnce(&[&Storage]) -> Result<T>) -> Result<T> {
    // Before anything is locked.
    let addresses: Vec<_> = tensors.iter().map(|tensor| address(tensor)).collect();
    let mut opened: Vec<(*const Storage, StorageRef)> = vec![];
    for (tensor, &address) in tensors.iter().zip(&addresses) {
        if opened.iter().all(|(other, _)| *other != address) {
            opened.push((address, tensor.storage_and_layout().0));
        }
    }
    let storages = addresses.iter().filter_map(|address| {
        let found = opened.iter().find(|(other, _)| other == address);
        found.map(|(_, storage)| &**storage)
    });
    f(&storages.collect::<Vec<_>>())
}

/// The elements of a contiguous `f32` tensor on the CPU, from its storage.
fn cpu_elements<'a>(storage: &'a Storage, layout: &Layout) -> Result<&'a [f32]> {
    match storage {
        Storage::Cpu(cpu) => elements(cpu, layout),
        _ => candle_core::bail!("a CPU kernel of masksub was called with a tensor on another device"),
    }
}

/// The address of a tensor's storage, which no other storage has.
pub(crate) fn address(tensor: &Tensor) -> *const Storage {
    let (storage, _) = tensor.storage_and_layout();
    &*storage
}

/// Whether two tensors lie in one storage, whatever part of it each is.
pub(crate) fn same_storage(a: &Tensor, b: &Tensor) -> bool {
    address(a) == address(b)
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
