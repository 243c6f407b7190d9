//! The convolution as matrix products, block by block.

use std::ops::Range;

use gemm::Parallelism;
use rayon::prelude::*;

use super::blocks::Block;
use super::geometry::Conv2d;
use super::im2col::{col2im, im2col};
use crate::ops::cpu::buffer::Buffer;
use crate::ops::cpu::elementwise::add;
use crate::ops::cpu::kernel;
use crate::ops::cpu::matrix::{self, Mat, MatMut, SharedMut};
use crate::ops::cpu::write::Write;

/// Pieces of work that there should be at least, for as many threads.
const TASKS: usize = 8;

impl Conv2d {
    /// Calls `f` with two pieces of scratch memory for blocks of up to `columns` positions, of which
    /// [`seen`](Self::seen) needs the first, for `seen_rows` rows, and samples that go together the second.
    fn with_scratch(&self, columns: usize, seen_rows: usize, f: impl FnOnce(&mut [f32], &mut [f32])) {
        let gathers = self.samples_together() > 1;
        let seen = if self.is_direct() && !gathers {
            0
        } else {
            seen_rows * columns
        };
        let gathered = if gathers { self.out_channels * columns } else { 0 };
        kernel::with_scratch(seen + gathered, |scratch| {
            let (seen, gathered) = scratch.split_at_mut(seen);
            f(seen, gathered);
        });
    }

    /// Some channels of the block's group as the kernel sees them at its positions, [channels kH kW, columns]: a view
    /// where the kernel sees the image itself, else written to `scratch`.
    fn seen<'a>(&self, xs: &'a [f32], block: &Block, channels: Range<usize>, scratch: &'a mut [f32]) -> Mat<'a> {
        let columns = block.width();
        let rows = channels.len() * self.taps();
        let start = |sample| self.input_at(sample, block.group, channels.start);
        if self.is_direct() && block.samples.len() == 1 {
            let first = start(block.samples.start) + self.start_of(&block.part);
            return Mat::rows(&xs[first..], rows, columns, self.area());
        }
        let scratch = &mut scratch[..rows * columns];
        let each = columns / block.samples.len();
        for (i, sample) in block.samples.clone().enumerate() {
            let image = &xs[start(sample)..][..channels.len() * self.area()];
            im2col(*self, image, &block.part, &mut scratch[i * each..], columns);
        }
        Mat::rows(scratch, rows, columns, columns)
    }

    /// The gradient of the result of the block's group at its positions, [out_channels, columns]: a view for a single
    /// sample, else written to `scratch`.
    fn gradient<'a>(&self, grads: &'a [f32], block: &Block, scratch: &'a mut [f32]) -> Mat<'a> {
        let (positions, columns) = (self.positions(), block.width());
        let start = |sample| self.result_at(sample, block.group);
        if block.samples.len() == 1 {
            let first = start(block.samples.start) + self.start_of(&block.part);
            return Mat::rows(&grads[first..], self.out_channels, columns, positions);
        }
        let scratch = &mut scratch[..self.out_channels * columns];
        for (i, sample) in block.samples.clone().enumerate() {
            let grads = grads[start(sample)..].chunks_exact(positions);
            for (row, grad) in scratch.chunks_exact_mut(columns).zip(grads) {
                row[i * positions..][..positions].copy_from_slice(grad);
            }
        }
        Mat::rows(scratch, self.out_channels, columns, columns)
    }

    /// Where a channel of a group of a sample begins in the input.
    fn input_at(&self, sample: usize, group: usize, channel: usize) -> usize {
        ((sample * self.groups + group) * self.in_channels + channel) * self.area()
    }

    /// Where a group of a sample begins in the result.
    fn result_at(&self, sample: usize, group: usize) -> usize {
        (sample * self.groups + group) * self.out_channels * self.positions()
    }

    /// Writes the result to `ys`.
    pub(super) fn products(&self, xs: &[f32], weight: &[f32], bias: Option<&[f32]>, ys: &mut [f32]) {
        let (positions, seen_rows) = (self.positions(), self.in_channels * self.taps());
        let weight = Mat::rows(weight, self.num_outputs(), seen_rows, seen_rows);
        let out = SharedMut::new(ys);
        let blocks = self.blocks();
        let widest = self.widest(&blocks);
        let parallelism = within(blocks.len());
        blocks.into_par_iter().for_each(|block| {
            self.with_scratch(widest, seen_rows, |scratch, result| {
                let columns = block.width();
                let seen = self.seen(xs, &block, 0..self.in_channels, scratch);
                let outputs = block.group * self.out_channels..(block.group + 1) * self.out_channels;
                let weight = weight.slice_rows(outputs.clone());
                // The product is added to the bias while it is in registers, instead of in a pass of its own.
                let bias = bias.map(|bias| &bias[outputs]);
                let write = if bias.is_some() { Write::Add } else { Write::Replace };
                let begin = |out: &mut MatMut| {
                    for (row, &bias) in bias.into_iter().flatten().enumerate() {
                        out.row(row).fill(bias);
                    }
                };
                // SAFETY: these positions of this sample belong to this block alone, which one thread computes.
                let out = |sample, first, columns| unsafe {
                    let start = self.result_at(sample, block.group) + first;
                    out.columns(start, self.out_channels, columns, positions)
                };
                if block.samples.len() == 1 {
                    let out = &mut out(block.samples.start, self.start_of(&block.part), columns);
                    begin(out);
                    matrix::matmul(out, write, 1.0, weight, seen, parallelism);
                    return;
                }
                let result = &mut result[..self.out_channels * columns];
                let product = &mut MatMut::rows(result, self.out_channels, columns, columns);
                begin(product);
                matrix::matmul(product, write, 1.0, weight, seen, parallelism);
                for (i, sample) in block.samples.enumerate() {
                    let mut out = out(sample, 0, positions);
                    for (row, result) in result.chunks_exact(columns).enumerate() {
                        out.row(row).copy_from_slice(&result[i * positions..][..positions]);
                    }
                }
            });
        });
    }

    /// The gradient by the input: written to `dxs`, or added to it.
    pub(super) fn products_backward_xs(&self, weight: &[f32], grads: &[f32], dxs: &mut [f32], write: Write) {
        let (area, taps) = (self.area(), self.taps());
        let out = SharedMut::new(dxs);
        let (batches, widest) = (self.batches(), self.widest(&self.blocks()));
        let pieces = batches.len() * self.groups;
        let ranges = kernel::ranges(self.in_channels, TASKS.div_ceil(pieces));
        let tasks = pieces * ranges.len();
        let parallelism = within(tasks);
        let tasks = (0..tasks).into_par_iter().map(|i| {
            let (piece, range) = (i / ranges.len(), i % ranges.len());
            (piece % self.groups, &batches[piece / self.groups], &ranges[range])
        });
        tasks.for_each(|(group, samples, channels)| {
            let (rows, width) = (channels.len() * taps, self.in_channels * taps);
            let first = group * self.out_channels * width + channels.start * taps;
            let weight = Mat::rows(&weight[first..], self.out_channels, rows, width);
            // SAFETY: these channels of this sample belong to this task alone, which one thread computes.
            let out = |sample: usize| unsafe {
                let start = self.input_at(sample, group, channels.start);
                out.columns(start, channels.len(), area, area)
            };
            self.with_scratch(widest, channels.len() * taps, |scratch, gathered| {
                if self.is_direct() && samples.len() == 1 {
                    let whole = Block {
                        group,
                        samples: samples.clone(),
                        part: self.whole(),
                    };
                    let g = self.gradient(grads, &whole, gathered);
                    let out = &mut out(samples.start);
                    matrix::matmul(out, write, 1.0, weight.t(), g, parallelism);
                    return;
                }
                if write == Write::Replace {
                    for mut channels in samples.clone().map(out) {
                        (0..channels.num_rows()).for_each(|row| channels.row(row).fill(0.0));
                    }
                }
                for block in self.blocks_of(group, samples.clone()) {
                    let columns = block.width();
                    let g = self.gradient(grads, &block, gathered);
                    let dseen = &mut scratch[..rows * columns];
                    let product = &mut MatMut::rows(dseen, rows, columns, columns);
                    matrix::matmul(product, Write::Replace, 1.0, weight.t(), g, parallelism);
                    let each = columns / samples.len();
                    for (i, sample) in samples.clone().enumerate() {
                        col2im(*self, &dseen[i * each..], columns, &block.part, &mut out(sample));
                    }
                }
            });
        });
    }

    /// The gradient by the weight: written to `dweight`, or added to it. The blocks' shares are added in an order that
    /// the shapes alone decide.
    pub(super) fn products_backward_weight(&self, xs: &[f32], grads: &[f32], dweight: &mut [f32], write: Write) {
        // Columns of the gradient that are computed together, if there are as many.
        const WIDTH: usize = 128;
        let taps = self.taps();
        let width = self.in_channels * taps;
        let ranges = kernel::ranges(self.in_channels, (width / WIDTH).clamp(1, TASKS));
        // Of each group alike.
        let blocks: Vec<_> = self
            .batches()
            .into_iter()
            .flat_map(|samples| self.blocks_of(0, samples))
            .collect();
        let widest = self.widest(&blocks);
        // A narrow gradient is computed several times over, each time from some of the blocks.
        let parts = kernel::ranges(blocks.len(), TASKS.div_ceil(ranges.len() * self.groups));
        let (tasks, len) = (parts.len() * self.groups * ranges.len(), dweight.len());
        let parallelism = within(tasks);
        let compute = |out: SharedMut, write| {
            (0..tasks).into_par_iter().for_each(|i| {
                let (piece, channels) = (i / ranges.len(), &ranges[i % ranges.len()]);
                let (part, group) = (piece / self.groups, piece % self.groups);
                let start = part * len + group * self.out_channels * width + channels.start * taps;
                // SAFETY: these columns of this part belong to this task alone, which one thread computes.
                let mut out = unsafe { out.columns(start, self.out_channels, channels.len() * taps, width) };
                self.with_scratch(widest, channels.len() * taps, |scratch, gathered| {
                    for (i, block) in blocks[parts[part].clone()].iter().enumerate() {
                        let write = if i == 0 { write } else { Write::Add };
                        let block = &Block { group, ..block.clone() };
                        let g = self.gradient(grads, block, gathered);
                        let seen = self.seen(xs, block, channels.clone(), scratch);
                        matrix::matmul(&mut out, write, 1.0, g, seen.t(), parallelism);
                    }
                });
            });
        };
        if parts.len() == 1 {
            return compute(SharedMut::new(dweight), write);
        }
        let mut partial = Buffer::new(parts.len() * len);
        compute(SharedMut::new(&mut partial), Write::Replace);
        kernel::for_rows(dweight, 1, |first, out| {
            if write == Write::Replace {
                out.fill(0.0);
            }
            for part in partial.chunks_exact(len) {
                add(out, &part[first..]);
            }
        });
    }
}

/// The parallelism of a matrix product in each of `tasks` tasks: its own where there are fewer tasks than threads. The
/// same numbers come out either way.
fn within(tasks: usize) -> Parallelism {
    if tasks < rayon::current_num_threads() {
        Parallelism::Rayon(0)
    } else {
        Parallelism::None
    }
}
