//! Normalising the channels of a batch [B, C, ..]: what the batch norms and the residual blocks around them share.

use candle_core::{DType, Result, Tensor};
use rayon::prelude::*;

use super::elementwise::scale_into;
use super::kernel::{self, LANES};
use super::matrix::{MatMut, SharedMut};

#[derive(Clone, Copy)]
pub(crate) struct Dims {
    pub(crate) batch: usize,
    pub(crate) channels: usize,
    pub(crate) positions: usize,
}

impl Dims {
    /// Values of a channel.
    pub(crate) fn count(&self) -> usize {
        self.batch * self.positions
    }

    /// From one sample to the next.
    fn stride(&self) -> usize {
        self.channels * self.positions
    }

    /// The rows of one channel, sample by sample.
    fn rows<'a>(&self, data: &'a [f32], channel: usize) -> impl Iterator<Item = &'a [f32]> + use<'a> {
        let positions = self.positions;
        data[channel * positions..]
            .chunks(self.stride())
            .map(move |row| &row[..positions])
    }

    /// What `f` gives for each channel and access to its rows in `out`, in parallel, several at a time where channels
    /// are short.
    fn map_channels<T: Send>(&self, out: &mut [f32], f: impl Fn(usize, MatMut) -> T + Sync) -> Vec<T> {
        const FEWEST: usize = 4096;
        let out = SharedMut::new(out);
        (0..self.channels)
            .into_par_iter()
            .with_min_len(FEWEST.div_ceil(self.count()))
            .map(|channel| {
                // SAFETY: these elements belong to this channel alone, which one thread computes.
                let rows = unsafe { out.columns(channel * self.positions, self.batch, self.positions, self.stride()) };
                f(channel, rows)
            })
            .collect()
    }
}

/// Mean and biased variance of a channel.
#[derive(Clone, Copy)]
pub(crate) struct Moments {
    pub(crate) mean: f64,
    pub(crate) var: f64,
}

impl Moments {
    /// Of each channel, from tensors `[C]` of any floating-point dtype.
    pub(crate) fn of(mean: &Tensor, var: &Tensor) -> Result<Vec<Self>> {
        let [mean, var] = [mean, var].map(|t| t.to_dtype(DType::F64)?.to_vec1::<f64>());
        Ok(mean?
            .into_iter()
            .zip(var?)
            .map(|(mean, var)| Self { mean, var })
            .collect())
    }

    /// The mean in two parts: what `f32` loses of a mean that is large beside the deviations from it would be missing
    /// in every one of them.
    pub(crate) fn mean(&self) -> (f32, f64) {
        let high = self.mean as f32;
        (high, self.mean - f64::from(high))
    }
}

/// A norm of channels: y = (x - mean) / sqrt(var + eps) * weight + bias.
#[derive(Clone, Copy)]
pub(crate) struct ChannelNorm<'a> {
    pub(crate) dims: Dims,
    pub(crate) eps: f64,
    pub(crate) weight: &'a [f32],
    pub(crate) bias: &'a [f32],
}

/// A norm of one channel: y = (x - mean) * scale + shift.
#[derive(Clone, Copy)]
pub(crate) struct Line {
    mean: f32,
    scale: f32,
    shift: f32,
}

/// The gradients of a norm's result.
#[derive(Clone, Copy)]
pub(crate) struct Upstream<'a> {
    /// The gradients as they come, or none where they stand in the place of the input's gradients.
    pub(crate) grads: Option<&'a [f32]>,
    /// The result of a ReLU on the way: only where it is above 0, anything comes through.
    pub(crate) relu: Option<&'a [f32]>,
    /// What each sample's gradients are multiplied with.
    pub(crate) factors: Option<&'a [f32]>,
}

/// The sums of `terms` over the elements of N rows of the same length, added to `acc` in `f64`.
#[inline(always)]
fn add_sums<const N: usize>(acc: &mut [[f64; LANES]; 2], rows: [&[f32]; N], terms: impl Fn([f32; N]) -> [f64; 2]) {
    let split = rows.map(|row| row.as_chunks::<LANES>());
    for i in 0..split[0].0.len() {
        let chunks = split.map(|(whole, _)| &whole[i]);
        for lane in 0..LANES {
            let [a, b] = terms(chunks.map(|chunk| chunk[lane]));
            acc[0][lane] += a;
            acc[1][lane] += b;
        }
    }
    for lane in 0..split[0].1.len() {
        let [a, b] = terms(split.map(|(_, rest)| rest[lane]));
        acc[0][lane] += a;
        acc[1][lane] += b;
    }
}

kernel::simd_fn! {
    /// The moments of one channel. Deviations are taken from one of its values, so that a constant one has variance 0.
    pub(crate) fn moments<S>(xs: &[f32], dims: Dims, channel: usize) -> Moments {
        let pivot = xs[channel * dims.positions];
        let pivot = if pivot.is_finite() { f64::from(pivot) } else { 0.0 };
        let mut acc = [[0f64; LANES]; 2];
        for row in dims.rows(xs, channel) {
            add_sums(&mut acc, [row], |[x]| {
                let d = f64::from(x) - pivot;
                [d, d * d]
            });
        }
        let n = dims.count() as f64;
        let [mean, mean_sqr] = acc.map(|lanes| lanes.iter().sum::<f64>() / n);
        // Not `f64::max`, which would turn what is undefined to 0.
        let var = mean_sqr - mean * mean;
        Moments { mean: pivot + mean, var: if var < 0.0 { 0.0 } else { var } }
    }
}

kernel::simd_fn! {
    pub(crate) fn forward_row<S>(xs: &[f32], line: Line, floor: f32, ys: &mut [f32]) -> () {
        for (y, &x) in ys.iter_mut().zip(xs) {
            let value = kernel::fma::<S>(x - line.mean, line.scale, line.shift);
            // Not `f32::max`, which would turn what is undefined to the floor.
            *y = if value < floor { floor } else { value };
        }
    }
}

kernel::simd_fn! {
    /// y = max(y + factor * norm(x), 0)
    fn forward_row_onto<S>(xs: &[f32], line: Line, factor: f32, ys: &mut [f32]) -> () {
        for (y, &x) in ys.iter_mut().zip(xs) {
            let value = kernel::fma::<S>(kernel::fma::<S>(x - line.mean, line.scale, line.shift), factor, *y);
            *y = if value < 0.0 { 0.0 } else { value };
        }
    }
}

kernel::simd_fn! {
    /// Adds Σ g and Σ g (x - `mean`) of a row.
    pub(crate) fn add_backward_sums<S>(acc: &mut [[f64; LANES]; 2], xs: &[f32], grads: &[f32], mean: f32) -> () {
        add_sums(acc, [xs, grads], |[x, g]| {
            let g = f64::from(g);
            [g, g * f64::from(x - mean)]
        });
    }
}

kernel::simd_fn! {
    /// The gradients where the ReLU let something through, `factor` times. As in PyTorch, what is undefined lets them
    /// through.
    fn let_through<S>(ys: &[f32], grads: &[f32], factor: f32, out: &mut [f32]) -> () {
        for ((out, &y), &g) in out.iter_mut().zip(ys).zip(grads) {
            *out = if y <= 0.0 { 0.0 } else { g * factor };
        }
    }
}

kernel::simd_fn! {
    /// The same in the place of the gradients.
    fn let_through_in_place<S>(ys: &[f32], factor: f32, grads: &mut [f32]) -> () {
        for (g, &y) in grads.iter_mut().zip(ys) {
            *g = if y <= 0.0 { 0.0 } else { *g * factor };
        }
    }
}

kernel::simd_fn! {
    /// dx = `scale` g + `slope` (x - `mean`) + `shift`, in the place of g.
    pub(crate) fn backward_row<S>(xs: &[f32], mean: f32, scale: f32, slope: f32, shift: f32, dxs: &mut [f32]) -> () {
        for (dx, &x) in dxs.iter_mut().zip(xs) {
            *dx = kernel::fma::<S>(*dx, scale, kernel::fma::<S>(x - mean, slope, shift));
        }
    }
}

/// The gradients where a ReLU, whose result is `ys`, let something through.
pub(crate) fn through_relu(ys: &[f32], grads: &[f32], out: &mut [f32]) {
    kernel::for_rows(out, 1, |first, out| {
        let range = first..first + out.len();
        let_through(&ys[range.clone()], &grads[range], 1.0, out);
    });
}

impl ChannelNorm<'_> {
    pub(crate) fn scale(&self, moments: Moments) -> f64 {
        1.0 / (moments.var + self.eps).sqrt()
    }

    pub(crate) fn line(&self, channel: usize, moments: Moments) -> Line {
        let (mean, rest) = moments.mean();
        let scale = self.scale(moments) * f64::from(self.weight[channel]);
        Line {
            mean,
            scale: scale as f32,
            shift: (f64::from(self.bias[channel]) - rest * scale) as f32,
        }
    }

    /// The moments of `channel`: those `given`, or its own.
    fn moments_of(&self, xs: &[f32], given: Option<&[Moments]>, channel: usize) -> Moments {
        match given {
            Some(given) => given[channel],
            None => moments(xs, self.dims, channel),
        }
    }

    /// Writes max(norm(x), `floor`) to `ys`; returns the moments by which it is normalised, those `given` or the
    /// input's.
    pub(crate) fn forward(&self, xs: &[f32], given: Option<&[Moments]>, floor: f32, ys: &mut [f32]) -> Vec<Moments> {
        // A channel at a time, so that its values are still in cache when they are normalised.
        self.dims.map_channels(ys, |channel, mut ys| {
            let moments = self.moments_of(xs, given, channel);
            let line = self.line(channel, moments);
            for (sample, xs) in self.dims.rows(xs, channel).enumerate() {
                forward_row(xs, line, floor, ys.row(sample));
            }
            moments
        })
    }

    /// Turns y into max(y + s norm(x), 0) with a factor s for each sample, 1 where there are none; returns the moments
    /// as [`forward`](Self::forward) does.
    pub(crate) fn forward_onto(
        &self,
        xs: &[f32],
        given: Option<&[Moments]>,
        factors: Option<&[f32]>,
        ys: &mut [f32],
    ) -> Vec<Moments> {
        self.dims.map_channels(ys, |channel, mut ys| {
            let moments = self.moments_of(xs, given, channel);
            let line = self.line(channel, moments);
            for (sample, xs) in self.dims.rows(xs, channel).enumerate() {
                forward_row_onto(xs, line, factor(factors, sample), ys.row(sample));
            }
            moments
        })
    }

    /// Writes the gradients of the input, which the moments depend on where they are `its_own`, to `dxs`; returns those
    /// of weight and bias.
    pub(crate) fn backward(
        &self,
        xs: &[f32],
        moments: &[Moments],
        its_own: bool,
        upstream: Upstream,
        dxs: &mut [f32],
    ) -> [Vec<f32>; 2] {
        let sums = self.dims.map_channels(dxs, |channel, mut dxs| {
            let (mean, rest) = moments[channel].mean();
            let mut acc = [[0f64; LANES]; 2];
            for (sample, xs) in self.dims.rows(xs, channel).enumerate() {
                let dxs = dxs.row(sample);
                upstream.write(self.dims, channel, sample, dxs);
                add_backward_sums(&mut acc, xs, dxs, mean);
            }
            let [sum, sum_x]: [f64; 2] = acc.map(|lanes| lanes.iter().sum());
            let scale = self.scale(moments[channel]);
            // Σ g x̂
            let sum_x = scale * (sum_x - rest * sum);
            let n = self.dims.count() as f64;
            let dy = scale * f64::from(self.weight[channel]);
            let (slope, shift) = if its_own {
                (-dy * scale * sum_x / n, -dy * sum / n)
            } else {
                (0.0, 0.0)
            };
            let (dy, slope, shift) = (dy as f32, slope as f32, (shift - slope * rest) as f32);
            for (sample, xs) in self.dims.rows(xs, channel).enumerate() {
                backward_row(xs, mean, dy, slope, shift, dxs.row(sample));
            }
            [sum_x as f32, sum as f32]
        });
        [0, 1].map(|i| sums.iter().map(|sums| sums[i]).collect())
    }
}

fn factor(factors: Option<&[f32]>, sample: usize) -> f32 {
    factors.map_or(1.0, |factors| factors[sample])
}

impl Upstream<'_> {
    /// The gradients of one row, to `out`.
    fn write(&self, dims: Dims, channel: usize, sample: usize, out: &mut [f32]) {
        let start = sample * dims.stride() + channel * dims.positions;
        let row = start..start + dims.positions;
        let factor = factor(self.factors, sample);
        match (self.grads, self.relu) {
            (Some(grads), Some(ys)) => let_through(&ys[row.clone()], &grads[row], factor, out),
            (Some(grads), None) => scale_into(&grads[row], factor, out),
            (None, Some(ys)) => let_through_in_place(&ys[row], factor, out),
            (None, None) => {
                for g in out {
                    *g *= factor;
                }
            }
        }
    }
}
