//! Attention under the path that candle-nn had it at before [`attention`](super::attention).

use candle_core::{Result, Tensor, WithDType};

use super::attention::{flash_attn, AttnMask};

/// The same as [`flash_attn`], with an optional mask.
///
/// # Errors
/// As [`flash_attn`].
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
    let mask = mask.map_or(AttnMask::None, |mask| AttnMask::Mask(mask.clone()));
    flash_attn::<T>(q, k, v, softmax_scale, mask, max_bias, softcap)
}
