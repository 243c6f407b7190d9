//! Logits of any shape as rows of classes: one row for each prediction.

use candle_core::Tensor;

use super::upcast;
use crate::error::{Error, Result};
use crate::mask::Mask;

/// Predictions of a batch.
pub(super) struct Rows {
    /// `[R, C]`, sample by sample.
    pub(super) logits: Tensor,
    /// Predictions of each of B samples, R in all.
    pub(super) counts: Vec<usize>,
}

/// The logits with the classes last: `[B, .., C]`.
pub(super) struct Positions<'a> {
    argument: &'static str,
    /// As they were given.
    dims: &'a [usize],
    logits: Tensor,
}

impl<'a> Positions<'a> {
    /// Of logits `[B, .., C]`, or with the classes in dimension `class_dim`; `[B]` is one logit for each sample.
    pub(super) fn new(argument: &'static str, logits: &'a Tensor, class_dim: Option<usize>) -> Result<Self> {
        let last = logits.rank().saturating_sub(1);
        let class_dim = class_dim.unwrap_or(last);
        if logits.rank() == 0 || logits.elem_count() == 0 || class_dim > last || (class_dim == 0 && last > 0) {
            let expected = match class_dim {
                dim if dim == last => "[B, .., C], or [B], with at least one element".to_string(),
                dim => format!("[B, ..] with at least one element, the classes in dimension {dim} of 1.."),
            };
            return Err(Error::shape(argument, logits.dims(), expected));
        }
        let dims = logits.dims();
        let wide = upcast(argument, logits)?;
        let logits = match last {
            0 => wide.unsqueeze(1)?,
            _ if class_dim == last => wide,
            _ => {
                let others = (0..=last).filter(|&dim| dim != class_dim);
                wide.permute(others.chain([class_dim]).collect::<Vec<_>>())?
            }
        };
        Ok(Self { argument, dims, logits })
    }

    fn batch(&self) -> usize {
        self.logits.dims()[0]
    }

    /// The dimensions of a sample's predictions, between batch and classes.
    fn layout(&self) -> &[usize] {
        let dims = self.logits.dims();
        &dims[1..dims.len() - 1]
    }

    /// A row for each prediction.
    fn flat(&self) -> Result<Tensor> {
        match *self.logits.dims() {
            [_, _] => Ok(self.logits.clone()),
            [.., classes] => Ok(self.logits.reshape(((), classes))?),
            [] => Err(self.misfit("[B, .., C]")),
        }
    }

    fn misfit(&self, expected: impl Into<String>) -> Error {
        Error::shape(self.argument, self.dims, expected)
    }

    /// All predictions.
    pub(super) fn rows(&self) -> Result<Rows> {
        let logits = self.flat()?;
        let batch = self.batch();
        let counts = vec![logits.dims()[0] / batch; batch];
        Ok(Rows { logits, counts })
    }
}

/// The predictions of the positions that `mask` keeps, of sub-branch and target alike. Either has one for each position, for
/// each pixel (which belongs to the position in which it lies), or for the kept positions alone: its shape tells.
pub(super) fn kept_rows(sub: &Positions, main: &Positions, mask: &Mask) -> Result<[Rows; 2]> {
    let of_sub = Kept::new(sub, mask)?;
    let of_main = if (main.batch(), main.layout()) == (sub.batch(), sub.layout()) {
        of_sub.clone()
    } else {
        Kept::new(main, mask)?
    };
    Ok([of_sub.rows(sub)?, of_main.rows(main)?])
}

/// The rows of a batch that are compared.
#[derive(Clone)]
struct Kept {
    /// `[R]`, i64: 32 bits may not number all rows of a batch.
    indices: Tensor,
    counts: Vec<usize>,
}

impl Kept {
    fn new(positions: &Positions, mask: &Mask) -> Result<Self> {
        let on_layout = on_layout(positions, mask)?;
        let of_sample: usize = positions.layout().iter().product();
        let rows = on_layout.rows().enumerate();
        let indices =
            rows.flat_map(|(sample, row)| row.iter().map(move |&at| (sample * of_sample) as i64 + i64::from(at)));
        Ok(Self {
            indices: Tensor::from_iter(indices, positions.logits.device())?,
            counts: on_layout.rows().map(<[u32]>::len).collect(),
        })
    }

    /// By selection, not by weights of 0: what fills a batch up may be NaN.
    fn rows(self, positions: &Positions) -> Result<Rows> {
        let logits = positions.flat()?.contiguous()?.index_select(&self.indices, 0)?;
        let counts = self.counts;
        Ok(Rows { logits, counts })
    }
}

/// `mask` on the predictions of its samples.
fn on_layout(positions: &Positions, mask: &Mask) -> Result<Mask> {
    let (grid, keep) = (mask.grid(), mask.num_keep());
    let layout = positions.layout();
    if positions.batch() == mask.batch() {
        if *layout == [grid.len()] && keep == grid.len() && !mask.keeps_all_in_order() {
            let value =
                format!("one that keeps all {keep} positions of a sample, and not of all samples in their order");
            let allowed = "one that tells logits of all positions from those of the kept ones by their shape";
            return Err(Error::invalid("mask", value, allowed));
        }
        match *layout {
            [len] if len == grid.len() => return Ok(mask.clone()),
            [len] if len == keep => return Ok(mask.shortened()),
            [height, width] if (height, width) == (grid.height, grid.width) => return Ok(mask.clone()),
            [height, width] => {
                let factor = height / grid.height;
                if factor > 1 && (height, width) == (grid.height * factor, grid.width * factor) {
                    return mask.upsample(factor);
                }
            }
            _ => {}
        }
    }
    let expected = format!(
        "[{}, .., C] with .. being the {grid} positions, all {} in one, a multiple of both sides, or the {keep} that are kept",
        mask.batch(),
        grid.len()
    );
    Err(positions.misfit(expected))
}
