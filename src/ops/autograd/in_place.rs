//! Gradients changed in their memory.

use std::cell::Cell;

use candle_core::{CpuStorage, InplaceOp1, InplaceOp2, Layout, Result, Tensor};

use crate::ops::cpu::elementwise::add;
use crate::ops::cpu::kernel;
use crate::ops::route;

/// `sum + more`, in the memory of `sum` where that is on the CPU: for a `sum` that is nobody else's.
pub(crate) fn add_assign(sum: Tensor, more: &Tensor) -> Result<Tensor> {
    if sum.elem_count() > 0 && sum.dims() == more.dims() && route::is_f32_slice(&sum) && route::is_f32_slice(more) {
        sum.inplace_op2(more, &AddAssign)?;
        return Ok(sum);
    }
    sum + more
}

/// Calls `write` with the elements of a contiguous `f32` tensor on the CPU that is nobody else's.
pub(crate) fn write_into(tensor: &Tensor, write: impl FnOnce(&mut [f32])) -> Result<()> {
    tensor.inplace_op1(&WriteInto(Cell::new(Some(write))))
}

struct WriteInto<F>(Cell<Option<F>>);

impl<F: FnOnce(&mut [f32])> InplaceOp1 for WriteInto<F> {
    fn name(&self) -> &'static str {
        "write-into"
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> Result<()> {
        let elements = elements_mut(storage, layout)?;
        if let Some(write) = self.0.take() {
            write(elements);
        }
        Ok(())
    }
}

fn elements_mut<'a>(storage: &'a mut CpuStorage, layout: &Layout) -> Result<&'a mut [f32]> {
    match (storage, kernel::contiguous_range(layout)) {
        (CpuStorage::F32(data), Some(range)) => Ok(&mut data[range]),
        _ => candle_core::bail!("gradients are added up in place only where they are contiguous f32"),
    }
}

struct AddAssign;

impl InplaceOp2 for AddAssign {
    fn name(&self) -> &'static str {
        "add-assign"
    }

    fn cpu_fwd(&self, s1: &mut CpuStorage, l1: &Layout, s2: &CpuStorage, l2: &Layout) -> Result<()> {
        let more = kernel::elements(s2, l2)?;
        kernel::for_rows(elements_mut(s1, l1)?, 1, |first, sums| add(sums, &more[first..]));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::random;
    use candle_core::DType;

    #[test]
    fn is_addition() {
        for (dtype, shape) in [
            (DType::F32, vec![3, 70, 190]),
            (DType::F32, vec![]),
            (DType::F32, vec![0, 2]),
            (DType::F64, vec![4, 5]),
            (DType::BF16, vec![4, 5]),
        ] {
            let [a, b] = [1, 2].map(|seed| random(&shape, seed).to_dtype(dtype).unwrap());
            let expected = (&a + &b).unwrap();
            let sum = add_assign(a.copy().unwrap(), &b).unwrap();
            let bits = |t: &Tensor| {
                t.to_dtype(DType::F64)
                    .unwrap()
                    .flatten_all()
                    .unwrap()
                    .to_vec1::<f64>()
                    .unwrap()
            };
            assert_eq!(bits(&sum), bits(&expected), "{dtype:?} {shape:?}");
        }
    }

    #[test]
    fn of_a_part_leaves_the_rest() {
        let whole = random(&[3, 4], 1).to_dtype(DType::F32).unwrap();
        let before = whole.to_vec2::<f32>().unwrap();
        let row = whole.get(1).unwrap();
        let strided = random(&[4, 2], 2)
            .to_dtype(DType::F32)
            .unwrap()
            .narrow(1, 0, 1)
            .unwrap();
        add_assign(row, &strided.squeeze(1).unwrap().contiguous().unwrap()).unwrap();
        let after = whole.to_vec2::<f32>().unwrap();
        assert_eq!((&after[0], &after[2]), (&before[0], &before[2]));
        assert_ne!(after[1], before[1]);
        // Not contiguous: a new tensor, as any addition.
        let sum = add_assign(whole.t().unwrap(), &whole.t().unwrap()).unwrap();
        assert_eq!(
            sum.to_vec2::<f32>().unwrap(),
            (whole.t().unwrap() * 2.0).unwrap().to_vec2::<f32>().unwrap()
        );
    }
}
