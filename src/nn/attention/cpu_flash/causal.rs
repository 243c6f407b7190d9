//! Attention of one sequence to what came before.

use candle_core::{Result, Tensor, WithDType};

use super::super::AttnMask;
use crate::error::Error;

// Of slices, that of decoding: there is no gradient to lose.
pub use candle_nn::attention::cpu_flash::causal::causal_decode_f32_interleaved;

/// [`flash_attn`](super::flash_attn) of one sequence under a causal mask:
/// [`candle_nn::attention::cpu_flash::causal::run_causal_attn_cpu`] with a backward.
///
/// # Errors
/// As [`flash_attn`](super::flash_attn), and for B > 1.
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
    if q.dims().first().is_some_and(|&batch| batch != 1) {
        return Err(Error::shape("q", q.dims(), "[1, S, H, D]").into());
    }
    let mask = AttnMask::Causal { kv_offset };
    super::flash_attn::<T>(q, k, v, softmax_scale, mask, max_bias, softcap)
}
