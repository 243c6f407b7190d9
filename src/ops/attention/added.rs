//! What is added to the scores of attention before the softmax.

use super::rows::Head;
use crate::ops::cpu::elementwise::add;

/// Numbers for pairs of a query and a key, which are added to their scores.
#[derive(Clone, Copy)]
pub(crate) enum Added<'a> {
    /// The same in all samples, and a mask that is the same in all heads.
    Square {
        /// [heads, N, N]
        bias: &'a [f32],
        /// [windows, N, N], where sample s has that of window s modulo the number of windows; empty if there is none.
        mask: &'a [f32],
    },
    /// For each pair a row of a table, in which each head has a column.
    Table {
        /// [heads, R]: the table's columns, one after another.
        columns: &'a [f32],
        /// [1, N, N] or [B, N, N], each below R.
        index: &'a [u32],
        /// R.
        rows: usize,
    },
}

impl Added<'_> {
    /// Writes those of some queries of a head to `scores`, rows of `n`.
    pub(super) fn write(self, head: Head, n: usize, first: usize, scores: &mut [f32]) {
        let pairs = scores.len();
        match self {
            Self::Square { bias, mask } => {
                scores.copy_from_slice(&bias[(head.index * n + first) * n..][..pairs]);
                if !mask.is_empty() {
                    let window = head.sample % (mask.len() / (n * n));
                    add(scores, &mask[(window * n + first) * n..][..pairs]);
                }
            }
            Self::Table { columns, index, rows } => {
                let column = &columns[head.index * rows..][..rows];
                for (score, &row) in scores.iter_mut().zip(&of_sample(index, head, n)[first * n..]) {
                    *score = column[row as usize];
                }
            }
        }
    }

    /// Numbers of a head's gradient: that of [`Self::Square`]'s bias, or of the table's column.
    pub(super) fn gradient_len(self, n: usize) -> usize {
        match self {
            Self::Square { .. } => n * n,
            Self::Table { rows, .. } => rows,
        }
    }

    /// Adds what the gradients of the scores of some queries of a head, rows of `n`, are to its gradient.
    pub(super) fn add_gradient(self, head: Head, n: usize, first: usize, dscores: &[f32], gradient: &mut [f32]) {
        match self {
            Self::Square { .. } => add(&mut gradient[first * n..][..dscores.len()], dscores),
            Self::Table { index, .. } => {
                for (ds, &row) in dscores.iter().zip(&of_sample(index, head, n)[first * n..]) {
                    gradient[row as usize] += ds;
                }
            }
        }
    }
}

/// [N, N] of [1, N, N] or [B, N, N].
fn of_sample(index: &[u32], head: Head, n: usize) -> &[u32] {
    let pairs = n * n;
    let sample = if index.len() == pairs { 0 } else { head.sample };
    &index[sample * pairs..][..pairs]
}
