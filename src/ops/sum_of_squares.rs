//! The square of a norm.

use candle_core::{DType, Device, Result, Tensor, D};

use super::cpu::kernel::{self, LANES};
#[cfg(feature = "cuda")]
use super::cuda;
use super::on_host::on_host;
#[cfg(feature = "cuda")]
use super::route;

/// The sum of the squares of all elements, in f64, whatever the dtype. No gradient flows through it.
pub(crate) fn sum_of_squares(tensor: &Tensor) -> Result<f64> {
    Ok(sums_of_squares(&[tensor])?.iter().sum())
}

/// The [`sum_of_squares`] of each tensor: of many in parallel.
pub(crate) fn sums_of_squares(tensors: &[&Tensor]) -> Result<Vec<f64>> {
    #[cfg(feature = "cuda")]
    if let Some(sums) = on_cuda(tensors)? {
        return Ok(sums);
    }
    kernel::map_tensors(tensors, sum_of_slice, |sums| sums.iter().sum(), composition)
}

/// The same where all tensors are `f32` on one CUDA device: one launch for all, and one wait for the device.
#[cfg(feature = "cuda")]
pub(crate) fn on_cuda(tensors: &[&Tensor]) -> Result<Option<Vec<f64>>> {
    if !tensors.iter().all(|tensor| tensor.dtype() == DType::F32) || !route::on_cuda(tensors) {
        return Ok(None);
    }
    let whole = tensors.iter().map(|tensor| tensor.detach().contiguous());
    let whole = whole.collect::<Result<Vec<_>>>()?;
    cuda::optimizer::on_device::sums_of_squares(&whole.iter().collect::<Vec<_>>()).map(Some)
}

kernel::simd_fn! {
    fn sum_of_slice<S>(xs: &[f32]) -> f64 {
        let mut acc = [0f64; LANES];
        let (whole, rest) = xs.as_chunks::<LANES>();
        for chunk in whole {
            for (acc, &x) in acc.iter_mut().zip(chunk) {
                *acc += f64::from(x) * f64::from(x);
            }
        }
        for (acc, &x) in acc.iter_mut().zip(rest) {
            *acc += f64::from(x) * f64::from(x);
        }
        acc.iter().sum()
    }
}

/// Sums rows on the device and the rows' sums in f64 here: no long sum is left in single precision.
pub(crate) fn composition(tensor: &Tensor) -> Result<f64> {
    let sum = |tensor: Tensor| -> Result<f64> {
        let rows = match tensor.rank() {
            0 => tensor.sqr()?.reshape(1)?,
            _ => tensor.sqr()?.sum(D::Minus1)?,
        };
        Ok(on_host(&rows)?.iter().sum())
    };
    let tensor = tensor.detach();
    let square = match tensor.dtype() {
        DType::F64 => return sum(tensor),
        _ => sum(tensor.to_dtype(DType::F32)?)?,
    };
    // Squares that f32 does not hold, too large or too small: once more, on the host, where f64 is to be had.
    if (1e-30..1e38).contains(&square) {
        Ok(square)
    } else {
        sum(tensor.to_device(&Device::Cpu)?.to_dtype(DType::F64)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::random;

    #[test]
    fn equals_its_composition_and_the_definition() {
        for (shape, scale) in [
            (vec![3, 211, 331], 1.0),
            (vec![7], 1e25),
            (vec![5, 3], 1e-25),
            (vec![], 1.0),
            (vec![0, 4], 1.0),
        ] {
            let wide = (random(&shape, 3) * scale).unwrap();
            let tensor = wide.to_dtype(DType::F32).unwrap();
            let exact = tensor.to_dtype(DType::F64).unwrap().flatten_all().unwrap();
            let exact: f64 = exact.to_vec1::<f64>().unwrap().iter().map(|x| x * x).sum();
            let close = |value: f64, tolerance: f64| (value - exact).abs() <= tolerance * exact;
            assert!(close(sum_of_squares(&tensor).unwrap(), 1e-12), "{shape:?}");
            assert!(close(composition(&tensor).unwrap(), 1e-6), "{shape:?}");
            if shape.len() > 1 {
                let strided = tensor.t().unwrap();
                assert!(close(sum_of_squares(&strided).unwrap(), 1e-12), "{shape:?}");
            }
            let half = tensor.to_dtype(DType::BF16).unwrap();
            assert!(close(sum_of_squares(&half).unwrap(), 1e-2), "{shape:?}");
        }
    }

    #[test]
    fn does_not_depend_on_the_number_of_threads() {
        let tensor = random(&[1 << 20], 1).to_dtype(DType::F32).unwrap();
        let sums = [1, 3].map(|threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| sum_of_squares(&tensor).unwrap().to_bits())
        });
        assert_eq!(sums[0], sums[1]);
    }
}
