//! The matrix of what a convolution's kernel sees ("im2col"), and the way back.

use super::blocks::Part;
use super::geometry::Conv2d;
use crate::ops::cpu::kernel;
use crate::ops::cpu::matrix::MatMut;
use crate::ops::cpu::sliding::{add_strided, zip_strided};

kernel::simd_fn! {
    /// What the kernel sees of an image [channels, H, W] at a part of the result, to rows of `seen` that are `stride`
    /// apart: one for each channel and element of the kernel.
    pub(super) fn im2col<S>(conv: Conv2d, image: &[f32], part: &Part, seen: &mut [f32], stride: usize) -> () {
        let taps = (0..conv.rows.window).flat_map(|u| (0..conv.columns.window).map(move |v| (u, v)));
        let seen_rows = image.chunks_exact(conv.area()).flat_map(|channel| taps.clone().map(move |tap| (channel, tap)));
        for ((channel, (u, v)), seen) in seen_rows.zip(seen.chunks_mut(stride)) {
            let (inside, first) = conv.columns.inside_of(v, &part.columns);
            for (row, seen) in part.rows.clone().zip(seen.chunks_exact_mut(part.columns.len())) {
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
    pub(super) fn col2im<S>(
        conv: Conv2d,
        seen: &[f32],
        stride: usize,
        part: &Part,
        image: &mut MatMut<'_>,
    ) -> () {
        let (width, taps) = (conv.columns.window, conv.taps());
        for (i, seen) in seen.chunks(stride).enumerate() {
            let channel = image.row(i / taps);
            let (u, v) = (i % taps / width, i % taps % width);
            let (inside, first) = conv.columns.inside_of(v, &part.columns);
            if inside.is_empty() {
                continue;
            }
            for (row, seen) in part.rows.clone().zip(seen.chunks_exact(part.columns.len())) {
                let Some(target) = conv.rows.source(row, u) else {
                    continue;
                };
                let target = &mut channel[target * conv.columns.side..][first..conv.columns.side];
                add_strided(target, &seen[inside.clone()], conv.columns.stride);
            }
        }
    }
}
