//! Ways of resizing positions: what each takes of which others.

use std::fmt;

/// Ways of resizing positions to another grid. The default is that of the project whose names a checkpoint has;
/// [`Pretrained::with_resize`](crate::pretrained::Pretrained::with_resize) chooses another.
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

/// What a position takes of which others.
pub(crate) type Taps = Vec<(usize, f64)>;
/// Most of them, where a grid does not shrink.
pub(crate) const MOST_TAPS: usize = 5;

/// For each of `to` positions, what it takes of which of `from`.
pub(crate) fn taps(how: Resize, from: usize, to: usize) -> Vec<Taps> {
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

/// The four nearest in each direction, weighted by the cubic convolution kernel (Keys, 1981); beyond the edge its
/// position repeats.
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

/// Offsets from the middle: the old ones lie at sums of a geometric series whose ratio brings the last of them to the
/// last of the new ones, as far as it lies between 1.01 and 1.5. Beyond the last one its value counts.
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
