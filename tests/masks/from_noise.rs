//! Masks of given noise, against sorting.

use candle_core::{DType, Tensor};
use masksub::{Grid, Mask};
use proptest::prelude::*;

use super::row_of;
use crate::common::CPU;

/// Picks the smallest `num_keep` times, the leftmost of equal ones.
fn selection(noise: &[f32], num_keep: usize) -> Vec<u32> {
    let mut left: Vec<(usize, f32)> = noise.iter().copied().enumerate().collect();
    let mut picked = vec![];
    for _ in 0..num_keep {
        let mut best = 0;
        for candidate in 1..left.len() {
            if left[candidate].1 < left[best].1 {
                best = candidate;
            }
        }
        picked.push(left.remove(best).0 as u32);
    }
    picked
}

proptest! {
    /// Noise of few values, so that there are ties everywhere.
    #[test]
    fn keeps_the_smallest_and_of_equal_ones_the_lower_position(
        noise in proptest::collection::vec(proptest::collection::vec(0u8..6, 12), 1..4), num_keep in 1usize..=12
    ) {
        let noise: Vec<Vec<f32>> = noise.iter().map(|row| row.iter().map(|&n| n as f32 / 4. - 0.5).collect()).collect();
        let tensor = Tensor::new(noise.clone(), &CPU).unwrap();
        let mask = Mask::from_noise(Grid::new(3, 4), &tensor, num_keep).unwrap();
        for (row, noise) in mask.rows().zip(&noise) {
            prop_assert_eq!(row, &selection(noise, num_keep)[..]);
        }
    }
}

#[test]
fn orders_zeros_infinities_and_other_dtypes() {
    let grid = row_of(5);
    let noise = Tensor::new(&[[0f32, -0.0, f32::INFINITY, f32::NEG_INFINITY, -1.0]], &CPU).unwrap();
    let mask = Mask::from_noise(grid, &noise, 5).unwrap();
    // 0 and -0 are equal, so the lower position comes first.
    assert_eq!(mask.rows().next().unwrap(), [3, 4, 0, 1, 2]);
    for dtype in [DType::F64, DType::BF16, DType::F16, DType::U8, DType::I64] {
        let noise = Tensor::new(&[[3f32, 1.0, 4.0, 1.0, 5.0]], &CPU)
            .unwrap()
            .to_dtype(dtype)
            .unwrap();
        let mask = Mask::from_noise(grid, &noise, 3).unwrap();
        assert_eq!(mask.rows().next().unwrap(), [1, 3, 0], "{dtype:?}");
    }
}
