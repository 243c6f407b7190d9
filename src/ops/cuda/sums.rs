//! Sums of rows: what the gradient of a bias is.

use super::launch::{Address, Element, Launch, Rows, Sums};

/// Of `xs`: the sum of its rows, by way of the scratch memory of one [`Sums`].
pub(super) fn sum_rows(element: Element, rows: Rows, [xs, scratch, ys]: [Address; 3]) -> [Launch; 2] {
    let sizes = [rows.rows, rows.width, rows.chunk_rows()];
    [
        Launch::new(("sum_chunks", element), rows.tiles(), &[xs, scratch], &sizes, &[]),
        Sums::new(rows, 1).total(element, [scratch, ys]),
    ]
}

#[cfg(feature = "cuda")]
pub(crate) mod on_device {
    use candle_core::{DType, Result, Tensor};

    use super::{Rows, Sums};
    use crate::ops::cuda::device::{element, run_on};

    /// The sum of the rows of a contiguous tensor, over all dimensions but the last.
    pub(crate) fn sum_rows(xs: &Tensor) -> Result<Tensor> {
        let (element, rows) = (element(xs.dtype())?, Rows::of(xs.dims())?);
        let width = xs.dims().last().copied().unwrap_or(1);
        let outputs = [
            (Sums::new(rows, 1).scratch().into(), DType::F32),
            (width.into(), xs.dtype()),
        ];
        let [_, ys] = run_on([Some(xs)], outputs, |[xs], [scratch, ys]| {
            super::sum_rows(element, rows, [xs, scratch, ys]).into()
        })?;
        Ok(ys)
    }
}
