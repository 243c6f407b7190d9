//! The depthwise convolution of maps that lie position by position, with a result as large as they are.
//!
//! Where the channels of a position lie together, so do eight numbers that a register takes, and what follows in a
//! ConvNeXt, a norm and products of the channels, needs nothing moved. Some channels of a map at a time are copied to
//! where they are padded; there a run of positions of a row is in registers while the kernel's elements go by.

use rayon::prelude::*;

use crate::ops::cpu::kernel;
use crate::ops::cpu::matrix::{MatMut, SharedMut};
use crate::ops::cpu::write::Write;

/// Channels that are computed together: an AVX register of `f32`.
const LANES: usize = 8;

/// Channels of one piece of work: what a cache line holds.
const GROUP: usize = 2 * LANES;

/// Positions of a row that are computed together, and elements of a kernel's row: with as many sums no addition waits
/// for the one before.
const RUN: usize = 7;

type Lanes = [f32; LANES];

/// A depthwise convolution of maps [B, H, W, C] with kernels k x k, k odd, and k / 2 zeros around the map.
#[derive(Clone, Copy)]
pub(crate) struct ChannelsLast {
    pub(crate) batch: usize,
    pub(crate) height: usize,
    pub(crate) width: usize,
    pub(crate) channels: usize,
    /// k.
    pub(crate) side: usize,
}

/// Some channels of one sample.
struct Piece {
    sample: usize,
    first: usize,
    channels: usize,
}

impl ChannelsLast {
    fn positions(&self) -> usize {
        self.height * self.width
    }

    fn taps(&self) -> usize {
        self.side * self.side
    }

    /// Elements of a row that is padded, and to a whole number of runs.
    fn stride(&self) -> usize {
        self.width.next_multiple_of(RUN) + self.side - 1
    }

    fn plane(&self) -> usize {
        (self.height + self.side - 1) * self.stride()
    }

    fn groups(&self) -> usize {
        self.channels.div_ceil(GROUP)
    }

    /// What a piece of work is made of: up to [`LANES`] channels of a sample at a time.
    fn pieces(&self, piece: usize) -> impl Iterator<Item = Piece> {
        let (sample, group) = (piece / self.groups(), piece % self.groups());
        let (channels, end) = (self.channels, self.channels.min((group + 1) * GROUP));
        (group * GROUP..end).step_by(LANES).map(move |first| Piece {
            sample,
            first,
            channels: LANES.min(channels - first),
        })
    }

    /// Where the numbers of a piece begin.
    fn start(&self, piece: &Piece) -> usize {
        piece.sample * self.positions() * self.channels + piece.first
    }

    /// The kernels of `LANES` channels each, element by element; `turned`, from the last element to the first.
    fn pack_weight(&self, weight: &[f32], turned: bool) -> Vec<Lanes> {
        let taps = self.taps();
        let mut packed = vec![[0f32; LANES]; self.channels.div_ceil(LANES) * taps];
        for (channel, weight) in weight.chunks_exact(taps).enumerate() {
            let packed = &mut packed[channel / LANES * taps..][..taps];
            for (tap, &element) in weight.iter().enumerate() {
                packed[if turned { taps - 1 - tap } else { tap }][channel % LANES] = element;
            }
        }
        packed
    }

    /// What is a piece's of what is packed by kernels.
    fn of_piece<'a>(&self, packed: &'a [Lanes], piece: &Piece) -> &'a [Lanes] {
        &packed[piece.first / LANES * self.taps()..][..self.taps()]
    }

    /// Copies a piece to where it is padded.
    fn pad(&self, xs: &[f32], piece: &Piece, plane: &mut [Lanes]) {
        pad(*self, &xs[self.start(piece)..], piece.channels, plane);
    }

    /// The columns of `out` that are a piece's.
    ///
    /// # Safety
    ///
    /// While the result is in use, nothing else may read or write the channels of the piece.
    unsafe fn columns<'a>(&self, out: SharedMut<'a>, piece: &Piece) -> MatMut<'a> {
        // SAFETY: as promised.
        unsafe { out.columns(self.start(piece), self.positions(), piece.channels, self.channels) }
    }

    /// Writes the result to `ys`.
    pub(crate) fn forward(&self, xs: &[f32], weight: &[f32], bias: &[f32], ys: &mut [f32]) {
        let weight = self.pack_weight(weight, false);
        let ys = SharedMut::new(ys);
        (0..self.batch * self.groups()).into_par_iter().for_each(|piece| {
            kernel::with_scratch(self.plane() * LANES, |scratch| {
                let plane = scratch.as_chunks_mut::<LANES>().0;
                for piece in self.pieces(piece) {
                    self.pad(xs, &piece, plane);
                    let mut start = [0f32; LANES];
                    start[..piece.channels].copy_from_slice(&bias[piece.first..][..piece.channels]);
                    // SAFETY: no two pieces have a channel of a sample in common.
                    let ys = unsafe { self.columns(ys, &piece) };
                    convolve(*self, plane, self.of_piece(&weight, &piece), start, Write::Replace, ys);
                }
            });
        });
    }

    /// Adds the gradient of the maps to `dxs`; returns those of weight and bias, whose shares are added sample by
    /// sample.
    pub(crate) fn backward(&self, xs: &[f32], weight: &[f32], grads: &[f32], dxs: &mut [f32]) -> [Vec<f32>; 2] {
        let turned = self.pack_weight(weight, true);
        let share = self.taps() + 1;
        let per_piece = GROUP / LANES * share;
        let mut sums = vec![[0f32; LANES]; self.batch * self.groups() * per_piece];
        let dxs = SharedMut::new(dxs);
        sums.par_chunks_mut(per_piece).enumerate().for_each(|(piece, sums)| {
            kernel::with_scratch(2 * self.plane() * LANES, |scratch| {
                let (plane, of_grads) = scratch.as_chunks_mut::<LANES>().0.split_at_mut(self.plane());
                for (piece, sums) in self.pieces(piece).zip(sums.chunks_exact_mut(share)) {
                    self.pad(xs, &piece, plane);
                    self.pad(grads, &piece, of_grads);
                    add_products(*self, plane, of_grads, sums);
                    // SAFETY: no two pieces have a channel of a sample in common.
                    let dxs = unsafe { self.columns(dxs, &piece) };
                    convolve(
                        *self,
                        of_grads,
                        self.of_piece(&turned, &piece),
                        [0.0; LANES],
                        Write::Add,
                        dxs,
                    );
                }
            });
        });
        self.unpack_sums(&sums)
    }

    /// The gradients of weight and bias, of the shares of all samples: of [`LANES`] channels each, those of the
    /// kernel's elements, and that of the bias.
    fn unpack_sums(&self, sums: &[Lanes]) -> [Vec<f32>; 2] {
        let taps = self.taps();
        let (mut dweight, mut dbias) = (vec![0f32; self.channels * taps], vec![0f32; self.channels]);
        let per_sample = self.groups() * (GROUP / LANES) * (taps + 1);
        for sums in sums.chunks_exact(per_sample) {
            for (channel, (dweight, dbias)) in dweight.chunks_exact_mut(taps).zip(&mut dbias).enumerate() {
                let sums = &sums[channel / LANES * (taps + 1)..][..taps + 1];
                let lane = channel % LANES;
                for (dweight, sum) in dweight.iter_mut().zip(sums) {
                    *dweight += sum[lane];
                }
                *dbias += sums[taps][lane];
            }
        }
        [dweight, dbias]
    }
}

kernel::simd_fn! {
    /// Copies the first `channels` channels of a map to where it is padded.
    fn pad<S>(conv: ChannelsLast, xs: &[f32], channels: usize, plane: &mut [Lanes]) -> () {
        let reach = conv.side / 2;
        let (stride, width) = (conv.stride(), conv.width);
        let (above, rest) = plane.split_at_mut(reach * stride);
        let (rows, below) = rest.split_at_mut(conv.height * stride);
        above.fill([0.0; LANES]);
        below.fill([0.0; LANES]);
        for (y, row) in rows.chunks_exact_mut(stride).enumerate() {
            row[..reach].fill([0.0; LANES]);
            row[reach + width..].fill([0.0; LANES]);
            for (x, lanes) in row[reach..reach + width].iter_mut().enumerate() {
                let xs = &xs[(y * width + x) * conv.channels..];
                if channels == LANES {
                    lanes.copy_from_slice(&xs[..LANES]);
                } else {
                    lanes.fill(0.0);
                    lanes[..channels].copy_from_slice(&xs[..channels]);
                }
            }
        }
    }
}

kernel::simd_fn! {
    /// y = start + Σ weight * x over what the kernel sees at each position, or y += that.
    fn convolve<S>(
        conv: ChannelsLast,
        plane: &[Lanes],
        weight: &[Lanes],
        start: Lanes,
        write: Write,
        ys: MatMut<'_>,
    ) -> () {
        let (stride, side, mut ys) = (conv.stride(), conv.side, ys);
        for (y, x) in (0..conv.height).flat_map(|y| (0..conv.width).step_by(RUN).map(move |x| (y, x))) {
            let mut acc = [start; RUN];
            for (u, weight) in weight.chunks_exact(side).enumerate() {
                let row = &plane[(y + u) * stride + x..][..RUN + side - 1];
                for (v, weight) in weight.iter().enumerate() {
                    let xs = &row[v..][..RUN];
                    for (acc, xs) in acc.iter_mut().zip(xs) {
                        *acc = multiply_add::<S>(weight, xs, acc);
                    }
                }
            }
            for (x, acc) in (x..conv.width).zip(&acc) {
                let out = ys.row(y * conv.width + x);
                match (write, out.as_mut_array::<LANES>()) {
                    (Write::Replace, Some(out)) => *out = *acc,
                    (Write::Replace, None) => out.copy_from_slice(&acc[..out.len()]),
                    (Write::Add, Some(out)) => add(out, acc),
                    (Write::Add, None) => add(out, acc),
                }
            }
        }
    }
}

/// a b + sum. All lanes are made at once: loops over the lanes of several sums are not always put into registers, and take
/// ten times as long then.
#[inline(always)]
fn multiply_add<S: pulp::Simd>(a: &Lanes, b: &Lanes, sum: &Lanes) -> Lanes {
    std::array::from_fn(|lane| kernel::fma::<S>(a[lane], b[lane], sum[lane]))
}

#[inline(always)]
fn add(out: &mut [f32], xs: &[f32]) {
    for (out, x) in out.iter_mut().zip(xs) {
        *out += x;
    }
}

kernel::simd_fn! {
    /// Adds Σ grad * x over all positions for each element of the kernel, and at the end Σ grad.
    fn add_products<S>(conv: ChannelsLast, plane: &[Lanes], grads: &[Lanes], sums: &mut [Lanes]) -> () {
        let (taps, side) = (conv.taps(), conv.side);
        for (u, sums) in sums[..taps].chunks_exact_mut(side).enumerate() {
            let (runs, rest) = sums.as_chunks_mut::<RUN>();
            let first_rest = side - rest.len();
            for (v, sums) in (0..side).step_by(RUN).zip(runs) {
                add_run_of_products::<S, RUN>(conv, [u, v], plane, grads, sums);
            }
            for (v, sum) in (first_rest..side).zip(rest.as_chunks_mut::<1>().0) {
                add_run_of_products::<S, 1>(conv, [u, v], plane, grads, sum);
            }
        }
        let mut total = [0f32; LANES];
        for grad in grads {
            add(&mut total, grad);
        }
        add(&mut sums[taps], &total);
    }
}

/// [`add_products`] of N elements of a row of the kernel, of which the first is at [u, v].
#[inline(always)]
fn add_run_of_products<S: pulp::Simd, const N: usize>(
    conv: ChannelsLast,
    [u, v]: [usize; 2],
    plane: &[Lanes],
    grads: &[Lanes],
    sums: &mut [Lanes; N],
) {
    let (stride, reach) = (conv.stride(), conv.side / 2);
    let mut acc = [[0f32; LANES]; N];
    for y in 0..conv.height {
        let row = &plane[(y + u) * stride + v..][..conv.width + N - 1];
        let grads = &grads[(y + reach) * stride + reach..][..conv.width];
        for (xs, grad) in row.windows(N).zip(grads) {
            for (acc, xs) in acc.iter_mut().zip(xs) {
                *acc = multiply_add::<S>(grad, xs, acc);
            }
        }
    }
    for (sum, acc) in sums.iter_mut().zip(&acc) {
        add(sum, acc);
    }
}
