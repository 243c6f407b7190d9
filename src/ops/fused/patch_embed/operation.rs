//! The embedding of patches as one operation of candle's graph.

use candle_core::Result;
use gemm::Parallelism;
use rayon::prelude::*;

use crate::ops::autograd::{Backward, Operation, ParamGrads};
use crate::ops::cpu::buffer::Buffer;
use crate::ops::cpu::kernel;
use crate::ops::cpu::matrix::{self, Mat, MatMut};
use crate::ops::cpu::write::Write;
use crate::ops::linear::{self, add_rows_to};
use crate::ops::patchify::Patchify;

use super::Prefix;

/// Where the parameters stand: then come the tokens in front, where there are any, and the bias.
const WEIGHT: usize = 0;
const POSITIONS: usize = 1;
const OPTIONAL: usize = 2;

pub(super) struct Op {
    pub(super) patches: Patchify,
    /// D
    pub(super) width: usize,
    /// The positions of each sample's tokens, but for those in front.
    pub(super) keep: Vec<u32>,
    pub(super) prefix: Prefix,
}

/// What a row holds.
enum Row {
    /// A token in front of the patches', by its number.
    Prefix(usize),
    /// The patch at a position.
    Patch(usize),
}

impl Op {
    /// Tokens of a sample, with those in front.
    fn tokens(&self) -> usize {
        self.prefix.tokens + self.keep.len() / self.patches.batch()
    }

    /// The token in row `row` of all samples'.
    fn row(&self, row: usize) -> Row {
        let (tokens, prefix) = (self.tokens(), self.prefix.tokens);
        match (row % tokens).checked_sub(prefix) {
            Some(place) => Row::Patch(self.keep[row / tokens * (tokens - prefix) + place] as usize),
            None => Row::Prefix(row % tokens),
        }
    }

    /// Where the gradient of the bias goes.
    fn bias(&self) -> usize {
        OPTIONAL + usize::from(self.prefix.tokens > 0)
    }

    /// The patches as rows, [B (P + K), C p p], with zeros in the place of tokens in front: so all of them are one matrix.
    fn rows(&self, images: &[f32]) -> Buffer {
        let (tokens, len) = (self.tokens(), self.patches.patch());
        let mut rows = Buffer::new(self.patches.batch() * tokens * len);
        kernel::for_rows(&mut rows, len, |first, rows| {
            for (row, patch) in (first..).zip(rows.chunks_exact_mut(len)) {
                match self.row(row) {
                    Row::Patch(position) => self.patches.copy_patch(images, row / tokens, position, patch),
                    Row::Prefix(_) => patch.fill(0.0),
                }
            }
        });
        rows
    }

    fn embed(&self, images: &[f32], params: &[&[f32]]) -> Vec<f32> {
        let (weight, positions, optional) = (params[WEIGHT], params[POSITIONS], params.get(OPTIONAL));
        let bias = params.get(self.bias());
        let (d, len) = (self.width, self.patches.patch());
        let rows = self.patches.batch() * self.tokens();
        let offset = self.prefix.positions;
        let mut ys = vec![0f32; rows * d];
        // What the product is then added to.
        kernel::for_rows(&mut ys, d, |first, ys| {
            for (row, y) in (first..).zip(ys.chunks_exact_mut(d)) {
                match self.row(row) {
                    Row::Patch(position) => {
                        y.copy_from_slice(&positions[(offset + position) * d..][..d]);
                        if let Some(bias) = bias {
                            add_rows_to(bias, y);
                        }
                    }
                    Row::Prefix(at) => {
                        optional
                            .into_iter()
                            .for_each(|prefix| y.copy_from_slice(&prefix[at * d..][..d]));
                        if offset > 0 {
                            add_rows_to(&positions[at * d..][..d], y);
                        }
                    }
                }
            }
        });
        matrix::matmul(
            &mut MatMut::rows(&mut ys, rows, d, d),
            Write::Add,
            1.0,
            Mat::rows(&self.rows(images), rows, len, len),
            Mat::rows(weight, d, len, len).t(),
            Parallelism::Rayon(0),
        );
        ys
    }

    /// The gradients of positions, tokens in front, and bias.
    fn gradients_of_sums(&self, grads: &[f32]) -> [Vec<f32>; 3] {
        let (d, tokens, in_front) = (self.width, self.tokens(), self.prefix.tokens);
        let mut prefix = vec![0f32; in_front * d];
        for sample in grads.chunks_exact((tokens * d).max(1)) {
            for (row, sum) in sample.chunks_exact(d).zip(prefix.chunks_exact_mut(d)) {
                add_rows_to(row, sum);
            }
        }
        let (count, offset) = (self.patches.count(), self.prefix.positions);
        // The rows of each position: those of sample after sample.
        let mut rows_of = vec![Vec::new(); count];
        for row in 0..grads.len() / d {
            if let Row::Patch(position) = self.row(row) {
                rows_of[position].push(row);
            }
        }
        let mut positions = vec![0f32; (offset + count) * d];
        let (of_prefix, of_patches) = positions.split_at_mut(offset * d);
        if offset > 0 {
            of_prefix.copy_from_slice(&prefix);
        }
        kernel::for_rows(of_patches, d, |first, sums| {
            for (rows, sum) in rows_of[first..].iter().zip(sums.chunks_exact_mut(d)) {
                for row in rows {
                    add_rows_to(&grads[row * d..][..d], sum);
                }
            }
        });
        let mut bias = vec![0f32; d];
        add_rows_to(of_patches, &mut bias);
        [positions, prefix, bias]
    }

    fn gradient_of_images(&self, weight: &[f32], grads: &[f32]) -> Vec<f32> {
        let (d, len, tokens) = (self.width, self.patches.patch(), self.tokens());
        let rows = self.patches.batch() * tokens;
        let mut patches = Buffer::new(rows * len);
        matrix::matmul(
            &mut MatMut::rows(&mut patches, rows, len, len),
            Write::Replace,
            1.0,
            Mat::rows(grads, rows, d, d),
            Mat::rows(weight, d, len, len),
            Parallelism::Rayon(0),
        );
        let patches: &[f32] = &patches;
        let mut dimages = vec![0f32; self.patches.batch() * self.patches.image()];
        let images = dimages.par_chunks_exact_mut(self.patches.image());
        images.enumerate().for_each(|(sample, image)| {
            for row in sample * tokens..(sample + 1) * tokens {
                if let Row::Patch(position) = self.row(row) {
                    self.patches.add_patch(&patches[row * len..][..len], position, image);
                }
            }
        });
        dimages
    }
}

impl Operation for Op {
    const NAME: &'static str = "patch-embed";

    type Kept = ();

    fn result_dims(&self) -> Vec<usize> {
        vec![self.patches.batch(), self.tokens(), self.width]
    }

    fn forward(&self, images: &[f32], params: &[&[f32]], _: bool) -> Result<(Vec<f32>, ())> {
        Ok((self.embed(images, params), ()))
    }

    fn recompute(&self, _: &[f32], _: &[&[f32]]) -> Result<()> {
        Ok(())
    }

    fn backward(&self, of: Backward, _: (), param_grads: &mut ParamGrads) -> Result<Vec<f32>> {
        param_grads.write(WEIGHT, |out, write| {
            let rows = self.rows(of.xs);
            linear::weight_gradient(out, write, of.grads, self.width, &rows, self.patches.patch());
        })?;
        let sums = [POSITIONS, OPTIONAL, self.bias()];
        if sums.iter().any(|&index| param_grads.wants(index)) {
            let [positions, prefix, bias] = self.gradients_of_sums(of.grads);
            param_grads.set(POSITIONS, positions)?;
            if self.prefix.tokens > 0 {
                param_grads.set(OPTIONAL, prefix)?;
            }
            param_grads.set(self.bias(), bias)?;
        }
        Ok(if of.wants_dxs {
            self.gradient_of_images(of.params[WEIGHT], of.grads)
        } else {
            vec![]
        })
    }
}
