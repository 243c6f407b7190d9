//! Windows of a grid of tokens (Liu et al. 2021, arXiv 2103.14030): their order, and what their positions are to each
//! other.

use candle_core::{DType, Device, Result, Tensor};

use super::route;
use crate::check;
use crate::error::Error;
use crate::grid::Grid;

/// The tokens of a grid in windows, after the grid was rolled up and left by `shift`.
///
/// # Arguments
///
/// - `tokens`: [B, L, D], the grid's positions row by row
/// - `window`: side of a window, of which both sides of the grid are multiples
/// - `shift`: less than `window`
///
/// Returns [B * windows, window², D]: window after window, row by row, and each window's positions row by row.
///
/// # Derivative
///
/// Each gradient goes back to its token: see [`gather_rows`](super::gather_rows()).
///
/// # PyTorch
///
/// ```text
/// x = torch.roll(tokens.view(B, H, W, D), (-shift, -shift), (1, 2))
/// x.view(B, H // window, window, W // window, window, D).transpose(2, 3).reshape(-1, window * window, D)
/// ```
///
/// # Errors
///
/// If `tokens` does not fit the grid or is empty, a side of the grid is no multiple of `window`, or `shift` is not less.
///
/// ```
/// use candle_core::{Device, Tensor};
/// use masksub::Grid;
/// let tokens = Tensor::arange(0f32, 8., &Device::Cpu)?.reshape((1, 8, 1))?;
/// let windows = masksub::ops::window_partition(&tokens, Grid::new(2, 4), 2, 0)?;
/// assert_eq!(windows.squeeze(2)?.to_vec2::<f32>()?, [[0., 1., 4., 5.], [2., 3., 6., 7.]]);
/// # Ok::<(), candle_core::Error>(())
/// ```
pub fn window_partition(tokens: &Tensor, grid: Grid, window: usize, shift: usize) -> Result<Tensor> {
    let order = partition_order(grid, window, shift)?;
    let [batch, width] = check_tokens(tokens, grid)?;
    let positions = window * window;
    super::gather_rows(tokens, &order.repeat(batch), 0)?.reshape((batch * grid.len() / positions, positions, width))
}

/// The tokens of a grid from its windows: the inverse of [`window_partition`].
///
/// # Arguments
///
/// - `windows`: [B * windows, window², D]
/// - `grid`, `window`, `shift`: as for [`window_partition`]
///
/// Returns [B, L, D].
///
/// # Derivative
///
/// Each gradient goes back to its token: see [`gather_rows`](super::gather_rows()).
///
/// # PyTorch
///
/// ```text
/// x = windows.view(B, H // window, W // window, window, window, D).transpose(2, 3).reshape(B, H, W, D)
/// torch.roll(x, (shift, shift), (1, 2)).view(B, H * W, D)
/// ```
///
/// # Errors
///
/// If `windows` does not fit the grid or is empty, a side of the grid is no multiple of `window`, or `shift` is not less.
///
/// ```
/// use candle_core::{Device, Tensor};
/// use masksub::{ops, Grid};
/// let tokens = Tensor::arange(0f32, 16., &Device::Cpu)?.reshape((1, 16, 1))?;
/// let windows = ops::window_partition(&tokens, Grid::new(4, 4), 2, 1)?;
/// let back = ops::window_reverse(&windows, Grid::new(4, 4), 2, 1)?;
/// assert_eq!(back.to_vec3::<f32>()?, tokens.to_vec3::<f32>()?);
/// # Ok::<(), candle_core::Error>(())
/// ```
pub fn window_reverse(windows: &Tensor, grid: Grid, window: usize, shift: usize) -> Result<Tensor> {
    let order = partition_order(grid, window, shift)?;
    let positions = window * window;
    let (batch, width) = match *windows.dims() {
        [rows, n, width] if rows > 0 && n == positions && (rows * n).is_multiple_of(grid.len()) => {
            (rows * n / grid.len(), width)
        }
        _ => {
            let count = grid.len() / positions;
            let expected = format!("[B * {count}, {positions}, D], not empty, for a grid of {grid}");
            return Err(Error::shape("windows", windows.dims(), expected).into());
        }
    };
    let mut inverse = vec![0u32; order.len()];
    (0u32..).zip(&order).for_each(|(at, &from)| inverse[from as usize] = at);
    let tokens = windows.reshape((batch, grid.len(), width))?;
    super::gather_rows(&tokens, &inverse.repeat(batch), 0)
}

/// Neighbourhoods of 2 x 2 tokens side by side.
///
/// # Arguments
///
/// - `tokens`: [B, L, D] of a grid with even sides, row by row
///
/// Returns [B, L / 4, 4 D], each row of four tokens in the order (even row, even column), (odd, even), (even, odd),
/// (odd, odd).
///
/// # Derivative
///
/// Each gradient goes back to its token.
///
/// # PyTorch
///
/// ```text
/// x = tokens.view(B, H, W, D)
/// torch.cat([x[:, 0::2, 0::2], x[:, 1::2, 0::2], x[:, 0::2, 1::2], x[:, 1::2, 1::2]], -1).view(B, -1, 4 * D)
/// ```
///
/// # Errors
///
/// If `tokens` does not fit the grid or is empty, or a side of the grid is odd.
///
/// ```
/// use candle_core::{Device, Tensor};
/// use masksub::Grid;
/// let tokens = Tensor::arange(0f32, 8., &Device::Cpu)?.reshape((1, 8, 1))?;
/// let merged = masksub::ops::merge_neighbours(&tokens, Grid::new(2, 4))?;
/// assert_eq!(merged.squeeze(0)?.to_vec2::<f32>()?, [[0., 4., 1., 5.], [2., 6., 3., 7.]]);
/// # Ok::<(), candle_core::Error>(())
/// ```
pub fn merge_neighbours(tokens: &Tensor, grid: Grid) -> Result<Tensor> {
    if grid.is_empty() || !grid.height.is_multiple_of(2) || !grid.width.is_multiple_of(2) {
        return Err(Error::invalid("grid", grid, "of even sides, at least 2 x 2").into());
    }
    let [batch, width] = check_tokens(tokens, grid)?;
    // [B, row, down, column, right, D]
    tokens
        .reshape((batch, grid.height / 2, 2, grid.width / 2, 2, width))?
        .permute((0, 1, 3, 4, 2, 5))?
        .reshape((batch, grid.len() / 4, 4 * width))
}

/// A learned number for each pair of positions in a window, by how far apart they are.
///
/// # Arguments
///
/// - `table`: [(2 window - 1)², num_heads]: row (2 window - 1) (Δrow + window - 1) + Δcolumn + window - 1 belongs to a
///   query that is Δrow below and Δcolumn to the right of its key
/// - `window`: side of a window
///
/// Returns [num_heads, N, N] with N = window², the query's position first.
///
/// # Derivative
///
/// A row of the table gets the sum of the gradients of its pairs.
///
/// # PyTorch
///
/// `table[relative_position_index.view(-1)].view(N, N, num_heads).permute(2, 0, 1)`, with the `relative_position_index`
/// of the published code.
///
/// # Errors
///
/// If `window` is 0, or the table has another shape or no floating-point dtype.
///
/// ```
/// use candle_core::{Device, Tensor};
/// let table = Tensor::arange(0f32, 9., &Device::Cpu)?.reshape((9, 1))?;
/// let bias = masksub::ops::relative_position_bias(&table, 2)?;
/// assert_eq!(bias.get(0)?.get(0)?.to_vec1::<f32>()?, [4., 3., 1., 0.]);
/// # Ok::<(), candle_core::Error>(())
/// ```
pub fn relative_position_bias(table: &Tensor, window: usize) -> Result<Tensor> {
    let heads = check_table(table, window)?;
    if route::is_half(table) {
        // A row of the table is that of up to N pairs, whose gradients are added.
        return route::in_f32(&[table], |table| of_pairs(&table[0], heads, window));
    }
    of_pairs(table, heads, window)
}

/// [`relative_position_bias`] of a table that fits.
fn of_pairs(table: &Tensor, heads: usize, window: usize) -> Result<Tensor> {
    let positions = window * window;
    let index = Tensor::from_vec(pairs(window), positions * positions, table.device())?;
    table
        .contiguous()?
        .index_select(&index, 0)?
        .t()?
        .contiguous()?
        .reshape((heads, positions, positions))
}

/// What is added to the attention scores of windows that were shifted: 0 between positions that are neighbours in the
/// image, -100 (the published code's) between those that only the cyclic shift brought together.
///
/// # Arguments
///
/// - `grid`, `window`, `shift`: as for [`window_partition`]. Without a shift nothing is hidden.
///
/// Returns [windows, window², window²] in `f32`.
///
/// # Errors
///
/// If a side of the grid is no multiple of `window`, or `shift` is not less.
///
/// ```
/// use candle_core::Device;
/// use masksub::Grid;
/// // Two windows: a row of both came round, and a column of the second, too.
/// let mask = masksub::ops::shift_mask(Grid::new(2, 4), 2, 1, &Device::Cpu)?;
/// assert_eq!(mask.dims(), [2, 4, 4]);
/// assert_eq!(mask.get(0)?.get(0)?.to_vec1::<f32>()?, [0., 0., -100., -100.]);
/// assert_eq!(mask.get(1)?.get(0)?.to_vec1::<f32>()?, [0., -100., -100., -100.]);
/// # Ok::<(), candle_core::Error>(())
/// ```
pub fn shift_mask(grid: Grid, window: usize, shift: usize, device: &Device) -> Result<Tensor> {
    // In the rolled grid.
    let order = partition_order(grid, window, 0)?;
    check_shift(window, shift)?;
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
    let positions = window * window;
    let mut mask = Vec::with_capacity(grid.len() * positions);
    for window in regions.chunks_exact(positions) {
        for from in window {
            mask.extend(window.iter().map(|to| if from == to { 0f32 } else { -100. }));
        }
    }
    Tensor::from_vec(mask, (grid.len() / positions, positions, positions), device)
}

/// `xs` rolled up by `shift` along `dim`.
fn roll(xs: &Tensor, shift: usize, dim: usize) -> Result<Tensor> {
    let side = xs.dim(dim)?;
    match shift % side {
        0 => Ok(xs.clone()),
        shift => Tensor::cat(&[xs.narrow(dim, shift, side - shift)?, xs.narrow(dim, 0, shift)?], dim),
    }
}

/// [`window_partition`] of candle's operations.
pub fn composition_partition(tokens: &Tensor, grid: Grid, window: usize, shift: usize) -> Result<Tensor> {
    let (b, _, d) = tokens.dims3()?;
    let (rows, columns) = (grid.height / window, grid.width / window);
    let tokens = tokens.reshape((b, grid.height, grid.width, d))?;
    roll(&roll(&tokens, shift, 1)?, shift, 2)?
        .reshape((b, rows, window, columns, window, d))?
        .permute((0, 1, 3, 2, 4, 5))?
        .reshape((b * rows * columns, window * window, d))
}

/// [`window_reverse`] of candle's operations.
pub fn composition_reverse(windows: &Tensor, grid: Grid, window: usize, shift: usize) -> Result<Tensor> {
    let (count, _, d) = windows.dims3()?;
    let (rows, columns) = (grid.height / window, grid.width / window);
    let b = count / (rows * columns);
    let tokens = windows
        .reshape((b, rows, columns, window, window, d))?
        .permute((0, 1, 3, 2, 4, 5))?
        .reshape((b, grid.height, grid.width, d))?;
    let back = |side: usize| side - shift % side;
    roll(&roll(&tokens, back(grid.height), 1)?, back(grid.width), 2)?.reshape((b, grid.len(), d))
}

/// [`relative_position_bias`] of candle's operations: with the table upside down, a query sees a window of it.
pub fn composition_bias(table: &Tensor, window: usize) -> Result<Tensor> {
    let (side, heads) = (2 * window - 1, table.dim(1)?);
    let flipped = table.reshape((side, side, heads))?.flip(&[0, 1])?;
    let of_query = |query: usize| -> Result<Tensor> {
        let (row, column) = (query / window, query % window);
        let seen = flipped.narrow(0, window - 1 - row, window)?;
        let seen = seen.narrow(1, window - 1 - column, window)?;
        seen.reshape((1, window * window, heads))
    };
    let queries = (0..window * window).map(of_query).collect::<Result<Vec<_>>>()?;
    Tensor::cat(&queries, 0)?.permute((2, 0, 1))?.contiguous()
}

/// [`shift_mask`] of candle's operations, as in the published code: the regions of the rolled grid are numbered, and two
/// positions of a window see each other if they have the same number.
pub fn composition_mask(grid: Grid, window: usize, shift: usize, device: &Device) -> Result<Tensor> {
    let starts = |side: usize| [0, side - window, side - shift, side];
    let mut regions = vec![0f32; grid.len()];
    let mut number = 0.;
    for rows in starts(grid.height).windows(2) {
        for columns in starts(grid.width).windows(2) {
            for row in rows[0]..rows[1] {
                regions[row * grid.width..][columns[0]..columns[1]].fill(number);
            }
            number += 1.;
        }
    }
    let regions = Tensor::from_vec(regions, (1, grid.len(), 1), device)?;
    let regions = composition_partition(&regions, grid, window, 0)?;
    let differ = regions.broadcast_sub(&regions.transpose(1, 2)?)?.ne(0f32)?;
    differ.to_dtype(DType::F32)?.affine(-100., 0.)
}

/// For each pair of a window's positions, the query's first, its row of the table of biases.
fn pairs(window: usize) -> Vec<u32> {
    let (positions, side) = (window * window, 2 * window - 1);
    let row = |pair| {
        let (query, key) = (pair / positions, pair % positions);
        let rows = query / window + window - 1 - key / window;
        let columns = query % window + window - 1 - key % window;
        (rows * side + columns) as u32
    };
    (0..positions * positions).map(row).collect()
}

/// The numbers of [`relative_position_bias`].
pub(crate) fn bias_of(table: &[f32], num_heads: usize, window: usize) -> Vec<f32> {
    let pairs = pairs(window);
    let of_head = |head| pairs.iter().map(move |&row| table[row as usize * num_heads + head]);
    (0..num_heads).flat_map(of_head).collect()
}

/// The gradient of the table, from that of [`bias_of`] it.
pub(crate) fn table_gradient(dbias: &[f32], num_heads: usize, window: usize) -> Vec<f32> {
    let pairs = pairs(window);
    let side = 2 * window - 1;
    let mut dtable = vec![0f32; side * side * num_heads];
    for (head, dbias) in dbias.chunks_exact(pairs.len()).enumerate() {
        for (&row, grad) in pairs.iter().zip(dbias) {
            dtable[row as usize * num_heads + head] += grad;
        }
    }
    dtable
}

/// For each row of the partitioned sequence, which row of the grid it is.
pub(crate) fn partition_order(grid: Grid, window: usize, shift: usize) -> crate::error::Result<Vec<u32>> {
    check_window(window)?;
    check_shift(window, shift)?;
    if grid.is_empty() || !grid.height.is_multiple_of(window) || !grid.width.is_multiple_of(window) {
        let allowed = format!("of sides that are multiples of the window, {window}");
        return Err(Error::invalid("grid", grid, allowed));
    }
    check_size(grid)?;
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
    Ok(order)
}

/// Most positions of a grid or a window's table.
const MOST: usize = 1 << 28;

fn check_size(grid: Grid) -> crate::error::Result<()> {
    match grid.len() <= MOST {
        true => Ok(()),
        false => Err(Error::invalid("grid", grid, format!("of at most {MOST} positions"))),
    }
}

fn check_window(window: usize) -> crate::error::Result<()> {
    // All pairs of its positions are counted.
    const MOST_WIDE: usize = 128;
    match window {
        1..=MOST_WIDE => Ok(()),
        _ => Err(Error::invalid("window", window, format!("1 to {MOST_WIDE}"))),
    }
}

fn check_shift(window: usize, shift: usize) -> crate::error::Result<()> {
    match shift < window {
        true => Ok(()),
        false => Err(Error::invalid(
            "shift",
            shift,
            format!("less than the window, {window}"),
        )),
    }
}

/// The number of heads that a table of biases is for.
pub(crate) fn check_table(table: &Tensor, window: usize) -> crate::error::Result<usize> {
    check::float("table", table)?;
    check_window(window)?;
    let side = 2 * window - 1;
    match *table.dims() {
        [rows, heads] if rows == side * side => Ok(heads),
        _ => {
            let expected = format!("[{}, num_heads] for a window of {window}", side * side);
            Err(Error::shape("table", table.dims(), expected))
        }
    }
}

/// B and D of `tokens` [B, L, D].
fn check_tokens(tokens: &Tensor, grid: Grid) -> crate::error::Result<[usize; 2]> {
    check_size(grid)?;
    match *tokens.dims() {
        [batch, positions, width] if batch > 0 && positions == grid.len() => Ok([batch, width]),
        _ => {
            let expected = format!("[B, {}, D], not empty, for a grid of {grid}", grid.len());
            Err(Error::shape("tokens", tokens.dims(), expected))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::{check, check_derivative, random};

    #[test]
    fn equal_their_compositions() {
        let cases = [
            ((4, 6), 2, 1),
            ((4, 6), 2, 0),
            ((9, 3), 3, 2),
            ((3, 3), 3, 1),
            ((2, 4), 1, 0),
        ];
        for (seed, ((height, width), window, shift)) in (0..).zip(cases) {
            let grid = Grid::new(height, width);
            check(
                &|args| window_partition(&args[0], grid, window, shift),
                &|args| composition_partition(&args[0], grid, window, shift),
                &[&[2, grid.len(), 5]],
                seed,
            );
            check(
                &|args| window_reverse(&args[0], grid, window, shift),
                &|args| composition_reverse(&args[0], grid, window, shift),
                &[&[3 * grid.len() / (window * window), window * window, 5]],
                seed,
            );
        }
        for (seed, window) in (0..).zip([1, 2, 3, 14]) {
            check(
                &|args| relative_position_bias(&args[0], window),
                &|args| composition_bias(&args[0], window),
                &[&[(2 * window - 1) * (2 * window - 1), 3]],
                seed,
            );
        }
        for ((height, width), window, shift) in [((4, 6), 2, 1), ((9, 6), 3, 2), ((14, 7), 7, 3), ((4, 4), 2, 0)] {
            let [ours, composed] = [shift_mask, composition_mask]
                .map(|mask| mask(Grid::new(height, width), window, shift, &Device::Cpu).unwrap());
            assert_eq!(ours.to_vec3::<f32>().unwrap(), composed.to_vec3::<f32>().unwrap());
        }
    }

    #[test]
    fn compositions_have_the_right_derivative() {
        let grid = Grid::new(4, 6);
        check_derivative(&|args| composition_partition(&args[0], grid, 2, 1), &[&[2, 24, 2]], 0);
        check_derivative(&|args| composition_reverse(&args[0], grid, 2, 1), &[&[12, 4, 2]], 1);
        check_derivative(&|args| merge_neighbours(&args[0], grid), &[&[2, 24, 2]], 2);
        check_derivative(&|args| composition_bias(&args[0], 3), &[&[25, 2]], 3);
    }

    #[test]
    fn reverse_undoes_partition() {
        let tokens = random(&[2, 24, 3], 0);
        for (window, shift) in [(1, 0), (2, 0), (2, 1)] {
            let grid = Grid::new(4, 6);
            let windows = window_partition(&tokens, grid, window, shift).unwrap();
            let back = window_reverse(&windows, grid, window, shift).unwrap();
            assert_eq!(back.to_vec3::<f64>().unwrap(), tokens.to_vec3::<f64>().unwrap());
        }
    }

    #[test]
    fn neighbours_are_merged_column_by_column() {
        for (height, width) in [(2, 2), (4, 6)] {
            let tokens = random(&[2, height * width, 3], 0);
            let merged = merge_neighbours(&tokens, Grid::new(height, width)).unwrap();
            let [tokens, merged] = [tokens, merged].map(|t| t.to_vec3::<f64>().unwrap());
            for (tokens, merged) in tokens.iter().zip(&merged) {
                assert_eq!(merged.len(), height * width / 4);
                for (at, merged) in merged.iter().enumerate() {
                    let (row, column) = (2 * (at / (width / 2)), 2 * (at % (width / 2)));
                    let four = [(0, 0), (1, 0), (0, 1), (1, 1)];
                    let four = four.map(|(down, right)| &tokens[(row + down) * width + column + right][..]);
                    assert_eq!(merged[..], four.concat());
                }
            }
        }
    }

    #[test]
    fn bias_depends_on_the_distance_alone() {
        let (window, heads) = (3, 2);
        let table = random(&[25, heads], 0);
        let bias = relative_position_bias(&table, window)
            .unwrap()
            .to_vec3::<f64>()
            .unwrap();
        let table = table.to_vec2::<f64>().unwrap();
        for (head, bias) in bias.iter().enumerate() {
            for (query, key) in (0..81).map(|pair| (pair / 9, pair % 9)) {
                let rows = query / 3 + 2 - key / 3;
                let columns = query % 3 + 2 - key % 3;
                assert_eq!(bias[query][key], table[5 * rows + columns][head]);
            }
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
                        if neighbours { 0. } else { -100. },
                        "{grid} window {w}: {i} {j}"
                    );
                }
            }
        }
    }

    #[test]
    fn errors_name_the_argument() {
        let tokens = random(&[2, 24, 3], 0);
        let grid = Grid::new(4, 6);
        let message = |result: Result<Tensor>| result.unwrap_err().to_string();
        let multiple = "grid is 4 x 6, but must be of sides that are multiples of the window, 4";
        assert_eq!(message(window_partition(&tokens, grid, 4, 0)), multiple);
        assert_eq!(message(window_reverse(&tokens, grid, 4, 0)), multiple);
        assert_eq!(message(shift_mask(grid, 4, 0, &Device::Cpu)), multiple);
        let less = "shift is 2, but must be less than the window, 2";
        assert_eq!(message(window_partition(&tokens, grid, 2, 2)), less);
        assert_eq!(message(window_reverse(&tokens, grid, 2, 2)), less);
        assert_eq!(message(shift_mask(grid, 2, 2, &Device::Cpu)), less);
        for window in [0, usize::MAX] {
            let error = format!("window is {window}, but must be 1 to 128");
            assert_eq!(message(window_partition(&tokens, grid, window, 0)), error);
            assert_eq!(message(window_reverse(&tokens, grid, window, 0)), error);
            assert_eq!(message(shift_mask(grid, window, 0, &Device::Cpu)), error);
            assert_eq!(message(relative_position_bias(&tokens, window)), error);
        }
        for grid in [Grid::new(0, 6), Grid::new(usize::MAX - 1, 2)] {
            assert!(message(window_partition(&tokens, grid, 2, 0)).starts_with("grid is "));
            assert!(message(merge_neighbours(&tokens, grid)).starts_with("grid is "));
        }
        for shape in [&[2, 25, 3][..], &[0, 24, 3], &[24, 3]] {
            let error = format!("tokens has shape {shape:?}, but must be [B, 24, D], not empty, for a grid of 4 x 6");
            assert_eq!(message(window_partition(&random(shape, 0), grid, 2, 0)), error);
            assert_eq!(message(merge_neighbours(&random(shape, 0), grid)), error);
        }
        for shape in [&[7, 4, 3][..], &[6, 5, 3], &[0, 4, 3], &[24, 3]] {
            let expected = "[B * 6, 4, D], not empty, for a grid of 4 x 6";
            let error = format!("windows has shape {shape:?}, but must be {expected}");
            assert_eq!(message(window_reverse(&random(shape, 0), grid, 2, 0)), error);
        }
        assert_eq!(
            message(merge_neighbours(&random(&[1, 15, 2], 0), Grid::new(3, 5))),
            "grid is 3 x 5, but must be of even sides, at least 2 x 2"
        );
        assert_eq!(
            message(relative_position_bias(&random(&[8, 2], 0), 2)),
            "table has shape [8, 2], but must be [9, num_heads] for a window of 2"
        );
    }
}
