//! Softmax of rows times a scale.

use super::launch::{Address, Element, Launch, Rows};

/// Of `xs`: the result.
pub(super) fn forward(element: Element, rows: Rows, tensors: [Address; 2], scale: f32) -> Launch {
    let sizes = [rows.rows, rows.width];
    Launch::new(("softmax", element), rows.warps(), &tensors, &sizes, &[scale])
}

/// Of the result and its gradient: the input's gradient.
pub(super) fn backward(element: Element, rows: Rows, tensors: [Address; 3], scale: f32) -> Launch {
    let sizes = [rows.rows, rows.width];
    Launch::new(("softmax_backward", element), rows.warps(), &tensors, &sizes, &[scale])
}

#[cfg(feature = "cuda")]
pub(crate) mod on_device {
    use candle_core::backend::BackendStorage as _;
    use candle_core::{CudaStorage, Result, Shape, Tensor};

    use super::Rows;
    use crate::ops::cuda::device::{element, run, run_on, Input};

    /// The result, of a contiguous tensor.
    pub(crate) fn forward(xs: Input, scale: f32) -> Result<(CudaStorage, Shape)> {
        let (shape, dtype) = (xs.1.shape().clone(), xs.0.dtype());
        let (element, rows) = (element(dtype)?, Rows::of(shape.dims())?);
        let [ys] = run([Some(xs)], [(shape.clone(), dtype)], |[xs], [ys]| {
            vec![super::forward(element, rows, [xs, ys], scale)]
        })?;
        Ok((ys, shape))
    }

    /// The gradient of the input.
    pub(crate) fn backward(ys: &Tensor, grad: &Tensor, scale: f32) -> Result<Tensor> {
        let (element, rows) = (element(ys.dtype())?, Rows::of(ys.dims())?);
        let outputs = [(ys.shape().clone(), ys.dtype())];
        let [dxs] = run_on([Some(ys), Some(&grad.contiguous()?)], outputs, |[ys, grad], [dxs]| {
            vec![super::backward(element, rows, [ys, grad, dxs], scale)]
        })?;
        Ok(dxs)
    }
}
