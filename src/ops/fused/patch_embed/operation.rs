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

/// Where the parameters stand.
const WEIGHT: usize = 0;
const CLASS_TOKEN: usize = 1;
const POSITIONS: usize = 2;
const BIAS: usize = 3;

pub(super) struct Op {
    pub(super) patches: Patchify,
    /// D
    pub(super) width: usize,
    /// The positions of each sample's tokens, but for the class token.
    pub(super) keep: Vec<u32>,
    pub(super) class_position: bool,
}

impl Op {
    /// Tokens of a sample, with the class token.
    fn tokens(&self) -> usize {
        1 + self.keep.len() / self.patches.batch()
    }

    /// The position of the token in row `row` of all samples', or none for a class token's.
    fn position(&self, row: usize) -> Option<usize> {
        let tokens = self.tokens();
        let place = (row % tokens).checked_sub(1)?;
        Some(self.keep[row / tokens * (tokens - 1) + place] as usize)
    }

    /// The patches as rows, [B (1 + K), C p p], with zeros in the place of class tokens: so all of them are one matrix.
    fn rows(&self, images: &[f32]) -> Buffer {
        let (tokens, len) = (self.tokens(), self.patches.patch());
        let mut rows = Buffer::new(self.patches.batch() * tokens * len);
        kernel::for_rows(&mut rows, len, |first, rows| {
            for (row, patch) in (first..).zip(rows.chunks_exact_mut(len)) {
                match self.position(row) {
                    Some(position) => self.patches.copy_patch(images, row / tokens, position, patch),
                    None => patch.fill(0.0),
                }
            }
        });
        rows
    }

    fn embed(&self, images: &[f32], params: &[&[f32]]) -> Vec<f32> {
        let (weight, class_token, positions) = (params[WEIGHT], params[CLASS_TOKEN], params[POSITIONS]);
        let bias = params.get(BIAS);
        let (d, len) = (self.width, self.patches.patch());
        let rows = self.patches.batch() * self.tokens();
        let offset = usize::from(self.class_position);
        let mut ys = vec![0f32; rows * d];
        // What the product is then added to.
        kernel::for_rows(&mut ys, d, |first, ys| {
            for (row, y) in (first..).zip(ys.chunks_exact_mut(d)) {
                match self.position(row) {
                    Some(position) => {
                        y.copy_from_slice(&positions[(offset + position) * d..][..d]);
                        if let Some(bias) = bias {
                            add_rows_to(bias, y);
                        }
                    }
                    None => {
                        y.copy_from_slice(class_token);
                        if self.class_position {
                            add_rows_to(&positions[..d], y);
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

    /// The gradients of class token, positions and bias.
    fn gradients_of_sums(&self, grads: &[f32]) -> [Vec<f32>; 3] {
        let (d, tokens) = (self.width, self.tokens());
        let mut class_token = vec![0f32; d];
        for sample in grads.chunks_exact(tokens * d) {
            add_rows_to(&sample[..d], &mut class_token);
        }
        let (count, offset) = (self.patches.count(), usize::from(self.class_position));
        // The rows of each position: those of sample after sample.
        let mut rows_of = vec![Vec::new(); count];
        for row in 0..grads.len() / d {
            if let Some(position) = self.position(row) {
                rows_of[position].push(row);
            }
        }
        let mut positions = vec![0f32; (offset + count) * d];
        let (of_class, of_patches) = positions.split_at_mut(offset * d);
        if self.class_position {
            of_class.copy_from_slice(&class_token);
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
        [class_token, positions, bias]
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
                if let Some(position) = self.position(row) {
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
        let sums = [CLASS_TOKEN, POSITIONS, BIAS];
        if sums.iter().any(|&index| param_grads.wants(index)) {
            for (index, gradient) in sums.into_iter().zip(self.gradients_of_sums(of.grads)) {
                param_grads.set(index, gradient)?;
            }
        }
        Ok(if of.wants_dxs {
            self.gradient_of_images(of.params[WEIGHT], of.grads)
        } else {
            vec![]
        })
    }
}
