//! The sizes that operations are measured at.

use std::fmt;

use candle_core::{Device, Tensor, Var};
use masksub::{ops, Grid};

use super::{var, BATCH};

/// A vision transformer's tokens.
#[derive(Clone, Copy)]
pub struct Size {
    pub name: &'static str,
    pub width: usize,
    pub heads: usize,
    pub tokens: usize,
}

pub const SIZES: [Size; 6] = [
    size("tiny", 192, 3, 197),
    size("tiny", 192, 3, 99),
    size("small", 384, 6, 197),
    size("small", 384, 6, 99),
    size("base", 768, 12, 197),
    size("base", 768, 12, 99),
];

pub const fn size(name: &'static str, width: usize, heads: usize, tokens: usize) -> Size {
    Size {
        name,
        width,
        heads,
        tokens,
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "{} {}", self.name, self.tokens)
    }
}

/// A feature map, by its channels and side.
#[derive(Clone, Copy)]
pub struct Map {
    pub channels: usize,
    pub side: usize,
}

impl fmt::Display for Map {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "{} {}", self.channels, self.side)
    }
}

pub const RESNET_MAPS: [Map; 5] = [map(64, 112), map(256, 56), map(512, 28), map(1024, 14), map(2048, 7)];

pub const fn map(channels: usize, side: usize) -> Map {
    Map { channels, side }
}

impl Map {
    pub fn var(self) -> Var {
        var(&[BATCH, self.channels, self.side, self.side])
    }

    /// Mean and variance of each channel.
    pub fn statistics(self) -> (Tensor, Tensor) {
        let mean = var(&[self.channels]).as_detached_tensor();
        let variance = mean.sqr().unwrap();
        (mean, variance)
    }
}

/// Attention within windows of 7 x 7 tokens in a stage of Swin-T, for 8 samples.
#[derive(Clone, Copy)]
pub struct Stage {
    pub count: usize,
    pub heads: usize,
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "{} of {} heads", self.count, self.heads)
    }
}

pub const STAGES: [Stage; 4] = [stage(64, 3), stage(16, 6), stage(4, 12), stage(1, 24)];

pub const fn stage(count: usize, heads: usize) -> Stage {
    Stage { count, heads }
}

impl Stage {
    pub fn grid(self) -> Grid {
        let side = 7 * self.count.isqrt();
        Grid::new(side, side)
    }

    pub fn tokens(self) -> Var {
        var(&[BATCH, self.grid().len(), 32 * self.heads])
    }

    pub fn hidden(self) -> Tensor {
        ops::shift_mask(self.grid(), 7, 3, &Device::Cpu).unwrap()
    }
}
