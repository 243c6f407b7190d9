//! Several tensors' memory at once, to be written.

use std::cell::RefCell;

use candle_core::{CpuStorage, InplaceOp1, Layout, Result, Tensor};

use crate::ops::cpu::kernel::contiguous_range;

type Slices<'a> = Vec<&'a mut [f32]>;

/// Calls `f` with the elements of `tensors`, which are contiguous f32 on the CPU and share no memory.
///
/// candle hands out one tensor's memory at a time, to an operation: so each is opened from within the one before.
pub(super) fn with_elements<T>(tensors: &[&Tensor], f: impl FnOnce(Slices) -> T) -> Result<T> {
    let mut f = Some(f);
    let mut result = None;
    open(tensors, Vec::with_capacity(tensors.len()), &mut |slices| {
        result = f.take().map(|f| f(slices));
    })?;
    result.ok_or_else(|| candle_core::Error::Msg("an operation in place was not run".into()))
}

fn open(tensors: &[&Tensor], opened: Slices, f: &mut dyn FnMut(Slices)) -> Result<()> {
    match tensors.split_first() {
        None => {
            f(opened);
            Ok(())
        }
        Some((first, rest)) => first.inplace_op1(&Open(RefCell::new(Some((opened, rest, f))))),
    }
}

type Rest<'a, 'b> = (Slices<'a>, &'b [&'b Tensor], &'b mut dyn FnMut(Slices));

struct Open<'a, 'b>(RefCell<Option<Rest<'a, 'b>>>);

impl InplaceOp1 for Open<'_, '_> {
    fn name(&self) -> &'static str {
        "in-place"
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> Result<()> {
        let (CpuStorage::F32(data), Some(range)) = (storage, contiguous_range(layout)) else {
            candle_core::bail!("weights are updated in place only where they are contiguous f32");
        };
        let Some((mut opened, rest, f)) = self.0.take() else {
            candle_core::bail!("an operation in place was run twice");
        };
        opened.push(&mut data[range]);
        open(rest, opened, f)
    }
}
