//! Windows of a token grid: partition, cyclic shift, relative positions, attention within (Swin, arXiv 2103.14030).

use candle_core::{Device, Result, Tensor};

use crate::Grid;

/// For each row of the partitioned sequence, which row of the grid it is: window after window, each row by row, after
/// the grid was rolled up and left by `shift`.
fn partition_order(grid: Grid, window: usize, shift: usize) -> Vec<u32> {
    let mut order = Vec::with_capacity(grid.len());
    for window_row in (0..grid.height).step_by(window) {
        for window_column in (0..grid.width).step_by(window) {
            for row in window_row..window_row + window {
                for column in window_column..window_column + window {
                    let (row, column) = ((row + shift) % grid.height, (column + shift) % grid.width);
                    order.push((row * grid.width + column) as u32);
                }
            }
        }
    }
    order
}

/// `tokens` [B, L, D] of a grid as windows [B * windows, window², D].
pub fn window_partition(tokens: &Tensor, grid: Grid, window: usize, shift: usize) -> Result<Tensor> {
    let (batch, _, width) = tokens.dims3()?;
    let order = partition_order(grid, window, shift).repeat(batch);
    super::gather_rows(tokens, &order, 0)?.reshape((batch * grid.len() / (window * window), window * window, width))
}

/// The inverse of [`window_partition`].
pub fn window_reverse(windows: &Tensor, grid: Grid, window: usize, shift: usize) -> Result<Tensor> {
    let (_, _, width) = windows.dims3()?;
    let order = partition_order(grid, window, shift);
    let mut inverse = vec![0u32; order.len()];
    (0u32..).zip(&order).for_each(|(at, &from)| inverse[from as usize] = at);
    let tokens = windows.reshape(((), grid.len(), width))?;
    let batch = tokens.dim(0)?;
    super::gather_rows(&tokens, &inverse.repeat(batch), 0)
}

/// Neighbourhoods of 2 x 2 tokens, one row each: [B, L, D] to [B, L/4, 4 D], in the order (even row, even column),
/// (odd, even), (even, odd), (odd, odd).
pub fn merge_neighbours(tokens: &Tensor, grid: Grid) -> Result<Tensor> {
    let (batch, _, width) = tokens.dims3()?;
    let mut order = Vec::with_capacity(grid.len());
    for row in (0..grid.height).step_by(2) {
        for column in (0..grid.width).step_by(2) {
            for (down, right) in [(0, 0), (1, 0), (0, 1), (1, 1)] {
                order.push(((row + down) * grid.width + column + right) as u32);
            }
        }
    }
    super::gather_rows(tokens, &order.repeat(batch), 0)?.reshape((batch, grid.len() / 4, 4 * width))
}

/// The bias of each pair of positions in a window, [heads, window², window²], from a table [(2 window - 1)², heads].
pub fn relative_position_bias(table: &Tensor, window: usize) -> Result<Tensor> {
    let positions = window * window;
    let side = 2 * window - 1;
    let index: Vec<u32> = (0..positions * positions)
        .map(|pair| {
            let (from, to) = (pair / positions, pair % positions);
            let rows = from / window + window - 1 - to / window;
            let columns = from % window + window - 1 - to % window;
            (rows * side + columns) as u32
        })
        .collect();
    let index = Tensor::from_vec(index, positions * positions, table.device())?;
    table
        .index_select(&index, 0)?
        .t()?
        .contiguous()?
        .reshape(((), positions, positions))
}

/// What a shifted window adds to the attention scores, [windows, window², window²]: 0 between positions that are
/// neighbours in the image, -100 between those that only the cyclic shift brought together.
pub fn shift_mask(grid: Grid, window: usize, shift: usize, device: &Device) -> Result<Tensor> {
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
    let regions: Vec<u32> = partition_order(grid, window, 0)
        .into_iter()
        .map(|at| {
            let (row, column) = (at as usize / grid.width, at as usize % grid.width);
            3 * region(row, grid.height) + region(column, grid.width)
        })
        .collect();
    let positions = window * window;
    let mut mask = Vec::with_capacity(grid.len() * positions);
    for window in regions.chunks_exact(positions) {
        for from in window {
            mask.extend(window.iter().map(|to| if from == to { 0f32 } else { -100. }));
        }
    }
    Tensor::from_vec(mask, (grid.len() / positions, positions, positions), device)
}

/// Attention within windows: `qkv` [B * windows, N, 3 D] to [B * windows, N, D], with `bias` [heads, N, N] on the
/// scores and, where windows are shifted, `mask` [windows, N, N].
pub fn window_attention(qkv: &Tensor, num_heads: usize, bias: &Tensor, mask: Option<&Tensor>) -> Result<Tensor> {
    let (rows, positions, packed) = qkv.dims3()?;
    let head_dim = packed / 3 / num_heads;
    let qkv = qkv
        .reshape((rows, positions, 3, num_heads, head_dim))?
        .permute((2, 0, 3, 1, 4))?;
    let q = (qkv.get(0)?.contiguous()? * (head_dim as f64).powf(-0.5))?;
    let (k, v) = (qkv.get(1)?.contiguous()?, qkv.get(2)?.contiguous()?);
    let scores = q.matmul(&k.t()?)?.broadcast_add(&bias.unsqueeze(0)?)?;
    let scores = match mask {
        None => scores,
        Some(mask) => {
            let windows = mask.dim(0)?;
            let mask = mask.to_dtype(scores.dtype())?.unsqueeze(1)?.unsqueeze(0)?;
            scores
                .reshape((rows / windows, windows, num_heads, positions, positions))?
                .broadcast_add(&mask)?
                .reshape((rows, num_heads, positions, positions))?
        }
    };
    let heads = super::softmax_last_dim(&scores)?.matmul(&v)?;
    heads.transpose(1, 2)?.reshape((rows, positions, num_heads * head_dim))
}
