//! Kept and dropped positions, dense masks, larger grids.

use candle_core::{DType, IndexOp};
use masksub::{Error, Grid, Mask};

use super::some_mask;
use crate::common::{numbers, CPU};

#[test]
fn kept_and_dropped_positions_are_a_partition() {
    for ratio in [0.0, 0.3, 0.5, 0.9] {
        let mask = some_mask(3, Grid::new(4, 5), ratio);
        let kept = mask.keep_indices(&CPU).unwrap();
        let dropped = mask.dropped_indices(&CPU).unwrap();
        assert_eq!(kept.dims(), [3, mask.num_keep()]);
        assert_eq!(dropped.dims(), [3, 20 - mask.num_keep()]);
        assert_eq!((kept.dtype(), dropped.dtype()), (DType::U32, DType::U32));
        for sample in 0..3 {
            let kept = kept.i(sample).unwrap().to_vec1::<u32>().unwrap();
            let dropped = dropped.i(sample).unwrap().to_vec1::<u32>().unwrap();
            assert!(dropped.windows(2).all(|pair| pair[0] < pair[1]));
            let mut all = [kept, dropped].concat();
            all.sort_unstable();
            assert_eq!(all, (0..20).collect::<Vec<u32>>());
        }
    }
}

#[test]
fn keep_indices_stay_in_the_order_given() {
    let mask = Mask::from_keep_indices(Grid::new(2, 3), &[[4, 0], [1, 5]]).unwrap();
    assert_eq!(
        mask.keep_indices(&CPU).unwrap().to_vec2::<u32>().unwrap(),
        [[4, 0], [1, 5]]
    );
}

#[test]
fn dense_is_one_where_kept() {
    let mask = Mask::from_keep_indices(Grid::new(2, 2), &[[3, 0], [2, 1]]).unwrap();
    for dtype in [DType::U8, DType::U32, DType::F32, DType::BF16, DType::F64] {
        let dense = mask.to_dense(dtype, &CPU).unwrap();
        assert_eq!(dense.dtype(), dtype);
        assert_eq!(numbers(&dense), [1.0, 0.0, 0.0, 1.0, 0.0, 1.0, 1.0, 0.0]);
    }
}

#[test]
fn upsampling_repeats_positions_as_blocks() {
    let mask = some_mask(2, Grid::new(2, 3), 0.5);
    for factor in [1, 2, 3] {
        let fine = mask.upsample(factor).unwrap();
        assert_eq!(fine.grid(), Grid::new(2 * factor, 3 * factor));
        let coarse = mask.to_dense(DType::F32, &CPU).unwrap().reshape((2, 2, 3)).unwrap();
        let dense = fine.to_dense(DType::F32, &CPU).unwrap();
        let dense = dense.reshape((2, 2 * factor, 3 * factor)).unwrap();
        let (coarse, dense) = (coarse.to_vec3::<f32>().unwrap(), dense.to_vec3::<f32>().unwrap());
        for (sample, rows) in dense.iter().enumerate() {
            for (y, row) in rows.iter().enumerate() {
                for (x, &kept) in row.iter().enumerate() {
                    assert_eq!(kept, coarse[sample][y / factor][x / factor]);
                }
            }
        }
    }
    let error = mask.upsample(0).unwrap_err();
    assert!(
        matches!(error, Error::InvalidArgument { argument: "factor", .. }),
        "{error}"
    );
}
