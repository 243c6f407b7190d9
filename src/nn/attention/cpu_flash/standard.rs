//! Attention of one sequence, with an optional mask of numbers.

use candle_core::{Result, Tensor, WithDType};

use super::super::{tracked, AttnMask};
use super::composition;

/// [`flash_attn`](super::flash_attn) of one sequence with `mask`, or none:
/// [`candle_nn::attention::cpu_flash::standard::run_flash_attn_cpu`] with a backward.
///
/// # Errors
/// As [`flash_attn`](super::flash_attn); candle-nn's for B > 1, where no gradient is asked for.
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
    use candle_nn::attention::cpu_flash::standard;
    let masked = mask.is_some_and(|mask| tracked(&[mask]));
    if q.device().is_cpu() && !masked && !tracked(&[q, k, v]) {
        return standard::run_flash_attn_cpu::<T>(q, k, v, mask, softmax_scale, max_bias, softcap);
    }
    let mask = mask.map_or(AttnMask::None, |mask| AttnMask::Mask(mask.clone()));
    composition(q, k, v, softmax_scale, &mask, max_bias, softcap)
}
