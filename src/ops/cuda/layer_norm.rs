//! Layer norm.

use super::launch::{Address, Element, Launch, Rows, Sums};

/// Of `xs`, `weight`, `bias` (or none): the result.
pub(super) fn forward(element: Element, rows: Rows, tensors: [Address; 4], eps: f32) -> Launch {
    let sizes = [rows.rows, rows.width];
    Launch::new(("layer_norm", element), rows.warps(), &tensors, &sizes, &[eps])
}

/// Of `xs`, `weight` and the result's gradient: the input's, and the moments of each row [rows, 2], in `f32`.
pub(super) fn backward(element: Element, rows: Rows, tensors: [Address; 5], eps: f32) -> Launch {
    let sizes = [rows.rows, rows.width];
    Launch::new(("layer_norm_backward", element), rows.warps(), &tensors, &sizes, &[eps])
}

/// Of `xs`, the result's gradient and the rows' moments: the gradients of weight and bias, [2, width], by way of the
/// scratch memory of two [`Sums`].
pub(super) fn params_backward(
    element: Element,
    rows: Rows,
    [xs, grads, stats]: [Address; 3],
    [scratch, ys]: [Address; 2],
) -> [Launch; 2] {
    let sizes = [rows.rows, rows.width, rows.chunk_rows()];
    let tensors = [xs, grads, stats, scratch];
    [
        Launch::new(("layer_norm_sums", element), rows.tiles(), &tensors, &sizes, &[]),
        Sums::new(rows, 2).total(element, [scratch, ys]),
    ]
}

#[cfg(feature = "cuda")]
pub(crate) mod on_device {
    use candle_core::backend::BackendStorage as _;
    use candle_core::{CudaStorage, DType, Result, Shape, Tensor};

    use super::{Rows, Sums};
    use crate::ops::cuda::device::{element, run, run_on, Input};

    /// The result, of contiguous tensors.
    pub(crate) fn forward(xs: Input, weight: Input, bias: Option<Input>, eps: f32) -> Result<(CudaStorage, Shape)> {
        let (shape, dtype) = (xs.1.shape().clone(), xs.0.dtype());
        let (element, rows) = (element(dtype)?, Rows::of(shape.dims())?);
        let inputs = [Some(xs), Some(weight), bias];
        let [ys] = run(inputs, [(shape.clone(), dtype)], |[xs, weight, bias], [ys]| {
            vec![super::forward(element, rows, [xs, weight, bias, ys], eps)]
        })?;
        Ok((ys, shape))
    }

    /// The gradients of input, weight and bias.
    pub(crate) fn backward(xs: &Tensor, weight: &Tensor, grad: &Tensor, eps: f32) -> Result<[Tensor; 3]> {
        let dtype = xs.dtype();
        let (element, rows) = (element(dtype)?, Rows::of(xs.dims())?);
        let width = weight.elem_count();
        let outputs = [
            (xs.shape().clone(), dtype),
            ((xs.elem_count() / width, 2).into(), DType::F32),
            (Sums::new(rows, 2).scratch().into(), DType::F32),
            ((2, width).into(), dtype),
        ];
        let [dxs, .., dparams] = run_on(
            [Some(xs), Some(weight), Some(&grad.contiguous()?)],
            outputs,
            |[xs, weight, grad], [dxs, stats, scratch, dparams]| {
                let input = super::backward(element, rows, [xs, weight, grad, dxs, stats], eps);
                let params = super::params_backward(element, rows, [xs, grad, stats], [scratch, dparams]);
                [input].into_iter().chain(params).collect()
            },
        )?;
        Ok([dxs, dparams.get(0)?, dparams.get(1)?])
    }
}
