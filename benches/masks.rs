//! The cost of masks beside the number of positions: linear, the smallest grid aside.
//!
//!     cargo bench --bench masks

use divan::Bencher;
use masksub::{BlockMasking, Grid, MaskGenerator, RandomMasking, Seed};

fn main() {
    divan::main();
}

const BATCH: usize = 256;

/// Positions of images of 112, 224, 448 and 896 pixels in patches of 16.
const SIDES: [usize; 4] = [7, 14, 28, 56];

fn generate(bencher: Bencher, masking: impl MaskGenerator, side: usize) {
    let (grid, key) = (Grid::new(side, side), Seed::new(0).at(0));
    bencher
        .counter(divan::counter::ItemsCount::new(BATCH * grid.len()))
        .bench(|| masking.generate(BATCH, grid, key).unwrap());
}

#[divan::bench(args = SIDES)]
fn random(bencher: Bencher, side: usize) {
    generate(bencher, RandomMasking::new(0.5).unwrap(), side);
}

#[divan::bench(args = SIDES)]
fn in_blocks_of_7(bencher: Bencher, side: usize) {
    generate(bencher, BlockMasking::new(0.5, 7).unwrap(), side);
}
