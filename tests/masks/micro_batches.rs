//! Micro-batches, which draw what the whole batch does.

use candle_core::Tensor;
use masksub::{BlockMasking, Fill, Grid, Mask, MaskGenerator, MaskRatio, Pass, RandomMasking, StepKey};

use super::key;
use crate::common::{bits, randn};

#[test]
fn keep_what_the_whole_batch_keeps() {
    let generators: [&dyn MaskGenerator; 3] = [
        &RandomMasking::new(0.6).unwrap(),
        &BlockMasking::new(0.5, 2).unwrap(),
        &RandomMasking::with_ratio(MaskRatio::drawn(rand_distr::Uniform::new(0.2, 0.8).unwrap())),
    ];
    for generator in generators {
        let grid = Grid::new(4, 6);
        let whole = generator.generate(8, grid, key(5)).unwrap();
        let halves = [0, 4].map(|first| generator.generate(4, grid, key(5).with_first_sample(first)).unwrap());
        let rows: Vec<&[u32]> = halves.iter().flat_map(Mask::rows).collect();
        assert_eq!(rows, whole.rows().collect::<Vec<_>>());
        assert_ne!(halves[0], halves[1]);
    }
}

/// What `draw` makes of samples 0..8 at once, and of 0..3 and 3..8.
fn assert_same(draw: impl Fn(&Tensor, StepKey) -> Tensor, xs: &Tensor) {
    let whole = draw(xs, key(2));
    let parts = [(0, 3), (3, 5)]
        .map(|(first, count)| draw(&xs.narrow(0, first, count).unwrap(), key(2).with_first_sample(first)));
    assert_eq!(bits(&Tensor::cat(&parts, 0).unwrap()), bits(&whole));
    assert_ne!(bits(&whole), bits(xs));
}

#[test]
fn fill_and_drop_what_the_whole_batch_does() {
    let images = randn((8, 2, 4, 4), "micro-batches");
    let masking = RandomMasking::new(0.5).unwrap();
    let noise = |xs: &Tensor, key| {
        let mask = masking.generate(xs.dim(0).unwrap(), Grid::new(2, 2), key).unwrap();
        mask.fill(xs, &Fill::Noise, key).unwrap()
    };
    assert_same(noise, &images);
    // The second site of each, in main and sub pass.
    for start in [Pass::train, Pass::train_sub] {
        let dropout = |xs: &Tensor, key| {
            let mut pass = start(key);
            pass.dropout(xs, 0.5).unwrap();
            pass.dropout(xs, 0.5).unwrap()
        };
        assert_same(dropout, &images);
        let drop_path = |xs: &Tensor, key| {
            let mut pass = start(key);
            pass.drop_path(xs, 0.5).unwrap();
            pass.drop_path(xs, 0.5).unwrap()
        };
        assert_same(drop_path, &images);
    }
}
