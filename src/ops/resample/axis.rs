//! The weights along one axis of an image.

use candle_core::{Device, Result, Tensor};

/// One axis: of each place of the result the elements that it is made of, a few next to each other, and their weights.
#[derive(Clone)]
pub(super) struct Axis {
    side: usize,
    /// Elements of each place.
    taps: usize,
    /// Of each place, the first of its elements.
    first: Vec<usize>,
    /// Of each place, as many as it has elements.
    weights: Vec<f32>,
    /// The same with all digits.
    exact: Vec<f64>,
}

impl Axis {
    /// Of an axis of `side` elements, of which each place sees some, no two more than `taps` apart, with these weights.
    pub(super) fn new(side: usize, taps: usize, places: impl Iterator<Item = Vec<(usize, f64)>>) -> Self {
        let taps = taps.min(side);
        let (mut first, mut exact) = (Vec::new(), Vec::new());
        for place in places {
            let lowest = place
                .iter()
                .map(|&(element, _)| element)
                .min()
                .unwrap_or(0)
                .min(side - taps);
            let start = exact.len();
            exact.resize(start + taps, 0.0);
            for (element, weight) in place {
                exact[start + element - lowest] += weight;
            }
            first.push(lowest);
        }
        Self {
            side,
            taps,
            first,
            weights: exact.iter().map(|&weight| weight as f32).collect(),
            exact,
        }
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

    /// The matrix [side, out] of the weights, as a tensor like `like`.
    pub(super) fn matrix(&self, like: &Tensor) -> Result<Tensor> {
        let out = self.out();
        let mut matrix = vec![0f64; self.side * out];
        for (place, (&first, weights)) in self.first.iter().zip(self.exact.chunks_exact(self.taps)).enumerate() {
            for (tap, &weight) in weights.iter().enumerate() {
                matrix[(first + tap) * out + place] = weight;
            }
        }
        // Rounded on the host: not every device has f64.
        let matrix = Tensor::from_vec(matrix, (self.side, out), &Device::Cpu)?;
        matrix.to_dtype(like.dtype())?.to_device(like.device())
    }
}
