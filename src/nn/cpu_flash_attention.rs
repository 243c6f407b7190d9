//! Attention under the path that candle-nn had it at before [`attention`](super::attention).

use candle_core::{Result, Tensor, WithDType};

use super::attention::cpu_flash::standard;

/// The same as [`run_flash_attn_cpu`](standard::run_flash_attn_cpu) there.
///
/// # Errors
/// As there.
#[deprecated(note = "candle-nn has replaced it by `attention::{flash_attn, AttnMask}`")]
pub fn run_flash_attn_cpu<T>(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    mask: Option<&Tensor>,
    softmax_scale: f32,
    max_bias: Option<f32>,
    softcap: Option<f32>,
) -> Result<Tensor>
where
    T: WithDType + num_traits::Float + 'static,
{
    standard::run_flash_attn_cpu::<T>(q, k, v, mask, softmax_scale, max_bias, softcap)
}
