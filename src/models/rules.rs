//! Rules that the configurations of all models follow.

use candle_core::DType;

use crate::check::MOST;
use crate::error::{Error, Result};

/// Patches of few enough numbers, C p², which is how wide their projection is.
pub(super) fn check_patch(in_channels: usize, patch_size: usize) -> Result<()> {
    let area = patch_size.checked_mul(patch_size);
    let len = area.and_then(|area| area.checked_mul(in_channels));
    if len.is_some_and(|len| len <= MOST) {
        return Ok(());
    }
    let allowed = format!("so small that the {in_channels} channels of a patch are at most {MOST} numbers");
    Err(Error::invalid("patch_size", patch_size, allowed))
}

/// The drop-path rate of one of `blocks` blocks: 0 in the first, `last` in the last, and evenly between (arXiv
/// 1603.09382).
pub(super) fn linear_drop_path(last: f64, block: usize, blocks: usize) -> f64 {
    last * block as f64 / (blocks.max(2) - 1) as f64
}

/// What products may be computed in where weights are of dtype `weights`.
pub(super) fn check_compute_dtype(compute_dtype: Option<DType>, weights: DType) -> Result<()> {
    let allowed = match (compute_dtype, weights) {
        (None, _) | (Some(DType::BF16 | DType::F16), DType::F32) => return Ok(()),
        (Some(dtype), weights) if dtype == weights => return Ok(()),
        (_, DType::F32) => "None, F32, BF16 or F16 for weights in F32".to_string(),
        (_, weights) => format!("None or {weights:?} for weights in {weights:?}"),
    };
    Err(Error::invalid("compute_dtype", format!("{compute_dtype:?}"), allowed))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn products_are_in_the_dtype_of_the_weights_or_in_half_of_f32() {
        use DType::{BF16, F16, F32, F64, U8};
        for weights in [F16, BF16, F32, F64] {
            for dtype in [F16, BF16, F32, F64, U8] {
                let is_allowed = dtype == weights || (weights == F32 && matches!(dtype, F16 | BF16));
                let result = check_compute_dtype(Some(dtype), weights);
                assert_eq!(result.is_ok(), is_allowed, "{dtype:?} of {weights:?}");
            }
            check_compute_dtype(None, weights).unwrap();
        }
        let message = |dtype, weights| check_compute_dtype(Some(dtype), weights).unwrap_err().to_string();
        assert_eq!(
            message(F64, F32),
            "compute_dtype is Some(F64), but must be None, F32, BF16 or F16 for weights in F32"
        );
        assert_eq!(
            message(BF16, F64),
            "compute_dtype is Some(BF16), but must be None or F64 for weights in F64"
        );
    }
}
