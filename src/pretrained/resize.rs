//! Tables of positions for another grid, as each project resizes them.

use candle_core::{DType, Storage, Tensor, WithDType};

use crate::check;
use crate::error::{Error, Result};
use crate::grid::Grid;
use crate::models::resample::{taps, Taps, MOST_TAPS};
use crate::ops::cpu::kernel::contiguous_range;

pub use crate::models::resample::Resize;

/// Resizes the values at the positions of a grid, [P + H W, D] with H W of `from`, to [P + H' W', D] with H' W' of
/// `to`. The first P rows stay as they are.
///
/// Computed in f64 and rounded once, to f32 unless `values` are f64. Beside `values` and the result it needs a row of
/// the grid.
///
/// # Errors
/// [`Error::InvalidArgument`] for a grid that does not fit in memory, and for [`Resize::Geometric`] of sides without a
/// middle.
pub(super) fn resized(values: &Tensor, from: Grid, to: Grid, how: Resize) -> Result<Tensor> {
    let sides = [from.height, from.width, to.height, to.width];
    if how == Resize::Geometric && sides.iter().any(|side| side.is_multiple_of(2)) {
        return Err(for_tables_alone(from, to));
    }
    match values.dtype() {
        DType::F64 => of_type::<f64>(values, from, to, how),
        _ => of_type::<f32>(&values.to_dtype(DType::F32)?, from, to, how),
    }
}

/// The refusal of [`Resize::Geometric`] where there are no offsets.
pub(super) fn for_tables_alone(from: Grid, to: Grid) -> Error {
    let got = format!("{:?} of {from} to {to}", Resize::Geometric);
    Error::invalid(
        "resize",
        got,
        "for tables of relative positions alone, whose sides are odd",
    )
}

fn of_type<T: WithDType>(values: &Tensor, from: Grid, to: Grid, how: Resize) -> Result<Tensor> {
    let (rows, dim) = values.dims2()?;
    let values = values.contiguous()?;
    let (storage, layout) = values.storage_and_layout();
    let (Storage::Cpu(storage), Some(range)) = (&*storage, contiguous_range(layout)) else {
        return Err(Error::invalid("positions", "elsewhere", "on the CPU"));
    };
    let (prefix, values) = T::cpu_storage_as_slice(storage)?[range].split_at((rows - from.len()) * dim);
    let len = to.len().checked_mul(dim).and_then(|len| len.checked_add(prefix.len()));
    // As it is resized, in the dtype of the model, and as a variable.
    check::fits_memory("grid", to, len, size_of::<T>() + 2 * size_of::<f64>())?;
    let taps_size = size_of::<Taps>() + MOST_TAPS * size_of::<(usize, f64)>();
    check::fits_memory("grid", to, to.height.checked_add(to.width), taps_size)?;
    let mut resized = Vec::with_capacity(len.unwrap_or_default());
    resized.extend_from_slice(prefix);
    let columns = taps(how, from.width, to.width);
    // One direction after the other.
    let mut blend = vec![0.0; from.width * dim];
    for taps in taps(how, from.height, to.height) {
        blend.fill(0.0);
        for (row, weight) in taps {
            let row = values.iter().skip(row * blend.len());
            blend
                .iter_mut()
                .zip(row)
                .for_each(|(sum, value)| *sum += weight * value.to_f64());
        }
        for taps in &columns {
            let at = |column: usize, d: usize| blend.get(column * dim + d).copied().unwrap_or_default();
            let value = |d| taps.iter().map(|&(column, weight)| weight * at(column, d)).sum();
            resized.extend((0..dim).map(|d| T::from_f64(value(d))));
        }
    }
    let rows = rows - from.len() + to.len();
    Ok(Tensor::from_vec(resized, (rows, dim), &candle_core::Device::Cpu)?)
}

#[cfg(test)]
mod tests;
