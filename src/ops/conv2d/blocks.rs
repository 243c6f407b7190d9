//! The blocks of positions in which a convolution is computed.

use std::ops::Range;

use super::geometry::Conv2d;
use crate::ops::cpu::kernel;

/// Columns that one matrix product should have at least: with fewer, samples go together, because to pack the weight
/// for the product would take too large a share of it. (A 7 x 7 map has 49.)
const FEWEST_COLUMNS: usize = 256;

/// Columns of a larger map that are taken at a time.
const COLUMNS: usize = 512;

/// Positions of a group of channels that are taken together: all of some samples, or a part of one.
#[derive(Clone)]
pub(super) struct Block {
    pub(super) group: usize,
    pub(super) samples: Range<usize>,
    pub(super) part: Part,
}

/// Positions of a sample that lie one after the other: whole rows, or some columns of a single one.
#[derive(Clone)]
pub(super) struct Part {
    pub(super) rows: Range<usize>,
    pub(super) columns: Range<usize>,
}

impl Block {
    /// Its positions.
    pub(super) fn width(&self) -> usize {
        self.samples.len() * self.part.rows.len() * self.part.columns.len()
    }
}

impl Conv2d {
    /// The most samples that go together.
    pub(super) fn samples_together(&self) -> usize {
        (FEWEST_COLUMNS / self.positions()).clamp(1, self.batch)
    }

    /// Samples that go together, in nearly equal batches.
    pub(super) fn batches(&self) -> Vec<Range<usize>> {
        kernel::ranges(self.batch, self.batch.div_ceil(self.samples_together()))
    }

    /// The positions of the largest block.
    pub(super) fn widest(&self, blocks: &[Block]) -> usize {
        blocks.iter().map(Block::width).max().unwrap_or(0)
    }

    /// The blocks of a group of channels of samples that go together.
    pub(super) fn blocks_of(&self, group: usize, samples: Range<usize>) -> impl Iterator<Item = Block> + use<> {
        let blocks = match samples.len() {
            1 => (self.positions() / COLUMNS).max(1),
            _ => 1,
        };
        let rows = kernel::ranges(self.rows.out, blocks);
        // Where there are fewer rows than blocks, of sequences say, each is cut.
        let columns = kernel::ranges(self.columns.out, blocks.div_ceil(rows.len()));
        let parts = rows.into_iter().flat_map(move |rows| {
            let part = move |columns| Part {
                rows: rows.clone(),
                columns,
            };
            columns.clone().into_iter().map(part)
        });
        parts.map(move |part| Block {
            group,
            samples: samples.clone(),
            part,
        })
    }

    /// All positions of a sample.
    pub(super) fn whole(&self) -> Part {
        Part {
            rows: 0..self.rows.out,
            columns: 0..self.columns.out,
        }
    }

    /// All blocks.
    pub(super) fn blocks(&self) -> Vec<Block> {
        let batches = self.batches();
        let groups = (0..self.groups).flat_map(|group| batches.iter().map(move |samples| (group, samples)));
        groups
            .flat_map(|(group, samples)| self.blocks_of(group, samples.clone()))
            .collect()
    }

    /// Where a part of a sample begins among its positions.
    pub(super) fn start_of(&self, part: &Part) -> usize {
        part.rows.start * self.columns.out + part.columns.start
    }
}
