//! Attention of packed sequences by candle-nn's kernel, where no gradient is asked for.

use candle_core::{Result, Tensor};

use super::super::{tracked, varlen};

/// The same as [`flash_attn_varlen_unfused`](varlen::flash_attn_varlen_unfused):
/// [`candle_nn::attention::flash_attn_varlen_cpu`] with a backward.
///
/// # Errors
/// As there; candle-nn's, where no gradient is asked for.
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
    let attention = if q.device().is_cpu() && !tracked(&[q, k, v]) {
        candle_nn::attention::flash_attn_varlen_cpu
    } else {
        varlen::flash_attn_varlen_unfused
    };
    attention(
        q,
        k,
        v,
        alibi_slopes,
        seqlens_q,
        seqlens_k,
        max_seqlen_q,
        max_seqlen_k,
        softmax_scale,
        causal,
        window_left,
        window_right,
    )
}
