//! Windows of a grid of tokens (Liu et al. 2021, arXiv 2103.14030).

pub(crate) mod bias;
pub(crate) mod mask;
mod merge;
pub(crate) mod partition;

use candle_core::Tensor;

use crate::check;
use crate::error::{Error, Result};
use crate::grid::Grid;

pub use bias::relative_position_bias;
pub(crate) use bias::{bias_of, check_table, table_gradient};
pub use mask::shift_mask;
pub use merge::merge_neighbours;
pub(crate) use partition::partition_order;
pub use partition::{window_partition, window_reverse};

/// Most positions of a grid or a window's table.
const MOST: usize = 1 << 28;

fn check_size(grid: Grid) -> Result<()> {
    if grid.len() > MOST {
        return Err(Error::invalid("grid", grid, format!("of at most {MOST} positions")));
    }
    Ok(())
}

fn check_window(window: usize) -> Result<()> {
    // All pairs of its positions are counted.
    const MOST_WIDE: usize = 128;
    check::in_range("window", window, 1..=MOST_WIDE, "").map(drop)
}

fn check_shift(window: usize, shift: usize) -> Result<()> {
    if shift >= window {
        let allowed = format!("less than the window, {window}");
        return Err(Error::invalid("shift", shift, allowed));
    }
    Ok(())
}

/// B and D of `tokens` [B, L, D].
fn check_tokens(tokens: &Tensor, grid: Grid) -> Result<[usize; 2]> {
    check_size(grid)?;
    match *tokens.dims() {
        [batch, positions, width] if batch > 0 && positions == grid.len() => Ok([batch, width]),
        _ => {
            let expected = format!("[B, {}, D], not empty, for a grid of {grid}", grid.len());
            Err(Error::shape("tokens", tokens.dims(), expected))
        }
    }
}
