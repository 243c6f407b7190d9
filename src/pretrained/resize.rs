//! Tables of positions for another grid, as each project resizes them.

use std::fmt;

use candle_core::{DType, Storage, Tensor, WithDType};

use crate::check;
use crate::error::{Error, Result};
use crate::grid::Grid;
use crate::ops::cpu::kernel::contiguous_range;

/// Ways of resizing positions to another grid. The default is that of the project whose names a checkpoint has;
/// [`Pretrained::with_resize`](super::Pretrained::with_resize) chooses another.
///
/// `Display` gives what [`Weights::notes`](crate::Weights::notes) says of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Resize {
    /// PyTorch's `interpolate(mode="bicubic")`, of four neighbours in each direction. Hugging Face, facebookresearch,
    /// Microsoft's Swin.
    Bicubic,
    /// The same with `antialias=True`: another cubic kernel, wider where a grid shrinks. timm's ViT, OpenCLIP, and
    /// Hugging Face's DINOv2 with registers.
    AntialiasedBicubic,
    /// [`Bicubic`](Self::Bicubic) with `align_corners=True`: corners stay where they are. torchvision's ViT.
    AlignedBicubic,
    /// Linear between two neighbours, where corners stay (`scipy.ndimage.zoom` of order 1). Google's ViT.
    AlignedLinear,
    /// For tables of relative positions: the old offsets are spread over the new ones as a geometric series, dense in
    /// the middle, and linear between. timm's Swin, after BEiT (`timm/layers/pos_embed_rel.py`).
    Geometric,
}

impl fmt::Display for Resize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Bicubic => "bicubic",
            Self::AntialiasedBicubic => "antialiased bicubic",
            Self::AlignedBicubic => "bicubic with aligned corners",
            Self::AlignedLinear => "linear with aligned corners",
            Self::Geometric => "in a geometric series",
        })
    }
}

/// Resizes the values at the positions of a grid, [P + H W, D] with H W of `from`, to [P + H' W', D] with H' W' of `to`.
/// The first P rows stay as they are.
///
/// Computed in f64 and rounded once, to f32 unless `values` are f64. Beside `values` and the result it needs a row of the
/// grid.
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

/// What a position takes of which others.
type Taps = Vec<(usize, f64)>;
/// Most of them, where a grid does not shrink.
const MOST_TAPS: usize = 5;

/// For each of `to` positions, what it takes of which of `from`.
fn taps(how: Resize, from: usize, to: usize) -> Vec<Taps> {
    let scale = from as f64 / to as f64;
    let centred = |index: usize| (index as f64 + 0.5) * scale - 0.5;
    // One position lies at the first corner.
    let aligned = |index: usize| index as f64 * (from as f64 - 1.0) / (to as f64 - 1.0).max(1.0);
    match how {
        Resize::Bicubic => (0..to).map(|index| cubic(centred(index), from)).collect(),
        Resize::AlignedBicubic => (0..to).map(|index| cubic(aligned(index), from)).collect(),
        Resize::AlignedLinear => (0..to).map(|index| linear(aligned(index), from)).collect(),
        Resize::AntialiasedBicubic => (0..to)
            .map(|index| antialiased(centred(index), from, scale.max(1.0)))
            .collect(),
        Resize::Geometric => geometric(from, to),
    }
}

/// The four nearest in each direction, weighted by the cubic convolution kernel (Keys, 1981); beyond the edge its position
/// repeats.
fn cubic(at: f64, from: usize) -> Taps {
    /// The kernel's parameter in PyTorch's `bicubic`.
    const A: f64 = -0.75;
    let tap = |tap: f64| {
        let position = at.floor() + tap;
        // Beyond the edge, the last position counts again.
        (
            position.clamp(0.0, from as f64 - 1.0) as usize,
            kernel(A, at - position),
        )
    };
    [-1.0, 0.0, 1.0, 2.0].map(tap).to_vec()
}

/// Those within two positions, of the new grid where it is the coarser one. Beyond the edge there is nothing, and the
/// weights of what there is are made to sum to one.
fn antialiased(at: f64, from: usize, scale: f64) -> Taps {
    /// The kernel's parameter in PyTorch with `antialias=True`, as in Pillow.
    const A: f64 = -0.5;
    let bound = |at: f64| at.clamp(0.0, from as f64) as usize;
    let within = bound((at - 2.0 * scale + 1.0).floor())..bound((at + 2.0 * scale + 1.0).floor());
    let taps: Taps = within
        .map(|index| (index, kernel(A, (index as f64 - at) / scale)))
        .collect();
    let sum: f64 = taps.iter().map(|(_, weight)| weight).sum();
    taps.into_iter().map(|(index, weight)| (index, weight / sum)).collect()
}

fn linear(at: f64, from: usize) -> Taps {
    let left = (at.floor() as usize).min(from.saturating_sub(2));
    let share = at - left as f64;
    match from {
        1 => vec![(0, 1.0)],
        _ => vec![(left, 1.0 - share), (left + 1, share)],
    }
}

/// Offsets from the middle: the old ones lie at sums of a geometric series whose ratio brings the last of them to the last
/// of the new ones, as far as it lies between 1.01 and 1.5. Beyond the last one its value counts.
fn geometric(from: usize, to: usize) -> Vec<Taps> {
    let (old, new) = ((from / 2) as i32, (to / 2) as f64);
    let (mut left, mut right, mut ratio) = (1.01f64, 1.5f64, 1.01f64);
    while right - left > 1e-6 {
        ratio = (left + right) / 2.0;
        if (1.0 - ratio.powi(old)) / (1.0 - ratio) > new {
            right = ratio;
        } else {
            left = ratio;
        }
    }
    let mut sums = vec![0.0];
    for power in 0..old {
        sums.push(sums.last().copied().unwrap_or_default() + ratio.powi(power));
    }
    let offsets: Vec<f64> = sums
        .iter()
        .skip(1)
        .rev()
        .map(|sum| -sum)
        .chain(sums.iter().copied())
        .collect();
    let between = |at: f64| {
        let right = offsets
            .partition_point(|offset| *offset < at)
            .clamp(1, offsets.len().max(2) - 1);
        match (offsets.get(right - 1), offsets.get(right)) {
            (Some(a), Some(b)) => {
                let share = ((at - a) / (b - a)).clamp(0.0, 1.0);
                vec![(right - 1, 1.0 - share), (right, share)]
            }
            _ => vec![(0, 1.0)],
        }
    };
    (0..to).map(|index| between(index as f64 - new)).collect()
}

/// The cubic convolution kernel of parameter a.
fn kernel(a: f64, distance: f64) -> f64 {
    let x = distance.abs();
    match x {
        _ if x <= 1.0 => ((a + 2.0) * x - (a + 3.0)) * x * x + 1.0,
        _ if x < 2.0 => (((x - 5.0) * x + 8.0) * x - 4.0) * a,
        _ => 0.0,
    }
}

#[cfg(test)]
mod tests;
