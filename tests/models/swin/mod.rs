//! Swin: windows, other people's names, what its sub-branches hide and what it drops.

mod configurations;
mod names;
mod training;
mod windows;

use candle_core::DType;
use masksub::models::swin::{Config, SwinTransformer};
use masksub::{Seed, Weights};

use crate::common::CPU;

fn build(cfg: &Config) -> candle_core::Result<SwinTransformer> {
    SwinTransformer::new(cfg, Weights::seeded(Seed::new(0)).var_builder(DType::F32, &CPU))
}
