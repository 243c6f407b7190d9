//! The handwritten digits that ship with the examples, in one tensor: see `data/README.md`.

use anyhow::{Context, Result};
use candle_core::{DType, Device, Tensor};
use masksub::{Purpose, Seed};
use rand::seq::SliceRandom;

/// Height and width of an image.
pub const SIDE: usize = 8;
/// The images that are trained on. The 597 others never are.
pub const TRAIN: usize = 1200;

pub struct Digits {
    /// [B, 1, 8, 8]; those that are trained on have mean 0 and standard deviation 1.
    images: Tensor,
    labels: Tensor,
    order: Vec<u32>,
}

impl Digits {
    pub fn load() -> Result<Self> {
        let file = candle_core::safetensors::load_buffer(include_bytes!("../data/digits.safetensors"), &Device::Cpu)?;
        let images = file.get("images").context("there are images")?.to_dtype(DType::F32)?;
        let count = images.dim(0)? as u32;
        // The file is ordered by writer: shuffled, every writer is in both parts.
        let mut order: Vec<u32> = (0..count).collect();
        order.shuffle(&mut Seed::new(0).at(0).step_rng(Purpose::custom(0)));
        // Of the images that are trained on alone: of the others nothing is known.
        let trained_on = images.index_select(&Tensor::new(&order[..TRAIN], &Device::Cpu)?, 0)?;
        let mean = trained_on.mean_all()?;
        let std = trained_on.broadcast_sub(&mean)?.sqr()?.mean_all()?.sqrt()?;
        Ok(Self {
            images: images.broadcast_sub(&mean)?.broadcast_div(&std)?.unsqueeze(1)?,
            labels: file.get("labels").context("there are labels")?.to_dtype(DType::U32)?,
            order,
        })
    }

    /// The images of an epoch, shuffled.
    pub fn order(&self, epoch: usize) -> Vec<u32> {
        let mut order = self.order[..TRAIN].to_vec();
        order.shuffle(&mut Seed::new(0).at(epoch).step_rng(Purpose::custom(1)));
        order
    }

    pub fn batch(&self, indices: &[u32]) -> Result<(Tensor, Tensor)> {
        let indices = Tensor::new(indices, &Device::Cpu)?;
        Ok((
            self.images.index_select(&indices, 0)?,
            self.labels.index_select(&indices, 0)?,
        ))
    }

    pub fn test(&self) -> Result<(Tensor, Tensor)> {
        self.batch(&self.order[TRAIN..])
    }
}
