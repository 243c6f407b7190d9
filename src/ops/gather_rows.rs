//! Selection of tokens.

use candle_core::{Result, Tensor};

#[cfg(feature = "cuda")]
use super::cuda;
#[cfg(feature = "cuda")]
use super::route;
use crate::error::Error;

/// Keeps the prefix tokens and, of the others, those that are listed, in the order of the list.
///
/// # Arguments
///
/// - `tokens`: [B, P + L, D]
/// - `keep`: B * K indices below L, sample by sample; on the host
/// - `num_prefix`: P, the number of tokens at the start of each sample (class token, registers) that are always kept
///
/// Returns [B, P + K, D].
///
/// # Derivative
///
/// The gradient of each token that was kept goes back to its place (added up, should an index be repeated); the others
/// get zeros.
///
/// # PyTorch
///
/// ```text
/// index = P + keep.view(B, K, 1).expand(B, K, D)
/// torch.cat([tokens[:, :P], tokens.gather(1, index)], dim=1)
/// ```
///
/// # Errors
///
/// If `tokens` has another rank or fewer than P tokens, the number of indices is no multiple of B, or an index is not
/// below L.
///
/// ```
/// use candle_core::{Device, Tensor};
/// // One class token and three others, of width 1.
/// let tokens = Tensor::new(&[[[9f32], [0.0], [1.0], [2.0]]], &Device::Cpu)?;
/// let kept = masksub::ops::gather_rows(&tokens, &[2, 0], 1)?;
/// assert_eq!(kept.to_vec3::<f32>()?, [[[9.0], [2.0], [0.0]]]);
/// # Ok::<(), candle_core::Error>(())
/// ```
pub fn gather_rows(tokens: &Tensor, keep: &[u32], num_prefix: usize) -> Result<Tensor> {
    gather(tokens, check(tokens.dims(), keep, num_prefix)?, keep, num_prefix)
}

/// [`gather_rows`] of arguments that fit, with B, P + L and D.
pub(crate) fn gather(tokens: &Tensor, dims: [usize; 3], keep: &[u32], num_prefix: usize) -> Result<Tensor> {
    let [batch, num_tokens, width] = dims;
    let kept = keep.len() / batch;
    let mut rows = Vec::with_capacity(batch * (num_prefix + kept));
    for sample in 0..batch {
        let first = sample * num_tokens;
        rows.extend((first..first + num_prefix).map(|row| row as u32));
        let keep = &keep[sample * kept..][..kept];
        rows.extend(keep.iter().map(|&index| (first + num_prefix) as u32 + index));
    }
    select(&tokens.reshape((batch * num_tokens, width))?, rows)?.reshape((batch, num_prefix + kept, width))
}

/// The rows of `xs` [R, ..] with the numbers `rows`, each below R.
pub(crate) fn select(xs: &Tensor, rows: Vec<u32>) -> Result<Tensor> {
    #[cfg(feature = "cuda")]
    if !rows.is_empty() && route::on_cuda(&[xs]) {
        return cuda::rows::on_device::gather(xs, rows);
    }
    xs.contiguous()?.index_select(&Tensor::new(rows, xs.device())?, 0)
}

/// B, P + L and D, once all fits.
fn check(tokens: &[usize], keep: &[u32], num_prefix: usize) -> crate::error::Result<[usize; 3]> {
    let &[batch, num_tokens, width] = tokens else {
        return Err(Error::shape("tokens", tokens, "[B, P + L, D]"));
    };
    let Some(positions) = num_tokens.checked_sub(num_prefix) else {
        let expected = format!("[B, P + L, D] with num_prefix P = {num_prefix}");
        return Err(Error::shape("tokens", tokens, expected));
    };
    check_keep(keep, batch, positions)?;
    Ok([batch, num_tokens, width])
}

/// An error unless `keep` is as many indices below `positions` for each sample.
pub(crate) fn check_keep(keep: &[u32], batch: usize, positions: usize) -> crate::error::Result<()> {
    if batch == 0 || !keep.len().is_multiple_of(batch) {
        let given = format!("{} indices", keep.len());
        let allowed = format!("as many indices for each of {batch} samples");
        return Err(Error::invalid("keep", given, allowed));
    }
    match keep.iter().find(|&&index| index as usize >= positions) {
        Some(index) => Err(Error::invalid("keep", index, format!("below L = {positions}"))),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::{check_derivative, random};
    use candle_core::{DType, Var};

    #[test]
    fn kept_rows_are_the_tokens_themselves() {
        let tokens = random(&[3, 7, 2], 0);
        let keep = [4, 0, 1, 3, 2, 2];
        let kept = gather_rows(&tokens, &keep, 2).unwrap().to_vec3::<f64>().unwrap();
        let tokens = tokens.to_vec3::<f64>().unwrap();
        for (s, (tokens, kept)) in tokens.iter().zip(&kept).enumerate() {
            assert_eq!(kept[..2], tokens[..2]);
            for i in 0..2 {
                assert_eq!(kept[2 + i], tokens[2 + keep[2 * s + i] as usize]);
            }
        }
    }

    #[test]
    fn has_the_right_derivative() {
        check_derivative(&|args| gather_rows(&args[0], &[2, 0, 1, 3], 1), &[&[2, 5, 3]], 0);
        // Nothing but the prefix.
        check_derivative(&|args| gather_rows(&args[0], &[], 2), &[&[2, 5, 3]], 1);
    }

    #[test]
    fn gradients_go_back_to_their_places() {
        let tokens = Var::from_tensor(&random(&[1, 4, 2], 0).to_dtype(DType::F32).unwrap()).unwrap();
        // A token that is kept twice gets both.
        let kept = gather_rows(&tokens.transpose(1, 2).unwrap(), &[1, 1], 0).unwrap();
        let upstream = Tensor::arange(1f32, 9.0, tokens.device())
            .unwrap()
            .reshape((1, 2, 4))
            .unwrap();
        let grads = (kept * upstream).unwrap().sum_all().unwrap().backward().unwrap();
        let gradient = grads.get(&tokens).unwrap().to_vec3::<f32>().unwrap();
        assert_eq!(gradient, [[[0.0, 6.0], [0.0, 8.0], [0.0, 10.0], [0.0, 12.0]]]);
    }

    #[test]
    fn nothing_is_gathered_or_refused() {
        assert_eq!(
            gather_rows(&random(&[2, 3, 0], 0), &[1, 0], 1).unwrap().dims(),
            [2, 2, 0]
        );
        assert_eq!(gather_rows(&random(&[2, 3, 2], 0), &[], 0).unwrap().dims(), [2, 0, 2]);
        assert!(gather_rows(&random(&[0, 3, 2], 0), &[], 1).is_err());
    }

    #[test]
    fn errors_name_the_argument() {
        let message = |shape: &[usize], keep: &[u32], prefix| {
            gather_rows(&random(shape, 0), keep, prefix).unwrap_err().to_string()
        };
        assert_eq!(message(&[2, 5, 3], &[0, 4], 1), "keep is 4, but must be below L = 4");
        assert_eq!(
            message(&[2, 5, 3], &[0, 1, 2], 1),
            "keep is 3 indices, but must be as many indices for each of 2 samples"
        );
        assert_eq!(
            message(&[2, 5, 3], &[], 6),
            "tokens has shape [2, 5, 3], but must be [B, P + L, D] with num_prefix P = 6"
        );
        assert_eq!(
            message(&[5, 3], &[0], 1),
            "tokens has shape [5, 3], but must be [B, P + L, D]"
        );
    }
}
