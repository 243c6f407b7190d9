//! The mask that keeps apart what only the shift of windows brought together.

use candle_core::{DType, Device, Result, Tensor};

use super::partition::{composition_partition, partition_order};
use super::{check_shift, check_window};
use crate::check;
use crate::grid::Grid;

/// The mask that is added to the attention scores of windows that were shifted: 0 between positions that are neighbours
/// in the image, -100 (the published code's) between those that only the cyclic shift brought together.
///
/// # Arguments
///
/// - `grid`, `window`, `shift`: as for [`window_partition`](super::window_partition). Without a shift nothing is
///   hidden.
///
/// Returns [windows, window², window²] in `f32`.
///
/// # Errors
///
/// If a side of the grid is no multiple of `window`, `shift` is not less, or the mask does not fit in memory.
///
/// ```
/// use candle_core::Device;
/// use masksub::Grid;
/// // Two windows: a row of both came round, and a column of the second, too.
/// let mask = masksub::ops::shift_mask(Grid::new(2, 4), 2, 1, &Device::Cpu)?;
/// assert_eq!(mask.dims(), [2, 4, 4]);
/// assert_eq!(mask.get(0)?.get(0)?.to_vec1::<f32>()?, [0.0, 0.0, -100.0, -100.0]);
/// assert_eq!(mask.get(1)?.get(0)?.to_vec1::<f32>()?, [0.0, -100.0, -100.0, -100.0]);
/// # Ok::<(), candle_core::Error>(())
/// ```
pub fn shift_mask(grid: Grid, window: usize, shift: usize, device: &Device) -> Result<Tensor> {
    check_window(window)?;
    check_shift(window, shift)?;
    let sides = [grid.height, grid.width, window, window];
    let numbers = sides.iter().try_fold(1usize, |count, &side| count.checked_mul(side));
    check::fits_memory("window", window, numbers, size_of::<f32>())?;
    // In the rolled grid.
    let order = partition_order(grid, window, 0)?;
    let positions = window * window;
    let region = |at: usize, side: usize| -> u32 {
        // Before the last window; its part that stays; its part that came round.
        if at < side - window {
            0
        } else if at < side - shift {
            1
        } else {
            2
        }
    };
    let regions: Vec<u32> = order
        .into_iter()
        .map(|at| {
            let (row, column) = (at as usize / grid.width, at as usize % grid.width);
            3 * region(row, grid.height) + region(column, grid.width)
        })
        .collect();
    let mut mask = Vec::with_capacity(grid.len() * positions);
    for window in regions.chunks_exact(positions) {
        for from in window {
            mask.extend(window.iter().map(|to| if from == to { 0f32 } else { -100.0 }));
        }
    }
    Tensor::from_vec(mask, (grid.len() / positions, positions, positions), device)
}

/// [`shift_mask`] of candle's operations, as in the published code: the regions of the rolled grid are numbered, and
/// two positions of a window see each other if they have the same number.
pub fn composition(grid: Grid, window: usize, shift: usize, device: &Device) -> Result<Tensor> {
    let starts = |side: usize| [0, side - window, side - shift, side];
    let mut regions = vec![0f32; grid.len()];
    let mut number = 0.0;
    for rows in starts(grid.height).windows(2) {
        for columns in starts(grid.width).windows(2) {
            for row in rows[0]..rows[1] {
                regions[row * grid.width..][columns[0]..columns[1]].fill(number);
            }
            number += 1.0;
        }
    }
    let regions = Tensor::from_vec(regions, (1, grid.len(), 1), device)?;
    let regions = composition_partition(&regions, grid, window, 0)?;
    let differ = regions.broadcast_sub(&regions.transpose(1, 2)?)?.ne(0f32)?;
    differ.to_dtype(DType::F32)?.affine(-100.0, 0.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equals_its_composition() {
        for ((height, width), window, shift) in [((4, 6), 2, 1), ((9, 6), 3, 2), ((14, 7), 7, 3), ((4, 4), 2, 0)] {
            let [ours, composed] = [shift_mask, composition]
                .map(|mask| mask(Grid::new(height, width), window, shift, &Device::Cpu).unwrap());
            assert_eq!(ours.to_vec3::<f32>().unwrap(), composed.to_vec3::<f32>().unwrap());
        }
    }

    /// Two positions of a window see each other if they are as far apart in the image as in the window.
    #[test]
    fn mask_hides_what_the_shift_brought_together() {
        for ((height, width), window, shift) in [
            ((4, 6), 2, 1),
            ((9, 6), 3, 1),
            ((9, 6), 3, 2),
            ((3, 6), 3, 1),
            ((4, 4), 2, 0),
            ((3, 3), 3, 0),
        ] {
            let grid = Grid::new(height, width);
            let mask = shift_mask(grid, window, shift, &Device::Cpu)
                .unwrap()
                .to_vec3::<f32>()
                .unwrap();
            let order = partition_order(grid, window, shift).unwrap();
            let place = |at: u32| [at as usize / width, at as usize % width].map(|x| x as i64);
            let within = |at: usize| [at / window, at % window].map(|x| x as i64);
            let distance = |[a, b]: [i64; 2], [c, d]: [i64; 2]| [a - c, b - d];
            let positions = window * window;
            for (w, mask) in mask.iter().enumerate() {
                for (i, j) in (0..positions * positions).map(|pair| (pair / positions, pair % positions)) {
                    let [from, to] = [i, j].map(|i| place(order[w * positions + i]));
                    let neighbours = distance(from, to) == distance(within(i), within(j));
                    assert_eq!(
                        mask[i][j],
                        if neighbours { 0.0 } else { -100.0 },
                        "{grid} window {w}: {i} {j}"
                    );
                }
            }
        }
    }

    #[test]
    fn errors_name_the_argument() {
        let message = |window, shift| {
            shift_mask(Grid::new(4, 6), window, shift, &Device::Cpu)
                .unwrap_err()
                .to_string()
        };
        assert_eq!(
            message(4, 0),
            "grid is 4 x 6, but must be of sides that are multiples of the window, 4"
        );
        assert_eq!(message(2, 2), "shift is 2, but must be less than the window, 2");
        for window in [0, usize::MAX] {
            assert_eq!(message(window, 0), format!("window is {window}, but must be 1 to 128"));
        }
    }
}
