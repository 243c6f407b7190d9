//! The weights along one axis of an image.

use candle_core::{Device, Result, Tensor};

use crate::check;

/// One axis: of each place of the result the elements that it is made of, a few next to each other, and their weights.
pub(super) struct Axis {
    side: usize,
    /// Elements of each place.
    taps: usize,
    /// Of each place, the first of its elements. What of the others is beyond the edge has no weight.
    first: Vec<usize>,
    /// Of each place, as many as it has elements.
    weights: Vec<f32>,
    /// The same with all digits.
    exact: Vec<f64>,
}

impl Axis {
    /// Of an axis of `side` elements, of which each of `out` places sees some, no two more than `taps` apart, with the
    /// weights that `place` gives. That they are so many is for the value of an argument.
    pub(super) fn new(
        (argument, value): (&'static str, usize),
        side: usize,
        taps: usize,
        out: usize,
        place: impl Fn(usize) -> Vec<(usize, f64)>,
    ) -> crate::error::Result<Self> {
        let taps = taps.min(side);
        let bytes = size_of::<usize>() + taps.saturating_mul(size_of::<f32>() + size_of::<f64>());
        check::fits_memory(argument, value, Some(out), bytes)?;
        let (mut first, mut exact) = (Vec::with_capacity(out), vec![0.0; out * taps]);
        for (place, exact) in (0..out).map(place).zip(exact.chunks_exact_mut(taps)) {
            let lowest = place.iter().map(|&(element, _)| element).min().unwrap_or(0);
            for (element, weight) in place {
                exact[element - lowest] += weight;
            }
            first.push(lowest);
        }
        Ok(Self {
            side,
            taps,
            first,
            weights: exact.iter().map(|&weight| weight as f32).collect(),
            exact,
        })
    }

    /// Elements of the image.
    pub(super) fn side(&self) -> usize {
        self.side
    }

    /// Places of the result.
    pub(super) fn out(&self) -> usize {
        self.first.len()
    }

    /// Of each place of the result, its first element and the weights from there on.
    #[inline(always)]
    pub(super) fn places(&self) -> impl Iterator<Item = (usize, &[f32])> {
        self.first.iter().copied().zip(self.weights.chunks_exact(self.taps))
    }

    /// The sums along the axis in the middle of `xs` [M, side, N], in candle's operations: [M, out, N]. No place sees
    /// more than its own elements: 0 times one that is infinite would be NaN.
    pub(super) fn compose(&self, xs: &Tensor) -> Result<Tensor> {
        let (outer, side, inner) = xs.dims3()?;
        let (out, taps) = (self.out(), self.taps);
        let seen = [outer, out, taps, inner];
        let count = seen.iter().try_fold(1usize, |count, &dim| count.checked_mul(dim));
        check::fits_memory("xs", format!("{:?}", xs.dims()), count, xs.dtype().size_in_bytes())?;
        let elements: Vec<i64> = self
            .first
            .iter()
            .flat_map(|&first| first..first + taps)
            .map(|element| element as i64)
            .collect();
        // Beyond the edge are zeros.
        let end = self.first.iter().max().map_or(0, |&last| last + taps);
        let xs = xs.pad_with_zeros(1, 0, end.saturating_sub(side))?;
        let elements = Tensor::new(elements, &Device::Cpu)?.to_device(xs.device())?;
        let elements = xs.contiguous()?.index_select(&elements, 1)?;
        if taps == 1 {
            // Of weight 1.
            return Ok(elements);
        }
        // Rounded on the host: not every device has f64.
        let weights = Tensor::from_slice(&self.exact, (out, taps, 1), &Device::Cpu)?.to_dtype(xs.dtype())?;
        let weights = weights.to_device(xs.device())?;
        elements.reshape(&seen)?.broadcast_mul(&weights)?.sum(2)
    }
}
