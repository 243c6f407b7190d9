//! The sum of a residual branch: LayerScale, drop path and addition.

use super::launch::{Address, Element, Launch, Rows, Sums};

/// Of `xs`, `branch`, `gamma` (or none) and a factor for each sample of so many rows (or none): the sum.
pub(super) fn forward(element: Element, rows: Rows, sample_rows: u32, tensors: [Address; 5]) -> Launch {
    let sizes = [rows.rows, rows.width, sample_rows];
    Launch::new(("residual", element), rows.pieces(), &tensors, &sizes, &[])
}

/// Of the sum's gradient, `gamma` and factors: the branch's gradient.
pub(super) fn backward(element: Element, rows: Rows, sample_rows: u32, tensors: [Address; 4]) -> Launch {
    let sizes = [rows.rows, rows.width, sample_rows];
    Launch::new(("residual_backward", element), rows.pieces(), &tensors, &sizes, &[])
}

/// Of the sum's gradient, the branch and factors: the gradient of gamma, by way of the scratch memory of one [`Sums`].
pub(super) fn gamma_backward(
    element: Element,
    rows: Rows,
    sample_rows: u32,
    [grads, branch, factors]: [Address; 3],
    [scratch, ys]: [Address; 2],
) -> [Launch; 2] {
    let sizes = [rows.rows, rows.width, sample_rows, rows.chunk_rows()];
    let tensors = [grads, branch, factors, scratch];
    [
        Launch::new(("residual_sums", element), rows.tiles(), &tensors, &sizes, &[]),
        Sums::new(rows, 1).total(element, [scratch, ys]),
    ]
}

#[cfg(feature = "cuda")]
pub(crate) mod on_device {
    use candle_core::backend::BackendStorage as _;
    use candle_core::{CpuStorage, CudaStorage, CustomOp2, CustomOp3, DType, Layout, Result, Shape, Storage, Tensor};

    use super::{Rows, Sums};
    use crate::ops::cuda::device::{element, run, run_on, Input};

    /// `xs + drop_path * gamma * branch`, of tensors on CUDA: [B, .., D], `[D]` and B factors.
    pub(crate) fn add(
        xs: &Tensor,
        branch: &Tensor,
        gamma: Option<&Tensor>,
        drop_path: Option<&[f32]>,
    ) -> Result<Tensor> {
        let factors = drop_path.map(|factors| Tensor::from_slice(factors, factors.len(), xs.device()));
        let op = Add {
            factors: factors.transpose()?,
            sample_rows: xs.dims().iter().skip(1).rev().skip(1).product::<usize>() as u32,
        };
        let (xs, branch) = (xs.contiguous()?, branch.contiguous()?);
        match gamma {
            Some(gamma) => xs.apply_op3(&branch, &gamma.contiguous()?, op),
            None => xs.apply_op2(&branch, op),
        }
    }

    struct Add {
        /// Of each sample, in f32.
        factors: Option<Tensor>,
        /// Rows of each of them.
        sample_rows: u32,
    }

    impl Add {
        fn forward(&self, xs: Input, branch: Input, gamma: Option<Input>) -> Result<(CudaStorage, Shape)> {
            let (shape, dtype) = (xs.1.shape().clone(), xs.0.dtype());
            let (element, rows) = (element(dtype)?, Rows::of(shape.dims())?);
            let factors = self.factors.as_ref().map(Tensor::storage_and_layout);
            let factors = match &factors {
                Some((storage, layout)) => match &**storage {
                    Storage::Cuda(storage) => Some((storage, *layout)),
                    _ => candle_core::bail!("the factors of drop path are not on CUDA"),
                },
                None => None,
            };
            let inputs = [Some(xs), Some(branch), gamma, factors];
            let [ys] = run(
                inputs,
                [(shape.clone(), dtype)],
                |[xs, branch, gamma, factors], [ys]| {
                    let tensors = [xs, branch, gamma, factors, ys];
                    vec![super::forward(element, rows, self.sample_rows, tensors)]
                },
            )?;
            Ok((ys, shape))
        }

        /// The gradients of the branch and of gamma.
        fn backward(&self, branch: &Tensor, gamma: Option<&Tensor>, grad: &Tensor) -> Result<(Tensor, Option<Tensor>)> {
            let (element, rows) = (element(grad.dtype())?, Rows::of(grad.dims())?);
            let (factors, sample_rows) = (self.factors.as_ref(), self.sample_rows);
            let outputs = [(branch.shape().clone(), branch.dtype())];
            let inputs = [Some(grad), gamma, factors];
            let [dbranch] = run_on(inputs, outputs, |[grad, gamma, factors], [dbranch]| {
                vec![super::backward(
                    element,
                    rows,
                    sample_rows,
                    [grad, gamma, factors, dbranch],
                )]
            })?;
            let Some(gamma) = gamma.filter(|gamma| gamma.track_op()) else {
                return Ok((dbranch, None));
            };
            let outputs = [
                (Sums::new(rows, 1).scratch().into(), DType::F32),
                (gamma.shape().clone(), gamma.dtype()),
            ];
            let inputs = [Some(grad), Some(branch), factors];
            let [_, dgamma] = run_on(inputs, outputs, |tensors, outputs| {
                super::gamma_backward(element, rows, sample_rows, tensors, outputs).into()
            })?;
            Ok((dbranch, Some(dgamma)))
        }
    }

    impl CustomOp2 for Add {
        fn name(&self) -> &'static str {
            "residual"
        }

        fn cpu_fwd(&self, _: &CpuStorage, _: &Layout, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
            candle_core::bail!("this sum of a residual branch is for CUDA")
        }

        fn cuda_fwd(
            &self,
            s1: &CudaStorage,
            l1: &Layout,
            s2: &CudaStorage,
            l2: &Layout,
        ) -> Result<(CudaStorage, Shape)> {
            self.forward((s1, l1), (s2, l2), None)
        }

        fn bwd(
            &self,
            _: &Tensor,
            branch: &Tensor,
            _: &Tensor,
            grad: &Tensor,
        ) -> Result<(Option<Tensor>, Option<Tensor>)> {
            let grad = grad.contiguous()?;
            let (dbranch, _) = self.backward(branch, None, &grad)?;
            Ok((Some(grad), Some(dbranch)))
        }
    }

    impl CustomOp3 for Add {
        fn name(&self) -> &'static str {
            "residual"
        }

        fn cpu_fwd(
            &self,
            _: &CpuStorage,
            _: &Layout,
            _: &CpuStorage,
            _: &Layout,
            _: &CpuStorage,
            _: &Layout,
        ) -> Result<(CpuStorage, Shape)> {
            candle_core::bail!("this sum of a residual branch is for CUDA")
        }

        fn cuda_fwd(
            &self,
            s1: &CudaStorage,
            l1: &Layout,
            s2: &CudaStorage,
            l2: &Layout,
            s3: &CudaStorage,
            l3: &Layout,
        ) -> Result<(CudaStorage, Shape)> {
            self.forward((s1, l1), (s2, l2), Some((s3, l3)))
        }

        fn bwd(
            &self,
            _: &Tensor,
            branch: &Tensor,
            gamma: &Tensor,
            _: &Tensor,
            grad: &Tensor,
        ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
            let grad = grad.contiguous()?;
            let (dbranch, dgamma) = self.backward(branch, Some(gamma), &grad)?;
            Ok((Some(grad), Some(dbranch), dgamma))
        }
    }
}
