//! The learned bias of attention by how far apart two positions of a window are.

use candle_core::{Result, Tensor};

use super::check_window;
use crate::check;
use crate::error::Error;
use crate::ops::route;

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
/// let table = Tensor::arange(0f32, 9.0, &Device::Cpu)?.reshape((9, 1))?;
/// let bias = masksub::ops::relative_position_bias(&table, 2)?;
/// assert_eq!(bias.get(0)?.get(0)?.to_vec1::<f32>()?, [4.0, 3.0, 1.0, 0.0]);
/// # Ok::<(), candle_core::Error>(())
/// ```
pub fn relative_position_bias(table: &Tensor, window: usize) -> Result<Tensor> {
    let heads = check_table(table, window)?;
    routed(table, heads, window)
}

/// [`relative_position_bias`] of a table that fits, for so many heads.
pub(crate) fn routed(table: &Tensor, heads: usize, window: usize) -> Result<Tensor> {
    if route::is_half(table) {
        // A row of the table is that of up to N pairs, whose gradients are added.
        return route::in_f32(&[table], |table| of_pairs(&table[0], heads, window));
    }
    of_pairs(table, heads, window)
}

/// The rows of a table that the pairs of a window's positions have.
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

/// The number of heads that a table of biases is for.
pub(crate) fn check_table(table: &Tensor, window: usize) -> crate::error::Result<usize> {
    check::float("table", table)?;
    check_window(window)?;
    let side = 2 * window - 1;
    match *table.dims() {
        [rows, heads] if rows == side * side => {
            // Of all pairs of positions.
            let numbers = [window; 4]
                .iter()
                .try_fold(heads, |count, &side| count.checked_mul(side));
            check::fits_memory("window", window, numbers, size_of::<f32>())?;
            Ok(heads)
        }
        _ => {
            let expected = format!("[{}, num_heads] for a window of {window}", side * side);
            Err(Error::shape("table", table.dims(), expected))
        }
    }
}

/// [`relative_position_bias`] of candle's operations: with the table upside down, a query sees a window of it.
pub fn composition(table: &Tensor, window: usize) -> Result<Tensor> {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::{check, check_derivative, random};

    #[test]
    fn equals_its_composition() {
        for (seed, window) in (0..).zip([1, 2, 3, 14]) {
            check(
                &|args| relative_position_bias(&args[0], window),
                &|args| composition(&args[0], window),
                &[&[(2 * window - 1) * (2 * window - 1), 3]],
                seed,
            );
        }
    }

    #[test]
    fn composition_has_the_right_derivative() {
        check_derivative(&|args| composition(&args[0], 3), &[&[25, 2]], 3);
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

    #[test]
    fn errors_name_the_argument() {
        let message = |shape: &[usize], window| {
            relative_position_bias(&random(shape, 0), window)
                .unwrap_err()
                .to_string()
        };
        for window in [0, usize::MAX] {
            let error = format!("window is {window}, but must be 1 to 128");
            assert_eq!(message(&[2, 24, 3], window), error);
        }
        assert_eq!(
            message(&[8, 2], 2),
            "table has shape [8, 2], but must be [9, num_heads] for a window of 2"
        );
    }
}
