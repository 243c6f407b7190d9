//! Blocks of positions, kept or dropped as a whole.

use std::collections::BTreeMap;

use masksub::{num_keep, BlockMasking, Error, Grid, MaskGenerator};

use super::{draws, key};
use crate::common::p_value;

#[test]
fn are_kept_or_dropped_as_a_whole() {
    for (height, width, block, ratio) in [(8, 12, 2, 0.5), (6, 3, 3, 0.5), (12, 4, 4, 0.7), (5, 7, 1, 0.3)] {
        let grid = Grid::new(height, width);
        let mask = BlockMasking::new(ratio, block)
            .unwrap()
            .generate(5, grid, key(3))
            .unwrap();
        let blocks = (height / block) * (width / block);
        assert_eq!(mask.num_keep(), num_keep(blocks, ratio).unwrap() * block * block);
        assert_eq!(mask.grid(), grid);
        for row in mask.rows() {
            let mut per_block = BTreeMap::new();
            for &at in row {
                let (y, x) = (at as usize / width, at as usize % width);
                *per_block.entry((y / block, x / block)).or_insert(0) += 1;
            }
            assert!(per_block.values().all(|&count| count == block * block), "{per_block:?}");
            assert_eq!(per_block.len(), num_keep(blocks, ratio).unwrap());
        }
    }
}

#[test]
fn are_as_likely_as_each_other() {
    let mut counts = BTreeMap::new();
    let samples = 6000;
    for row in draws(&BlockMasking::new(0.5, 2).unwrap(), Grid::new(4, 6), samples) {
        *counts.entry(row).or_insert(0f64) += 1.0;
    }
    // 6 blocks, 3 kept.
    assert_eq!(counts.len(), 20);
    let expected = samples as f64 / 20.0;
    let statistic = counts.values().map(|count| (count - expected).powi(2) / expected).sum();
    assert!(p_value(statistic, 19) > 1e-4);
}

#[test]
fn that_do_not_tile_the_grid_are_refused() {
    for (grid, block) in [
        (Grid::new(8, 7), 2),
        (Grid::new(9, 8), 4),
        (Grid::new(2, 2), 3),
        (Grid::new(0, 4), 2),
    ] {
        let error = BlockMasking::new(0.5, block)
            .unwrap()
            .generate(1, grid, key(0))
            .unwrap_err();
        let error = Error::from(error);
        assert!(
            matches!(error, Error::InvalidArgument { argument: "block", .. }),
            "{error}"
        );
        assert!(error.to_string().contains(&grid.to_string()), "{error}");
    }
}
