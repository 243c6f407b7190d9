//! Positions that blocks take part in: rotary angles, and rows of tables of relative biases, of the tokens that are
//! kept.

use std::f64::consts::TAU;

use candle_core::{Device, Result, Tensor};

use super::config::{Config, Rotary};
use crate::check;
use crate::grid::Grid;
use crate::ops::{self, Pairs, RelativeBias, Rotation};

/// Of a sequence's tokens, what each block is told of their positions.
#[derive(Clone, Debug)]
pub(super) struct Positions {
    /// Cosines and sines of the patches' angles, [K, d/2] or [B, K, d/2].
    angles: Option<(Tensor, Tensor)>,
    pairs: Pairs,
    /// Rows of a block's table for each query and key, [1, N, N] or [B, N, N].
    relative: Option<Tensor>,
}

impl Positions {
    /// Of the positions of a grid that `keep` lists, K for each of `batch` samples, or of all of them; `None` where
    /// blocks take no part.
    pub(super) fn of(
        cfg: &Config,
        grid: Grid,
        keep: Option<&[u32]>,
        batch: usize,
        device: &Device,
    ) -> Result<Option<Self>> {
        if !cfg.has_positions_in_blocks() {
            return Ok(None);
        }
        Self::new(cfg, grid, keep, batch, device).map(Some)
    }

    fn new(cfg: &Config, grid: Grid, keep: Option<&[u32]>, batch: usize, device: &Device) -> Result<Self> {
        let all: Vec<u32> = (0..grid.len() as u32).collect();
        let rows = keep.unwrap_or(&all);
        let kept = rows.len() / keep.map_or(1, |_| batch.max(1));
        // One set of positions serves all samples that keep the same.
        let mut samples = rows.chunks(kept.max(1));
        let first = samples.next().unwrap_or_default();
        let (rows, samples) = if samples.all(|sample| sample == first) {
            (first, 1)
        } else {
            (rows, batch)
        };
        let angles = |rotary: Rotary| rotations(rotary, cfg, grid, rows, samples, device);
        let relative = || {
            let n = 1 + kept;
            let count = n.checked_mul(n).and_then(|pairs| pairs.checked_mul(samples));
            check::fits_memory("image_size", format_args!("{grid} patches"), count, size_of::<u32>())?;
            let mut index = Vec::with_capacity(samples * n * n);
            for sample in rows.chunks(kept.max(1)) {
                relative_rows(grid, sample, &mut index);
            }
            Tensor::from_vec(index, (samples, n, n), device)
        };
        Ok(Self {
            angles: cfg.rotary.map(angles).transpose()?,
            pairs: cfg.rotary.map_or(Pairs::Halves, Rotary::pairs),
            relative: cfg.relative_positions.then(relative).transpose()?,
        })
    }

    /// What they do in a block that has such a table of biases, where there are any.
    pub(super) fn of_block<'a>(&'a self, table: Option<&'a Tensor>) -> ops::Positions<'a> {
        let rotation = |(cos, sin): &'a (Tensor, Tensor)| Rotation {
            cos,
            sin,
            pairs: self.pairs,
        };
        let bias = |(table, index): (&'a Tensor, &'a Tensor)| RelativeBias { table, index };
        ops::Positions {
            rotation: self.angles.as_ref().map(rotation),
            bias: table.zip(self.relative.as_ref()).map(bias),
        }
    }
}

/// Cosines and sines of the angles at `rows`, as many for each of some samples: [K, d/2], or [B, K, d/2] of more than
/// one.
fn rotations(
    rotary: Rotary,
    cfg: &Config,
    grid: Grid,
    rows: &[u32],
    samples: usize,
    device: &Device,
) -> Result<(Tensor, Tensor)> {
    let half = cfg.embed_dim / cfg.num_heads / 2;
    let table = angles(rotary, grid, half);
    let of = |f: fn(f64) -> f64| {
        let row = |&at: &u32| table.iter().skip(at as usize * half).take(half);
        let values: Vec<f32> = rows.iter().flat_map(row).map(|angle| f(*angle) as f32).collect();
        match samples {
            1 => Tensor::from_vec(values, (rows.len(), half), device),
            _ => Tensor::from_vec(values, (samples, rows.len() / samples.max(1), half), device),
        }
    };
    Ok((of(f64::cos)?, of(f64::sin)?))
}

/// The angles of all positions, [L, half]: half of them by the row, half by the column.
fn angles(rotary: Rotary, grid: Grid, half: usize) -> Vec<f64> {
    let bands = half / 2;
    let sides = [grid.height, grid.width];
    let angle = |axis: usize, at: usize, band: usize| match rotary {
        // EVA's, on the grid of pre-training: 10000^(-band / bands).
        Rotary::Eva { grid } => {
            let position = at as f64 / sides[axis] as f64 * grid as f64;
            position * 10_000f64.powf(-(band as f64) / bands as f64)
        }
        // DINOv3's, of the patches' centres within [-1, 1]: periods 100^(band / bands).
        Rotary::DinoV3 => {
            let position = 2.0 * (at as f64 + 0.5) / sides[axis] as f64 - 1.0;
            TAU * position * 100f64.powf(-(band as f64) / bands as f64)
        }
    };
    let of_position = |at: usize| {
        let places = [at / grid.width, at % grid.width];
        (0..2).flat_map(move |axis| (0..bands).map(move |band| angle(axis, places[axis], band)))
    };
    (0..grid.len()).flat_map(of_position).collect()
}

/// The rows of BEiT's table for each pair of tokens, [1 + K, 1 + K]: by how far a key is from a query; and three for
/// pairs with the class token: from it, to it, and of it alone.
fn relative_rows(grid: Grid, kept: &[u32], index: &mut Vec<u32>) {
    let (height, width) = (grid.height as u32, grid.width as u32);
    let distances = (2 * height - 1) * (2 * width - 1);
    index.push(distances + 2);
    index.extend(kept.iter().map(|_| distances));
    for query in kept {
        index.push(distances + 1);
        let of = |key: &u32| {
            let down = query / width + height - 1 - key / width;
            let right = query % width + width - 1 - key % width;
            down * (2 * width - 1) + right
        };
        index.extend(kept.iter().map(of));
    }
}

/// Rows of a table for a grid: one for each distance, and three with the class token.
pub(super) fn relative_table(grid: Grid) -> usize {
    (2 * grid.height - 1)
        .saturating_mul(2 * grid.width - 1)
        .saturating_add(3)
}
