//! Rows by their numbers: tokens that are kept, samples of a batch.

use super::launch::{Address, Element, Launch, Rows};

/// The number of no row.
pub(super) const NONE: u32 = u32::MAX;

/// Of `xs`, of which there are `num_xs` rows, a number for each row of the result, and `others`: the rows of those
/// numbers; where a number is that of no row, the row of `others` at that place, or zeros where there are no others.
pub(super) fn gather(element: Element, rows: Rows, num_xs: u32, tensors: [Address; 4]) -> Launch {
    let sizes = [num_xs, rows.width];
    Launch::new(("gather_rows", element), rows.pieces(), &tensors, &sizes, &[])
}

/// The gradient of what rows were gathered from, from the result's, and [`places_by_row`] in two parts.
pub(super) fn scatter(element: Element, rows: Rows, tensors: [Address; 4]) -> Launch {
    Launch::new(("scatter_rows", element), rows.pieces(), &tensors, &[rows.width], &[])
}

/// For each of `num_xs` rows where its places begin in a list, and at last the list's length; and that list: of the
/// places in `index` that have the row's number, in their order.
pub(super) fn places_by_row(index: &[u32], num_xs: usize) -> (Vec<u32>, Vec<u32>) {
    let mut starts = vec![0; num_xs + 1];
    for &row in index.iter().filter(|&&row| (row as usize) < num_xs) {
        starts[row as usize + 1] += 1;
    }
    for row in 0..num_xs {
        starts[row + 1] += starts[row];
    }
    let mut next = starts.clone();
    let mut places = vec![0; starts[num_xs] as usize];
    for (place, &row) in (0..).zip(index).filter(|(_, &row)| (row as usize) < num_xs) {
        places[next[row as usize] as usize] = place;
        next[row as usize] += 1;
    }
    (starts, places)
}

#[cfg(feature = "cuda")]
pub(crate) mod on_device {
    use candle_core::backend::BackendStorage as _;
    use candle_core::{CpuStorage, CudaStorage, CustomOp1, CustomOp2, Device, Layout, Result, Shape, Storage, Tensor};

    use super::{Rows, NONE};
    use crate::ops::cuda::device::{element, run, run_on, Input};

    /// The rows of `xs` [R, ..] on CUDA with the numbers `index`, each below R.
    pub(crate) fn gather(xs: &Tensor, index: Vec<u32>) -> Result<Tensor> {
        xs.contiguous()?.apply_op1(Gather { index })
    }

    /// [B, ..]: where `place` has a number, the row of `xs` [R, ..] that has it, each once, else the row of `others`
    /// [B, ..] there.
    pub(crate) fn merge(xs: &Tensor, others: &Tensor, places: &[Option<usize>]) -> Result<Tensor> {
        let index = places.iter().map(|place| place.map_or(NONE, |row| row as u32));
        let op = Merge { index: index.collect() };
        xs.contiguous()?.apply_op2(&others.contiguous()?, op)
    }

    fn upload(index: &[u32], device: &Device) -> Result<Tensor> {
        Tensor::from_slice(index, index.len(), device)
    }

    /// R rows of the size of one of `dims`.
    fn rows_of(rows: usize, dims: &[usize]) -> Result<(Shape, Rows)> {
        let mut shape = dims.to_vec();
        if let Some(first) = shape.first_mut() {
            *first = rows;
        }
        let width = dims.iter().skip(1).product();
        Ok((shape.into(), Rows::new(rows, width)?))
    }

    fn forward(xs: Input, index: &[u32], others: Option<Input>) -> Result<(CudaStorage, Shape)> {
        let (dims, dtype) = (xs.1.dims(), xs.0.dtype());
        let (element, num_xs) = (element(dtype)?, dims.first().copied().unwrap_or(0) as u32);
        let (shape, rows) = rows_of(index.len(), dims)?;
        let index = upload(index, &Device::Cuda(xs.0.device.clone()))?;
        let (storage, layout) = index.storage_and_layout();
        let Storage::Cuda(storage) = &*storage else {
            candle_core::bail!("numbers of rows are not on CUDA");
        };
        let inputs = [Some(xs), Some((storage, layout)), others];
        let [ys] = run(inputs, [(shape.clone(), dtype)], |[xs, index, others], [ys]| {
            vec![super::gather(element, rows, num_xs, [xs, index, others, ys])]
        })?;
        Ok((ys, shape))
    }

    /// The rows of a gradient with those numbers, zeros where it is of none.
    fn take(grad: &Tensor, index: &[u32]) -> Result<Tensor> {
        let (element, num_xs) = (element(grad.dtype())?, grad.dim(0)? as u32);
        let (shape, rows) = rows_of(index.len(), grad.dims())?;
        let index = upload(index, grad.device())?;
        let [ys] = run_on(
            [Some(grad), Some(&index)],
            [(shape, grad.dtype())],
            |[grad, index], [ys]| vec![super::gather(element, rows, num_xs, [grad, index, 0, ys])],
        )?;
        Ok(ys)
    }

    struct Gather {
        index: Vec<u32>,
    }

    impl CustomOp1 for Gather {
        fn name(&self) -> &'static str {
            "gather-rows"
        }

        fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
            candle_core::bail!("this gathering of rows is for CUDA")
        }

        fn cuda_fwd(&self, storage: &CudaStorage, layout: &Layout) -> Result<(CudaStorage, Shape)> {
            forward((storage, layout), &self.index, None)
        }

        fn bwd(&self, xs: &Tensor, _: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
            let element = element(xs.dtype())?;
            let (shape, rows) = rows_of(xs.dim(0)?, xs.dims())?;
            let (starts, places) = super::places_by_row(&self.index, xs.dim(0)?);
            let [starts, places] = [upload(&starts, xs.device())?, upload(&places, xs.device())?];
            let inputs = [Some(&grad.contiguous()?), Some(&starts), Some(&places)];
            let [dxs] = run_on(inputs, [(shape, xs.dtype())], |[grad, starts, places], [dxs]| {
                vec![super::scatter(element, rows, [grad, starts, places, dxs])]
            })?;
            Ok(Some(dxs))
        }
    }

    struct Merge {
        index: Vec<u32>,
    }

    impl CustomOp2 for Merge {
        fn name(&self) -> &'static str {
            "merge-rows"
        }

        fn cpu_fwd(&self, _: &CpuStorage, _: &Layout, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
            candle_core::bail!("this merging of rows is for CUDA")
        }

        fn cuda_fwd(
            &self,
            s1: &CudaStorage,
            l1: &Layout,
            s2: &CudaStorage,
            l2: &Layout,
        ) -> Result<(CudaStorage, Shape)> {
            forward((s1, l1), &self.index, Some((s2, l2)))
        }

        fn bwd(
            &self,
            xs: &Tensor,
            others: &Tensor,
            _: &Tensor,
            grad: &Tensor,
        ) -> Result<(Option<Tensor>, Option<Tensor>)> {
            let grad = grad.contiguous()?;
            let (_, places) = super::places_by_row(&self.index, xs.dim(0)?);
            let stays = |(place, &from): (u32, &u32)| if from == NONE { place } else { NONE };
            let kept: Vec<_> = (0..).zip(&self.index).map(stays).collect();
            let dxs = take(&grad, &places)?;
            let dothers = if others.track_op() {
                Some(take(&grad, &kept)?)
            } else {
                None
            };
            Ok((Some(dxs), dothers))
        }
    }
}
