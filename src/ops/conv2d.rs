//! Convolution of images, for training.

use std::ops::Range;

use candle_core::{CpuStorage, CustomOp2, Layout, Result, Shape, Tensor, D};
use gemm::Parallelism;
use rayon::prelude::*;

use super::cpu::buffer::Buffer;
use super::cpu::elementwise::add;
use super::cpu::kernel::{self, Elements};
use super::cpu::matrix::{self, Mat, MatMut, SharedMut, Write};
use super::cpu::sliding::{check_padding, zip_strided, Sliding};
use super::route::{in_f32, Route};
use crate::check;
use crate::error::Error;

/// y[b, o, i, j] = Σ x[b, c, i * stride + u - padding, j * stride + v - padding] weight[o, c, u, v], with zeros outside of
/// the image.
///
/// No bias, no groups and no dilation: ResNet, for which this is, has a batch norm behind each convolution and neither groups nor dilation.
///
/// # Arguments
///
/// - `xs`: [B, C, H, W]
/// - `weight`: [C', C, k, k]
/// - `stride`: at least 1
/// - `padding`: zeros around the image, on each side
///
/// Returns [B, C', H', W'], where H' = (H + 2 padding - k) / stride + 1, rounded down, and W' likewise.
///
/// # Derivative
///
/// With X the matrix of what the kernel sees at each position ([C k k, H' W'], "im2col"), W the weight as a matrix
/// [C', C k k] and G the gradient of the result as one, [C', H' W']: dX = Wᵀ G, each element added to where it came
/// from, and dW = Σ G Xᵀ over the batch. The CPU kernel holds X for some positions at a time only, one such piece for
/// each thread, and makes none where a 1 x 1 kernel sees just the image. Gradients that are not asked for are not
/// computed: the first convolution of a network needs none by the image.
///
/// # PyTorch
///
/// `torch.nn.functional.conv2d(xs, weight, stride=stride, padding=padding)`
///
/// # Errors
///
/// If the shapes do not fit or something is empty, the kernel is not square or larger than the padded image, the stride
/// is 0, or the dtypes differ or are no floating-point ones.
///
/// ```
/// use candle_core::{Device, Tensor};
/// let xs = Tensor::new(&[[[[1f32, 2.0], [3.0, 4.0]]]], &Device::Cpu)?;
/// let weight = Tensor::ones((1, 1, 3, 3), xs.dtype(), &Device::Cpu)?;
/// let ys = masksub::ops::conv2d(&xs, &weight, 1, 1)?;
/// assert_eq!(ys.flatten_all()?.to_vec1::<f32>()?, [10.0; 4]);
/// # Ok::<(), candle_core::Error>(())
/// ```
pub fn conv2d(xs: &Tensor, weight: &Tensor, stride: usize, padding: usize) -> Result<Tensor> {
    check::float("xs", xs)?;
    check::same_dtype("weight", weight, xs)?;
    let conv = Conv2d::new(["xs", "weight"], xs.dims(), weight.dims(), stride, padding)?;
    routed(xs, weight, conv)
}

/// [`conv2d`] of arguments that fit.
pub(crate) fn routed(xs: &Tensor, weight: &Tensor, conv: Conv2d) -> Result<Tensor> {
    match Route::of(&[xs, weight]) {
        Route::Kernel => xs.contiguous()?.apply_op2(&weight.contiguous()?, conv),
        Route::InF32 => in_f32(&[xs, weight], |t| routed(&t[0], &t[1], conv)),
        Route::Composition => composition(xs, weight, conv.rows.stride, conv.rows.padding),
    }
}

/// [`conv2d`] of candle's operations.
pub fn composition(xs: &Tensor, weight: &Tensor, stride: usize, padding: usize) -> Result<Tensor> {
    let kernel = weight.dim(2)?;
    // candle's backward is wrong, an error or a panic for some paddings, and where the stride leaves unlike remainders of
    // the two sides: neither is left to it.
    let fit = |xs: Tensor, dim: D| -> Result<Tensor> {
        let padded = xs.pad_with_zeros(dim, padding, padding)?;
        let side = padded.dim(dim)?;
        padded.narrow(dim, 0, side - (side - kernel) % stride)
    };
    let xs = fit(fit(xs.clone(), D::Minus1)?, D::Minus2)?.contiguous()?;
    xs.conv2d(weight, 0, stride, 1, 1)
}

#[derive(Clone, Copy)]
pub(crate) struct Conv2d {
    batch: usize,
    in_channels: usize,
    out_channels: usize,
    rows: Sliding,
    columns: Sliding,
}

/// Columns that one matrix product should have at least: with fewer, samples go together, because to pack the weight for
/// the product would take too large a share of it. (A 7 x 7 map has 49.)
const FEWEST_COLUMNS: usize = 256;

/// Columns of a larger map that are taken at a time.
const COLUMNS: usize = 512;

/// Pieces of work that there should be at least, for as many threads.
const TASKS: usize = 8;

/// Positions that are taken together: all of some samples, or some rows of one.
#[derive(Clone)]
struct Block {
    samples: Range<usize>,
    rows: Range<usize>,
}

impl Conv2d {
    /// A convolution of images with a weight, which an error calls by `names`.
    pub(crate) fn new(
        [input, name]: [&'static str; 2],
        xs: &[usize],
        weight: &[usize],
        stride: usize,
        padding: usize,
    ) -> crate::error::Result<Self> {
        let [out_channels, in_channels, kernel, columns] = *weight else {
            return Err(Error::shape(name, weight, "[C', C, k, k]"));
        };
        if weight.contains(&0) || kernel != columns {
            return Err(Error::shape(name, weight, "[C', C, k, k], not empty"));
        }
        check::at_least_one("stride", stride)?;
        let unfit = || {
            let sides = match kernel.saturating_sub(padding.saturating_mul(2)) {
                0 | 1 => "not empty".to_string(),
                least => format!("with sides of at least {least} for a kernel of {kernel} and a padding of {padding}"),
            };
            Error::shape(input, xs, format!("[B, {in_channels}, H, W], {sides}"))
        };
        let [batch, channels, height, width] = *xs else {
            return Err(unfit());
        };
        if channels != in_channels || xs.contains(&0) {
            return Err(unfit());
        }
        check_padding(batch.saturating_mul(channels), [height, width], padding)?;
        let axis = |side| Sliding::new(side, kernel, stride, padding).ok_or_else(unfit);
        let (rows, columns) = (axis(height)?, axis(width)?);
        let out = [out_channels, rows.out, columns.out];
        let count = out.iter().try_fold(batch, |count, &dim| count.checked_mul(dim));
        if count.is_none_or(|count| count > isize::MAX as usize / size_of::<f32>()) {
            let allowed = "so small that the result fits in memory";
            return Err(Error::invalid("padding", padding, allowed));
        }
        Ok(Self {
            batch,
            in_channels,
            out_channels,
            rows,
            columns,
        })
    }

    /// Positions of a sample's result.
    fn positions(&self) -> usize {
        self.rows.out * self.columns.out
    }

    /// Elements of a channel of a sample.
    fn area(&self) -> usize {
        self.rows.side * self.columns.side
    }

    /// Elements of the kernel in each channel.
    fn taps(&self) -> usize {
        self.rows.window * self.columns.window
    }

    /// Whether the matrix of what the kernel sees is the image itself.
    fn is_direct(&self) -> bool {
        self.rows.window == 1 && self.rows.stride == 1 && self.rows.padding == 0
    }

    /// The most samples that go together.
    fn samples_together(&self) -> usize {
        (FEWEST_COLUMNS / self.positions()).clamp(1, self.batch)
    }

    /// Samples that go together, in nearly equal groups.
    fn groups(&self) -> Vec<Range<usize>> {
        kernel::ranges(self.batch, self.batch.div_ceil(self.samples_together()))
    }

    /// The positions of the largest block.
    fn widest(&self, blocks: &[Block]) -> usize {
        blocks.iter().map(|block| self.width_of(block)).max().unwrap_or(0)
    }

    /// The blocks of a group of samples.
    fn blocks_of(&self, samples: Range<usize>) -> impl Iterator<Item = Block> + use<> {
        let blocks = match samples.len() {
            1 => (self.positions() / COLUMNS).max(1),
            _ => 1,
        };
        let rows = kernel::ranges(self.rows.out, blocks);
        rows.into_iter().map(move |rows| Block {
            samples: samples.clone(),
            rows,
        })
    }

    fn blocks(&self) -> Vec<Block> {
        let groups = self.groups().into_iter();
        groups.flat_map(|samples| self.blocks_of(samples)).collect()
    }

    fn width_of(&self, block: &Block) -> usize {
        block.samples.len() * block.rows.len() * self.columns.out
    }

    /// Calls `f` with two pieces of scratch memory for blocks of up to `columns` positions, of which [`seen`](Self::seen)
    /// needs the first, for `seen_rows` rows, and samples that go together the second.
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

    /// Some channels of what the kernel sees at the positions of `block`, [channels k k, columns]: a view where the
    /// kernel sees the image itself, else written to `scratch`.
    fn seen<'a>(&self, xs: &'a [f32], block: &Block, channels: Range<usize>, scratch: &'a mut [f32]) -> Mat<'a> {
        let columns = self.width_of(block);
        let rows = channels.len() * self.taps();
        let start = |sample| (sample * self.in_channels + channels.start) * self.area();
        if self.is_direct() && block.samples.len() == 1 {
            let first = start(block.samples.start) + block.rows.start * self.columns.side;
            return Mat::rows(&xs[first..], rows, columns, self.area());
        }
        let scratch = &mut scratch[..rows * columns];
        let each = columns / block.samples.len();
        for (i, sample) in block.samples.clone().enumerate() {
            let image = &xs[start(sample)..][..channels.len() * self.area()];
            im2col(*self, image, block.rows.clone(), &mut scratch[i * each..], columns);
        }
        Mat::rows(scratch, rows, columns, columns)
    }

    /// The gradient of the result at the positions of `block`, [C', columns]: a view for a single sample, else written to
    /// `scratch`.
    fn gradient<'a>(&self, grads: &'a [f32], block: &Block, scratch: &'a mut [f32]) -> Mat<'a> {
        let (positions, columns) = (self.positions(), self.width_of(block));
        let start = |sample| sample * self.out_channels * positions;
        if block.samples.len() == 1 {
            let first = start(block.samples.start) + block.rows.start * self.columns.out;
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

    /// Elements of the result.
    pub(crate) fn result_len(&self) -> usize {
        self.batch * self.out_channels * self.positions()
    }

    /// Shape of the result.
    pub(crate) fn result_dims(&self) -> [usize; 4] {
        [self.batch, self.out_channels, self.rows.out, self.columns.out]
    }

    /// Writes the result to `ys`.
    pub(crate) fn forward(&self, xs: &[f32], weight: &[f32], ys: &mut [f32]) {
        let (positions, seen_rows) = (self.positions(), self.in_channels * self.taps());
        let weight = Mat::rows(weight, self.out_channels, seen_rows, seen_rows);
        let out = SharedMut::new(ys);
        let blocks = self.blocks();
        let widest = self.widest(&blocks);
        let parallelism = within(blocks.len());
        blocks.into_par_iter().for_each(|block| {
            self.with_scratch(widest, seen_rows, |scratch, result| {
                let columns = self.width_of(&block);
                let seen = self.seen(xs, &block, 0..self.in_channels, scratch);
                // SAFETY: these positions of this sample belong to this block alone, which one thread computes.
                let out = |sample, first_row, columns| unsafe {
                    let start = sample * self.out_channels * positions + first_row * self.columns.out;
                    out.columns(start, self.out_channels, columns, positions)
                };
                if block.samples.len() == 1 {
                    let out = &mut out(block.samples.start, block.rows.start, columns);
                    matrix::matmul(out, Write::Replace, 1.0, weight, seen, parallelism);
                    return;
                }
                let result = &mut result[..self.out_channels * columns];
                let product = &mut MatMut::rows(result, self.out_channels, columns, columns);
                matrix::matmul(product, Write::Replace, 1.0, weight, seen, parallelism);
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
    pub(crate) fn backward_xs(&self, weight: &[f32], grads: &[f32], dxs: &mut [f32], write: Write) {
        let (area, taps) = (self.area(), self.taps());
        let out = SharedMut::new(dxs);
        let (groups, widest) = (self.groups(), self.widest(&self.blocks()));
        let ranges = kernel::ranges(self.in_channels, TASKS.div_ceil(groups.len()));
        let tasks = groups.len() * ranges.len();
        let parallelism = within(tasks);
        let tasks = (0..tasks)
            .into_par_iter()
            .map(|i| (&groups[i / ranges.len()], &ranges[i % ranges.len()]));
        tasks.for_each(|(samples, channels)| {
            let rows = channels.len() * taps;
            let weight = Mat::rows(
                &weight[channels.start * taps..],
                self.out_channels,
                rows,
                self.in_channels * taps,
            );
            // SAFETY: these channels of this sample belong to this task alone, which one thread computes.
            let out = |sample: usize| unsafe {
                let start = (sample * self.in_channels + channels.start) * area;
                out.columns(start, channels.len(), area, area)
            };
            self.with_scratch(widest, channels.len() * taps, |scratch, gathered| {
                if self.is_direct() && samples.len() == 1 {
                    let whole = Block {
                        samples: samples.clone(),
                        rows: 0..self.rows.out,
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
                for block in self.blocks_of(samples.clone()) {
                    let columns = self.width_of(&block);
                    let g = self.gradient(grads, &block, gathered);
                    let dseen = &mut scratch[..rows * columns];
                    let product = &mut MatMut::rows(dseen, rows, columns, columns);
                    matrix::matmul(product, Write::Replace, 1.0, weight.t(), g, parallelism);
                    let each = columns / samples.len();
                    for (i, sample) in samples.clone().enumerate() {
                        col2im(*self, &dseen[i * each..], columns, block.rows.clone(), &mut out(sample));
                    }
                }
            });
        });
    }

    /// The gradient by the weight: written to `dweight`, or added to it. The blocks' shares are added in an order that the
    /// shapes alone decide.
    pub(crate) fn backward_weight(&self, xs: &[f32], grads: &[f32], dweight: &mut [f32], write: Write) {
        // Columns of the gradient that are computed together, if there are as many.
        const WIDTH: usize = 128;
        let taps = self.taps();
        let width = self.in_channels * taps;
        let ranges = kernel::ranges(self.in_channels, (width / WIDTH).clamp(1, TASKS));
        let blocks = self.blocks();
        let widest = self.widest(&blocks);
        // A narrow gradient is computed several times over, each time from some of the blocks.
        let parts = kernel::ranges(blocks.len(), TASKS.div_ceil(ranges.len()));
        let (tasks, len) = (parts.len() * ranges.len(), dweight.len());
        let parallelism = within(tasks);
        let compute = |out: SharedMut, write| {
            (0..tasks).into_par_iter().for_each(|i| {
                let (part, channels) = (i / ranges.len(), &ranges[i % ranges.len()]);
                let start = part * len + channels.start * taps;
                // SAFETY: these columns of this part belong to this task alone, which one thread computes.
                let mut out = unsafe { out.columns(start, self.out_channels, channels.len() * taps, width) };
                self.with_scratch(widest, channels.len() * taps, |scratch, gathered| {
                    for (i, block) in blocks[parts[part].clone()].iter().enumerate() {
                        let write = if i == 0 { write } else { Write::Add };
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

/// How a matrix product in each of `tasks` tasks is to run: itself in parallel where there are fewer tasks than threads.
/// The same numbers come out either way.
fn within(tasks: usize) -> Parallelism {
    match tasks < rayon::current_num_threads() {
        true => Parallelism::Rayon(0),
        false => Parallelism::None,
    }
}

kernel::simd_fn! {
    /// What the kernel sees of an image [channels, H, W] at the given rows of the result, to rows of `seen` that are
    /// `stride` apart: one for each channel and element of the kernel.
    fn im2col<S>(conv: Conv2d, image: &[f32], rows: Range<usize>, seen: &mut [f32], stride: usize) -> () {
        let side = conv.rows.window;
        let taps = (0..side).flat_map(|u| (0..side).map(move |v| (u, v)));
        let seen_rows = image.chunks_exact(conv.area()).flat_map(|channel| taps.clone().map(move |tap| (channel, tap)));
        for ((channel, (u, v)), seen) in seen_rows.zip(seen.chunks_mut(stride)) {
            let (inside, first) = conv.columns.inside(v);
            for (row, seen) in rows.clone().zip(seen.chunks_exact_mut(conv.columns.out)) {
                let Some(source) = conv.rows.source(row, u).filter(|_| !inside.is_empty()) else {
                    seen.fill(0.0);
                    continue;
                };
                let source = &channel[source * conv.columns.side..][first..conv.columns.side];
                seen[..inside.start].fill(0.0);
                seen[inside.end..].fill(0.0);
                zip_strided(&mut seen[inside.clone()], source, conv.columns.stride, |seen, x| *seen = x);
            }
        }
    }
}

kernel::simd_fn! {
    /// Adds each element of what [`im2col`] would write to where it came from.
    fn col2im<S>(conv: Conv2d, seen: &[f32], stride: usize, rows: Range<usize>, image: &mut MatMut<'_>) -> () {
        let (side, taps) = (conv.rows.window, conv.taps());
        for (i, seen) in seen.chunks(stride).enumerate() {
            let channel = image.row(i / taps);
            let (u, v) = (i % taps / side, i % taps % side);
            let (inside, first) = conv.columns.inside(v);
            if inside.is_empty() {
                continue;
            }
            for (row, seen) in rows.clone().zip(seen.chunks_exact(conv.columns.out)) {
                let Some(target) = conv.rows.source(row, u) else {
                    continue;
                };
                let target = &mut channel[target * conv.columns.side..][first..conv.columns.side];
                let seen = &seen[inside.clone()];
                match conv.columns.stride {
                    1 => {
                        for (x, seen) in target.iter_mut().zip(seen) {
                            *x += seen;
                        }
                    }
                    stride => {
                        for (x, seen) in target.iter_mut().step_by(stride).zip(seen) {
                            *x += seen;
                        }
                    }
                }
            }
        }
    }
}

impl CustomOp2 for Conv2d {
    fn name(&self) -> &'static str {
        "conv2d"
    }

    fn cpu_fwd(&self, s1: &CpuStorage, l1: &Layout, s2: &CpuStorage, l2: &Layout) -> Result<(CpuStorage, Shape)> {
        let mut ys = vec![0f32; self.result_len()];
        self.forward(kernel::elements(s1, l1)?, kernel::elements(s2, l2)?, &mut ys);
        Ok((CpuStorage::F32(ys), Shape::from(&self.result_dims())))
    }

    fn bwd(&self, xs: &Tensor, weight: &Tensor, _: &Tensor, grad: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let grad = grad.contiguous()?;
        let g = Elements::of(&grad)?;
        let fresh = |like: &Tensor, write: &dyn Fn(&mut [f32]) -> Result<()>| -> Result<Option<Tensor>> {
            if !like.track_op() {
                return Ok(None);
            }
            let mut gradient = vec![0f32; like.elem_count()];
            write(&mut gradient)?;
            kernel::tensor(gradient, like.dims()).map(Some)
        };
        let dxs = fresh(xs, &|dxs| {
            self.backward_xs(&Elements::of(weight)?, &g, dxs, Write::Replace);
            Ok(())
        })?;
        let dweight = fresh(weight, &|dweight| {
            self.backward_weight(&Elements::of(xs)?, &g, dweight, Write::Replace);
            Ok(())
        })?;
        Ok((dxs, dweight))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::{check, check_derivative, random, rng};
    use rand::Rng as _;

    fn kernel(stride: usize, padding: usize) -> impl Fn(&[Tensor]) -> Result<Tensor> + Sync {
        move |args| conv2d(&args[0], &args[1], stride, padding)
    }

    fn reference(stride: usize, padding: usize) -> impl Fn(&[Tensor]) -> Result<Tensor> + Sync {
        move |args| composition(&args[0], &args[1], stride, padding)
    }

    fn check_conv(xs: [usize; 4], out_channels: usize, k: usize, stride: usize, padding: usize, seed: u64) {
        let weight = [out_channels, xs[1], k, k];
        check(
            &kernel(stride, padding),
            &reference(stride, padding),
            &[&xs, &weight],
            seed,
        );
    }

    #[test]
    fn equals_its_composition() {
        let mut rng = rng(12);
        for seed in 0..12 {
            let mut size = |most| rng.random_range(1..=most);
            let (k, stride, padding): (usize, _, _) = (size(5), size(3), size(4) - 1);
            let side = |size: usize| size + k.saturating_sub(1 + 2 * padding);
            let xs = [size(4), size(9), side(size(15)), side(size(15))];
            check_conv(xs, size(9), k, stride, padding, seed);
        }
    }

    #[test]
    fn equals_its_composition_at_the_edges() {
        // 1 x 1: the image itself, of one sample, of samples that go together, with a stride, with padding.
        check_conv([1, 3, 4, 5], 2, 1, 1, 0, 0);
        check_conv([3, 40, 7, 7], 70, 1, 1, 0, 1);
        check_conv([2, 20, 31, 33], 20, 1, 1, 0, 2);
        check_conv([2, 8, 9, 12], 5, 1, 2, 0, 3);
        check_conv([2, 3, 1, 1], 5, 1, 1, 1, 4);
        // More padding than kernel; a stride beyond the kernel; a kernel as large as the image.
        check_conv([2, 3, 4, 3], 5, 2, 1, 3, 5);
        check_conv([2, 3, 11, 12], 5, 2, 5, 0, 6);
        check_conv([2, 3, 6, 6], 5, 6, 1, 0, 7);
        check_conv([1, 1, 1, 1], 1, 1, 1, 0, 8);
        // Several blocks of positions, and many tasks.
        check_conv([2, 3, 50, 41], 16, 7, 2, 3, 9);
        check_conv([9, 70, 12, 11], 33, 3, 1, 1, 10);
        check_conv([13, 64, 5, 5], 24, 3, 1, 1, 11);
    }

    /// Convolution as its definition reads, one number at a time.
    #[test]
    fn composition_is_convolution() {
        for (k, stride, padding) in [(3, 2, 1), (2, 1, 0), (1, 1, 1), (3, 1, 4), (2, 3, 1)] {
            let (xs, weight) = (random(&[2, 3, 6, 9], 0), random(&[4, 3, k, k], 1));
            let ys = composition(&xs, &weight, stride, padding).unwrap();
            let (_, _, height, width) = ys.dims4().unwrap();
            assert_eq!(
                (height, width),
                ((6 + 2 * padding - k) / stride + 1, (9 + 2 * padding - k) / stride + 1)
            );
            let flat = |t: &Tensor| t.flatten_all().unwrap().to_vec1::<f64>().unwrap();
            let (xs, weight, ys) = (flat(&xs), flat(&weight), flat(&ys));
            for (at, y) in ys.iter().enumerate() {
                let (b, o) = (at / (4 * height * width), at / (height * width) % 4);
                let (i, j) = (at / width % height, at % width);
                let mut sum = 0.0;
                for (c, u, v) in (0..3 * k * k).map(|n| (n / (k * k), n / k % k, n % k)) {
                    let (row, column) = (i * stride + u, j * stride + v);
                    if (padding..padding + 6).contains(&row) && (padding..padding + 9).contains(&column) {
                        sum += xs[((b * 3 + c) * 6 + row - padding) * 9 + column - padding]
                            * weight[((o * 3 + c) * k + u) * k + v];
                    }
                }
                assert!((y - sum).abs() < 1e-12);
            }
        }
    }

    #[test]
    fn composition_has_the_right_derivative() {
        check_derivative(&reference(1, 1), &[&[2, 2, 4, 3], &[3, 2, 3, 3]], 0);
        check_derivative(&reference(2, 1), &[&[1, 2, 5, 6], &[2, 2, 3, 3]], 1);
        check_derivative(&reference(1, 1), &[&[1, 2, 1, 1], &[2, 2, 1, 1]], 2);
        check_derivative(&reference(3, 0), &[&[1, 1, 6, 7], &[2, 1, 2, 2]], 3);
    }

    #[test]
    fn errors_name_the_argument() {
        let message = |xs: &[usize], weight: &[usize], stride, padding| {
            conv2d(&random(xs, 0), &random(weight, 0), stride, padding)
                .unwrap_err()
                .to_string()
        };
        let (xs, weight) = ([2, 3, 4, 5], [6, 3, 3, 3]);
        assert_eq!(
            message(&xs, &[6, 3, 3, 1], 1, 0),
            "weight has shape [6, 3, 3, 1], but must be [C', C, k, k], not empty"
        );
        assert_eq!(
            message(&xs, &[6, 3, 3], 1, 0),
            "weight has shape [6, 3, 3], but must be [C', C, k, k]"
        );
        assert_eq!(message(&xs, &weight, 0, 0), "stride is 0, but must be at least 1");
        let expected = "[B, 3, H, W], with sides of at least 3 for a kernel of 3 and a padding of 0";
        for xs in [
            &[2, 4, 4, 5][..],
            &[2, 3, 2, 5],
            &[2, 3, 4, 2],
            &[3, 4, 5],
            &[0, 3, 4, 5],
        ] {
            let error = message(xs, &weight, 1, 0);
            assert_eq!(error, format!("xs has shape {xs:?}, but must be {expected}"));
        }
        assert_eq!(
            message(&[2, 3, 0, 5], &weight, 1, 1),
            "xs has shape [2, 3, 0, 5], but must be [B, 3, H, W], not empty"
        );
        // The padded image is too large however few places a large stride leaves, or its side overflows.
        for (stride, padding) in [
            (1, 1 << 40),
            (1 << 40, 1 << 40),
            (1, usize::MAX / 2),
            (usize::MAX, usize::MAX),
        ] {
            let error = message(&xs, &weight, stride, padding);
            assert_eq!(
                error,
                format!("padding is {padding}, but must be so small that the padded image fits in memory")
            );
        }
    }
}
