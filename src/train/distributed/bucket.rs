//! Many tensors in a few large ones, in which they travel.

use candle_core::{DType, Tensor};

use crate::error::Result;
use crate::ops;

/// Elements after which a bucket is full: 64 MiB of f32. A message so large costs what its bytes do, and little memory is
/// needed beside the tensors.
const FULL: usize = 1 << 24;

/// Sends `tensors` through `send`, which takes and gives a bucket [N] in f32 or f64, and hands what comes back to `put`,
/// with the number of the tensor, in its shape and dtype. Buckets are filled in the order of the tensors, those of f64
/// after the others. Half precision travels as f32.
pub(super) fn travel(
    tensors: &[Tensor],
    send: impl FnMut(&Tensor) -> Result<Tensor>,
    put: impl FnMut(usize, Tensor) -> Result<()>,
) -> Result<()> {
    travel_in(FULL, tensors, send, put)
}

fn travel_in(
    full: usize,
    tensors: &[Tensor],
    mut send: impl FnMut(&Tensor) -> Result<Tensor>,
    mut put: impl FnMut(usize, Tensor) -> Result<()>,
) -> Result<()> {
    for dtype in [DType::F32, DType::F64] {
        let alike = |tensor: &Tensor| (tensor.dtype() == DType::F64) == (dtype == DType::F64);
        let numbered: Vec<_> = tensors.iter().enumerate().filter(|(_, tensor)| alike(tensor)).collect();
        let mut rest = &numbered[..];
        while !rest.is_empty() {
            let (bucket, others) = rest.split_at(fill(rest.iter().map(|(_, tensor)| tensor.elem_count()), full));
            rest = others;
            let flat = |(_, tensor): &(usize, &Tensor)| tensor.detach().flatten_all()?.to_dtype(dtype);
            let flat = bucket.iter().map(flat).collect::<candle_core::Result<Vec<_>>>()?;
            let filled = match &flat[..] {
                [only] => ops::fresh(only)?,
                several => Tensor::cat(several, 0)?,
            };
            if filled.elem_count() == 0 {
                continue;
            }
            let sent = send(&filled)?;
            let mut start = 0;
            for &(number, like) in bucket {
                let part = sent.narrow(0, start, like.elem_count())?.reshape(like.shape())?;
                start += like.elem_count();
                put(number, part.to_dtype(like.dtype())?)?;
            }
        }
    }
    Ok(())
}

/// Of so many elements each, how many tensors make a bucket: at least one.
fn fill(sizes: impl Iterator<Item = usize>, full: usize) -> usize {
    let sums = sizes.scan(0, |sum, size| {
        *sum += size;
        Some(*sum)
    });
    sums.take_while(|&sum| sum <= full).count().max(1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    #[test]
    fn what_comes_back_is_in_its_place_whatever_the_bucket() {
        let shapes = [vec![2, 3], vec![], vec![0], vec![7], vec![1, 1, 5]];
        let dtypes = [DType::F32, DType::F64, DType::BF16, DType::F32, DType::F64];
        let tensors: Vec<Tensor> = (shapes.iter().zip(dtypes).enumerate())
            .map(|(i, (shape, dtype))| {
                let tensor = (Tensor::ones(&shape[..], DType::F32, &Device::Cpu).unwrap() * i as f64).unwrap();
                tensor.to_dtype(dtype).unwrap()
            })
            .collect();
        for full in [1, 6, 7, 13, 100] {
            let (mut largest, mut seen) = (0, vec![None; tensors.len()]);
            let double = |bucket: &Tensor| {
                largest = largest.max(bucket.elem_count());
                Ok((bucket * 2.0)?)
            };
            let put = |i: usize, tensor: Tensor| {
                seen[i] = Some(tensor);
                Ok(())
            };
            travel_in(full, &tensors, double, put).unwrap();
            assert!(largest <= full.max(7), "{largest} in {full}");
            for (i, (tensor, seen)) in tensors.iter().zip(&seen).enumerate() {
                let Some(seen) = seen else {
                    assert_eq!(tensor.elem_count(), 0);
                    continue;
                };
                assert_eq!((seen.dims(), seen.dtype()), (tensor.dims(), tensor.dtype()));
                let seen = crate::ops::on_host(seen).unwrap();
                assert!(seen.iter().all(|&value| value == 2.0 * i as f64), "{i}: {seen:?}");
            }
        }
    }
}
