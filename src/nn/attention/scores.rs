//! Attention with all that candle-nn's fused kernels take besides: by a kernel, or of candle's operations.

use candle_core::{DType, Result, Tensor, D};

use crate::check;
use crate::error::Error;
use crate::ops;

/// What is made of the products of queries and keys before the softmax.
pub(crate) struct Scores {
    /// Multiplies them.
    pub(crate) scale: f64,
    /// c of c tanh(x / c), which follows.
    pub(crate) softcap: Option<f64>,
    /// Added at the end, in a shape that is broadcast to [B, H, S, T] and the dtype that is [`wide`]; -inf hides a key.
    pub(crate) bias: Option<Tensor>,
}

impl Scores {
    /// softmax(scores) v, [B, H, S, E], of `q` [B, H, S, D], `k` [B, H', T, D] and `v` [B, H'', T, E]; heads that are
    /// fewer serve as many query heads in turn. A query from which every key is hidden gets zeros.
    pub(crate) fn attend(&self, q: &Tensor, k: &Tensor, v: &Tensor) -> Result<Tensor> {
        check_shapes(q, k, v)?;
        let (batch, heads, queries, _) = q.dims4()?;
        let (_, _, keys, width) = v.dims4()?;
        if keys == 0 || batch * heads * queries * width == 0 {
            return Tensor::zeros((batch, heads, queries, width), q.dtype(), q.device());
        }
        if !ops::is_half(q) {
            return self.routed(q, k, v);
        }
        ops::in_f32(&[q, k, v], |t| self.routed(&t[0], &t[1], &t[2]))
    }

    /// By the kernel where there is one for it.
    fn routed(&self, q: &Tensor, k: &Tensor, v: &Tensor) -> Result<Tensor> {
        if self.softcap.is_none() {
            if let Some(attended) = ops::attend(q, k, v, self.scale as f32, self.bias.as_ref())? {
                return Ok(attended);
            }
        }
        self.composition(q, k, v)
    }

    fn composition(&self, q: &Tensor, k: &Tensor, v: &Tensor) -> Result<Tensor> {
        let heads = q.dim(1)?;
        let (k, v) = (repeated(k, heads)?, repeated(v, heads)?);
        let scores = (q.contiguous()?.matmul(&k.t()?)? * self.scale)?;
        let scores = match self.softcap {
            Some(cap) => ((scores / cap)?.tanh()? * cap)?,
            None => scores,
        };
        let Some(bias) = &self.bias else {
            return ops::softmax_last_dim(&scores)?.matmul(&v);
        };
        let hidden = bias.max_keepdim(D::Minus1)?.eq(f64::NEG_INFINITY)?;
        if hidden.flatten_all()?.max(0)?.to_scalar::<u8>()? == 0 {
            return ops::softmax_last_dim(&scores.broadcast_add(bias)?)?.matmul(&v);
        }
        // A row of -inf alone has no softmax: it is computed without, and its result is not taken.
        let row = hidden.broadcast_as(bias.shape())?;
        let bias = row.where_cond(&bias.zeros_like()?, bias)?;
        let attended = ops::softmax_last_dim(&scores.broadcast_add(&bias)?)?.matmul(&v)?;
        let hidden = hidden.broadcast_as(attended.shape())?;
        hidden.where_cond(&attended.zeros_like()?, &attended)
    }
}

/// S and T of `q` [B, H, S, D] and `k` [B, H', T, D].
pub(crate) fn lengths(q: &Tensor, k: &Tensor) -> Result<(usize, usize)> {
    match (q.dims(), k.dims()) {
        (&[_, _, queries, _], &[_, _, keys, _]) => Ok((queries, keys)),
        (&[_, _, _, _], _) => Err(Error::shape("k", k.dims(), "[B, H', T, D]").into()),
        _ => Err(Error::shape("q", q.dims(), "[B, H, S, D]").into()),
    }
}

/// The dtype of scores: `f32` for half precision.
pub(crate) fn wide(xs: &Tensor) -> DType {
    if ops::is_half(xs) {
        DType::F32
    } else {
        xs.dtype()
    }
}

/// Tells whether `few` heads of keys or values serve `heads` of queries.
pub(crate) fn serves(few: usize, heads: usize) -> bool {
    few > 0 && heads.is_multiple_of(few)
}

/// A mask of numbers that is broadcast to `scores`, [B, H, S, T].
pub(crate) fn check_mask(mask: &Tensor, scores: [usize; 4]) -> Result<()> {
    check::float("mask", mask)?;
    let mut sizes = mask.dims().iter().rev().zip(scores.iter().rev());
    if (1..=scores.len()).contains(&mask.rank()) && sizes.all(|(&size, &whole)| size == 1 || size == whole) {
        return Ok(());
    }
    let expected = format!("one that is broadcast to [B, H, S, T] = {scores:?}");
    Err(Error::shape("mask", mask.dims(), expected).into())
}

fn check_shapes(q: &Tensor, k: &Tensor, v: &Tensor) -> Result<()> {
    check::float("q", q)?;
    check::same_dtype("k", k, "q", q)?;
    check::same_dtype("v", v, "q", q)?;
    let (_, keys) = lengths(q, k)?;
    let (batch, heads, _, width) = q.dims4()?;
    match *k.dims() {
        [b, h, _, d] if b == batch && serves(h, heads) && d == width => {}
        _ => {
            let expected = format!("[{batch}, H', T, {width}] with H' a divisor of {heads}");
            return Err(Error::shape("k", k.dims(), expected).into());
        }
    }
    match *v.dims() {
        [b, h, t, _] if b == batch && serves(h, heads) && t == keys => Ok(()),
        _ => {
            let expected = format!("[{batch}, H', {keys}, E] with H' a divisor of {heads}");
            Err(Error::shape("v", v.dims(), expected).into())
        }
    }
}

/// `xs` [B, H', T, D] with each head as often in turn as makes `heads`, contiguous.
fn repeated(xs: &Tensor, heads: usize) -> Result<Tensor> {
    let (batch, few, length, width) = xs.dims4()?;
    if few == heads {
        return xs.contiguous();
    }
    xs.unsqueeze(2)?
        .broadcast_as((batch, few, heads / few, length, width))?
        .reshape((batch, heads, length, width))
}

/// A bias [1, H, S, T] of the numbers that `of` gives for head, query and key, in the dtype of the scores and on the
/// device of `like`.
pub(crate) fn bias_of(
    [heads, queries, keys]: [usize; 3],
    like: &Tensor,
    of: impl Fn(usize, usize, usize) -> f32,
) -> Result<Tensor> {
    let mut data = Vec::with_capacity(heads * queries * keys);
    for head in 0..heads {
        for query in 0..queries {
            data.extend((0..keys).map(|key| of(head, query, key)));
        }
    }
    Tensor::from_vec(data, (1, heads, queries, keys), like.device())?.to_dtype(wide(like))
}

/// Query i sees the keys up to i + `offset`.
#[derive(Clone, Copy)]
pub(crate) struct Causal {
    pub(crate) queries: usize,
    pub(crate) keys: usize,
    /// Below 0 where the first queries see nothing.
    pub(crate) offset: i64,
}

impl Causal {
    /// The last query sees all keys.
    pub(crate) fn at_the_end(queries: usize, keys: usize) -> Self {
        Self {
            queries,
            keys,
            offset: keys as i64 - queries as i64,
        }
    }

    /// The bias that hides what is not seen.
    pub(crate) fn bias(self, like: &Tensor) -> Result<Tensor> {
        bias_of([1, self.queries, self.keys], like, |_, query, key| {
            if key as i64 <= query as i64 + self.offset {
                0.0
            } else {
                f32::NEG_INFINITY
            }
        })
    }
}

/// The slopes of ALiBi (Press et al. 2022, arXiv 2108.12409) for so many heads, as candle-nn has them: 2^(-max_bias (h + 1) / n),
/// with n the next power of two.
pub(crate) fn slopes(heads: usize, max_bias: f32) -> Vec<f32> {
    let n = heads.next_power_of_two() as f32;
    (1..=heads).map(|head| (-max_bias * head as f32 / n).exp2()).collect()
}
