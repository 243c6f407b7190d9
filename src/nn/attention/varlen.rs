//! Attention of sequences of several lengths that are packed one after the other.

use candle_core::{Result, Tensor};

use super::scores::{bias_of, Scores};
use crate::error::Error;

/// Attention within each of several packed sequences: [`candle_nn::attention::flash_attn_varlen_unfused`] with a backward.
///
/// # Arguments
///
/// - `q`: [ΣS, H, D]; `k`, `v`: [ΣT, H', D], H' a divisor of H
/// - `alibi_slopes`: `[H]`, of ALiBi (arXiv 2108.12409)
/// - `seqlens_q`, `seqlens_k`: `[B]`, S and T of each sequence, `u32`
/// - `softmax_scale`: multiplies the scores
/// - `causal`: hides from query i the keys after i + T - S, for T >= S
/// - `window_size_left`, `window_size_right`: hide keys that are farther than so many before or after i + T - S; a
///   left one alone hides all keys after it, too
///
/// The largest lengths are not needed, and not looked at. Returns [ΣS, H, D]; a query from which every key is hidden gets
/// zeros.
///
/// # Errors
///
/// If shapes or lengths do not fit, T < S under `causal`, or there is a `window_size_right` alone.
#[expect(clippy::too_many_arguments, reason = "candle-nn's signature")]
pub fn flash_attn_varlen_unfused(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    alibi_slopes: Option<&Tensor>,
    seqlens_q: &Tensor,
    seqlens_k: &Tensor,
    _max_seqlen_q: usize,
    _max_seqlen_k: usize,
    softmax_scale: f32,
    causal: bool,
    window_size_left: Option<usize>,
    window_size_right: Option<usize>,
) -> Result<Tensor> {
    let (total, heads, width) = dims("q", q)?;
    let (total_keys, ..) = dims("k", k)?;
    dims("v", v)?;
    if let (None, Some(right)) = (window_size_left, window_size_right) {
        let allowed = "none without a window_size_left";
        return Err(Error::invalid("window_size_right", right, allowed).into());
    }
    let slopes = match alibi_slopes {
        Some(slopes) if slopes.dims() != [heads] => {
            return Err(Error::shape("alibi_slopes", slopes.dims(), format!("[{heads}]")).into());
        }
        Some(slopes) => slopes.to_dtype(candle_core::DType::F32)?.to_vec1::<f32>()?,
        None => vec![0.0; 1],
    };
    let (queries, keys) = (seqlens_q.to_vec1::<u32>()?, seqlens_k.to_vec1::<u32>()?);
    check_lengths(("seqlens_q", &queries), ("q", total))?;
    check_lengths(("seqlens_k", &keys), ("k", total_keys))?;
    if queries.len() != keys.len() {
        let expected = format!("[{}] like seqlens_q", queries.len());
        return Err(Error::shape("seqlens_k", seqlens_k.dims(), expected).into());
    }
    let window = Window {
        causal,
        left: window_size_left,
        right: window_size_right,
    };

    let (mut from_query, mut from_key, mut attended) = (0, 0, Vec::new());
    for (queries, keys) in queries.into_iter().zip(keys) {
        let (queries, keys) = (queries as usize, keys as usize);
        if causal && keys < queries {
            let allowed = format!("at least {queries}, the number of its queries, where attention is causal");
            return Err(Error::invalid("seqlens_k", keys, allowed).into());
        }
        if queries > 0 && keys > 0 {
            // [S, H, D] to [1, H, S, D].
            let part = |xs: &Tensor, from, length| xs.narrow(0, from, length)?.transpose(0, 1)?.unsqueeze(0);
            let bias = bias_of([slopes.len(), queries, keys], q, |head, query, key| {
                window.bias(slopes[head], (query + keys) as i64 - queries as i64, key as i64)
            })?;
            let scores = Scores {
                scale: f64::from(softmax_scale),
                softcap: None,
                bias: Some(bias),
            };
            let (k, v) = (part(k, from_key, keys)?, part(v, from_key, keys)?);
            let ys = scores.attend(&part(q, from_query, queries)?, &k, &v)?;
            attended.push(ys.squeeze(0)?.transpose(0, 1)?);
        } else if queries > 0 {
            attended.push(Tensor::zeros((queries, heads, width), q.dtype(), q.device())?);
        }
        from_query += queries;
        from_key += keys;
    }
    match attended.len() {
        0 => Tensor::zeros((0, heads, width), q.dtype(), q.device()),
        _ => Tensor::cat(&attended, 0),
    }
}

/// The keys that a query sees.
struct Window {
    causal: bool,
    left: Option<usize>,
    right: Option<usize>,
}

impl Window {
    /// What is added to the score of the query that stands at key `at`.
    fn bias(&self, slope: f32, at: i64, key: i64) -> f32 {
        let before = |limit: usize| at - key <= limit as i64;
        let after = |limit: usize| key - at <= limit as i64;
        let right = self.right.or(self.left.map(|_| 0));
        let seen = (!self.causal || key <= at) && self.left.is_none_or(before) && right.is_none_or(after);
        if seen {
            -slope * (at - key).abs() as f32
        } else {
            f32::NEG_INFINITY
        }
    }
}

fn dims(argument: &'static str, xs: &Tensor) -> Result<(usize, usize, usize)> {
    match *xs.dims() {
        [length, heads, width] => Ok((length, heads, width)),
        _ => Err(Error::shape(argument, xs.dims(), "[positions, heads, D]").into()),
    }
}

fn check_lengths((argument, lengths): (&'static str, &[u32]), (of, total): (&str, usize)) -> Result<()> {
    let sum: usize = lengths.iter().map(|&length| length as usize).sum();
    if sum == total {
        return Ok(());
    }
    let allowed = format!("lengths whose sum is {total}, the positions of {of}");
    Err(Error::invalid(argument, format!("{lengths:?}"), allowed).into())
}
