//! Attention of packed sequences by candle-nn's kernel, where no gradient is asked for.

use candle_core::{DType, Result, Tensor};

use super::super::varlen::{Packed, Window};
use crate::nn::tracked;

/// The same as [`flash_attn_varlen_unfused`](super::super::varlen::flash_attn_varlen_unfused):
/// [`candle_nn::attention::flash_attn_varlen_cpu`] with a backward.
///
/// # Errors
/// As there.
#[expect(clippy::too_many_arguments, reason = "candle-nn's signature")]
pub fn flash_attn_varlen_cpu(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    alibi_slopes: Option<&Tensor>,
    seqlens_q: &Tensor,
    seqlens_k: &Tensor,
    max_seqlen_q: usize,
    max_seqlen_k: usize,
    softmax_scale: f32,
    causal: bool,
    window_left: Option<usize>,
    window_right: Option<usize>,
) -> Result<Tensor> {
    let (left, right) = (window_left, window_right);
    let window = Window { causal, left, right };
    let packed = Packed::new([q, k, v], alibi_slopes, [seqlens_q, seqlens_k], window)?;
    let taken = matches!(q.dtype(), DType::F32 | DType::F16) && q.elem_count() > 0;
    if !taken || !q.device().is_cpu() || tracked(&[q, k, v]) {
        return packed.differentiable(q, k, v, softmax_scale);
    }
    let slopes = packed
        .slopes
        .map(|slopes| Tensor::new(slopes, q.device()))
        .transpose()?;
    candle_nn::attention::flash_attn_varlen_cpu(
        q,
        k,
        v,
        slopes.as_ref(),
        seqlens_q,
        seqlens_k,
        max_seqlen_q,
        max_seqlen_k,
        softmax_scale,
        causal,
        packed.window.left,
        packed.window.right,
    )
}
