//! The geometry of a window that slides along an axis of an image, for convolution and pooling.

use std::ops::Range;

use crate::check;

/// One axis: where a window of `window` elements, `dilation` apart, stands at each of `out` places, `stride` apart, of
/// which the first is `padding` before the image.
#[derive(Clone, Copy)]
pub(crate) struct Sliding {
    pub(crate) side: usize,
    pub(crate) window: usize,
    pub(crate) stride: usize,
    pub(crate) padding: usize,
    pub(crate) dilation: usize,
    pub(crate) out: usize,
}

impl Sliding {
    /// `None` if the window is larger than the padded image, or that is larger than a `usize` tells. Window and stride
    /// must not be 0.
    pub(crate) fn new(side: usize, window: usize, stride: usize, padding: usize) -> Option<Self> {
        Self::dilated(side, window, stride, padding, 1)
    }

    /// As [`new`](Self::new), of a window whose elements are `dilation` apart, which must not be 0.
    pub(crate) fn dilated(side: usize, window: usize, stride: usize, padding: usize, dilation: usize) -> Option<Self> {
        let out = padded(side, padding)?.checked_sub(extent(window, dilation)?)? / stride + 1;
        Some(Self {
            side,
            window,
            stride,
            padding,
            dilation,
            out,
        })
    }

    /// Elements from the first of the window to its last, both counted.
    pub(crate) fn extent(&self) -> usize {
        (self.window - 1) * self.dilation + 1
    }

    /// The element of the image that is the window's element `tap` at place `at`, unless that is padding.
    #[inline(always)]
    pub(crate) fn source(&self, at: usize, tap: usize) -> Option<usize> {
        (at * self.stride + tap * self.dilation)
            .checked_sub(self.padding)
            .filter(|&source| source < self.side)
    }

    /// The places at which the window's element `tap` is within the image, and the first of these elements. (Then each
    /// `stride` on from the last.)
    #[inline(always)]
    pub(crate) fn inside(&self, tap: usize) -> (Range<usize>, usize) {
        self.inside_of(tap, &(0..self.out))
    }

    /// As [`inside`](Self::inside), of some places, counted from the first of these.
    #[inline(always)]
    pub(crate) fn inside_of(&self, tap: usize, places: &Range<usize>) -> (Range<usize>, usize) {
        let tap = tap * self.dilation;
        let first = self.padding.saturating_sub(tap).div_ceil(self.stride);
        let first = first.clamp(places.start, places.end);
        let end = (self.side + self.padding).saturating_sub(tap).div_ceil(self.stride);
        let end = end.clamp(first, places.end);
        let source = first.saturating_mul(self.stride).saturating_add(tap);
        let inside = first - places.start..end - places.start;
        (inside, source.saturating_sub(self.padding))
    }
}

/// What [`Sliding::extent`] gives of a window that is not empty, if a `usize` tells it.
pub(crate) fn extent(window: usize, dilation: usize) -> Option<usize> {
    (window - 1).checked_mul(dilation)?.checked_add(1)
}

fn padded(side: usize, padding: usize) -> Option<usize> {
    padding.checked_mul(2)?.checked_add(side)
}

/// An error unless `planes` images of these sides, padded, could be in memory together. (A composition makes them.)
pub(crate) fn check_padding(planes: usize, sides: &[usize], padding: usize) -> crate::error::Result<()> {
    let count = sides
        .iter()
        .try_fold(planes, |count, &side| count.checked_mul(padded(side, padding)?));
    check::fits_memory("padding", padding, count, size_of::<f64>())
}

/// `f` of each element of `out` and of every `stride`-th of `source`, from the first.
#[inline(always)]
pub(crate) fn zip_strided(out: &mut [f32], source: &[f32], stride: usize, f: impl Fn(&mut f32, f32)) {
    match stride {
        1 => {
            for (out, &x) in out.iter_mut().zip(source) {
                f(out, x);
            }
        }
        // The compiler makes shuffles of this one.
        2 => {
            let (pairs, rest) = source.as_chunks::<2>();
            for (out, pair) in out.iter_mut().zip(pairs) {
                f(out, pair[0]);
            }
            if let (Some(out), Some(&x)) = (out.get_mut(pairs.len()), rest.first()) {
                f(out, x);
            }
        }
        _ => {
            for (out, &x) in out.iter_mut().zip(source.iter().step_by(stride)) {
                f(out, x);
            }
        }
    }
}

/// Adds the elements of `source` to every `stride`-th of `out`, from the first.
#[inline(always)]
pub(crate) fn add_strided(out: &mut [f32], source: &[f32], stride: usize) {
    // The compiler knows vectors of neighbours only.
    if stride == 1 {
        for (out, x) in out.iter_mut().zip(source) {
            *out += x;
        }
    } else {
        for (out, x) in out.iter_mut().step_by(stride).zip(source) {
            *out += x;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `source` of all places is what `inside` says, and every place and tap is either.
    #[test]
    fn both_descriptions_agree() {
        for (side, window, stride, padding, dilation) in
            (0..6 * 6 * 4 * 5 * 3).map(|i| (1 + i % 6, 1 + i / 6 % 6, 1 + i / 36 % 4, i / 144 % 5, 1 + i / 720))
        {
            let extent = (window - 1) * dilation + 1;
            let Some(axis) = Sliding::dilated(side, window, stride, padding, dilation) else {
                assert!(extent > side + 2 * padding);
                continue;
            };
            assert_eq!(axis.extent(), extent);
            assert!((axis.out - 1) * stride + extent <= side + 2 * padding);
            assert!(axis.out * stride + extent > side + 2 * padding);
            for tap in 0..window {
                let third = axis.out.div_ceil(3);
                for places in [0..axis.out, 0..third, third..axis.out, axis.out - third..axis.out] {
                    let (inside, first) = axis.inside_of(tap, &places);
                    for (i, at) in places.enumerate() {
                        let expected = inside.contains(&i).then(|| first + (i - inside.start) * stride);
                        let case = [side, window, stride, padding, dilation, at, tap];
                        assert_eq!(axis.source(at, tap), expected, "{case:?}");
                    }
                }
            }
        }
    }
}
