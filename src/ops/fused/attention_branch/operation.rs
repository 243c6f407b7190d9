//! Attention with all around it, of a whole sequence, of its first token or within windows, in candle's graph.

use candle_core::{Result, Tensor};
use gemm::Parallelism;

use super::AttentionBranch;
use crate::ops::attention::{Added, Dims, Heads};
use crate::ops::autograd::{Backward, Operation, ParamGrads};
use crate::ops::biased_attention::with_rows;
use crate::ops::cpu::buffer::Buffer;
use crate::ops::cpu::elementwise::to_vec;
use crate::ops::cpu::kernel::{self, Elements};
use crate::ops::cpu::matrix::{self, Mat, MatMut};
use crate::ops::cpu::write::Write;
use crate::ops::fused::packed;
use crate::ops::fused::projection::Rows;
use crate::ops::fused::residual::{self, MIDDLE, NORM, PROJECTION};
use crate::ops::fused::stream::Link;
use crate::ops::linear;
use crate::ops::rotary_qkv::Rotate;
use crate::ops::window;

/// The operation on tokens of `dims`, once all has been checked.
pub(crate) fn operation(
    branch: &AttentionBranch,
    dims: Dims,
    drop_path: Option<&[f32]>,
    places: impl FnOnce(Option<&[usize]>) -> Result<Places>,
) -> Result<Box<dyn Link>> {
    packed::branch(dims.batch, drop_path, |share| {
        let dims = Dims {
            batch: share.batch,
            ..dims
        };
        let places = places(share.samples)?;
        Ok(Op {
            dims,
            eps: branch.eps as f32,
            recompute: branch.recompute,
            heads: match &places {
                Places::Sequence { .. } => Heads::new(dims),
                Places::Windows(Windowed { window, order, .. }) => {
                    Heads::of_windows(dims.within(*window), order.clone())
                }
            },
            places,
            drop_path: share.drop_path.map(<[f32]>::to_vec),
        })
    })
}

struct Op {
    dims: Dims,
    eps: f32,
    recompute: bool,
    heads: Heads,
    places: Places,
    drop_path: Option<Vec<f32>>,
}

/// What the places of tokens do to attention.
pub(crate) enum Places {
    Sequence {
        /// Turns queries and keys.
        rotate: Option<Rotate>,
        /// The rows of each query and key in a table, which is the last of the parameters: [1, N, N] or [B, N, N].
        index: Option<Tensor>,
    },
    Windows(Windowed),
}

/// What attention within windows adds to the scores: biases from a table, which is the last of the parameters, and a
/// mask.
pub(crate) struct Windowed {
    /// Side of a window.
    pub(crate) window: usize,
    /// Which rows of a sample the tokens of its windows are, window by window.
    pub(crate) order: Vec<u32>,
    /// [windows, window², window²], contiguous `f32` on the CPU.
    pub(crate) mask: Option<Tensor>,
}

/// The columns of a matrix with so many, one after another.
fn transposed(matrix: &[f32], columns: usize) -> Vec<f32> {
    let of_column = |column| matrix.iter().skip(column).step_by(columns).copied();
    (0..columns).flat_map(of_column).collect()
}

/// What a backward reads.
struct Kept {
    /// [B, N, 3 D], turned. Where the first tokens alone are computed, the others' queries are whatever was left in the memory,
    /// and nobody reads them: not the heads, and not the products and sums, which go by [`Op::parts`].
    qkv: Buffer,
    /// What the heads gave, [B, queries, D].
    heads: Buffer,
}

/// Some columns of some rows of a matrix [B, N, ..]: queries, or keys and values.
#[derive(Clone, Copy)]
struct Part {
    /// First column and number of columns in 3 D.
    columns: [usize; 2],
    rows: usize,
    /// From one row to the next, in rows of [B N].
    step: usize,
}

impl Op {
    /// The parameters of the branch, and the table that comes last where there is one.
    fn split<'p, 'a>(&self, params: &'p [&'a [f32]]) -> (&'p [&'a [f32]], Option<&'a [f32]>) {
        match (&self.places, params) {
            (Places::Sequence { index: None, .. }, branch) => (branch, None),
            (_, [branch @ .., table]) => (branch, Some(table)),
            (_, []) => (params, None),
        }
    }

    /// Calls `f` with what is added to the scores.
    fn with_added<T>(&self, table: Option<&[f32]>, f: impl FnOnce(Option<Added>) -> T) -> Result<T> {
        let heads = self.dims.heads;
        match (&self.places, table) {
            (Places::Windows(Windowed { window, mask, .. }), Some(table)) => {
                let bias = window::bias_of(table, heads, *window);
                let mask = mask.as_ref().map(Elements::of).transpose()?;
                let mask = mask.as_deref().unwrap_or(&[]);
                Ok(f(Some(Added::Square { bias: &bias, mask })))
            }
            (Places::Sequence { index: Some(index), .. }, Some(table)) => {
                let (columns, rows) = (&transposed(table, heads), table.len() / heads);
                with_rows(index, |index| f(Some(Added::Table { columns, index, rows })))
            }
            _ => Ok(f(None)),
        }
    }

    /// The gradient of the table, from that of what is added.
    fn table_gradient(&self, dadded: &[f32]) -> Vec<f32> {
        let heads = self.dims.heads;
        match &self.places {
            Places::Windows(Windowed { window, .. }) => window::table_gradient(dadded, heads, *window),
            Places::Sequence { .. } => transposed(dadded, dadded.len() / heads),
        }
    }

    fn rotate(&self) -> Option<&Rotate> {
        match &self.places {
            Places::Sequence { rotate, .. } => rotate.as_ref(),
            Places::Windows(_) => None,
        }
    }

    /// The parts of `qkv` that are computed: all of it, or the queries of the first tokens and all keys and values.
    fn parts(&self) -> Vec<Part> {
        let d = self.dims.width();
        let (batch, tokens, queries) = (self.dims.batch, self.dims.tokens, self.dims.queries);
        let all = |columns| Part {
            columns,
            rows: batch * tokens,
            step: 1,
        };
        if queries == tokens {
            return vec![all([0, 3 * d])];
        }
        let first = Part {
            columns: [0, d],
            rows: batch,
            step: tokens,
        };
        vec![first, all([d, 2 * d])]
    }

    fn project(&self, normed: &[f32], weight: &[f32], bias: &[f32]) -> Buffer {
        let d = self.dims.width();
        let mut qkv = Buffer::new(3 * normed.len());
        for part in self.parts() {
            let [start, columns] = part.columns;
            kernel::for_rows(&mut qkv, 3 * d, |first, rows| {
                for (row, qkv) in (first..).zip(rows.chunks_exact_mut(3 * d)) {
                    if row % part.step == 0 {
                        qkv[start..start + columns].copy_from_slice(&bias[start..start + columns]);
                    }
                }
            });
            matrix::matmul(
                &mut MatMut::rows(&mut qkv[start..], part.rows, columns, part.step * 3 * d),
                Write::Add,
                1.0,
                Mat::rows(normed, part.rows, d, part.step * d),
                Mat::rows(&weight[start * d..], columns, d, d).t(),
                Parallelism::Rayon(0),
            );
        }
        qkv
    }

    /// The gradient of the weight of the projection to queries, keys and values: written to `out`, or added to it.
    fn project_weight(&self, out: &mut [f32], write: Write, normed: &[f32], dqkv: &[f32]) {
        let d = self.dims.width();
        for part in self.parts() {
            let [start, columns] = part.columns;
            matrix::matmul(
                &mut MatMut::rows(&mut out[start * d..], columns, d, d),
                write,
                1.0,
                Mat::rows(&dqkv[start..], part.rows, columns, part.step * 3 * d).t(),
                Mat::rows(normed, part.rows, d, part.step * d),
                Parallelism::Rayon(0),
            );
        }
    }

    /// Writes the gradient of the normed input.
    fn project_backward(&self, dqkv: &[f32], weight: &[f32], dnormed: &mut [f32]) {
        let d = self.dims.width();
        // Keys and values first, which every token has: queries are then added where there are any.
        for (i, part) in self.parts().into_iter().rev().enumerate() {
            let [start, columns] = part.columns;
            matrix::matmul(
                &mut MatMut::rows(dnormed, part.rows, d, part.step * d),
                if i == 0 { Write::Replace } else { Write::Add },
                1.0,
                Mat::rows(&dqkv[start..], part.rows, columns, part.step * 3 * d),
                Mat::rows(&weight[start * d..], columns, d, d),
                Parallelism::Rayon(0),
            );
        }
    }

    /// The gradient of the projection's bias.
    fn project_bias(&self, dqkv: &[f32]) -> Vec<f32> {
        let d = self.dims.width();
        let mut dbias = vec![0f32; 3 * d];
        for part in self.parts() {
            let [start, columns] = part.columns;
            let sums = kernel::sum_over_rows(part.rows, columns, columns, |first, rows, sums| {
                for row in first..first + rows {
                    linear::add_rows_to(&dqkv[row * part.step * 3 * d + start..][..columns], sums);
                }
            });
            dbias[start..start + columns].copy_from_slice(&sums);
        }
        dbias
    }
}

impl Op {
    /// The gradient of the input by the sum alone, past the branch.
    fn skip_gradient(&self, grads: Vec<f32>) -> Vec<f32> {
        let (step, width) = (self.dims.tokens / self.dims.queries, self.dims.width());
        if step == 1 {
            return grads;
        }
        let mut dxs = vec![0f32; step * grads.len()];
        for (dx, g) in dxs.chunks_exact_mut(step * width).zip(grads.chunks_exact(width)) {
            dx[..width].copy_from_slice(g);
        }
        dxs
    }
}

impl Operation for Op {
    const NAME: &'static str = "attention-branch";

    type Kept = Kept;

    fn result_dims(&self) -> Vec<usize> {
        vec![self.dims.batch, self.dims.queries, self.dims.width()]
    }

    fn forward(&self, xs: &[f32], params: &[&[f32]], _: bool) -> Result<(Vec<f32>, Kept)> {
        let kept = self.recompute(xs, params)?;
        let (_, _, proj) = residual::parts(self.split(params).0, self.eps);
        let rows = Rows {
            data: xs,
            step: self.dims.tokens / self.dims.queries,
        };
        Ok((proj.add_to(rows, &kept.heads, self.drop_path.as_deref()), kept))
    }

    fn keeps(&self) -> bool {
        !self.recompute
    }

    fn recompute(&self, xs: &[f32], params: &[&[f32]]) -> Result<Kept> {
        let (branch, table) = self.split(params);
        let (norm, [weight, bias], _) = residual::parts(branch, self.eps);
        let mut qkv = self.project(&norm.forward(xs), weight, bias);
        if let Some(rotate) = self.rotate() {
            rotate.turn(&mut qkv)?;
        }
        let mut heads = Buffer::new(self.result_dims().iter().product());
        self.with_added(table, |added| self.heads.forward_into(&qkv, added, &mut heads))?;
        Ok(Kept { qkv, heads })
    }

    fn backward(&self, of: Backward, kept: Kept, param_grads: &mut ParamGrads) -> Result<Vec<f32>> {
        self.backward_in_place(of.xs, of.params, to_vec(of.grads), kept, param_grads)
    }

    fn backward_in_place(
        &self,
        xs: &[f32],
        params: &[&[f32]],
        grads: Vec<f32>,
        kept: Kept,
        param_grads: &mut ParamGrads,
    ) -> Result<Vec<f32>> {
        let (branch, table) = self.split(params);
        let (norm, [weight, _], proj) = residual::parts(branch, self.eps);
        let dropped = residual::dropped(&grads, self.dims.width(), self.drop_path.as_deref());
        let mut dheads = Buffer::new(kept.heads.len());
        let input_gradient = || proj.backward(&dropped, &mut dheads);
        proj.param_gradients(&mut param_grads.part(PROJECTION), &dropped, &kept.heads, input_gradient)?;
        let of_table = branch.len();
        let wants_table = table.is_some() && param_grads.wants(of_table);
        let mut dqkv = Buffer::new(kept.qkv.len());
        let dadded = self.with_added(table, |added| {
            self.heads
                .backward_into(&kept.qkv, added, &kept.heads, &dheads, &mut dqkv, wants_table)
        })??;
        if wants_table {
            param_grads.set(of_table, self.table_gradient(&dadded))?;
        }
        if let Some(rotate) = self.rotate() {
            rotate.back().turn(&mut dqkv)?;
        }
        drop((dheads, dropped, kept));
        let mut dnormed = Buffer::new(xs.len());
        let input_gradient = || self.project_backward(&dqkv, weight, &mut dnormed);
        param_grads.write_beside(MIDDLE, input_gradient, |out, write| {
            self.project_weight(out, write, &norm.forward(xs), &dqkv);
        })?;
        param_grads.set(MIDDLE + 1, self.project_bias(&dqkv))?;
        drop(dqkv);
        let mut dxs = self.skip_gradient(grads);
        norm.backward(xs, &dnormed, &mut dxs, &mut param_grads.part(NORM))?;
        Ok(dxs)
    }
}
