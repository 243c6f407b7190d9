//! Multi-head self-attention with a bias for each query and key of each sample.

use candle_core::{Result, Tensor};

use super::attention::{self, Dims};
use super::route::{in_f32, is_half};
use super::window_attention;
use crate::check;
use crate::error::Error;

/// y = softmax(q kᵀ / √d + bias) v in each head, the heads' results side by side: [`attention`](super::attention()) with
/// biases of relative positions, which differ from sample to sample where each keeps tokens of its own.
///
/// # Arguments
///
/// - `qkv`: [B, N, 3 D], packed as for [`attention`](super::attention())
/// - `num_heads`: divides D
/// - `bias`: [1, num_heads, N, N] for all samples, which is fast, or [B, num_heads, N, N]
///
/// Returns [B, N, D].
///
/// # Derivative
///
/// As that of [`attention`](super::attention()); the bias's is that of the scores, added up over the samples it is for.
///
/// # PyTorch
///
/// `torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=bias)` of what [`attention`](super::attention())
/// unpacks and packs.
///
/// # Errors
///
/// If the shapes do not fit, the dtypes of `qkv` and `bias` differ, or one is no floating-point one.
///
/// ```
/// use candle_core::{Device, Tensor};
/// // Two tokens of width 1: equal keys, but the bias keeps each to itself.
/// let qkv = Tensor::new(&[[[5f32, 1.0, 0.0], [-7.0, 1.0, 4.0]]], &Device::Cpu)?;
/// let bias = Tensor::new(&[[[[0f32, -100.0], [-100.0, 0.0]]]], &Device::Cpu)?;
/// let ys = masksub::ops::biased_attention(&qkv, 1, &bias)?;
/// assert_eq!(ys.to_vec3::<f32>()?, [[[0.0], [4.0]]]);
/// # Ok::<(), candle_core::Error>(())
/// ```
pub fn biased_attention(qkv: &Tensor, num_heads: usize, bias: &Tensor) -> Result<Tensor> {
    let dims = Dims::of(qkv.dims(), num_heads)?;
    let (batch, n) = (dims.batch, dims.tokens);
    check::float("qkv", qkv)?;
    check::same_dtype("bias", bias, "qkv", qkv)?;
    if bias.dims() == [1, num_heads, n, n] {
        return window_attention::routed(qkv, dims, &bias.squeeze(0)?, None);
    }
    if bias.dims() != [batch, num_heads, n, n] {
        let expected = format!("[1, {num_heads}, {n}, {n}] or [{batch}, {num_heads}, {n}, {n}]");
        return Err(Error::shape("bias", bias.dims(), expected).into());
    }
    let compose = |qkv: &Tensor, bias: &Tensor| attention::composition_with(qkv, dims, |scores| scores + bias);
    if is_half(qkv) {
        in_f32(&[qkv, bias], |t| compose(&t[0], &t[1]))
    } else {
        compose(qkv, bias)
    }
}

/// [`biased_attention`] of candle's operations.
pub fn composition(qkv: &Tensor, num_heads: usize, bias: &Tensor) -> Result<Tensor> {
    let dims = Dims::of(qkv.dims(), num_heads)?;
    attention::composition_with(qkv, dims, |scores| scores.broadcast_add(bias))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::{check, check_derivative, random, relative};

    #[test]
    fn equals_its_composition() {
        for (biases, [b, n, heads, d], seed) in [
            (1, [2, 5, 3, 4], 0),
            (2, [2, 5, 3, 4], 1),
            (3, [3, 1, 1, 2], 2),
            (1, [4, 33, 2, 8], 3),
        ] {
            let kernel = |args: &[Tensor]| biased_attention(&args[0], heads, &args[1]);
            let reference = |args: &[Tensor]| composition(&args[0], heads, &args[1]);
            let shapes: [&[usize]; 2] = [&[b, n, 3 * heads * d], &[biases, heads, n, n]];
            check(&kernel, &reference, &shapes, seed);
        }
    }

    #[test]
    fn composition_has_the_right_derivative() {
        let reference = |args: &[Tensor]| composition(&args[0], 2, &args[1]);
        check_derivative(&reference, &[&[2, 3, 12], &[1, 2, 3, 3]], 0);
        check_derivative(&reference, &[&[2, 3, 12], &[2, 2, 3, 3]], 1);
    }

    /// Each sample has its own.
    #[test]
    fn equals_attention_sample_by_sample() {
        let (qkv, bias) = (random(&[3, 4, 24], 0), random(&[3, 2, 4, 4], 1));
        let together = biased_attention(&qkv, 2, &bias).unwrap();
        for sample in 0..3 {
            let of = |tensor: &Tensor| tensor.narrow(0, sample, 1).unwrap();
            let alone = super::super::window_attention(&of(&qkv), 2, &of(&bias).squeeze(0).unwrap(), None).unwrap();
            assert!(relative(&of(&together), &alone) < 1e-14);
        }
    }

    #[test]
    fn errors_name_the_argument() {
        let error = biased_attention(&random(&[3, 4, 24], 0), 2, &random(&[2, 2, 4, 4], 1)).unwrap_err();
        assert_eq!(
            error.to_string(),
            "bias has shape [2, 2, 4, 4], but must be [1, 2, 4, 4] or [3, 2, 4, 4]"
        );
    }
}
