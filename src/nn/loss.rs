//! Losses: candle-nn's, and binary cross-entropy in a form that stays finite.
//!
//! [`Criterion`](crate::Criterion) has them with label smoothing and for probabilities.

use candle_core::{Result, Tensor};

use crate::check;
use crate::error::Error;

pub use candle_nn::loss::{cross_entropy, huber, mse, nll};

/// Mean of the binary cross-entropy between `target` and sigmoid(`inp`), in any shape that both have:
/// max(x, 0) - x t + log(1 + exp(-|x|)), [`candle_nn::loss::binary_cross_entropy_with_logit`] without its logarithm of 0.
///
/// # PyTorch
///
/// `torch.nn.functional.binary_cross_entropy_with_logits(inp, target)`
///
/// # Errors
///
/// If shapes or dtypes differ, or are no floating-point ones.
///
/// ```
/// use candle_core::{Device, Tensor};
/// let (logits, targets) = (Tensor::new(&[100f32, -100.0], &Device::Cpu)?, Tensor::new(&[0f32, 0.0], &Device::Cpu)?);
/// let loss = masksub::nn::loss::binary_cross_entropy_with_logit(&logits, &targets)?;
/// assert_eq!(loss.to_scalar::<f32>()?, 50.0);
/// # Ok::<(), candle_core::Error>(())
/// ```
pub fn binary_cross_entropy_with_logit(inp: &Tensor, target: &Tensor) -> Result<Tensor> {
    check::float("inp", inp)?;
    check::same_dtype("target", target, "inp", inp)?;
    if target.dims() != inp.dims() {
        return Err(Error::shape("target", target.dims(), format!("{:?} like inp", inp.dims())).into());
    }
    // Of |x| only the sign is differentiated: at 0 both halves of max and |x| would be off by a half of what the other is.
    let sign = inp.ge(0.0)?.to_dtype(inp.dtype())?;
    let positive = (inp * &sign)?;
    let size = (inp * (sign.affine(2.0, -1.0))?)?;
    let tail = (size.neg()?.exp()? + 1.0)?.log()?;
    ((positive - (inp * target)?)? + tail)?.mean_all()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::{check_derivative, random, relative};
    use candle_core::{Device, Var};

    #[test]
    fn binary_cross_entropy_equals_candles_where_that_is_finite() {
        let (logits, targets) = (
            random(&[3, 4], 0),
            candle_nn::ops::sigmoid(&random(&[3, 4], 1)).unwrap(),
        );
        let got = binary_cross_entropy_with_logit(&logits, &targets).unwrap();
        let want = candle_nn::loss::binary_cross_entropy_with_logit(&logits, &targets).unwrap();
        assert!(relative(&got, &want) < 1e-14);
        check_derivative(
            &|t| binary_cross_entropy_with_logit(&t[0], &t[1]),
            &[&[3, 4], &[3, 4]],
            2,
        );
    }

    #[test]
    fn binary_cross_entropy_is_finite_and_right_at_the_edges() {
        let logits = Var::new(&[-1000f32, -90.0, 0.0, 17.0, 1000.0], &Device::Cpu).unwrap();
        let targets = Tensor::new(&[1f32, 0.0, 1.0, 0.0, 1.0], &Device::Cpu).unwrap();
        let loss = binary_cross_entropy_with_logit(&logits, &targets).unwrap();
        let want = (1000.0 + 2f32.ln() + 17.0) / 5.0;
        assert!((loss.to_scalar::<f32>().unwrap() - want).abs() < 1e-4);
        let grad = loss.backward().unwrap().get(&logits).unwrap().to_vec1::<f32>().unwrap();
        let wanted = [-0.2, 0.0, -0.1, 0.2, 0.0];
        assert!(
            grad.iter().zip(wanted).all(|(got, want)| (got - want).abs() < 1e-6),
            "{grad:?}"
        );
    }
}
