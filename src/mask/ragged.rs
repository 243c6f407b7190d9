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

    /// Keeps the first positions of each sample, so many of them as `lengths` says.
    pub(super) fn of_first(grid: Grid, lengths: Vec<usize>) -> Self {
        let all = (0..grid.len() as u32).collect::<Vec<_>>().repeat(lengths.len());
        Self::of_lengths(grid, all, lengths)
    }

    /// The mask of the shortened sequences themselves: their K places, of which those that hold a token are kept.
    pub(crate) fn shortened(&self) -> Self {
        let lengths = (0..self.batch).map(|sample| self.length(sample));
        Self::of_first(Grid::new(1, self.num_keep), lengths.collect())
    }

    /// True where places of a shortened sequence are positions: all L of them, in their order, or the first ones where a
    /// sample keeps fewer.
    pub(crate) fn keeps_all_in_order(&self) -> bool {
        let in_order = |row: &[u32]| row.iter().zip(0..).all(|(&at, place)| at == place);
        self.num_keep == self.grid.len() && self.rows().all(in_order)
    }

    /// How many positions a sample keeps.
    pub(super) fn length(&self, sample: usize) -> usize {
        self.lengths.as_ref().map_or(self.num_keep, |lengths| lengths[sample])
    }

    /// True where a sample keeps fewer than K positions: its row is filled up.
    pub fn is_ragged(&self) -> bool {
        self.lengths.is_some()
    }

    /// An error unless every sample keeps K positions.
    pub(super) fn check_not_ragged(&self) -> Result<()> {
        if self.is_ragged() {
            let value = format!("one of which samples keep fewer than {} positions", self.num_keep);
            return Err(Error::invalid("mask", value, "one that keeps as many in every sample"));
        }
        Ok(())
    }

    /// 1 where a place of a shortened sequence holds a token that is kept and 0 where it is filled up, `[B, K]` of `dtype`:
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

    /// Bias on the scores of a shortened sequence, so that no token attends to what fills it up: 0, and minus infinity for
    /// the latter, `[B, K, K]` with queries in rows. [`ops::window_attention`](crate::ops::window_attention()) takes it as
    /// its mask, each sample a window.
    ///
    /// # Errors
    /// [`Error::DType`] when `dtype` is no float; [`Error::InvalidArgument`] when memory cannot hold it; when the device
    /// cannot.
    pub fn attention_bias(&self, dtype: DType, device: &Device) -> Result<Tensor> {
        let (batch, keep) = (self.batch, self.num_keep);
        let scores = keep.checked_mul(keep).and_then(|scores| scores.checked_mul(batch));
        let value = format!("for {batch} samples of {keep} kept positions");
        check::fits_memory("mask", value, scores, dtype.size_in_bytes())?;
        let tokens = self.attention_mask(DType::U8, device)?;
        let nothing = Tensor::zeros((batch, keep), dtype, device)?;
        check::float("dtype", &nothing)?;
        let never = Tensor::full(f32::NEG_INFINITY, (batch, keep), device)?.to_dtype(dtype)?;
        let bias = tokens.where_cond(&nothing, &never)?.unsqueeze(1)?;
        Ok(bias.broadcast_as((batch, keep, keep))?.contiguous()?)
    }
}
