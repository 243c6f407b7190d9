//! Logits of any shape as rows of classes: one row for each prediction.

use candle_core::Tensor;

use super::upcast;
use crate::error::{Error, Result};
use crate::mask::Mask;

/// Predictions of a batch.
pub(super) struct Rows {
    /// [R, C], sample by sample.
    pub(super) logits: Tensor,
    /// B, which divides R.
    pub(super) batch: usize,
    /// [R, 1], 1 for those that are predictions and 0 for what fills a batch up; none where all are.
    pub(super) are_there: Option<Tensor>,
}

/// The logits [B, .., C], or with the classes in dimension `class_dim`; `[B]` is one logit for each sample. With a mask,
/// of the positions that it keeps alone.
pub(super) fn rows(
    argument: &'static str,
    logits: &Tensor,
    class_dim: Option<usize>,
    kept_by: Option<&Mask>,
) -> Result<Rows> {
    let last = logits.rank().saturating_sub(1);
    let class_dim = class_dim.unwrap_or(last);
    if logits.rank() == 0 || logits.elem_count() == 0 || class_dim > last || (class_dim == 0 && last > 0) {
        let expected = match class_dim {
            dim if dim == last => "[B, .., C], or [B], with at least one element".to_string(),
            dim => format!("[B, ..] with at least one element, the classes in dimension {dim} of 1.."),
        };
        return Err(Error::shape(argument, logits.dims(), expected));
    }
    let batch = logits.dims()[0];
    let classes = if last == 0 { 1 } else { logits.dims()[class_dim] };
    let wide = upcast(argument, logits)?;
    let positions = match last {
        0 => wide.unsqueeze(1)?,
        _ if class_dim == last => wide,
        _ => {
            let others = (0..=last).filter(|&dim| dim != class_dim);
            wide.permute(others.chain([class_dim]).collect::<Vec<_>>())?
        }
    };
    let positions = match kept_by {
        Some(mask) => kept(argument, &positions, logits.dims(), mask)?,
        None => positions,
    };
    let logits = match positions.rank() {
        2 => positions,
        _ => positions.reshape(((), classes))?,
    };
    let are_there = match kept_by {
        Some(mask) if mask.is_ragged() => {
            let there = mask.attention_mask(logits.dtype(), logits.device())?;
            Some(there.reshape(((), 1))?)
        }
        _ => None,
    };
    Ok(Rows {
        logits,
        batch,
        are_there,
    })
}

/// Of logits [B, .., C] for each of L positions, [B, K, C] of those that `mask` keeps; as they are, where there are K
/// already. Pixels belong to the position of the grid in which they lie.
fn kept(argument: &'static str, positions: &Tensor, dims: &[usize], mask: &Mask) -> Result<Tensor> {
    let [batch, between @ .., classes] = positions.dims() else {
        return Err(Error::shape(argument, dims, "[B, .., C]"));
    };
    let (batch, classes) = (*batch, *classes);
    let count: usize = between.iter().product();
    let grid = mask.grid();
    let flat = |count: usize| positions.reshape((batch, count, classes));
    if batch == mask.batch() && !between.is_empty() {
        if count == grid.len() {
            return mask.gather(&flat(count)?, 0);
        }
        if count == mask.num_keep() {
            return Ok(flat(count)?);
        }
        if let &[height, width] = between {
            let factor = height / grid.height;
            if factor > 1 && (height, width) == (grid.height * factor, grid.width * factor) {
                return mask.upsample(factor)?.gather(&flat(count)?, 0);
            }
        }
    }
    let (batch, keep) = (mask.batch(), mask.num_keep());
    let expected = format!("[{batch}, .., C] for {grid} positions, or a multiple of both, or the {keep} that are kept");
    Err(Error::shape(argument, dims, expected))
}
