//! The search for what is infinite or NaN.

use candle_core::{DType, Result, Tensor};

use super::cpu::kernel::{self, LANES};

/// The number of the first of `tensors`, floats, with an element that is infinite or NaN.
pub(crate) fn first_not_finite(tensors: &[&Tensor]) -> Result<Option<usize>> {
    // In f64 squares of f32 do not overflow: only what is not finite makes a sum that is not.
    #[cfg(feature = "cuda")]
    if let Some(sums) = super::sum_of_squares::on_cuda(tensors)? {
        return Ok(sums.iter().position(|sum| !sum.is_finite()));
    }
    let all = |pieces: Vec<bool>| pieces.into_iter().all(|finite| finite);
    let finite = kernel::map_tensors(tensors, is_finite, all, composition)?;
    Ok(finite.iter().position(|finite| !finite))
}

/// Places of a slice that are read at once: a core that reads in one place only waits for memory half of the time
/// (two Zen 3 cores, 344 MB: 18 ms in one place, 9 in four).
const PLACES: usize = 4;

kernel::simd_fn! {
    fn is_finite<S>(xs: &[f32]) -> bool {
        // A float without its sign grows with its bits, up to infinity's and NaN's.
        let mut largest = [[0u32; LANES]; PLACES];
        let (whole, rest) = xs.as_chunks::<LANES>();
        let (places, more) = whole.split_at(whole.len() / PLACES * PLACES);
        let share = places.len() / PLACES;
        for i in 0..share {
            for (place, largest) in largest.iter_mut().enumerate() {
                for (largest, x) in largest.iter_mut().zip(&places[place * share + i]) {
                    *largest = (*largest).max(x.to_bits() & !(1 << 31));
                }
            }
        }
        let seen = largest.iter().flatten().all(|&bits| bits < f32::INFINITY.to_bits());
        seen && more.iter().flatten().chain(rest).all(|x| x.is_finite())
    }
}

/// What is not finite makes NaN of 0, and the sum keeps it.
fn composition(tensor: &Tensor) -> Result<bool> {
    if tensor.elem_count() == 0 {
        return Ok(true);
    }
    let sum = (tensor.detach() * 0.0)?.sum_all()?.to_dtype(DType::F32)?;
    Ok(sum.to_scalar::<f32>()?.is_finite())
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    #[test]
    fn finds_one_element_wherever_it_is() {
        for (len, place) in [
            (1, 0),
            (40, 3),
            (40, 39),
            // In each of the places that are read at once.
            (200_000, 0),
            (200_000, 20_000),
            (200_000, 40_000),
            (200_000, 60_000),
            (200_000, 131_071),
            (200_000, 199_999),
        ] {
            for value in [f32::INFINITY, f32::NEG_INFINITY, f32::NAN, -f32::NAN] {
                let mut elements = vec![f32::MAX; len];
                elements[place] = value;
                let spoilt = Tensor::from_vec(elements, len, &Device::Cpu).unwrap();
                let sound = Tensor::full(-f32::MAX, (3, len), &Device::Cpu).unwrap();
                let empty = Tensor::zeros((0, 3), DType::F32, &Device::Cpu).unwrap();
                for dtype in [DType::F32, DType::F64] {
                    let [sound, spoilt, empty] = [&sound, &spoilt, &empty].map(|t| t.to_dtype(dtype).unwrap());
                    let sound = sound.t().unwrap();
                    assert_eq!(first_not_finite(&[&sound, &empty]).unwrap(), None, "{len}");
                    let found = first_not_finite(&[&sound, &empty, &spoilt, &sound, &spoilt]).unwrap();
                    assert_eq!(found, Some(2), "{value} at {place} of {len}, {dtype:?}");
                }
            }
        }
    }

    #[test]
    fn half_precision_and_mixed_lists() {
        let tensor = |value: f32, dtype| {
            Tensor::new(&[1.0, value], &Device::Cpu)
                .unwrap()
                .to_dtype(dtype)
                .unwrap()
        };
        for dtype in [DType::BF16, DType::F16] {
            let [sound, spoilt] = [2.0, f32::NAN].map(|value| tensor(value, dtype));
            let single = tensor(f32::INFINITY, DType::F32);
            assert_eq!(
                first_not_finite(&[&sound, &spoilt, &single]).unwrap(),
                Some(1),
                "{dtype:?}"
            );
            assert_eq!(
                first_not_finite(&[&sound, &single, &spoilt]).unwrap(),
                Some(1),
                "{dtype:?}"
            );
        }
    }
}
