//! Attention of queries, keys and values that come apart, head by head: what `nn`'s functions of attention take.

use std::sync::OnceLock;

use candle_core::{CpuStorage, CustomOp3, Layout, Result, Shape, Tensor};
use rayon::prelude::*;

use super::dims::blocks_of;
use super::head::{backward_row, exp_rows, product};
use crate::ops::cpu::elementwise::dot;
use crate::ops::cpu::kernel::{self, with_elements};
use crate::ops::cpu::matrix::Mat;
use crate::ops::cpu::write::Write;
use crate::ops::route::Route;

/// softmax(`scale` q kᵀ + `bias`) v, [B, H, S, E], of `q` [B, H, S, D], `k` [B, H', T, D] and `v` [B, H', T, E] that fit,
/// and a `bias` that is broadcast to [B, H, S, T]; a query from which every key is hidden gets zeros. None where this
/// is not for the kernel: other dtypes and devices, keys in other heads than values, a bias with a gradient.
pub(crate) fn attend(q: &Tensor, k: &Tensor, v: &Tensor, scale: f32, bias: Option<&Tensor>) -> Result<Option<Tensor>> {
    let tensors: Vec<_> = [q, k, v].into_iter().chain(bias).collect();
    if Route::precise(&tensors) != Route::Kernel || k.dim(1)? != v.dim(1)? || bias.is_some_and(Tensor::track_op) {
        return Ok(None);
    }
    let (batch, heads, queries, width) = q.dims4()?;
    let (_, few_heads, keys, value_width) = v.dims4()?;
    let sizes = Sizes {
        batch,
        heads,
        few_heads,
        queries,
        keys,
        width,
        value_width,
    };
    let op = Separate {
        sizes,
        scale,
        bias: bias.map(|bias| Bias::new(bias, &sizes)).transpose()?,
        stats: OnceLock::new(),
    };
    let q = q.contiguous()?;
    // candle locks the three one after the other, and none may be taken twice (see `with_elements`).
    let apart = |xs: &Tensor, others: &[&Tensor]| {
        let xs = xs.contiguous()?;
        match others.iter().any(|other| kernel::same_storage(&xs, other)) {
            true => xs.force_contiguous(),
            false => Ok(xs),
        }
    };
    let k = apart(k, &[&q])?;
    let v = apart(v, &[&q, &k])?;
    q.apply_op3(&k, &v, op).map(Some)
}

#[derive(Clone, Copy)]
struct Sizes {
    batch: usize,
    heads: usize,
    /// Those of keys and values, each of which serves as many query heads in turn.
    few_heads: usize,
    queries: usize,
    keys: usize,
    width: usize,
    value_width: usize,
}

impl Sizes {
    /// Query heads of a head of keys.
    fn group(&self) -> usize {
        self.heads / self.few_heads
    }
}

/// What is added to the scores.
struct Bias {
    data: Vec<f32>,
    /// From one sample, head, query and key to the next: 0 where all have the same.
    strides: [usize; 4],
}

impl Bias {
    fn new(bias: &Tensor, sizes: &Sizes) -> Result<Self> {
        let whole = [sizes.batch, sizes.heads, sizes.queries, sizes.keys];
        let lacking = whole.len() - bias.rank();
        let mut strides = [0; 4];
        let mut stride = 1;
        for (dim, &size) in bias.dims().iter().enumerate().rev() {
            if size > 1 {
                strides[lacking + dim] = stride;
            }
            stride *= size;
        }
        Ok(Self {
            data: bias.flatten_all()?.to_vec1()?,
            strides,
        })
    }

    /// Writes that of some queries of a head to `scores`, rows of `keys`.
    fn write(&self, head: Head, first: usize, scores: &mut [f32], keys: usize) {
        let [of_sample, of_head, of_query, of_key] = self.strides;
        let start = head.sample * of_sample + head.index * of_head;
        for (query, scores) in (first..).zip(scores.chunks_exact_mut(keys)) {
            let row = &self.data[start + query * of_query..];
            match of_key {
                0 => scores.fill(row[0]),
                _ => scores.copy_from_slice(&row[..keys]),
            }
        }
    }
}

/// One head of one sample.
#[derive(Clone, Copy)]
struct Head {
    sample: usize,
    index: usize,
}

/// A head's queries, keys and values, each row by row.
#[derive(Clone, Copy)]
struct Parts<'a> {
    q: &'a [f32],
    k: &'a [f32],
    v: &'a [f32],
}

/// A head's result, the gradient of it, and what the forward has kept.
#[derive(Clone, Copy)]
struct Upstream<'a> {
    ys: &'a [f32],
    grads: &'a [f32],
    stats: &'a [[f32; 2]],
}

struct Separate {
    sizes: Sizes,
    scale: f32,
    bias: Option<Bias>,
    /// For each query of each head of each sample the largest score and the reciprocal sum of the exponentials, from
    /// which the backward gets the very probabilities of the forward.
    stats: OnceLock<Vec<[f32; 2]>>,
}

impl Separate {
    /// The scores of some queries of a head.
    fn scores(&self, of: Parts, head: Head, first: usize, scores: &mut [f32]) {
        let Sizes { keys, width, .. } = self.sizes;
        let rows = scores.len() / keys;
        let write = match &self.bias {
            Some(bias) => {
                bias.write(head, first, scores, keys);
                Write::Add
            }
            None => Write::Replace,
        };
        let q = Mat::rows(&of.q[first * width..], rows, width, width);
        product(
            scores,
            keys,
            write,
            self.scale,
            q,
            Mat::rows(of.k, keys, width, width).t(),
        );
    }

    /// Writes a head's result, [S, E].
    fn forward_head(&self, of: Parts, head: Head, ys: &mut [f32], stats: &mut [[f32; 2]]) {
        let Sizes {
            queries,
            keys,
            value_width,
            ..
        } = self.sizes;
        let block = blocks_of(queries);
        kernel::with_scratch(block * keys, |scores| {
            for (i, stats) in stats.chunks_mut(block).enumerate() {
                let (first, rows) = (i * block, stats.len());
                let scores = &mut scores[..rows * keys];
                self.scores(of, head, first, scores);
                exp_rows(scores, keys, stats);
                let ys = &mut ys[first * value_width..][..rows * value_width];
                let v = Mat::rows(of.v, keys, value_width, value_width);
                product(
                    ys,
                    value_width,
                    Write::Replace,
                    1.0,
                    Mat::rows(scores, rows, keys, keys),
                    v,
                );
                for (y, &[_, scale]) in ys.chunks_exact_mut(value_width).zip(&*stats) {
                    for y in y {
                        *y *= scale;
                    }
                }
            }
        });
    }

    /// Writes the gradient of a head's queries; writes, or adds, those of its keys and values.
    fn backward_head(&self, of: Parts, up: Upstream, head: Head, [dq, dk, dv]: [&mut [f32]; 3], write: Write) {
        let Sizes {
            queries,
            keys,
            width,
            value_width,
            ..
        } = self.sizes;
        let block = blocks_of(queries);
        kernel::with_scratch(2 * block * keys, |scratch| {
            let (scores, h) = scratch.split_at_mut(block * keys);
            for (i, stats) in up.stats.chunks(block).enumerate() {
                let (first, rows) = (i * block, stats.len());
                let (scores, h) = (&mut scores[..rows * keys], &mut h[..rows * keys]);
                let of_rows = first * value_width..(first + rows) * value_width;
                let (ys, grads) = (&up.ys[of_rows.clone()], &up.grads[of_rows]);
                let g = Mat::rows(grads, rows, value_width, value_width);
                self.scores(of, head, first, scores);
                let v = Mat::rows(of.v, keys, value_width, value_width);
                product(h, keys, Write::Replace, 1.0, g, v.t());
                let rows_of = scores.chunks_exact_mut(keys).zip(h.chunks_exact_mut(keys)).zip(stats);
                let results = ys.chunks_exact(value_width).zip(grads.chunks_exact(value_width));
                for (((scores, h), &stats), (y, g)) in rows_of.zip(results) {
                    // Σ p h, over E numbers instead of T: p h = p (v g), and p v is the result.
                    backward_row(scores, h, stats, dot(y, g));
                }
                let (p, ds) = (Mat::rows(scores, rows, keys, keys), Mat::rows(h, rows, keys, keys));
                let write = if i == 0 { write } else { Write::Add };
                let dq = &mut dq[first * width..][..rows * width];
                product(
                    dq,
                    width,
                    Write::Replace,
                    self.scale,
                    ds,
                    Mat::rows(of.k, keys, width, width),
                );
                let q = Mat::rows(&of.q[first * width..], rows, width, width);
                product(dk, width, write, self.scale, ds.t(), q);
                product(dv, value_width, write, 1.0, p.t(), g);
            }
        });
    }

    fn parts<'a>(&self, [q, k, v]: [&'a [f32]; 3], head: Head) -> Parts<'a> {
        let Sizes {
            heads,
            few_heads,
            queries,
            keys,
            width,
            value_width,
            ..
        } = self.sizes;
        let of_queries = head.sample * heads + head.index;
        let of_keys = head.sample * few_heads + head.index / self.sizes.group();
        Parts {
            q: &q[of_queries * queries * width..][..queries * width],
            k: &k[of_keys * keys * width..][..keys * width],
            v: &v[of_keys * keys * value_width..][..keys * value_width],
        }
    }

    fn forward(&self, qkv: [&[f32]; 3]) -> Vec<f32> {
        let Sizes {
            batch,
            heads,
            queries,
            value_width,
            ..
        } = self.sizes;
        let mut stats = vec![[0f32; 2]; batch * heads * queries];
        let mut ys = vec![0f32; stats.len() * value_width];
        let tasks = ys
            .par_chunks_mut(queries * value_width)
            .zip(stats.par_chunks_mut(queries));
        tasks.enumerate().for_each(|(i, (ys, stats))| {
            let head = Head {
                sample: i / heads,
                index: i % heads,
            };
            self.forward_head(self.parts(qkv, head), head, ys, stats);
        });
        // An op is run once, when it is applied; were it run again, it would find the same numbers here.
        self.stats.get_or_init(|| stats);
        ys
    }

    /// The gradients of queries, keys and values.
    fn backward(&self, qkv: [&[f32]; 3], ys: &[f32], grads: &[f32]) -> Result<[Vec<f32>; 3]> {
        let Sizes {
            few_heads,
            queries,
            keys,
            width,
            value_width,
            ..
        } = self.sizes;
        let Some(stats) = self.stats.get() else {
            candle_core::bail!("the backward of masksub's attention was called before its forward");
        };
        let group = self.sizes.group();
        let [mut dq, mut dk, mut dv] = qkv.map(|part| vec![0f32; part.len()]);
        let of_heads = dq.par_chunks_mut(group * queries * width);
        let of_heads = of_heads
            .zip(dk.par_chunks_mut(keys * width))
            .zip(dv.par_chunks_mut(keys * value_width));
        of_heads.enumerate().for_each(|(i, ((dq, dk), dv))| {
            for (j, dq) in dq.chunks_exact_mut(queries * width).enumerate() {
                let at = (i * group + j) * queries;
                let rows = at * value_width..(at + queries) * value_width;
                let up = Upstream {
                    ys: &ys[rows.clone()],
                    grads: &grads[rows],
                    stats: &stats[at..at + queries],
                };
                let head = Head {
                    sample: i / few_heads,
                    index: i % few_heads * group + j,
                };
                let write = if j == 0 { Write::Replace } else { Write::Add };
                self.backward_head(self.parts(qkv, head), up, head, [dq, &mut *dk, &mut *dv], write);
            }
        });
        Ok([dq, dk, dv])
    }
}

impl CustomOp3 for Separate {
    fn name(&self) -> &'static str {
        "attention"
    }

    fn cpu_fwd(
        &self,
        s1: &CpuStorage,
        l1: &Layout,
        s2: &CpuStorage,
        l2: &Layout,
        s3: &CpuStorage,
        l3: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let Sizes {
            batch,
            heads,
            queries,
            value_width,
            ..
        } = self.sizes;
        let qkv = [
            kernel::elements(s1, l1)?,
            kernel::elements(s2, l2)?,
            kernel::elements(s3, l3)?,
        ];
        Ok((
            CpuStorage::F32(self.forward(qkv)),
            (batch, heads, queries, value_width).into(),
        ))
    }

    fn bwd(
        &self,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        ys: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let grad = grad.contiguous()?;
        let [dq, dk, dv] = with_elements(&[q, k, v, ys, &grad], |slices| {
            let &[q, k, v, y, g] = slices else {
                candle_core::bail!("the backward of masksub's attention was called without its tensors");
            };
            self.backward([q, k, v], y, g)
        })?;
        let wanted = |of: &Tensor, data| of.track_op().then(|| kernel::tensor(data, of.dims())).transpose();
        Ok((wanted(q, dq)?, wanted(k, dk)?, wanted(v, dv)?))
    }
}
