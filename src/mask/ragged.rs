//! Masks of which samples keep different numbers of positions: what fills their rows up, and how it is told from tokens.

use candle_core::{DType, Device, Tensor};

use super::Mask;
use crate::check;
use crate::error::{Error, Result};
use crate::grid::Grid;

impl Mask {
    /// For samples that keep different numbers of positions: rows of K, of which `lengths` are kept.
    pub(super) fn of_lengths(grid: Grid, keep: Vec<u32>, lengths: Vec<usize>) -> Self {
        let mask = Self::trusted(grid, lengths.len(), keep);
        let lengths = lengths
            .iter()
            .any(|&length| length < mask.num_keep)
            .then(|| lengths.into());
        Self { lengths, ..mask }
    }

    /// How many positions a sample keeps.
    pub(super) fn length(&self, sample: usize) -> usize {
        self.lengths.as_ref().map_or(self.num_keep, |lengths| lengths[sample])
    }

    /// True where samples keep different numbers of positions: rows are filled up to K.
    pub fn is_ragged(&self) -> bool {
        self.lengths.is_some()
    }

    /// An error unless every sample keeps K positions.
    pub(super) fn check_not_ragged(&self) -> Result<()> {
        if self.is_ragged() {
            let value = "with different numbers of kept positions";
            return Err(Error::invalid("mask", value, "one that keeps as many in every sample"));
        }
        Ok(())
    }

    /// 1 where a place of a shortened sequence holds a token that is kept and 0 where it is filled up, [B, K] of `dtype`:
    /// Hugging Face's `attention_mask`.
    ///
    /// # Errors
    /// When the device or the dtype cannot hold it.
    pub fn attention_mask(&self, dtype: DType, device: &Device) -> Result<Tensor> {
        let places = (0..self.batch).flat_map(|sample| {
            let length = self.length(sample);
            (0..self.num_keep).map(move |place| u8::from(place < length))
        });
        let mask = Tensor::from_iter(places, device)?.reshape((self.batch, self.num_keep))?;
        Ok(mask.to_dtype(dtype)?)
    }

    /// What is added to the scores of a shortened sequence, so that no token attends to what fills it up: 0, and minus
    /// infinity for the latter, [B, K, K] with queries in rows. [`ops::window_attention`](crate::ops::window_attention())
    /// takes it as its mask, each sample a window.
    ///
    /// # Errors
    /// [`Error::DType`] when `dtype` is no float; when the device cannot hold it.
    pub fn attention_bias(&self, dtype: DType, device: &Device) -> Result<Tensor> {
        let (batch, keep) = (self.batch, self.num_keep);
        let tokens = self.attention_mask(DType::U8, device)?;
        let nothing = Tensor::zeros((batch, keep), dtype, device)?;
        check::float("dtype", &nothing)?;
        let never = Tensor::full(f32::NEG_INFINITY, (batch, keep), device)?.to_dtype(dtype)?;
        let bias = tokens.where_cond(&nothing, &never)?.unsqueeze(1)?;
        Ok(bias.broadcast_as((batch, keep, keep))?.contiguous()?)
    }
}
