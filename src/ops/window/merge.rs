//! Neighbouring tokens of a grid side by side.

use candle_core::{Result, Tensor};

use super::check_tokens;
use crate::error::Error;
use crate::grid::Grid;

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
/// let tokens = Tensor::arange(0f32, 8.0, &Device::Cpu)?.reshape((1, 8, 1))?;
/// let merged = masksub::ops::merge_neighbours(&tokens, Grid::new(2, 4))?;
/// assert_eq!(merged.squeeze(0)?.to_vec2::<f32>()?, [[0.0, 4.0, 1.0, 5.0], [2.0, 6.0, 3.0, 7.0]]);
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::{check_derivative, random};

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
    fn has_the_right_derivative() {
        let grid = Grid::new(4, 6);
        check_derivative(&|args| merge_neighbours(&args[0], grid), &[&[2, 24, 2]], 2);
    }

    #[test]
    fn errors_name_the_argument() {
        let message = |shape: &[usize], grid| merge_neighbours(&random(shape, 0), grid).unwrap_err().to_string();
        for grid in [Grid::new(0, 6), Grid::new(usize::MAX - 1, 2)] {
            assert!(message(&[2, 24, 3], grid).starts_with("grid is "));
        }
        for shape in [&[2, 25, 3][..], &[0, 24, 3], &[24, 3]] {
            let error = format!("tokens has shape {shape:?}, but must be [B, 24, D], not empty, for a grid of 4 x 6");
            assert_eq!(message(shape, Grid::new(4, 6)), error);
        }
        assert_eq!(
            message(&[1, 15, 2], Grid::new(3, 5)),
            "grid is 3 x 5, but must be of even sides, at least 2 x 2"
        );
    }
}
