//! Multi-head self-attention (Vaswani et al. 2017, arXiv 1706.03762) of a packed projection.

use std::sync::OnceLock;

use candle_core::{CpuStorage, CustomOp1, DType, Layout, Result, Shape, Tensor, D};
use gemm::Parallelism;
use rayon::prelude::*;

use super::cpu::elementwise::{add, dot, scale_into};
use super::cpu::kernel::{self, sum_by, Elements};
use super::cpu::math;
use super::cpu::matrix::{self, Mat, MatMut, SharedMut, Write};
use super::route::{self, in_f32, Route};
use super::softmax;
use crate::check;
use crate::error::Error;

/// y = softmax(q kᵀ / √d) v in each head, the heads' results side by side.
///
/// # Arguments
///
/// - `qkv`: [B, N, 3 D], in the last dimension queries, keys and values in turn, each in heads of d = D / num_heads
///   elements: timm's packing, `reshape(B, N, 3, num_heads, d)`
/// - `num_heads`: divides D
///
/// Returns [B, N, D].
///
/// # Derivative
///
/// With p the softmax, g the gradient of the result and, in each head, h = g vᵀ: dv = pᵀ g; ds = p (h - Σ p h), the sum
/// over keys; dq = ds k / √d, dk = dsᵀ q / √d. The CPU kernel keeps two numbers for each query and computes p again: of
/// N² numbers a head it never holds more than one head's for each thread.
///
/// # PyTorch
///
/// ```text
/// q, k, v = qkv.reshape(B, N, 3, num_heads, d).permute(2, 0, 3, 1, 4)
/// torch.nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(B, N, D)
/// ```
///
/// # Errors
///
/// If `qkv` has another rank or no floating-point dtype, or its last dimension is no multiple of `3 * num_heads`.
///
/// ```
/// use candle_core::{Device, Tensor};
/// // Two tokens of width 1: equal keys, so that both queries get the mean of the values.
/// let qkv = Tensor::new(&[[[5f32, 1.0, 0.0], [-7.0, 1.0, 4.0]]], &Device::Cpu)?;
/// assert_eq!(masksub::ops::attention(&qkv, 1)?.to_vec3::<f32>()?, [[[2.0], [2.0]]]);
/// # Ok::<(), candle_core::Error>(())
/// ```
pub fn attention(qkv: &Tensor, num_heads: usize) -> Result<Tensor> {
    let dims = Dims::of(qkv.dims(), num_heads)?;
    check::float("qkv", qkv)?;
    routed(qkv, dims)
}

/// [`attention`] of arguments that fit.
fn routed(qkv: &Tensor, dims: Dims) -> Result<Tensor> {
    match Route::of(&[qkv]) {
        Route::Kernel => qkv.contiguous()?.apply_op1(Attention(Heads::new(dims))),
        Route::InF32 => in_f32(&[qkv], |t| routed(&t[0], dims)),
        Route::Composition => composition_with(qkv, dims, Ok),
    }
}

/// [`attention`] of candle's operations.
pub fn composition(qkv: &Tensor, num_heads: usize) -> Result<Tensor> {
    composition_with(qkv, Dims::of(qkv.dims(), num_heads)?, Ok)
}

/// [`composition`] with something done to the scores, [B, num_heads, N, N], before the softmax.
pub(crate) fn composition_with(
    qkv: &Tensor,
    dims: Dims,
    scores: impl FnOnce(Tensor) -> Result<Tensor>,
) -> Result<Tensor> {
    let Dims {
        batch,
        tokens,
        heads,
        head_width,
        ..
    } = dims;
    if qkv.elem_count() == 0 {
        return qkv.narrow(2, 0, heads * head_width);
    }
    let qkv = qkv
        .reshape((batch, tokens, 3, heads, head_width))?
        .permute((2, 0, 3, 1, 4))?;
    let part = |i| qkv.get(i)?.contiguous();
    let (q, k, v) = (part(0)?, part(1)?, part(2)?);
    let scores = scores(((q * (head_width as f64).powf(-0.5))?).matmul(&k.t()?)?)?;
    // In bf16 and f16 the products stay what a GPU is fast at; the softmax is computed in f32 as everywhere.
    let wide = if route::is_half(&scores) {
        scores.to_dtype(DType::F32)?
    } else {
        scores
    };
    softmax::composition(&wide, D::Minus1)?
        .to_dtype(v.dtype())?
        .matmul(&v)?
        .transpose(1, 2)?
        .reshape((batch, tokens, heads * head_width))
}

#[derive(Clone, Copy)]
pub(crate) struct Dims {
    pub(crate) batch: usize,
    pub(crate) tokens: usize,
    /// How many tokens of each sample, from the first on, ask for a result.
    pub(crate) queries: usize,
    pub(crate) heads: usize,
    pub(crate) head_width: usize,
}

impl Dims {
    pub(crate) fn of(qkv: &[usize], heads: usize) -> crate::error::Result<Self> {
        let &[batch, tokens, packed] = qkv else {
            return Err(Error::shape("qkv", qkv, "[B, N, 3 D]"));
        };
        check::at_least_one("num_heads", heads)?;
        let Some(parts) = heads.checked_mul(3).filter(|parts| packed.is_multiple_of(*parts)) else {
            return Err(Error::shape(
                "qkv",
                qkv,
                format!("[B, N, 3 D] with D a multiple of num_heads = {heads}"),
            ));
        };
        Ok(Self {
            batch,
            tokens,
            queries: tokens,
            heads,
            head_width: packed / parts,
        })
    }

    /// D.
    pub(crate) fn width(&self) -> usize {
        self.heads * self.head_width
    }

    fn scale(&self) -> f32 {
        (self.head_width as f32).sqrt().recip()
    }

    /// Queries whose scores are held at a time: nearly equal blocks of at most [`QUERIES`].
    fn block(&self) -> usize {
        self.queries.div_ceil(self.queries.div_ceil(QUERIES))
    }
}

/// Most queries whose scores are held at a time, so that a block of scores stays in the second-level cache.
const QUERIES: usize = 256;

/// One head of one sample.
#[derive(Clone, Copy)]
struct Head {
    sample: usize,
    index: usize,
}

/// What is added to the scores before the softmax.
#[derive(Clone, Copy)]
pub(crate) struct Added<'a> {
    /// [heads, N, N]
    pub(crate) bias: &'a [f32],
    /// [windows, N, N], where sample s has that of window s modulo the number of windows; empty if there is none.
    pub(crate) mask: &'a [f32],
}

/// Attention in all heads of all samples: what attention of a sequence and within windows share.
pub(crate) struct Heads {
    dims: Dims,
    /// Where the tokens of consecutive samples lie, if not one after another: the windows of a grid that stays in its own
    /// order. It repeats itself, so that there may be many such grids.
    order: Option<Vec<u32>>,
    /// For each query of each head of each sample the largest score and the reciprocal sum of the exponentials, from
    /// which the backward gets the very probabilities of the forward.
    stats: OnceLock<Vec<[f32; 2]>>,
}

/// Some columns of the rows of a head's sample: its queries, keys, values or results.
#[derive(Clone, Copy)]
struct Part<'a> {
    data: &'a [f32],
    head_width: usize,
    /// From one row to the next.
    stride: usize,
}

impl<'a> Part<'a> {
    fn rows(self, first: usize, rows: usize) -> Mat<'a> {
        Mat::rows(&self.data[first * self.stride..], rows, self.head_width, self.stride)
    }
}

/// Queries, keys and values of a head.
type Packed<'a> = [Part<'a>; 3];

/// The first `len` elements of `scratch`, which is left with the rest.
fn take<'a>(scratch: &mut &'a mut [f32], len: usize) -> &'a mut [f32] {
    let (taken, rest) = std::mem::take(scratch).split_at_mut(len);
    *scratch = rest;
    taken
}

kernel::simd_fn! {
    /// exp(score - largest of the row), the largest, and the reciprocal of the row's sum.
    fn exp_rows<S>(scores: &mut [f32], width: usize, stats: &mut [[f32; 2]]) -> () {
        for (row, stats) in scores.chunks_exact_mut(width).zip(stats) {
            let max = kernel::max(row);
            for s in row.iter_mut() {
                *s = math::exp::<S>(*s - max);
            }
            *stats = [max, 1.0 / sum_by([row], |[p]| p)];
        }
    }
}

kernel::simd_fn! {
    /// Turns scores into probabilities p, and the gradient h of p into that of the scores, p (h - `mean_h`).
    fn backward_row<S>(scores: &mut [f32], h: &mut [f32], stats: [f32; 2], mean_h: f32) -> () {
        let [max, scale] = stats;
        for (s, h) in scores.iter_mut().zip(h) {
            let p = math::exp::<S>(*s - max) * scale;
            *s = p;
            *h = p * (*h - mean_h);
        }
    }
}

impl Heads {
    pub(crate) fn new(dims: Dims) -> Self {
        Self {
            dims,
            order: None,
            stats: OnceLock::new(),
        }
    }

    /// Of samples that are windows: `order` tells, window by window, which rows of a grid the tokens are, each row once.
    pub(crate) fn of_windows(dims: Dims, order: Vec<u32>) -> Self {
        Self {
            order: Some(order),
            ..Self::new(dims)
        }
    }

    /// The row of the `at`-th token of all samples.
    fn row(&self, at: usize) -> usize {
        match &self.order {
            None => at,
            Some(order) => at - at % order.len() + order[at % order.len()] as usize,
        }
    }

    /// Where token `token` of a head begins in part `part` of `qkv`: queries, keys, values.
    fn packed_at(&self, head: Head, part: usize, token: usize) -> usize {
        let row = self.row(head.sample * self.dims.tokens + token);
        (3 * row + part) * self.dims.width() + head.index * self.dims.head_width
    }

    /// Where query `query` of a head begins in the result.
    fn result_at(&self, head: Head, query: usize) -> usize {
        self.row(head.sample * self.dims.queries + query) * self.dims.width() + head.index * self.dims.head_width
    }

    /// Elements of scratch memory for a [`Part`].
    fn gathered(&self) -> usize {
        match self.order {
            None => 0,
            Some(_) => self.dims.tokens * self.dims.head_width,
        }
    }

    /// Rows of a head that are `stride` apart where the tokens are in order; otherwise it takes [`gathered`](Self::gathered)
    /// of `scratch` for them.
    fn part<'a, 's: 'a>(
        &self,
        xs: &'a [f32],
        at: impl Fn(usize) -> usize,
        stride: usize,
        scratch: &mut &'s mut [f32],
    ) -> Part<'a> {
        let head_width = self.dims.head_width;
        if self.order.is_none() {
            return Part {
                data: &xs[at(0)..],
                head_width,
                stride,
            };
        }
        let data = take(scratch, self.gathered());
        for (token, row) in data.chunks_exact_mut(head_width).enumerate() {
            row.copy_from_slice(&xs[at(token)..][..head_width]);
        }
        Part {
            data,
            head_width,
            stride: head_width,
        }
    }

    fn packed<'a, 's: 'a>(&self, qkv: &'a [f32], head: Head, scratch: &mut &'s mut [f32]) -> Packed<'a> {
        [0, 1, 2].map(|part| {
            let at = |token| self.packed_at(head, part, token);
            self.part(qkv, at, 3 * self.dims.width(), scratch)
        })
    }

    /// The scores of some queries of a head, in rows of N.
    fn scores(&self, [q, k, _]: Packed, added: Option<Added>, head: Head, first: usize, scores: &mut [f32]) {
        let n = self.dims.tokens;
        let rows = scores.len() / n;
        let write = match added {
            None => Write::Replace,
            Some(Added { bias, mask }) => {
                scores.copy_from_slice(&bias[(head.index * n + first) * n..][..rows * n]);
                if !mask.is_empty() {
                    let window = head.sample % (mask.len() / (n * n));
                    add(scores, &mask[(window * n + first) * n..][..rows * n]);
                }
                Write::Add
            }
        };
        product(
            scores,
            n,
            write,
            self.dims.scale(),
            q.rows(first, rows),
            k.rows(0, n).t(),
        );
    }

    fn forward_head(&self, qkv: &[f32], added: Option<Added>, head: Head, out: SharedMut, stats: &mut [[f32; 2]]) {
        let dims = self.dims;
        let (n, d) = (dims.tokens, dims.head_width);
        kernel::with_scratch(3 * self.gathered() + dims.block() * (n + d), |mut scratch| {
            let packed = self.packed(qkv, head, &mut scratch);
            let (scores, ys) = scratch.split_at_mut(dims.block() * n);
            for (block, stats) in stats.chunks_mut(dims.block()).enumerate() {
                let (first, rows) = (block * dims.block(), stats.len());
                let (scores, ys) = (&mut scores[..rows * n], &mut ys[..rows * d]);
                self.scores(packed, added, head, first, scores);
                exp_rows(scores, n, stats);
                let p = Mat::rows(scores, rows, n, n);
                product(ys, d, Write::Replace, 1.0, p, packed[2].rows(0, n));
                // The d numbers of a result are fewer to scale than the N probabilities.
                for ((query, y), &[_, scale]) in (first..).zip(ys.chunks_exact(d)).zip(&*stats) {
                    // SAFETY: these columns of this row of the result belong to this head of this sample alone, in
                    // whatever order rows are, and each head of each sample is computed by one thread.
                    let mut out = unsafe { out.columns(self.result_at(head, query), 1, d, d) };
                    scale_into(y, scale, out.row(0));
                }
            }
        });
    }

    /// Writes a head's gradient to `out`; adds that of the scores to `dscores`, unless it is empty.
    fn backward_head(&self, at: &Backward, head: Head, out: SharedMut, dscores: &mut [f32]) {
        let &Backward {
            qkv,
            added,
            ys,
            grads,
            stats,
        } = at;
        let dims = self.dims;
        let (n, d, width) = (dims.tokens, dims.head_width, dims.width());
        let stats = &stats[(head.sample * dims.heads + head.index) * dims.queries..][..dims.queries];
        kernel::with_scratch(7 * self.gathered() + 2 * dims.block() * n, |mut scratch| {
            let packed @ [q, k, v] = self.packed(qkv, head, &mut scratch);
            let g = self.part(grads, |query| self.result_at(head, query), width, &mut scratch);
            let gathered = take(&mut scratch, 3 * self.gathered());
            let (scores, h) = scratch.split_at_mut(dims.block() * n);
            let (into, starts, stride) = match self.order {
                None => (out, [0, 1, 2].map(|part| self.packed_at(head, part, 0)), 3 * width),
                Some(_) => (SharedMut::new(gathered), [0, n * d, 2 * n * d], d),
            };
            // SAFETY: these rows and columns belong to this head of this sample alone, or are scratch memory, which one
            // thread computes in; and the results of the calls below are used one at a time.
            let into =
                |part: usize, first, rows| unsafe { into.columns(starts[part] + first * stride, rows, d, stride) };
            for (block, stats) in stats.chunks(dims.block()).enumerate() {
                let (first, rows) = (block * dims.block(), stats.len());
                let (scores, h) = (&mut scores[..rows * n], &mut h[..rows * n]);
                let write = if block == 0 { Write::Replace } else { Write::Add };
                let g = g.rows(first, rows);
                self.scores(packed, added, head, first, scores);
                product(h, n, Write::Replace, 1.0, g, v.rows(0, n).t());
                let rows_of = scores.chunks_exact_mut(n).zip(h.chunks_exact_mut(n)).zip(stats);
                for (row, ((scores, h), &stats)) in rows_of.enumerate() {
                    let start = self.result_at(head, first + row);
                    // Σ p h, over d numbers instead of N: p h = p (v g), and p v is the result.
                    let mean_h = dot(&ys[start..start + d], &grads[start..start + d]);
                    backward_row(scores, h, stats, mean_h);
                }
                if !dscores.is_empty() {
                    add(&mut dscores[first * n..][..rows * n], h);
                }
                let p = Mat::rows(scores, rows, n, n);
                let ds = Mat::rows(h, rows, n, n);
                matrix::matmul(&mut into(2, 0, n), write, 1.0, p.t(), g, Parallelism::None);
                let dq = &mut into(0, first, rows);
                matrix::matmul(dq, Write::Replace, dims.scale(), ds, k.rows(0, n), Parallelism::None);
                let dk = &mut into(1, 0, n);
                matrix::matmul(dk, write, dims.scale(), ds.t(), q.rows(first, rows), Parallelism::None);
            }
            if self.order.is_some() {
                for (i, row) in gathered.chunks_exact(d).enumerate() {
                    // SAFETY: as above, of a row that no other window has.
                    let mut out = unsafe { out.columns(self.packed_at(head, i / n, i % n), 1, d, d) };
                    out.row(0).copy_from_slice(row);
                }
            }
        });
    }

    pub(crate) fn forward(&self, qkv: &[f32], added: Option<Added>) -> (CpuStorage, Shape) {
        let Dims { batch, queries, .. } = self.dims;
        let mut ys = vec![0f32; batch * queries * self.dims.width()];
        self.forward_into(qkv, added, &mut ys);
        (CpuStorage::F32(ys), (batch, queries, self.dims.width()).into())
    }

    /// Writes the result [B, queries, D].
    pub(crate) fn forward_into(&self, qkv: &[f32], added: Option<Added>, ys: &mut [f32]) {
        let Dims {
            batch, queries, heads, ..
        } = self.dims;
        let mut stats = vec![[0f32; 2]; batch * heads * queries];
        let out = SharedMut::new(ys);
        stats.par_chunks_mut(queries).enumerate().for_each(|(i, stats)| {
            let head = Head {
                sample: i / heads,
                index: i % heads,
            };
            self.forward_head(qkv, added, head, out, stats);
        });
        // An op is run once, when it is applied; were it run again, it would find the same numbers here.
        self.stats.get_or_init(|| stats);
    }

    /// The gradients of `qkv` and, if `with_bias`, of [`Added::bias`].
    pub(crate) fn backward(
        &self,
        qkv: &Tensor,
        added: Option<Added>,
        ys: &Tensor,
        grad: &Tensor,
        with_bias: bool,
    ) -> Result<(Tensor, Vec<f32>)> {
        let grad = grad.contiguous()?;
        let (x, y, g) = (Elements::of(qkv)?, Elements::of(ys)?, Elements::of(&grad)?);
        let mut dqkv = vec![0f32; x.len()];
        let dbias = self.backward_into(&x, added, &y, &g, &mut dqkv, with_bias)?;
        Ok((kernel::tensor(dqkv, qkv.dims())?, dbias))
    }

    /// Writes the gradient of `qkv`, that of the queries only for those that there are. Returns, if `with_bias`, that of
    /// [`Added::bias`], which is added up over the samples in an order that the shapes alone decide.
    pub(crate) fn backward_into(
        &self,
        qkv: &[f32],
        added: Option<Added>,
        ys: &[f32],
        grads: &[f32],
        dqkv: &mut [f32],
        with_bias: bool,
    ) -> Result<Vec<f32>> {
        // Tasks among which a head's bias is summed up.
        const TASKS: usize = 64;
        let Some(stats) = self.stats.get() else {
            candle_core::bail!("the backward of masksub's attention was called before its forward");
        };
        let Dims {
            batch, tokens, heads, ..
        } = self.dims;
        let at = Backward {
            qkv,
            added,
            ys,
            grads,
            stats,
        };
        let out = SharedMut::new(dqkv);
        let (samples, area) = match with_bias {
            true => (batch.div_ceil(TASKS.div_ceil(heads)), tokens * tokens),
            false => (1, 0),
        };
        let shares = batch.div_ceil(samples);
        let mut dbias = vec![0f32; shares * heads * area];
        let dscores = SharedMut::new(&mut dbias);
        (0..shares * heads).into_par_iter().for_each(|i| {
            let (share, index) = (i / heads, i % heads);
            // SAFETY: this share's sum for this head belongs to this task alone, which one thread computes.
            let mut dscores = unsafe { dscores.columns(i * area, 1, area, area) };
            for sample in share * samples..((share + 1) * samples).min(batch) {
                self.backward_head(&at, Head { sample, index }, out, dscores.row(0));
            }
        });
        Ok(match with_bias {
            true => kernel::add_rows(dbias, heads * area),
            false => dbias,
        })
    }
}

/// What the backward of a head works from.
struct Backward<'a> {
    qkv: &'a [f32],
    added: Option<Added<'a>>,
    ys: &'a [f32],
    grads: &'a [f32],
    stats: &'a [[f32; 2]],
}

/// `out = scale * a b`, or `out += scale * a b`, with `out` rows of `width`.
fn product(out: &mut [f32], width: usize, write: Write, scale: f32, a: Mat, b: Mat) {
    let rows = out.len() / width;
    let mut out = MatMut::rows(out, rows, width, width);
    matrix::matmul(&mut out, write, scale, a, b, Parallelism::None);
}

struct Attention(Heads);

impl CustomOp1 for Attention {
    fn name(&self) -> &'static str {
        "attention"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        Ok(self.0.forward(kernel::elements(storage, layout)?, None))
    }

    fn bwd(&self, qkv: &Tensor, ys: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let (dqkv, _) = self.0.backward(qkv, None, ys, grad, false)?;
        Ok(Some(dqkv))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::{check, check_derivative, check_on, random, rng};
    use rand::Rng as _;

    fn kernel(heads: usize) -> impl Fn(&[Tensor]) -> Result<Tensor> + Sync {
        move |args| attention(&args[0], heads)
    }

    fn reference(heads: usize) -> impl Fn(&[Tensor]) -> Result<Tensor> + Sync {
        move |args| composition(&args[0], heads)
    }

    #[test]
    fn equals_its_composition() {
        let mut rng = rng(6);
        for seed in 0..8 {
            let mut size = |most| rng.random_range(1..=most);
            let (b, n, h, d) = (size(4), 1 + size(50), size(4), size(40));
            check(&kernel(h), &reference(h), &[&[b, n, 3 * h * d]], seed);
        }
    }

    #[test]
    fn equals_its_composition_at_the_edges() {
        check(&kernel(1), &reference(1), &[&[1, 1, 3]], 0);
        check(&kernel(2), &reference(2), &[&[1, 1, 30]], 1);
        check(&kernel(3), &reference(3), &[&[2, 197, 72]], 2);
        // More queries than a block holds, in blocks that are not equal.
        check(&kernel(2), &reference(2), &[&[1, 2 * QUERIES + 3, 18]], 3);
        // Sharp: a query attends to few keys.
        check_on(
            &kernel(2),
            &reference(2),
            &[(random(&[2, 20, 48], 4) * 3.0).unwrap()],
            4,
        );
    }

    /// Attention as its definition reads, one number at a time.
    #[test]
    fn composition_is_attention() {
        let (b, n, h, d) = (2, 3, 2, 4);
        let qkv = random(&[b, n, 3 * h * d], 0);
        let at = |s: usize, t: usize, part: usize, head: usize, i: usize| {
            let i = (part * h + head) * d + i;
            qkv.get(s)
                .unwrap()
                .get(t)
                .unwrap()
                .get(i)
                .unwrap()
                .to_scalar::<f64>()
                .unwrap()
        };
        let ys = composition(&qkv, h).unwrap().to_vec3::<f64>().unwrap();
        for (s, head, query) in (0..b * h * n).map(|i| (i / (h * n), i / n % h, i % n)) {
            let score = |key| {
                (0..d)
                    .map(|i| at(s, query, 0, head, i) * at(s, key, 1, head, i))
                    .sum::<f64>()
            };
            let weight: Vec<f64> = (0..n).map(|key| (score(key) / (d as f64).sqrt()).exp()).collect();
            for i in 0..d {
                let y =
                    (0..n).map(|key| weight[key] * at(s, key, 2, head, i)).sum::<f64>() / weight.iter().sum::<f64>();
                assert!((ys[s][query][head * d + i] - y).abs() < 1e-12);
            }
        }
    }

    #[test]
    fn composition_has_the_right_derivative() {
        check_derivative(&reference(2), &[&[2, 3, 12]], 0);
        check_derivative(&reference(1), &[&[1, 4, 9]], 1);
    }

    #[test]
    fn errors_name_the_argument() {
        let message = |qkv: &[usize], heads| attention(&random(qkv, 0), heads).unwrap_err().to_string();
        let expected = "[B, N, 3 D] with D a multiple of num_heads = 2";
        assert_eq!(
            message(&[2, 3, 15], 2),
            format!("qkv has shape [2, 3, 15], but must be {expected}")
        );
        // Three times as many heads would be 2 after an overflow.
        let heads = usize::MAX / 3 + 1;
        assert_eq!(
            message(&[2, 3, 4], heads),
            format!("qkv has shape [2, 3, 4], but must be [B, N, 3 D] with D a multiple of num_heads = {heads}")
        );
        assert_eq!(message(&[3, 15], 1), "qkv has shape [3, 15], but must be [B, N, 3 D]");
        assert_eq!(message(&[2, 3, 15], 0), "num_heads is 0, but must be at least 1");
    }

    #[test]
    fn of_nothing_is_nothing() {
        for shape in [[0, 3, 12], [2, 0, 12], [2, 3, 0]] {
            let qkv = Tensor::zeros(&shape, candle_core::DType::F32, &candle_core::Device::Cpu).unwrap();
            assert_eq!(attention(&qkv, 2).unwrap().dims(), [shape[0], shape[1], shape[2] / 3]);
        }
    }
}
