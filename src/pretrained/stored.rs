//! Places of a file's tensors, as a reader of its kind tells them.

use std::collections::BTreeMap;

use candle_core::DType;

use crate::error::{Error, Fault};

/// Place of a tensor in a file.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Stored {
    /// Number of the file, of those that a checkpoint is cut into.
    pub(super) part: usize,
    pub(super) dtype: DType,
    pub(super) shape: Vec<usize>,
    /// Elements from one neighbour to the next, in each dimension.
    pub(super) strides: Vec<usize>,
    /// Of the first element, in bytes from the start of the file.
    pub(super) start: u64,
}

impl Stored {
    /// A tensor whose elements lie in order, at the start of a file.
    pub(super) fn in_order(dtype: DType, shape: Vec<usize>) -> Self {
        Self {
            part: 0,
            dtype,
            strides: Self::contiguous_strides(&shape),
            shape,
            start: 0,
        }
    }

    /// The strides of a tensor whose elements lie in order.
    pub(super) fn contiguous_strides(shape: &[usize]) -> Vec<usize> {
        let mut strides = vec![1; shape.len()];
        let mut stride = 1usize;
        for (to, size) in strides.iter_mut().zip(shape).rev() {
            *to = stride;
            stride = stride.saturating_mul(*size);
        }
        strides
    }

    pub(super) fn is_in_order(&self) -> bool {
        self.strides == Self::contiguous_strides(&self.shape)
    }

    pub(super) fn elem_count(&self) -> usize {
        self.shape.iter().product()
    }

    /// Number of elements from the first to the last, both counted.
    pub(super) fn span(&self) -> usize {
        match self.elem_count() {
            0 => 0,
            _ => {
                1 + self
                    .shape
                    .iter()
                    .zip(&self.strides)
                    .map(|(n, s)| (n - 1) * s)
                    .sum::<usize>()
            }
        }
    }

    /// Refuses what no file can mean; otherwise the bytes that the tensor takes, from the start of the first to
    /// the end of the last element, can be counted.
    pub(super) fn check(&self, name: &str, available: u64) -> std::result::Result<(), Fault> {
        let wide = |n: usize| n as u128;
        let elements = self
            .shape
            .iter()
            .try_fold(1u128, |count, n| count.checked_mul(wide((*n).max(1))));
        let reach = self
            .shape
            .iter()
            .zip(&self.strides)
            .try_fold(0u128, |reach, (n, stride)| {
                wide(n.saturating_sub(1)).checked_mul(wide(*stride))?.checked_add(reach)
            });
        let size = wide(self.dtype.size_in_bytes());
        match (elements, reach) {
            (Some(elements), _) if self.shape.contains(&0) && elements <= available.into() => Ok(()),
            // No more elements than lie there: a stride of 0 would make a giant of a small file, and so would sides
            // that a side of 0 makes nothing of.
            (Some(elements), Some(reach)) if elements <= reach + 1 && (reach + 1) * size <= available.into() => Ok(()),
            _ => Err(format!(
                "tensor {name} of shape {:?} does not lie within the file's {available} bytes for it",
                self.shape
            )
            .into()),
        }
    }
}

/// A dictionary of tensors, of which a file has one or several.
#[derive(Default)]
pub(super) struct Dictionary {
    /// The key that it lies below; `None` for the file itself.
    pub(super) key: Option<String>,
    pub(super) tensors: BTreeMap<String, Stored>,
    /// Names in it of what is no tensor.
    pub(super) others: Vec<String>,
}

/// Dictionaries that a reader finds, the likeliest to hold the weights first, and all keys of the file.
#[derive(Default)]
pub(super) struct Contents {
    pub(super) dictionaries: Vec<Dictionary>,
    pub(super) keys: Vec<String>,
    /// Why a dictionary could not be read.
    pub(super) fault: Option<Error>,
    /// The file says that its final norm is the one before the mean of the patches: see
    /// [`ONE_NORM`](super::names::ONE_NORM).
    pub(super) one_norm: bool,
}

#[cfg(test)]
pub(super) mod testing {
    use super::*;

    /// A tensor of `f32` at the start of a file.
    pub fn stored(shape: &[usize], strides: &[usize]) -> Stored {
        Stored {
            part: 0,
            dtype: DType::F32,
            shape: shape.to_vec(),
            strides: strides.to_vec(),
            start: 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::testing::stored;

    #[test]
    fn what_does_not_lie_in_the_file_is_refused() {
        stored(&[2, 3], &[3, 1]).check("w", 24).unwrap();
        stored(&[], &[]).check("w", 4).unwrap();
        stored(&[0, 3], &[3, 1]).check("w", 24).unwrap();
        for (shape, strides, available) in [
            (vec![2, 3], vec![3, 1], 23),
            (vec![2, 3], vec![4, 1], 24),
            // As many as one likes, all the same.
            (vec![1 << 40], vec![0], 24),
            (vec![usize::MAX, usize::MAX], vec![usize::MAX, usize::MAX], u64::MAX),
            (vec![usize::MAX, 2], vec![2, 1], u64::MAX),
            (vec![0, 1 << 40], vec![1, 1], 24),
        ] {
            let message = stored(&shape, &strides).check("w", available).unwrap_err().to_string();
            assert!(message.contains("tensor w of shape"), "{message}");
        }
    }
}
