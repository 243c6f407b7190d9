//! The convolution in which each channel has a kernel of its own (Sifre 2014; Chollet, arXiv 1610.02357), without
//! matrices: a kernel of one channel would leave a product one row.
//!
//! A plane, one channel of one sample, is copied to where it is padded and, for a stride above 1, sorted by phase: all
//! places that are equal modulo the stride come together, as a plane of their own. There the kernel moves by one element
//! from each position of the result to the next, and each of its elements sees the whole plane shifted by a distance of
//! its own. So the result is a sum of shifted slices, whatever kernel, stride and dilation are, and all loops run over
//! whole planes, not over rows of seven. (Where rows of the result end, they run over a few elements to no purpose.)

use rayon::prelude::*;

use super::geometry::Conv2d;
use crate::ops::cpu::kernel::{self, LANES};
use crate::ops::cpu::sliding::{add_strided, zip_strided, Sliding};
use crate::ops::cpu::write::Write;

/// Elements of a result that are computed together: four AVX registers of `f32`.
const WIDTH: usize = 32;

/// Products of one piece of parallel work, about.
const PIECE: usize = 1 << 17;

/// The largest stride: with more, most phases would be of little else than padding.
const LARGEST_STRIDE: usize = 4;

impl Conv2d {
    /// Whether this is what computes it.
    pub(super) fn is_depthwise(&self) -> bool {
        let strides = self.rows.stride.max(self.columns.stride);
        self.in_channels == 1 && self.out_channels == 1 && strides <= LARGEST_STRIDE
    }
}

/// A depthwise convolution.
pub(super) struct Depthwise {
    conv: Conv2d,
    /// The axes of one phase's plane: as the image's, with every place at which the windows see something.
    rows: Sliding,
    columns: Sliding,
    /// Elements of one phase's plane, and a few more.
    plane: usize,
    /// Of each element of the kernel, row by row: its phase, and how far it is from a position of the result there.
    taps: Vec<(usize, usize)>,
}

impl Depthwise {
    pub(super) fn new(conv: &Conv2d) -> Self {
        let phase = |axis: Sliding| Sliding {
            out: ((axis.out - 1) * axis.stride + axis.extent()).div_ceil(axis.stride),
            dilation: 1,
            ..axis
        };
        let (rows, columns) = (phase(conv.rows), phase(conv.columns));
        let place = |axis: Sliding, tap: usize| (tap * axis.dilation % axis.stride, tap * axis.dilation / axis.stride);
        let taps = (0..conv.taps()).map(|tap| {
            let (u, du) = place(conv.rows, tap / conv.columns.window);
            let (v, dv) = place(conv.columns, tap % conv.columns.window);
            (u * columns.stride + v, du * columns.out + dv)
        });
        Self {
            conv: *conv,
            rows,
            columns,
            plane: (rows.out * columns.out).next_multiple_of(WIDTH),
            taps: taps.collect(),
        }
    }

    fn num_phases(&self) -> usize {
        self.rows.stride * self.columns.stride
    }

    /// Elements of the result, with what is between the end of one row and the start of the next.
    fn spread(&self) -> usize {
        (self.conv.rows.out * self.columns.out).next_multiple_of(WIDTH)
    }

    /// The longest way from a position of the result to what the kernel sees.
    fn farthest(&self) -> usize {
        self.taps.iter().map(|&(_, shift)| shift).max().unwrap_or(0)
    }

    /// Elements that [`sort`](Self::sort) writes.
    fn sorted(&self) -> usize {
        // What is computed between the rows of the result sees a little more than there is.
        self.num_phases() * self.plane + self.farthest() + WIDTH
    }

    /// A plane of the input, padded and sorted by phase.
    fn sort(&self, xs: &[f32], sorted: &mut [f32]) {
        sort(self.rows, self.columns, self.plane, xs, sorted);
    }

    /// Planes of one piece of parallel work.
    fn planes_per_piece(&self) -> usize {
        PIECE.div_ceil(self.conv.positions() * self.conv.taps())
    }

    /// Writes the result to `ys`.
    pub(super) fn forward(&self, xs: &[f32], weight: &[f32], bias: Option<&[f32]>, ys: &mut [f32]) {
        let (channels, taps) = (self.conv.groups, self.conv.taps());
        let offsets: Vec<usize> = self
            .taps
            .iter()
            .map(|&(phase, shift)| phase * self.plane + shift)
            .collect();
        let width = self.conv.columns.out;
        let planes = ys
            .par_chunks_mut(self.conv.positions())
            .zip(xs.par_chunks(self.conv.area()));
        let planes = planes.enumerate().with_min_len(self.planes_per_piece());
        planes.for_each(|(plane, (ys, xs))| {
            let channel = plane % channels;
            let weight = &weight[channel * taps..][..taps];
            kernel::with_scratch(self.sorted() + self.spread(), |scratch| {
                let (sorted, spread) = scratch.split_at_mut(self.sorted());
                self.sort(xs, sorted);
                weighted_sum(sorted, &offsets, weight, bias.map_or(0.0, |bias| bias[channel]), spread);
                for (ys, spread) in ys.chunks_exact_mut(width).zip(spread.chunks(self.columns.out)) {
                    ys.copy_from_slice(&spread[..width]);
                }
            });
        });
    }

    /// The gradient by the input: written to `dxs`, or added to it.
    pub(super) fn backward_xs(&self, weight: &[f32], grads: &[f32], dxs: &mut [f32], write: Write) {
        let (channels, taps, farthest) = (self.conv.groups, self.conv.taps(), self.farthest());
        // What a place gets comes from the positions before it, as far as the kernel's elements are from these.
        let of_phase = |phase| (0..taps).filter(move |&tap| self.taps[tap].0 == phase);
        let phases: Vec<Vec<usize>> = (0..self.num_phases()).map(|phase| of_phase(phase).collect()).collect();
        let offsets: Vec<usize> = (phases.iter().flatten().map(|&tap| farthest - self.taps[tap].1)).collect();
        let planes = dxs
            .par_chunks_mut(self.conv.area())
            .zip(grads.par_chunks(self.conv.positions()));
        let planes = planes.enumerate().with_min_len(self.planes_per_piece());
        let spread = farthest + self.plane.max(self.spread());
        planes.for_each(|(plane, (dxs, grads))| {
            let weight = &weight[plane % channels * taps..][..taps];
            let weight: Vec<f32> = phases.iter().flatten().map(|&tap| weight[tap]).collect();
            kernel::with_scratch(spread + self.plane, |scratch| {
                let (spread, of_phase) = scratch.split_at_mut(spread);
                spread[..farthest].fill(0.0);
                self.spread_out(grads, &mut spread[farthest..]);
                if write == Write::Replace {
                    dxs.fill(0.0);
                }
                let mut first = 0;
                for (phase, taps) in phases.iter().enumerate().filter(|(_, taps)| !taps.is_empty()) {
                    let range = first..first + taps.len();
                    first = range.end;
                    weighted_sum(spread, &offsets[range.clone()], &weight[range], 0.0, of_phase);
                    add_phase(self.rows, self.columns, phase, of_phase, dxs);
                }
            });
        });
    }

    /// The gradient by the weight: written to `dweight`, or added to it.
    pub(super) fn backward_weight(&self, xs: &[f32], grads: &[f32], dweight: &mut [f32], write: Write) {
        let (conv, taps) = (&self.conv, self.conv.taps());
        let offsets: Vec<usize> = self
            .taps
            .iter()
            .map(|&(phase, shift)| phase * self.plane + shift)
            .collect();
        let channels = dweight.par_chunks_mut(taps).enumerate();
        let channels = channels.with_min_len(self.planes_per_piece().div_ceil(conv.batch));
        channels.for_each(|(channel, dweight)| {
            if write == Write::Replace {
                dweight.fill(0.0);
            }
            kernel::with_scratch(self.sorted() + self.spread(), |scratch| {
                let (sorted, spread) = scratch.split_at_mut(self.sorted());
                for plane in (0..conv.batch).map(|sample| sample * conv.groups + channel) {
                    self.sort(&xs[plane * conv.area()..][..conv.area()], sorted);
                    self.spread_out(&grads[plane * conv.positions()..][..conv.positions()], spread);
                    add_products(sorted, &offsets, spread, dweight);
                }
            });
        });
    }

    /// The gradients of one plane of the result with zeros between the end of one row and the start of the next.
    fn spread_out(&self, grads: &[f32], spread: &mut [f32]) {
        spread.fill(0.0);
        let width = self.conv.columns.out;
        for (grads, spread) in grads.chunks_exact(width).zip(spread.chunks_mut(self.columns.out)) {
            spread[..width].copy_from_slice(grads);
        }
    }
}

kernel::simd_fn! {
    /// See [`Depthwise::sort`].
    fn sort<S>(rows: Sliding, columns: Sliding, plane: usize, xs: &[f32], sorted: &mut [f32]) -> () {
        sorted.fill(0.0);
        let phases = (0..rows.stride).flat_map(|u| (0..columns.stride).map(move |v| (u, v)));
        for ((u, v), sorted) in phases.zip(sorted.chunks_mut(plane)) {
            let (inside, first) = columns.inside(v);
            for (row, sorted) in sorted.chunks_exact_mut(columns.out).take(rows.out).enumerate() {
                if let Some(source) = rows.source(row, u).filter(|_| !inside.is_empty()) {
                    let source = &xs[source * columns.side..][first..columns.side];
                    zip_strided(&mut sorted[inside.clone()], source, columns.stride, |to, x| *to = x);
                }
            }
        }
    }
}

kernel::simd_fn! {
    /// Adds what was computed for one phase to where its places are in the image.
    fn add_phase<S>(rows: Sliding, columns: Sliding, phase: usize, of_phase: &[f32], dxs: &mut [f32]) -> () {
        let (u, v) = (phase / columns.stride, phase % columns.stride);
        let (inside, first) = columns.inside(v);
        for (row, of_phase) in of_phase.chunks_exact(columns.out).take(rows.out).enumerate() {
            if let Some(target) = rows.source(row, u).filter(|_| !inside.is_empty()) {
                let target = &mut dxs[target * columns.side..][first..columns.side];
                add_strided(target, &of_phase[inside.clone()], columns.stride);
            }
        }
    }
}

kernel::simd_fn! {
    /// out[n] = `start` + Σ weight * source[offset + n]
    fn weighted_sum<S>(source: &[f32], offsets: &[usize], weights: &[f32], start: f32, out: &mut [f32]) -> () {
        for (i, out) in out.as_chunks_mut::<WIDTH>().0.iter_mut().enumerate() {
            let mut acc = [start; WIDTH];
            for (&offset, &weight) in offsets.iter().zip(weights) {
                let source = &source[offset + i * WIDTH..][..WIDTH];
                for lane in 0..WIDTH {
                    acc[lane] = kernel::fma::<S>(weight, source[lane], acc[lane]);
                }
            }
            *out = acc;
        }
    }
}

kernel::simd_fn! {
    /// Adds Σ grads[n] * source[offset + n] for each offset.
    fn add_products<S>(source: &[f32], offsets: &[usize], grads: &[f32], sums: &mut [f32]) -> () {
        // Elements of the kernel that are computed together: as many sums as registers hold.
        const TOGETHER: usize = 6;
        let count = offsets.len().div_ceil(TOGETHER);
        for i in 0..count {
            let range = i * offsets.len() / count..(i + 1) * offsets.len() / count;
            let (offsets, sums) = (&offsets[range.clone()], &mut sums[range]);
            match offsets.len() {
                1 => add_some_products::<S, 1>(source, offsets, grads, sums),
                2 => add_some_products::<S, 2>(source, offsets, grads, sums),
                3 => add_some_products::<S, 3>(source, offsets, grads, sums),
                4 => add_some_products::<S, 4>(source, offsets, grads, sums),
                5 => add_some_products::<S, 5>(source, offsets, grads, sums),
                _ => add_some_products::<S, TOGETHER>(source, offsets, grads, sums),
            }
        }
    }
}

/// [`add_products`] of N offsets.
#[inline(always)]
fn add_some_products<S: pulp::Simd, const N: usize>(
    source: &[f32],
    offsets: &[usize],
    grads: &[f32],
    sums: &mut [f32],
) {
    let mut acc = [[0f32; LANES]; N];
    for (i, grads) in grads.as_chunks::<LANES>().0.iter().enumerate() {
        for n in 0..N {
            let source = &source[offsets[n] + i * LANES..][..LANES];
            for lane in 0..LANES {
                acc[n][lane] = kernel::fma::<S>(grads[lane], source[lane], acc[n][lane]);
            }
        }
    }
    for (sum, acc) in sums.iter_mut().zip(&acc) {
        *sum += kernel::sum_by([acc], |[product]| product);
    }
}
