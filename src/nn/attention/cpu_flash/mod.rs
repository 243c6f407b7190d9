//! Attention of whole batches, and the functions for one sequence and for packed ones.

pub mod causal;
pub mod standard;
#[cfg(test)]
mod tests;
pub mod varlen;

use candle_core::{DType, Result, Tensor, WithDType};
use candle_nn::attention as candles;

use super::scores::{self, Causal, Scores};
use super::AttnMask;
use crate::check;
use crate::error::Error;
use crate::nn::tracked;

/// Attention, softmax(`softmax_scale` q kᵀ + mask) v: [`candle_nn::attention::flash_attn`] with a backward.
///
/// # Arguments
///
/// - `q`: [B, S, H, D]
/// - `k`, `v`: [B, T, H', D], H' a divisor of H
/// - `attn_mask`: none; causal, where query i sees the keys up to i + `kv_offset`; or a tensor that is added to the
///   scores, of S T elements or of a shape that is broadcast to [B, H, S, T]
/// - `max_bias`: of ALiBi (arXiv 2108.12409); with a mask of numbers, its slopes multiply that
/// - `softcap`: c in c tanh(x / c) of the scaled scores; 0 stands for none, as in candle-nn
///
/// `T` is candle-nn's; the dtype of `q` decides. Returns [B, H, S, D]: in `f32` for half precision at B = 1, as candle-nn
/// does, else in the dtype of `q`. A query from which every key is hidden gets zeros.
///
/// As in candle-nn, several sequences under a causal mask end together: `kv_offset` is T - S then, and so it is for a
/// single query.
///
/// # Errors
///
/// If shapes do not fit, the dtypes differ or are no floating-point ones, several sequences under a causal mask have
/// T < S, or `softcap` is negative or not finite.
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
    let settings = Settings::new(softmax_scale, attn_mask, max_bias, softcap)?;
    settings.attend(q, k, v)
}

/// How scores are made, checked.
struct Settings {
    scale: f32,
    mask: AttnMask,
    /// Above 0.
    max_bias: Option<f32>,
    /// Above 0.
    softcap: Option<f32>,
}

impl Settings {
    fn new(scale: f32, mask: AttnMask, max_bias: Option<f32>, softcap: Option<f32>) -> Result<Self> {
        let softcap = softcap.filter(|&softcap| softcap != 0.0);
        if let Some(softcap) = softcap {
            check::positive("softcap", f64::from(softcap))?;
        }
        Ok(Self {
            scale,
            mask,
            max_bias: max_bias.filter(|&max_bias| max_bias > 0.0),
            softcap,
        })
    }

    /// The only way to candle-nn's kernels: they read what they are given unchecked, some of it out of bounds.
    fn attend(mut self, q: &Tensor, k: &Tensor, v: &Tensor) -> Result<Tensor> {
        let [batch, queries, heads, _] = check_shapes(q, k, v)?;
        let keys = k.dim(1)?;
        match &mut self.mask {
            AttnMask::None => {}
            AttnMask::Causal { .. } if batch > 1 && keys < queries => {
                let expected = format!("[{batch}, T, H', D] with T at least {queries}, where attention is causal");
                return Err(Error::shape("k", k.dims(), expected).into());
            }
            // More hides nothing, and a sum with it may not overflow.
            AttnMask::Causal { kv_offset } => *kv_offset = (*kv_offset).min(keys),
            AttnMask::Mask(mask) if mask.elem_count() == queries * keys => {
                check::float("mask", mask)?;
                *mask = mask.reshape((1, 1, queries, keys))?;
            }
            AttnMask::Mask(mask) => scores::check_mask(mask, [batch, heads, queries, keys])?,
        }
        match self.by_candles_kernel(q, k, v)? {
            Some(attended) => Ok(attended),
            None => self.differentiable(q, k, v),
        }
    }

    /// By candle-nn's kernels, where they have no gradient to lose and are right.
    fn by_candles_kernel(&self, q: &Tensor, k: &Tensor, v: &Tensor) -> Result<Option<Tensor>> {
        let kernel = match q.dtype() {
            DType::F32 => candles::flash_attn::<f32>,
            DType::F16 => candles::flash_attn::<gemm::f16>,
            _ => return Ok(None),
        };
        let taken = match (q.dim(0)?, &self.mask) {
            (1, AttnMask::None) => true,
            // For a single query in f32, a cap brings ALiBi of slope 1 with it.
            (1, AttnMask::Causal { .. }) => self.softcap.is_none() || self.max_bias.is_some() || q.dim(1)? > 1,
            (1, AttnMask::Mask(mask)) => {
                mask.elem_count() == q.dim(1)? * k.dim(1)? && mask.dtype() == q.dtype() && !tracked(&[mask])
            }
            (_, AttnMask::None | AttnMask::Causal { .. }) => self.softcap.is_none(),
            (_, AttnMask::Mask(_)) => false,
        };
        let empty = q.elem_count() == 0 || k.elem_count() == 0;
        if !taken || empty || !q.device().is_cpu() || tracked(&[q, k, v]) {
            return Ok(None);
        }
        // They take the last dimension for contiguous.
        let (q, k, v) = (q.contiguous()?, k.contiguous()?, v.contiguous()?);
        kernel(&q, &k, &v, self.scale, self.mask.clone(), self.max_bias, self.softcap).map(Some)
    }

    /// The same with a backward.
    fn differentiable(&self, q: &Tensor, k: &Tensor, v: &Tensor) -> Result<Tensor> {
        let dtype = if q.dim(0)? == 1 { scores::wide(q) } else { q.dtype() };
        // [B, S, H, D] to [B, H, S, D].
        let heads_first = |xs: &Tensor| xs.transpose(1, 2)?.to_dtype(dtype);
        let (q, k, v) = (heads_first(q)?, heads_first(k)?, heads_first(v)?);
        let scores = Scores {
            scale: f64::from(self.scale),
            softcap: self.softcap.map(f64::from),
            bias: self.bias(&q, &k)?,
        };
        scores.attend(&q, &k, &v)
    }

    /// What is added to the scores of `q` [B, H, S, D] and `k` [B, H', T, D].
    fn bias(&self, q: &Tensor, k: &Tensor) -> Result<Option<Tensor>> {
        let (batch, heads, ..) = q.dims4()?;
        let (queries, keys) = scores::lengths(q, k)?;
        let slopes = self.max_bias.map(|max_bias| scores::slopes(heads, max_bias));
        match &self.mask {
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
                        offset: *kv_offset as i64,
                    },
                    _ => Causal::at_the_end(queries, keys),
                };
                let hidden = causal.bias(q)?;
                let Some(slopes) = slopes else {
                    return Ok(Some(hidden));
                };
                let distance = scores::bias_of([heads, queries, keys], q, |head, query, key| {
                    slopes[head] * (key as i64 - query as i64 - causal.offset).min(0) as f32
                })?;
                hidden.broadcast_add(&distance).map(Some)
            }
            AttnMask::Mask(mask) => {
                let mask = mask.to_dtype(scores::wide(q))?;
                match slopes {
                    Some(slopes) => {
                        let slopes = Tensor::from_vec(slopes, (1, heads, 1, 1), q.device())?.to_dtype(mask.dtype())?;
                        mask.broadcast_mul(&slopes).map(Some)
                    }
                    None => Ok(Some(mask)),
                }
            }
        }
    }
}

/// The sizes of `q` [B, S, H, D], to which `k` and `v` [B, T, H', D] fit.
fn check_shapes(q: &Tensor, k: &Tensor, v: &Tensor) -> Result<[usize; 4]> {
    check::float("q", q)?;
    check::same_dtype("k", k, "q", q)?;
    check::same_dtype("v", v, "q", q)?;
    let &[batch, queries, heads, width] = q.dims() else {
        return Err(Error::shape("q", q.dims(), "[B, S, H, D]").into());
    };
    let fits = |xs: &Tensor, length: Option<usize>| {
        matches!(*xs.dims(), [b, t, h, d]
            if b == batch && d == width && length.is_none_or(|length| t == length) && scores::serves(h, heads))
    };
    if !fits(k, None) {
        let expected = format!("[{batch}, T, H', {width}] with H' a divisor of {heads}");
        return Err(Error::shape("k", k.dims(), expected).into());
    }
    let keys = k.dim(1)?;
    if !fits(v, Some(keys)) {
        let expected = format!("[{batch}, {keys}, H', {width}] with H' a divisor of {heads}");
        return Err(Error::shape("v", v.dims(), expected).into());
    }
    Ok([batch, queries, heads, width])
}
