//! Attention of one sequence to what came before.

use candle_core::{Result, Tensor, WithDType};

use super::super::{tracked, AttnMask};
use super::composition;

// Of slices, that of decoding: there is no gradient to lose.
pub use candle_nn::attention::cpu_flash::causal::causal_decode_f32_interleaved;

/// [`flash_attn`](super::flash_attn) of one sequence under a causal mask:
/// [`candle_nn::attention::cpu_flash::causal::run_causal_attn_cpu`] with a backward.
///
/// # Errors
/// As [`flash_attn`](super::flash_attn); candle-nn's for B > 1, where no gradient is asked for.
pub fn run_causal_attn_cpu<T>(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    softmax_scale: f32,
    kv_offset: usize,
    max_bias: Option<f32>,
    softcap: Option<f32>,
) -> Result<Tensor>
where
    T: WithDType + num_traits::Float,
{
    use candle_nn::attention::cpu_flash::causal;
    if q.device().is_cpu() && !tracked(&[q, k, v]) {
        return causal::run_causal_attn_cpu::<T>(q, k, v, softmax_scale, kv_offset, max_bias, softcap);
    }
    composition(
        q,
        k,
        v,
        softmax_scale,
        &AttnMask::Causal { kv_offset },
        max_bias,
        softcap,
    )
}
