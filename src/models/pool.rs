//! The mean over positions, which the heads read.

use candle_core::shape::Dims;
use candle_core::{Result, Tensor};

use crate::ops;

/// The mean over some dimensions. In `bf16` and `f16` it is summed in `f32` as PyTorch does: bf16 has 8 bits, so that
/// a sum of 256 tokens would no longer notice another.
pub(super) fn mean(xs: &Tensor, dims: impl Dims) -> Result<Tensor> {
    if ops::is_half(xs) {
        ops::in_f32(&[xs], |xs| xs[0].mean(dims))
    } else {
        xs.mean(dims)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::{random, relative};
    use candle_core::DType;

    /// The mean itself, and nothing but its own rounding.
    #[test]
    fn of_many_tokens_is_rounded_once() {
        // Around 3: in the dtype itself, the running sum soon drops most of each token.
        let tokens = (random(&[2, 400, 8], 0) + 3.0).unwrap();
        for (dtype, unit) in [(DType::BF16, 2f64.powi(-8)), (DType::F16, 2f64.powi(-11))] {
            let tokens = tokens.to_dtype(dtype).unwrap();
            let exact = tokens.to_dtype(DType::F64).unwrap();
            let got = mean(&tokens, 1).unwrap();
            assert_eq!(got.dtype(), dtype);
            let error = relative(&got, &exact.mean(1).unwrap());
            assert!(error <= unit, "{dtype:?}: {error:e}");
            let maps = tokens.transpose(1, 2).unwrap().reshape((2, 8, 20, 20)).unwrap();
            assert_eq!(relative(&mean(&maps, (2, 3)).unwrap(), &got), 0.0);
        }
        let exact = tokens.mean(1).unwrap();
        assert_eq!(relative(&mean(&tokens, 1).unwrap(), &exact), 0.0);
    }
}
