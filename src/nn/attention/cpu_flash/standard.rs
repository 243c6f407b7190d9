//! Attention with an optional mask of numbers.

use candle_core::{Result, Tensor, WithDType};

use super::super::AttnMask;
use super::Settings;

/// [`flash_attn`](super::flash_attn) with `mask`, or none:
/// [`candle_nn::attention::cpu_flash::standard::run_flash_attn_cpu`] with a backward, also for several sequences.
///
/// # Errors
/// As [`flash_attn`](super::flash_attn).
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
    T: WithDType,
{
    let mask = mask.map_or(AttnMask::None, |mask| AttnMask::Mask(mask.clone()));
    Settings::new(softmax_scale, mask, max_bias, softcap)?.attend(q, k, v)
}
