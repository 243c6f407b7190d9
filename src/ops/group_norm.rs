//! Normalisation of groups of channels (Wu and He 2018, arXiv 1803.08494).

use candle_core::{Result, Tensor};
use rayon::prelude::*;

use super::autograd::{apply, Backward, Operation, ParamGrads};
use super::cpu::channels::{add_backward_sums, backward_row, forward_row, moments, ChannelNorm, Dims, Moments};
use super::cpu::kernel::{rows_per_piece, LANES};
use super::route::{in_f32, Route};
use crate::check;
use crate::error::Error;

/// y = (x - mean) / sqrt(var + eps) * weight + bias, with the mean and the biased variance over the channels of a group
/// and all positions of a sample, and a weight and bias for each channel.
///
/// [`crate::nn::GroupNorm`] is the layer.
///
/// # Arguments
///
/// - `xs`: [B, C, ..]
/// - `num_groups`: a divisor of C
/// - `weight`, `bias`: `[C]`
/// - `eps`: added to the variance
///
/// Returns [B, C, ..].
///
/// # Derivative
///
/// With x̂ the normalised input, g the gradient of the result, h = g * weight, and means over a group:
/// dx = (h - mean(h) - x̂ mean(h x̂)) / sqrt(var + eps); dweight = Σ g x̂ and dbias = Σ g over batch and positions.
///
/// # PyTorch
///
/// `torch.nn.functional.group_norm(xs, num_groups, weight, bias, eps)`
///
/// # Errors
///
/// If the shapes do not fit or `xs` is empty, `num_groups` does not divide C, `eps` is negative or not finite, or the
/// dtypes differ or are no floating-point ones.
///
/// ```
/// use candle_core::{Device, Tensor};
/// let xs = Tensor::new(&[[[1f32], [3.0], [4.0], [8.0]]], &Device::Cpu)?;
/// let (weight, bias) = (Tensor::new(&[1f32, 1.0, 1.0, 10.0], &Device::Cpu)?, Tensor::zeros(4, xs.dtype(), xs.device())?);
/// let ys = masksub::ops::group_norm(&xs, 2, &weight, &bias, 0.0)?;
/// assert_eq!(ys.flatten_all()?.to_vec1::<f32>()?, [-1.0, 1.0, -1.0, 10.0]);
/// # Ok::<(), candle_core::Error>(())
/// ```
pub fn group_norm(xs: &Tensor, num_groups: usize, weight: &Tensor, bias: &Tensor, eps: f64) -> Result<Tensor> {
    let norm = GroupNorm::new(xs, num_groups, weight, bias, eps)?;
    routed(norm, xs, weight, bias)
}

/// [`group_norm`] of arguments that fit.
fn routed(norm: GroupNorm, xs: &Tensor, weight: &Tensor, bias: &Tensor) -> Result<Tensor> {
    let tensors = [xs, weight, bias];
    match Route::precise(&tensors) {
        Route::Kernel => apply(norm, xs, &[weight, bias]),
        Route::InF32 => in_f32(&tensors, |t| routed(norm, &t[0], &t[1], &t[2])),
        Route::Composition => composition(xs, norm.groups, weight, bias, norm.eps),
    }
}

/// [`group_norm`] of candle's operations.
pub fn composition(xs: &Tensor, num_groups: usize, weight: &Tensor, bias: &Tensor, eps: f64) -> Result<Tensor> {
    let (batch, channels) = (xs.dim(0)?, xs.dim(1)?);
    // Channels and positions apart: of long sums in f32 too little would be right.
    let grouped = xs.reshape((batch, num_groups, channels / num_groups, ()))?;
    let mean_of = |xs: &Tensor| xs.mean_keepdim(3)?.mean_keepdim(2);
    let centred = grouped.broadcast_sub(&mean_of(&grouped)?)?;
    let var = mean_of(&centred.sqr()?)?;
    let normed = centred.broadcast_div(&(var + eps)?.sqrt()?)?.reshape(xs.dims())?;
    let mut of_channels = vec![1; xs.rank()];
    of_channels[1] = channels;
    normed
        .broadcast_mul(&weight.reshape(&of_channels[..])?)?
        .broadcast_add(&bias.reshape(&of_channels[..])?)
}

struct GroupNorm {
    /// Of the input.
    shape: Vec<usize>,
    dims: Dims,
    groups: usize,
    eps: f64,
}

impl GroupNorm {
    fn new(xs: &Tensor, groups: usize, weight: &Tensor, bias: &Tensor, eps: f64) -> crate::error::Result<Self> {
        check::float("xs", xs)?;
        check::non_negative("eps", eps)?;
        let &[batch, channels, ref positions @ ..] = xs.dims() else {
            return Err(Error::shape("xs", xs.dims(), "[B, C, ..]"));
        };
        if xs.elem_count() == 0 {
            return Err(Error::shape("xs", xs.dims(), "[B, C, ..], not empty"));
        }
        check::divisor("num_groups", groups, channels, format!("C = {channels}"))?;
        for (name, tensor) in [("weight", weight), ("bias", bias)] {
            check::vector(name, tensor, channels)?;
            check::same_dtype(name, tensor, "xs", xs)?;
        }
        let dims = Dims {
            batch,
            channels,
            positions: positions.iter().product(),
        };
        let shape = xs.dims().to_vec();
        Ok(Self {
            shape,
            dims,
            groups,
            eps,
        })
    }

    /// Elements of a group of a sample.
    fn len(&self) -> usize {
        self.dims.channels / self.groups * self.dims.positions
    }

    /// Groups of one piece of parallel work.
    fn groups_per_piece(&self) -> usize {
        rows_per_piece(self.len())
    }

    /// The channels of a group, counted over all samples.
    fn channels(&self, group: usize) -> impl Iterator<Item = usize> + use<> {
        let each = self.dims.channels / self.groups;
        let first = group % self.groups * each;
        first..first + each
    }

    /// Mean and variance of each group of each sample.
    fn moments(&self, xs: &[f32]) -> Vec<Moments> {
        // Groups one behind the other: the channels of a single sample.
        let dims = Dims {
            batch: 1,
            channels: self.dims.batch * self.groups,
            positions: self.len(),
        };
        let groups = (0..dims.channels).into_par_iter().with_min_len(self.groups_per_piece());
        groups.map(|group| moments(xs, dims, group)).collect()
    }

    fn norm<'a>(&self, params: &[&'a [f32]]) -> ChannelNorm<'a> {
        ChannelNorm {
            dims: self.dims,
            eps: self.eps,
            weight: params[WEIGHT],
            bias: params[BIAS],
        }
    }

    /// Turns the gradients of the result of one group, in `dxs`, into those of its input; returns Σ g x̂ and Σ g of each
    /// of its channels.
    fn backward_group(
        &self,
        norm: &ChannelNorm,
        group: usize,
        moments: Moments,
        xs: &[f32],
        dxs: &mut [f32],
    ) -> Vec<[f64; 2]> {
        let (mean, rest) = moments.mean();
        let (scale, n) = (norm.scale(moments), self.len() as f64);
        let positions = self.dims.positions;
        let of_channel = |(xs, grads): (&[f32], &[f32])| {
            let mut acc = [[0f64; LANES]; 2];
            add_backward_sums(&mut acc, xs, grads, mean);
            let [sum, sum_x]: [f64; 2] = acc.map(|lanes| lanes.iter().sum());
            [scale * (sum_x - rest * sum), sum]
        };
        let sums: Vec<_> = xs
            .chunks_exact(positions)
            .zip(dxs.chunks_exact(positions))
            .map(of_channel)
            .collect();
        let mut of_group = [0.0; 2];
        for (channel, sums) in self.channels(group).zip(&sums) {
            for (total, sum) in of_group.iter_mut().zip(sums) {
                *total += f64::from(norm.weight[channel]) * sum;
            }
        }
        let [sum_x, sum] = of_group;
        let (slope, shift) = (-scale * scale * sum_x / n, -scale * sum / n);
        let (slope, shift) = (slope as f32, (shift - slope * rest) as f32);
        let rows = xs.chunks_exact(positions).zip(dxs.chunks_exact_mut(positions));
        for (channel, (xs, dxs)) in self.channels(group).zip(rows) {
            let dy = scale * f64::from(norm.weight[channel]);
            backward_row(xs, mean, dy as f32, slope, shift, dxs);
        }
        sums
    }
}

/// Where the parameters stand.
const WEIGHT: usize = 0;
const BIAS: usize = 1;

impl Operation for GroupNorm {
    const NAME: &'static str = "group-norm";

    type Kept = Vec<Moments>;

    fn result_dims(&self) -> Vec<usize> {
        self.shape.clone()
    }

    fn forward(&self, xs: &[f32], params: &[&[f32]], _: bool) -> Result<(Vec<f32>, Vec<Moments>)> {
        let (norm, moments) = (self.norm(params), self.moments(xs));
        let mut ys = vec![0f32; xs.len()];
        let groups = ys
            .par_chunks_mut(self.len())
            .zip(xs.par_chunks(self.len()))
            .zip(&moments[..]);
        let groups = groups.enumerate().with_min_len(self.groups_per_piece());
        groups.for_each(|(group, ((ys, xs), &moments))| {
            let rows = ys
                .chunks_exact_mut(self.dims.positions)
                .zip(xs.chunks_exact(self.dims.positions));
            for (channel, (ys, xs)) in self.channels(group).zip(rows) {
                forward_row(xs, norm.line(channel, moments), f32::NEG_INFINITY, ys);
            }
        });
        Ok((ys, moments))
    }

    fn recompute(&self, xs: &[f32], _: &[&[f32]]) -> Result<Vec<Moments>> {
        Ok(self.moments(xs))
    }

    fn backward(&self, of: Backward, moments: Vec<Moments>, param_grads: &mut ParamGrads) -> Result<Vec<f32>> {
        let norm = self.norm(of.params);
        let mut dxs = of.grads.to_vec();
        let groups = dxs
            .par_chunks_mut(self.len())
            .zip(of.xs.par_chunks(self.len()))
            .zip(&moments[..]);
        let groups = groups.enumerate().with_min_len(self.groups_per_piece());
        let sums: Vec<_> = groups
            .map(|(group, ((dxs, xs), &moments))| self.backward_group(&norm, group, moments, xs, dxs))
            .collect();
        // Of all channels, sample by sample.
        let sums = sums.concat();
        for (index, which) in [(WEIGHT, 0), (BIAS, 1)] {
            let mut total = vec![0f64; self.dims.channels];
            for of_sample in sums.chunks_exact(self.dims.channels) {
                for (total, sums) in total.iter_mut().zip(of_sample) {
                    *total += sums[which];
                }
            }
            param_grads.set(index, total.into_iter().map(|total| total as f32).collect())?;
        }
        Ok(dxs)
    }
}

#[cfg(test)]
mod tests;
