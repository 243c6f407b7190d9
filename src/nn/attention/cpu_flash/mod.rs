//! Attention of whole batches, and the functions for one sequence and for packed ones.

pub mod causal;
pub mod standard;
pub mod varlen;

use candle_core::{DType, Result, Tensor, WithDType};

use super::scores::{self, Causal, Scores};
use super::{tracked, AttnMask};
use crate::check;
use crate::error::Error;
use crate::ops;

/// Attention, softmax(`softmax_scale` q kᵀ + mask) v: [`candle_nn::attention::flash_attn`] with a backward.
///
/// # Arguments
///
/// - `q`: [B, S, H, D]
/// - `k`, `v`: [B, T, H', D], H' a divisor of H
/// - `attn_mask`: none; causal, where query i sees the keys up to i + `kv_offset`; or a tensor that is added to the
///   scores, of S T elements or of a shape that is broadcast to [B, H, S, T]
/// - `max_bias`: of ALiBi (arXiv 2108.12409); with a mask of numbers, its slopes multiply that
/// - `softcap`: c in c tanh(x / c) of the scaled scores
///
/// Returns [B, H, S, D]: in `f32` for half precision at B = 1, as candle-nn does, else in the dtype of `q`. A query from
/// which every key is hidden gets zeros.
///
/// As in candle-nn, several sequences under a causal mask end together: `kv_offset` is T - S then, and so it is for a
/// single query.
///
/// # Errors
///
/// If shapes do not fit, or the dtypes differ or are no floating-point ones; candle-nn's, where no gradient is asked for.
pub fn flash_attn<T>(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    softmax_scale: f32,
    attn_mask: AttnMask,
    max_bias: Option<f32>,
    softcap: Option<f32>,
) -> Result<Tensor>
where
    T: WithDType + num_traits::Float,
{
    let masked = matches!(&attn_mask, AttnMask::Mask(mask) if tracked(&[mask]));
    if q.device().is_cpu() && !masked && !tracked(&[q, k, v]) {
        return candle_nn::attention::flash_attn::<T>(q, k, v, softmax_scale, attn_mask, max_bias, softcap);
    }
    composition(q, k, v, softmax_scale, &attn_mask, max_bias, softcap)
}

/// [`flash_attn`] of candle's operations.
pub(super) fn composition(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    softmax_scale: f32,
    attn_mask: &AttnMask,
    max_bias: Option<f32>,
    softcap: Option<f32>,
) -> Result<Tensor> {
    let wide = if ops::is_half(q) && q.dim(0)? == 1 {
        DType::F32
    } else {
        q.dtype()
    };
    // [B, S, H, D] to [B, H, S, D].
    let heads_first = |argument, xs: &Tensor| match xs.rank() {
        4 => xs.transpose(1, 2)?.to_dtype(wide),
        _ => Err(Error::shape(argument, xs.dims(), "[B, S, H, D]").into()),
    };
    let (q, k, v) = (heads_first("q", q)?, heads_first("k", k)?, heads_first("v", v)?);
    let scores = Scores {
        scale: f64::from(softmax_scale),
        softcap: match softcap {
            None | Some(0.0) => None,
            Some(cap) => Some(check::positive("softcap", f64::from(cap))?),
        },
        bias: bias(&q, &k, attn_mask, max_bias.filter(|&max_bias| max_bias > 0.0))?,
    };
    scores.attend(&q, &k, &v)
}

/// What is added to the scores of `q` [B, H, S, D] and `k` [B, H', T, D].
fn bias(q: &Tensor, k: &Tensor, attn_mask: &AttnMask, max_bias: Option<f32>) -> Result<Option<Tensor>> {
    let (batch, heads, ..) = q.dims4()?;
    let (queries, keys) = scores::lengths(q, k)?;
    let slopes = max_bias.map(|max_bias| scores::slopes(heads, max_bias));
    match attn_mask {
        AttnMask::None if batch > 1 => {
            // candle-nn's kernel for several sequences measures the distance both ways.
            let offset = keys as f32 - queries as f32;
            let bias = slopes.map(|slopes| {
                scores::bias_of([heads, queries, keys], q, |head, query, key| {
                    -slopes[head] * (key as f32 - query as f32 - offset).abs()
                })
            });
            bias.transpose()
        }
        AttnMask::None => Ok(None),
        AttnMask::Causal { kv_offset } => {
            let causal = match (batch, queries) {
                (1, 2..) => Causal {
                    queries,
                    keys,
                    offset: *kv_offset,
                },
                _ => Causal::at_the_end(queries, keys),
            };
            let hidden = causal.bias(q)?;
            let Some(slopes) = slopes else {
                return Ok(Some(hidden));
            };
            let distance = scores::bias_of([heads, queries, keys], q, |head, query, key| {
                slopes[head] * (key as f32 - (query + causal.offset) as f32).min(0.0)
            })?;
            hidden.broadcast_add(&distance).map(Some)
        }
        AttnMask::Mask(mask) => {
            let mask = match mask.elem_count() {
                n if n == queries * keys => mask.reshape((1, 1, queries, keys))?,
                _ => mask.clone(),
            };
            let mask = mask.to_dtype(q.dtype())?;
            match slopes {
                Some(slopes) => {
                    let slopes = Tensor::from_vec(slopes, (1, heads, 1, 1), q.device())?.to_dtype(q.dtype())?;
                    mask.broadcast_mul(&slopes).map(Some)
                }
                None => Ok(Some(mask)),
            }
        }
    }
}
