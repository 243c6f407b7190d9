//! Global response normalisation (Woo et al. 2023, arXiv 2301.00808) behind a GELU, on slices.

use candle_core::{Result, Tensor, D};

use crate::ops::cpu::kernel;
use crate::ops::fused::affine::Affine;
use crate::ops::gelu::Gelu;
use crate::ops::pointwise::Pointwise as _;
use crate::ops::route::{in_f32, is_half};

/// What is added to the channels' mean, as in the paper.
const EPS: f64 = 1e-6;

/// Of a channel without any response the norm, a root, has no derivative: what is added is far below what a number's
/// square is.
const FLOOR: f64 = 1e-30;

/// Global response normalisation of candle's operations, [B, L, H] to [B, L, H].
pub(super) fn composition(xs: &Tensor, response: Affine) -> Result<Tensor> {
    if is_half(xs) {
        return in_f32(&[xs, response.weight, response.bias], |t| {
            normalise(&t[0], &t[1], &t[2])
        });
    }
    normalise(xs, response.weight, response.bias)
}

fn normalise(xs: &Tensor, weight: &Tensor, bias: &Tensor) -> Result<Tensor> {
    let norm = (xs.sqr()?.sum_keepdim(1)? + FLOOR)?.sqrt()?;
    let share = norm.broadcast_div(&(norm.mean_keepdim(D::Minus1)? + EPS)?)?;
    let scale = (share.broadcast_mul(weight)? + 1.0)?;
    xs.broadcast_mul(&scale)?.broadcast_add(bias)
}

/// a + weight · a · n + bias of rows of H elements, the same number of them for each of `batch` samples.
#[derive(Clone, Copy)]
pub(super) struct Response<'a> {
    pub(super) weight: &'a [f32],
    pub(super) bias: &'a [f32],
    pub(super) batch: usize,
}

/// Of one sample's channels.
struct Shares {
    /// n, the norms as shares of their mean.
    shares: Vec<f32>,
    /// 1 + weight · n.
    scales: Vec<f32>,
    mean: f64,
}

impl Response<'_> {
    fn width(&self) -> usize {
        self.weight.len()
    }

    fn shares(&self, norms: &[f32]) -> Shares {
        let sum: f64 = norms.iter().copied().map(f64::from).sum();
        let mean = sum / norms.len() as f64 + EPS;
        let shares: Vec<f32> = norms.iter().map(|&norm| (f64::from(norm) / mean) as f32).collect();
        let scales = shares
            .iter()
            .zip(self.weight)
            .map(|(share, weight)| share * weight + 1.0);
        Shares {
            scales: scales.collect(),
            shares,
            mean,
        }
    }

    /// Normalises `active`; returns the norms, [B, H].
    pub(super) fn forward(self, active: &mut [f32]) -> Vec<f32> {
        let width = self.width();
        let per_sample = active.len() / self.batch;
        let of_sample = |active: &mut [f32]| {
            let squares = kernel::sum_over_rows(per_sample / width, width, width, |first, rows, sums| {
                add_squares(&active[first * width..][..rows * width], sums);
            });
            let norms: Vec<f32> = squares.iter().map(|&sum| (sum + FLOOR as f32).sqrt()).collect();
            let Shares { scales, .. } = self.shares(&norms);
            kernel::for_rows(active, width, |_, rows| scale(&scales, self.bias, rows));
            norms
        };
        active.chunks_exact_mut(per_sample).flat_map(of_sample).collect()
    }

    /// Of `hidden` and its bias the GELU's value: writes it, normalised, to the first of `outs`, and turns the gradients
    /// of that, in the second, into those of `hidden`. Returns the gradients of weight, bias, and the bias of `hidden`.
    pub(super) fn backward(
        self,
        hidden: &[f32],
        hidden_bias: &[f32],
        norms: &[f32],
        outs: [&mut [f32]; 2],
    ) -> [Vec<f32>; 3] {
        let width = self.width();
        let per_sample = hidden.len() / self.batch;
        let mut sums = [0; 3].map(|_| vec![0f32; width]);
        let [active, grads] = outs.map(|out| out.chunks_exact_mut(per_sample));
        let samples = hidden.chunks_exact(per_sample).zip(norms.chunks_exact(width));
        for ((hidden, norms), (active, grads)) in samples.zip(active.zip(grads)) {
            let of_channels = kernel::sum_over_rows(per_sample / width, width, 2 * width, |first, rows, sums| {
                let rows = first * width..(first + rows) * width;
                add_products(&hidden[rows.clone()], hidden_bias, &grads[rows], sums);
            });
            let (products, plain) = of_channels.split_at(width);
            let of_sample = self.shares(norms);
            let slopes = self.slopes(norms, products, &of_sample);
            let dhidden_bias =
                kernel::for_two_rows_summing([active, grads], width, width, |first, [active, grads], sums| {
                    let hidden = &hidden[first * width..][..active.len()];
                    let scales = [&of_sample.scales[..], &slopes];
                    finish([hidden, hidden_bias, self.bias], scales, active, grads, sums);
                });
            let of_weight = products
                .iter()
                .zip(&of_sample.shares)
                .map(|(product, share)| product * share);
            add(&mut sums[0], of_weight);
            add(&mut sums[1], plain.iter().copied());
            add(&mut sums[2], dhidden_bias.into_iter());
        }
        sums
    }

    /// The factors by which a channel's numbers change its norm and all shares with it, from Σ gradient · number of each
    /// channel: (d norm) / norm, where d norm = (d share - Σ d share · share / H) / mean.
    fn slopes(&self, norms: &[f32], products: &[f32], of_sample: &Shares) -> Vec<f32> {
        let dshares = || {
            products
                .iter()
                .zip(self.weight)
                .map(|(&p, &w)| f64::from(p) * f64::from(w))
        };
        let through_mean: f64 = dshares()
            .zip(&of_sample.shares)
            .map(|(d, &share)| d * f64::from(share))
            .sum();
        let through_mean = through_mean / norms.len() as f64;
        let slope = |(dshare, &norm): (f64, &f32)| ((dshare - through_mean) / of_sample.mean / f64::from(norm)) as f32;
        dshares().zip(norms).map(slope).collect()
    }
}

fn add(sums: &mut [f32], terms: impl Iterator<Item = f32>) {
    for (sum, term) in sums.iter_mut().zip(terms) {
        *sum += term;
    }
}

kernel::simd_fn! {
    fn add_squares<S>(xs: &[f32], sums: &mut [f32]) -> () {
        for row in xs.chunks_exact(sums.len()) {
            for (sum, &x) in sums.iter_mut().zip(row) {
                *sum = kernel::fma::<S>(x, x, *sum);
            }
        }
    }
}

kernel::simd_fn! {
    fn scale<S>(scales: &[f32], bias: &[f32], rows: &mut [f32]) -> () {
        for row in rows.chunks_exact_mut(scales.len()) {
            for ((x, &scale), &bias) in row.iter_mut().zip(scales).zip(bias) {
                *x = kernel::fma::<S>(*x, scale, bias);
            }
        }
    }
}

kernel::simd_fn! {
    /// Adds gradient times value, and the gradient, to the two halves of `sums`.
    fn add_products<S>(hidden: &[f32], bias: &[f32], grads: &[f32], sums: &mut [f32]) -> () {
        let width = bias.len();
        let (products, plain) = sums.split_at_mut(width);
        for (hidden, grads) in hidden.chunks_exact(width).zip(grads.chunks_exact(width)) {
            let sums = products.iter_mut().zip(plain.iter_mut());
            for (((product, plain), (&h, &b)), &g) in sums.zip(hidden.iter().zip(bias)).zip(grads) {
                *product = kernel::fma::<S>(g, Gelu::value::<S>(h + b), *product);
                *plain += g;
            }
        }
    }
}

kernel::simd_fn! {
    /// See [`Response::backward`], of a sample's rows whose scales and slopes are known; adds the gradients of the bias of
    /// `hidden` to `sums`.
    fn finish<S>(
        sources: [&[f32]; 3],
        factors: [&[f32]; 2],
        active: &mut [f32],
        grads: &mut [f32],
        sums: &mut [f32],
    ) -> () {
        let ([hidden, hidden_bias, bias], [scales, slopes]) = (sources, factors);
        let width = bias.len();
        let rows = hidden.chunks_exact(width).zip(active.chunks_exact_mut(width));
        for ((hidden, active), grads) in rows.zip(grads.chunks_exact_mut(width)) {
            let channels = hidden_bias.iter().zip(bias).zip(scales.iter().zip(slopes));
            let numbers = hidden.iter().zip(active).zip(grads.iter_mut().zip(sums.iter_mut()));
            for (((&h, active), (grad, sum)), ((&hb, &b), (&scale, &slope))) in numbers.zip(channels) {
                let (value, derivative) = Gelu::both::<S>(h + hb);
                *active = kernel::fma::<S>(value, scale, b);
                *grad = kernel::fma::<S>(*grad, scale, value * slope) * derivative;
                *sum += *grad;
            }
        }
    }
}
