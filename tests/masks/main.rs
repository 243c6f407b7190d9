//! Masks: how many positions are kept, which ones, how they are drawn, and what a mask does to tensors.

mod blocks;
#[path = "../common/mod.rs"]
mod common;
mod count;
mod distribution;
mod fill;
mod from_noise;
mod gather;
mod generators;
mod micro_batches;
mod ratio;
mod sequences;
mod views;

use masksub::{Grid, Mask, MaskGenerator, RandomMasking, Seed, StepKey};

fn key(step: usize) -> StepKey {
    Seed::new(11).at(step)
}

fn row_of(len: usize) -> Grid {
    Grid::new(1, len)
}

/// One-sample masks of many steps, each a sorted set of kept positions.
fn draws(generator: &dyn MaskGenerator, grid: Grid, count: usize) -> Vec<Vec<u32>> {
    let batch = 64;
    let masks = (0..count.div_ceil(batch)).map(|step| generator.generate(batch, grid, key(step)).unwrap());
    let rows = masks.flat_map(|mask| mask.rows().map(<[u32]>::to_vec).collect::<Vec<_>>());
    rows.take(count).collect()
}

/// A mask of `batch` samples on `grid`, which the tests below take as given.
fn some_mask(batch: usize, grid: Grid, ratio: f64) -> Mask {
    RandomMasking::new(ratio)
        .unwrap()
        .generate(batch, grid, key(7))
        .unwrap()
}
