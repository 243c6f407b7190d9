//! The tokens of a grid in the order of its windows, and back.

use candle_core::{Result, Tensor};

use super::{check_shift, check_size, check_tokens, check_window};
use crate::error::Error;
use crate::grid::Grid;
use crate::ops::gather_rows::gather;

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
/// Each gradient goes back to its token: see [`gather_rows`](crate::ops::gather_rows()).
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
/// If `tokens` does not fit the grid or is empty, a side of the grid is no multiple of `window`, or `shift` is not
/// less.
///
/// ```
/// use candle_core::{Device, Tensor};
/// use masksub::Grid;
/// let tokens = Tensor::arange(0f32, 8.0, &Device::Cpu)?.reshape((1, 8, 1))?;
/// let windows = masksub::ops::window_partition(&tokens, Grid::new(2, 4), 2, 0)?;
/// assert_eq!(windows.squeeze(2)?.to_vec2::<f32>()?, [[0.0, 1.0, 4.0, 5.0], [2.0, 3.0, 6.0, 7.0]]);
/// # Ok::<(), candle_core::Error>(())
/// ```
pub fn window_partition(tokens: &Tensor, grid: Grid, window: usize, shift: usize) -> Result<Tensor> {
    let order = partition_order(grid, window, shift)?;
    let [batch, width] = check_tokens(tokens, grid)?;
    partition(tokens, [batch, grid.len(), width], &order, window)
}

/// [`window_partition`] of tokens that fit, [B, L, D], in the [order](partition_order) of their windows.
pub(crate) fn partition(tokens: &Tensor, dims: [usize; 3], order: &[u32], window: usize) -> Result<Tensor> {
    let [batch, length, width] = dims;
    let positions = window * window;
    gather(tokens, dims, &order.repeat(batch), 0)?.reshape((batch * length / positions, positions, width))
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
/// Each gradient goes back to its token: see [`gather_rows`](crate::ops::gather_rows()).
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
/// If `windows` does not fit the grid or is empty, a side of the grid is no multiple of `window`, or `shift` is not
/// less.
///
/// ```
/// use candle_core::{Device, Tensor};
/// use masksub::{ops, Grid};
/// let tokens = Tensor::arange(0f32, 16.0, &Device::Cpu)?.reshape((1, 16, 1))?;
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
    reverse(windows, [batch, grid.len(), width], &order)
}

/// [`window_reverse`] of windows that fit, to tokens [B, L, D], with the [order](partition_order) that they are in.
pub(crate) fn reverse(windows: &Tensor, dims: [usize; 3], order: &[u32]) -> Result<Tensor> {
    let mut inverse = vec![0u32; order.len()];
    (0u32..).zip(order).for_each(|(at, &from)| inverse[from as usize] = at);
    gather(&windows.reshape(&dims)?, dims, &inverse.repeat(dims[0]), 0)
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
    }

    #[test]
    fn compositions_have_the_right_derivative() {
        let grid = Grid::new(4, 6);
        check_derivative(&|args| composition_partition(&args[0], grid, 2, 1), &[&[2, 24, 2]], 0);
        check_derivative(&|args| composition_reverse(&args[0], grid, 2, 1), &[&[12, 4, 2]], 1);
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
    fn errors_name_the_argument() {
        let tokens = random(&[2, 24, 3], 0);
        let grid = Grid::new(4, 6);
        let both = |grid, window, shift| {
            [window_partition, window_reverse].map(|op| op(&tokens, grid, window, shift).unwrap_err().to_string())
        };
        let multiple = "grid is 4 x 6, but must be of sides that are multiples of the window, 4";
        assert_eq!(both(grid, 4, 0), [multiple; 2]);
        assert_eq!(both(grid, 2, 2), ["shift is 2, but must be less than the window, 2"; 2]);
        for window in [0, usize::MAX] {
            let error = format!("window is {window}, but must be 1 to 128");
            assert_eq!(both(grid, window, 0), [error.as_str(); 2]);
        }
        for grid in [Grid::new(0, 6), Grid::new(usize::MAX - 1, 2)] {
            assert!(both(grid, 2, 0).iter().all(|error| error.starts_with("grid is ")));
        }
        let message = |result: Result<Tensor>| result.unwrap_err().to_string();
        for shape in [&[2, 25, 3][..], &[0, 24, 3], &[24, 3]] {
            let error = format!("tokens has shape {shape:?}, but must be [B, 24, D], not empty, for a grid of 4 x 6");
            assert_eq!(message(window_partition(&random(shape, 0), grid, 2, 0)), error);
        }
        for shape in [&[7, 4, 3][..], &[6, 5, 3], &[0, 4, 3], &[24, 3]] {
            let expected = "[B * 6, 4, D], not empty, for a grid of 4 x 6";
            let error = format!("windows has shape {shape:?}, but must be {expected}");
            assert_eq!(message(window_reverse(&random(shape, 0), grid, 2, 0)), error);
        }
    }
}
