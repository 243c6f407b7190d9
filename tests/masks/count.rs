//! How many positions are kept.

use masksub::{num_keep, Grid, MaskGenerator, RandomMasking};
use proptest::prelude::*;

use super::{key, row_of};

#[test]
fn keeps_what_rounding_would_lose() {
    for (len, ratio, kept) in [
        (10, 0.9, 1),
        (100, 0.9, 10),
        (49, 0.5, 24),
        (196, 0.5, 98),
        (196, 0.75, 49),
        (1, 0.0, 1),
        (7, 0.0, 7),
        (2, 0.999999, 1),
        (1000, 0.7, 300),
    ] {
        let mask = RandomMasking::new(ratio)
            .unwrap()
            .generate(3, row_of(len), key(0))
            .unwrap();
        assert_eq!((mask.batch(), mask.num_keep()), (3, kept), "L = {len}, r = {ratio}");
    }
}

proptest! {
    /// A ratio of whole numbers p / q, counted without a floating-point number.
    #[test]
    fn is_the_floor_of_the_kept_share(len in 1usize..3000, q in 1u64..1000, p in 0u64..1000) {
        let p = p % q;
        let exact = (len as u64 * (q - p) / q).max(1) as usize;
        prop_assert_eq!(num_keep(len, p as f64 / q as f64).unwrap(), exact);
    }

    #[test]
    fn holds_for_every_sample(
        height in 1usize..20, width in 1usize..20, batch in 1usize..5, ratio in 0f64..1., step in 0usize..1000
    ) {
        let grid = Grid::new(height, width);
        // Of a single position nothing could be hidden, which is refused.
        prop_assume!(grid.len() > 1);
        let mask = RandomMasking::new(ratio).unwrap().generate(batch, grid, key(step)).unwrap();
        prop_assert_eq!(mask.num_keep(), num_keep(grid.len(), ratio).unwrap());
        prop_assert_eq!(mask.rows().len(), batch);
        for row in mask.rows() {
            prop_assert_eq!(row.len(), mask.num_keep());
            prop_assert!(row.windows(2).all(|pair| pair[0] < pair[1]), "not ascending: {:?}", row);
            prop_assert!(row.iter().all(|&at| (at as usize) < grid.len()));
        }
    }
}
