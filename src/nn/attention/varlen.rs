//! Attention of sequences of several lengths that are packed one after the other.

use candle_core::{DType, Result, Tensor};

use super::scores::{bias_of, serves, Scores};
use crate::check;
use crate::error::Error;
use crate::nn::refuse_gradients;

/// Attention within each of several packed sequences: [`candle_nn::attention::flash_attn_varlen_unfused`] with a backward.
///
/// # Arguments
///
/// - `q`: [ΣS, H, D]; `k`, `v`: [ΣT, H', D], H' a divisor of H
/// - `alibi_slopes`: `[H]`, of ALiBi (arXiv 2108.12409), detached
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
/// If shapes, dtypes or lengths do not fit, T < S under `causal`, there is a `window_size_right` alone, or `alibi_slopes`
/// has a gradient.
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
    let window = Window {
        causal,
        left: window_size_left,
        right: window_size_right,
    };
    let packed = Packed::new([q, k, v], alibi_slopes, [seqlens_q, seqlens_k], window)?;
    packed.differentiable(q, k, v, softmax_scale)
}

/// Sequences, slopes and a window that fit the tensors they were checked with.
pub(super) struct Packed {
    /// S and T of each sequence.
    lengths: Vec<(usize, usize)>,
    /// One for each head.
    pub(super) slopes: Option<Vec<f32>>,
    pub(super) window: Window,
}

impl Packed {
    pub(super) fn new(
        [q, k, v]: [&Tensor; 3],
        alibi_slopes: Option<&Tensor>,
        [seqlens_q, seqlens_k]: [&Tensor; 2],
        window: Window,
    ) -> Result<Self> {
        check_shapes(q, k, v)?;
        let slopes = alibi_slopes.map(|slopes| slopes_of(slopes, q.dims()[1])).transpose()?;
        let queries = lengths_of("seqlens_q", seqlens_q, ("q", q.dims()[0]))?;
        let keys = lengths_of("seqlens_k", seqlens_k, ("k", k.dims()[0]))?;
        if queries.len() != keys.len() {
            let expected = format!("[{}] like seqlens_q", queries.len());
            return Err(Error::shape("seqlens_k", seqlens_k.dims(), expected).into());
        }
        let lengths: Vec<_> = queries.into_iter().zip(keys).collect();
        if let Some((queries, keys)) = lengths.iter().find(|(queries, keys)| window.causal && keys < queries) {
            let allowed = format!("at least {queries}, the number of its queries, where attention is causal");
            return Err(Error::invalid("seqlens_k", keys, allowed).into());
        }
        if let (None, Some(right)) = (window.left, window.right) {
            let allowed = "none without a window_size_left";
            return Err(Error::invalid("window_size_right", right, allowed).into());
        }
        // A wider one hides nothing, and sums with it may not overflow.
        let widest = q.dims()[0] + k.dims()[0];
        let window = Window {
            left: window.left.map(|left| left.min(widest)),
            right: window.right.map(|right| right.min(widest)),
            ..window
        };
        Ok(Self {
            lengths,
            slopes,
            window,
        })
    }

    /// Attention with a backward.
    pub(super) fn differentiable(&self, q: &Tensor, k: &Tensor, v: &Tensor, softmax_scale: f32) -> Result<Tensor> {
        let (mut from_query, mut from_key, mut attended) = (0, 0, Vec::new());
        for &(queries, keys) in &self.lengths {
            // [S, H, D] to [1, H, S, D].
            let part = |xs: &Tensor, from, length| xs.narrow(0, from, length)?.transpose(0, 1)?.unsqueeze(0);
            let scores = Scores {
                scale: f64::from(softmax_scale),
                softcap: None,
                bias: self.bias(queries, keys, q)?,
            };
            let (k, v) = (part(k, from_key, keys)?, part(v, from_key, keys)?);
            let ys = scores.attend(&part(q, from_query, queries)?, &k, &v)?;
            attended.push(ys.squeeze(0)?.transpose(0, 1)?);
            from_query += queries;
            from_key += keys;
        }
        match attended.len() {
            0 => q.zeros_like(),
            _ => Tensor::cat(&attended, 0),
        }
    }

    /// What is added to the scores of one sequence, if it is not 0 everywhere.
    fn bias(&self, queries: usize, keys: usize, like: &Tensor) -> Result<Option<Tensor>> {
        let bias = |heads, slope: &dyn Fn(usize) -> f32| {
            let bias = bias_of([heads, queries, keys], like, |head, query, key| {
                let at = (query + keys) as i64 - queries as i64;
                self.window.bias(slope(head), at, key as i64)
            });
            bias.map(Some)
        };
        match &self.slopes {
            Some(slopes) => bias(slopes.len(), &|head| slopes[head]),
            None if self.window.causal || self.window.left.is_some() => bias(1, &|_| 0.0),
            None => Ok(None),
        }
    }
}

/// The keys that a query sees.
#[derive(Clone, Copy)]
pub(super) struct Window {
    pub(super) causal: bool,
    /// So many before it.
    pub(super) left: Option<usize>,
    /// So many after it.
    pub(super) right: Option<usize>,
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

/// `q` [ΣS, H, D], to which `k` and `v` [ΣT, H', D] fit.
fn check_shapes(q: &Tensor, k: &Tensor, v: &Tensor) -> Result<()> {
    check::float("q", q)?;
    check::same_dtype("k", k, "q", q)?;
    check::same_dtype("v", v, "q", q)?;
    let &[_, heads, width] = q.dims() else {
        return Err(Error::shape("q", q.dims(), "[positions, H, D]").into());
    };
    let fits = |xs: &Tensor| matches!(*xs.dims(), [_, h, d] if d == width && serves(h, heads));
    if !fits(k) {
        let expected = format!("[positions, H', {width}] with H' a divisor of {heads}");
        return Err(Error::shape("k", k.dims(), expected).into());
    }
    let total = k.dims()[0];
    if !fits(v) || v.dims()[0] != total {
        let expected = format!("[{total}, H', {width}] with H' a divisor of {heads}");
        return Err(Error::shape("v", v.dims(), expected).into());
    }
    Ok(())
}

fn slopes_of(slopes: &Tensor, heads: usize) -> Result<Vec<f32>> {
    check::float("alibi_slopes", slopes)?;
    check::vector("alibi_slopes", slopes, heads)?;
    refuse_gradients("alibi_slopes", slopes)?;
    slopes.to_dtype(DType::F32)?.to_vec1()
}

/// The lengths of sequences that fill the `total` positions of the tensor `of`.
fn lengths_of(argument: &'static str, lengths: &Tensor, (of, total): (&str, usize)) -> Result<Vec<usize>> {
    if lengths.dtype() != DType::U32 {
        let (got, expected) = (lengths.dtype(), "u32".into());
        return Err(Error::DType {
            argument,
            got,
            expected,
        }
        .into());
    }
    if lengths.rank() != 1 {
        return Err(Error::shape(argument, lengths.dims(), "[B]").into());
    }
    let lengths: Vec<usize> = lengths
        .to_vec1::<u32>()?
        .into_iter()
        .map(|length| length as usize)
        .collect();
    if lengths.iter().sum::<usize>() == total {
        return Ok(lengths);
    }
    let allowed = format!("lengths whose sum is {total}, the positions of {of}");
    Err(Error::invalid(argument, format!("{lengths:?}"), allowed).into())
}
