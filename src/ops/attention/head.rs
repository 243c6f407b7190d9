//! Attention in one head of one sample, in blocks of queries.

use gemm::Parallelism;

use super::added::Added;
use super::rows::{take, Head, HeadRows, Packed};
use crate::ops::cpu::elementwise::{dot, scale_into};
use crate::ops::cpu::kernel::{self, sum_by};
use crate::ops::cpu::math;
use crate::ops::cpu::matrix::{self, Mat, MatMut, SharedMut};
use crate::ops::cpu::write::Write;

/// The numbers that the backward of a head works from.
pub(super) struct HeadBackward<'a> {
    pub(super) qkv: &'a [f32],
    pub(super) added: Option<Added<'a>>,
    pub(super) ys: &'a [f32],
    pub(super) grads: &'a [f32],
    pub(super) stats: &'a [[f32; 2]],
}

kernel::simd_fn! {
    /// exp(score - largest of the row), the largest, and the reciprocal of the row's sum; zeros where all are hidden.
    pub(super) fn exp_rows<S>(scores: &mut [f32], width: usize, stats: &mut [[f32; 2]]) -> () {
        for (row, stats) in scores.chunks_exact_mut(width).zip(stats) {
            let max = kernel::max(row);
            let max = if max == f32::NEG_INFINITY { 0.0 } else { max };
            for s in row.iter_mut() {
                *s = math::exp::<S>(*s - max);
            }
            let sum = sum_by([row], |[p]| p);
            *stats = [max, if sum == 0.0 { 0.0 } else { 1.0 / sum }];
        }
    }
}

kernel::simd_fn! {
    /// Turns scores into probabilities p, and the gradient h of p into that of the scores, p (h - `mean_h`).
    pub(super) fn backward_row<S>(scores: &mut [f32], h: &mut [f32], stats: [f32; 2], mean_h: f32) -> () {
        let [max, scale] = stats;
        for (s, h) in scores.iter_mut().zip(h) {
            let p = math::exp::<S>(*s - max) * scale;
            *s = p;
            *h = p * (*h - mean_h);
        }
    }
}

impl HeadRows {
    /// The scores of some queries of a head, in rows of N.
    fn scores(&self, [q, k, _]: Packed, added: Option<Added>, head: Head, first: usize, scores: &mut [f32]) {
        let n = self.dims.tokens;
        let rows = scores.len() / n;
        let write = match added {
            None => Write::Replace,
            Some(added) => {
                added.write(head, n, first, scores);
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

    /// Writes a head's result to `out`, and what the backward needs to compute the probabilities again to `stats`.
    pub(super) fn forward_head(
        &self,
        qkv: &[f32],
        added: Option<Added>,
        head: Head,
        out: SharedMut,
        stats: &mut [[f32; 2]],
    ) {
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

    /// Writes a head's gradient to `out`; adds that of what is added to its scores to `dadded`, unless it is empty.
    pub(super) fn backward_head(&self, at: &HeadBackward, head: Head, out: SharedMut, dadded: &mut [f32]) {
        let &HeadBackward {
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
                if let (Some(added), false) = (added, dadded.is_empty()) {
                    added.add_gradient(head, n, first, h, dadded);
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
}

/// `out = scale * a b`, or `out += scale * a b`, with `out` rows of `width`.
pub(super) fn product(out: &mut [f32], width: usize, write: Write, scale: f32, a: Mat, b: Mat) {
    let rows = out.len() / width;
    let mut out = MatMut::rows(out, rows, width, width);
    matrix::matmul(&mut out, write, scale, a, b, Parallelism::None);
}
