//! Moving a tensor towards another one, in place.

use candle_core::{CpuStorage, InplaceOp2, Layout, Result, Tensor};

use super::cpu::kernel;
#[cfg(feature = "cuda")]
use super::cuda;
#[cfg(feature = "cuda")]
use super::route;
use super::route::on_cpu_f32;

/// `start + (end - start) weight`, in the memory of `start` where that is f32 on the CPU: whoever else has that memory sees
/// it move. `torch.lerp`. No gradient flows through it.
pub(crate) fn lerp(start: Tensor, end: &Tensor, weight: f64) -> Result<Tensor> {
    // candle writes to no empty tensor in place.
    let whole = start.elem_count() > 0 && start.is_contiguous() && end.is_contiguous() && start.dims() == end.dims();
    if !whole || !on_cpu_f32(&[&start, end]) || kernel::shares_memory(&start, end)? {
        let (start, end) = (start.detach(), end.detach().to_dtype(start.dtype())?);
        return &start + ((end - &start)? * weight)?;
    }
    start.inplace_op2(end, &Lerp(weight as f32))?;
    Ok(start)
}

/// [`lerp`] of each start towards its end, on CUDA all in one launch. A start that could not be moved in its memory is
/// another tensor then.
pub(crate) fn lerp_all(pairs: Vec<(Tensor, Tensor)>, weight: f64) -> Result<Vec<Tensor>> {
    #[cfg(feature = "cuda")]
    if moves_at_once(&pairs) {
        let refs: Vec<_> = pairs.iter().map(|(start, end)| (start, end)).collect();
        cuda::optimizer::on_device::lerp(&refs, weight)?;
        return Ok(pairs.into_iter().map(|(start, _)| start).collect());
    }
    pairs
        .into_iter()
        .map(|(start, end)| lerp(start, &end, weight))
        .collect()
}

/// Whether a kernel for CUDA takes all pairs: `f32` on one device, contiguous, each of one shape and in memory of its own.
#[cfg(feature = "cuda")]
fn moves_at_once(pairs: &[(Tensor, Tensor)]) -> bool {
    let all: Vec<_> = pairs.iter().flat_map(|(start, end)| [start, end]).collect();
    let is_apart = |(start, end): &(Tensor, Tensor)| {
        start.dtype() == candle_core::DType::F32 && start.dims() == end.dims() && !kernel::same_storage(start, end)
    };
    route::on_cuda(&all) && all.iter().all(|tensor| tensor.is_contiguous()) && pairs.iter().all(is_apart)
}

struct Lerp(f32);

kernel::simd_fn! {
    fn move_towards<S>(starts: &mut [f32], ends: &[f32], weight: f32) -> () {
        for (start, &end) in starts.iter_mut().zip(ends) {
            *start = kernel::fma::<S>(end - *start, weight, *start);
        }
    }
}

impl InplaceOp2 for Lerp {
    fn name(&self) -> &'static str {
        "lerp"
    }

    fn cpu_fwd(&self, s1: &mut CpuStorage, l1: &Layout, s2: &CpuStorage, l2: &Layout) -> Result<()> {
        let ends = kernel::elements(s2, l2)?;
        let (CpuStorage::F32(data), Some(range)) = (s1, kernel::contiguous_range(l1)) else {
            candle_core::bail!("lerp is done in place only where tensors are contiguous f32");
        };
        kernel::for_rows(&mut data[range], 1, |first, starts| {
            move_towards(starts, &ends[first..], self.0)
        });
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::random;
    use candle_core::DType;

    #[test]
    fn is_its_formula_in_every_dtype() {
        for (dtype, tolerance) in [(DType::F32, 1e-6), (DType::F64, 1e-15), (DType::BF16, 2e-2)] {
            for shape in [vec![3, 70, 190], vec![], vec![0, 2]] {
                let [a, b] = [1, 2].map(|seed| random(&shape, seed));
                let cast = |t: &Tensor| t.to_dtype(dtype).unwrap();
                let moved = lerp(cast(&a).copy().unwrap(), &cast(&b), 0.3).unwrap();
                let numbers = |t: &Tensor| {
                    let wide = t.to_dtype(DType::F64).unwrap();
                    wide.flatten_all().unwrap().to_vec1::<f64>().unwrap()
                };
                for ((a, b), moved) in numbers(&cast(&a)).iter().zip(numbers(&cast(&b))).zip(numbers(&moved)) {
                    assert!((moved - (0.7 * a + 0.3 * b)).abs() < tolerance * (1.0 + a.abs() + b.abs()));
                }
            }
        }
    }

    #[test]
    fn all_move_as_each_does() {
        let pairs: Vec<_> = (0..3)
            .map(|seed| (random(&[5], seed), random(&[5], seed + 3)))
            .collect();
        let moved = lerp_all(pairs.clone(), 0.25).unwrap();
        for ((start, end), moved) in pairs.into_iter().zip(moved) {
            let alone = lerp(start, &end, 0.25).unwrap();
            assert_eq!(moved.to_vec1::<f64>().unwrap(), alone.to_vec1::<f64>().unwrap());
        }
    }

    #[test]
    fn towards_itself_it_stays() {
        let tensor = random(&[4, 3], 1).to_dtype(DType::F32).unwrap();
        let moved = lerp(tensor.clone(), &tensor, 0.5).unwrap();
        assert_eq!(moved.to_vec2::<f32>().unwrap(), tensor.to_vec2::<f32>().unwrap());
    }
}
