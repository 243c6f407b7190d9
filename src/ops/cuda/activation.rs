//! Functions of one element, and of the sum of it and a bias.

use super::launch::{Address, Element, Launch, Rows};

/// What a function is applied to: elements in rows, the last of which may be shorter.
#[derive(Clone, Copy)]
pub(super) struct Elements {
    len: u64,
    rows: Rows,
}

impl Elements {
    /// Of so many elements, in rows of the bias's length, if there is one.
    pub(super) fn new(len: usize, bias: Option<usize>) -> candle_core::Result<Self> {
        let rows = match bias {
            Some(width) => Rows::new(len / width.max(1), width)?,
            None => Rows::of_elements(len)?,
        };
        let len = len as u64;
        Ok(Self { len, rows })
    }
}

/// Of `xs` and `bias` (or none): the result. `function` is as in `activation.cu`.
pub(super) fn forward(element: Element, function: &str, of: Elements, [xs, bias, ys]: [Address; 3]) -> Launch {
    let words = [xs, bias, ys, of.len];
    Launch::new((function, element), of.rows.pieces(), &words, &[of.rows.width], &[])
}

/// Of `xs`, `bias` (or none) and the result's gradient: the input's gradient.
pub(super) fn backward(element: Element, function: &str, of: Elements, [xs, bias, grads, dxs]: [Address; 4]) -> Launch {
    let words = [xs, bias, grads, dxs, of.len];
    let name = format!("{function}_backward");
    Launch::new((&name, element), of.rows.pieces(), &words, &[of.rows.width], &[])
}

#[cfg(feature = "cuda")]
pub(crate) mod on_device {
    use candle_core::backend::BackendStorage as _;
    use candle_core::{CpuStorage, CudaStorage, CustomOp2, Layout, Result, Shape, Tensor};

    use super::Elements;
    use crate::ops::cuda::device::{element, run, run_on, Input};
    use crate::ops::cuda::sums;

    /// The result, of contiguous tensors. `function` is the operation's name.
    pub(crate) fn forward(function: &str, xs: Input, bias: Option<Input>) -> Result<(CudaStorage, Shape)> {
        let (shape, dtype) = (xs.1.shape().clone(), xs.0.dtype());
        let element = element(dtype)?;
        let of = Elements::new(shape.elem_count(), bias.map(|(_, layout)| layout.shape().elem_count()))?;
        let function = function.replace('-', "_");
        let [ys] = run([Some(xs), bias], [(shape.clone(), dtype)], |[xs, bias], [ys]| {
            vec![super::forward(element, &function, of, [xs, bias, ys])]
        })?;
        Ok((ys, shape))
    }

    /// The gradient of the input.
    pub(crate) fn backward(function: &str, xs: &Tensor, bias: Option<&Tensor>, grad: &Tensor) -> Result<Tensor> {
        let element = element(xs.dtype())?;
        let of = Elements::new(xs.elem_count(), bias.map(Tensor::elem_count))?;
        let function = function.replace('-', "_");
        let inputs = [Some(xs), bias, Some(&grad.contiguous()?)];
        let [dxs] = run_on(inputs, [(xs.shape().clone(), xs.dtype())], |[xs, bias, grad], [dxs]| {
            vec![super::backward(element, &function, of, [xs, bias, grad, dxs])]
        })?;
        Ok(dxs)
    }

    /// `function` of `xs` + `bias`, of `identity` the sum itself; both are on CUDA, and `xs` has rows of the bias's length.
    pub(crate) fn biased(function: &'static str, xs: &Tensor, bias: &Tensor) -> Result<Tensor> {
        xs.contiguous()?.apply_op2(&bias.contiguous()?, Biased { function })
    }

    struct Biased {
        function: &'static str,
    }

    impl CustomOp2 for Biased {
        fn name(&self) -> &'static str {
            self.function
        }

        fn cpu_fwd(&self, _: &CpuStorage, _: &Layout, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
            candle_core::bail!("{} with a bias is for CUDA", self.function)
        }

        fn cuda_fwd(
            &self,
            s1: &CudaStorage,
            l1: &Layout,
            s2: &CudaStorage,
            l2: &Layout,
        ) -> Result<(CudaStorage, Shape)> {
            forward(self.function, (s1, l1), Some((s2, l2)))
        }

        fn bwd(
            &self,
            xs: &Tensor,
            bias: &Tensor,
            _: &Tensor,
            grad: &Tensor,
        ) -> Result<(Option<Tensor>, Option<Tensor>)> {
            let dxs = match self.function {
                "identity" => grad.contiguous()?,
                function => backward(function, xs, Some(bias), grad)?,
            };
            let dbias = if bias.track_op() {
                Some(sums::on_device::sum_rows(&dxs)?)
            } else {
                None
            };
            Ok((xs.track_op().then_some(dxs), dbias))
        }
    }
}
