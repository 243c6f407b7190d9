//! Attention in all heads of all samples, in parallel.

use std::sync::OnceLock;

use candle_core::{CpuStorage, Result, Shape, Tensor};
use rayon::prelude::*;

use super::added::Added;
use super::dims::Dims;
use super::head::HeadBackward;
use super::rows::{Head, HeadRows};
use crate::ops::cpu::kernel::{self, Elements};
use crate::ops::cpu::matrix::SharedMut;

/// The kernel that attention of a sequence and attention within windows share.
pub(crate) struct Heads {
    rows: HeadRows,
    /// For each query of each head of each sample the largest score and the reciprocal sum of the exponentials, from
    /// which the backward gets the very probabilities of the forward.
    stats: OnceLock<Vec<[f32; 2]>>,
}

impl Heads {
    /// Of samples whose tokens lie one after another.
    pub(crate) fn new(dims: Dims) -> Self {
        Self {
            rows: HeadRows { dims, order: None },
            stats: OnceLock::new(),
        }
    }

    /// Of samples that are windows: `order` tells, window by window, which rows of a grid the tokens are, each row
    /// once.
    pub(crate) fn of_windows(dims: Dims, order: Vec<u32>) -> Self {
        let order = Some(order);
        Self {
            rows: HeadRows { dims, order },
            stats: OnceLock::new(),
        }
    }

    /// The result [B, queries, D], as an operation of candle's returns it.
    pub(crate) fn forward(&self, qkv: &[f32], added: Option<Added>) -> (CpuStorage, Shape) {
        let Dims { batch, queries, .. } = self.rows.dims;
        let mut ys = vec![0f32; batch * queries * self.rows.dims.width()];
        self.forward_into(qkv, added, &mut ys);
        (CpuStorage::F32(ys), (batch, queries, self.rows.dims.width()).into())
    }

    /// Writes the result [B, queries, D].
    pub(crate) fn forward_into(&self, qkv: &[f32], added: Option<Added>, ys: &mut [f32]) {
        let Dims {
            batch, queries, heads, ..
        } = self.rows.dims;
        let mut stats = vec![[0f32; 2]; batch * heads * queries];
        let out = SharedMut::new(ys);
        stats.par_chunks_mut(queries).enumerate().for_each(|(i, stats)| {
            let head = Head {
                sample: i / heads,
                index: i % heads,
            };
            self.rows.forward_head(qkv, added, head, out, stats);
        });
        // Whoever computes once more finds the same numbers here.
        self.stats.get_or_init(|| stats);
    }

    /// The gradients of `qkv` and, if `with_added`, of what is added.
    pub(crate) fn backward(
        &self,
        qkv: &Tensor,
        added: Option<Added>,
        ys: &Tensor,
        grad: &Tensor,
        with_added: bool,
    ) -> Result<(Tensor, Vec<f32>)> {
        let grad = grad.contiguous()?;
        let (x, y, g) = (Elements::of(qkv)?, Elements::of(ys)?, Elements::of(&grad)?);
        let mut dqkv = vec![0f32; x.len()];
        let dadded = self.backward_into(&x, added, &y, &g, &mut dqkv, with_added)?;
        Ok((kernel::tensor(dqkv, qkv.dims())?, dadded))
    }

    /// Writes the gradient of `qkv`, that of the queries only for those that there are. Returns, if `with_added`, that
    /// of what is added, which is added up over the samples in an order that the shapes alone decide.
    pub(crate) fn backward_into(
        &self,
        qkv: &[f32],
        added: Option<Added>,
        ys: &[f32],
        grads: &[f32],
        dqkv: &mut [f32],
        with_added: bool,
    ) -> Result<Vec<f32>> {
        // Tasks among which a head's bias is summed up.
        const TASKS: usize = 64;
        let Some(stats) = self.stats.get() else {
            candle_core::bail!("the backward of masksub's attention was called before its forward");
        };
        let Dims {
            batch, tokens, heads, ..
        } = self.rows.dims;
        let at = HeadBackward {
            qkv,
            added,
            ys,
            grads,
            stats,
        };
        let out = SharedMut::new(dqkv);
        let (samples, area) = match added {
            Some(added) if with_added => (batch.div_ceil(TASKS.div_ceil(heads)), added.gradient_len(tokens)),
            _ => (1, 0),
        };
        let shares = batch.div_ceil(samples);
        let mut dadded = vec![0f32; shares * heads * area];
        let sums = SharedMut::new(&mut dadded);
        (0..shares * heads).into_par_iter().for_each(|i| {
            let (share, index) = (i / heads, i % heads);
            // SAFETY: this share's sum of this head belongs to this task alone, which one thread computes.
            let mut sum = unsafe { sums.columns(i * area, 1, area, area) };
            for sample in share * samples..((share + 1) * samples).min(batch) {
                self.rows.backward_head(&at, Head { sample, index }, out, sum.row(0));
            }
        });
        if area == 0 {
            return Ok(dadded);
        }
        Ok(kernel::add_rows(dadded, heads * area))
    }
}
