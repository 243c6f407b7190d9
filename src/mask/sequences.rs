//! Sequences of different lengths, and tokens of them that must stay.

use candle_core::{DType, Device, Tensor};

use super::{Mask, MaskGenerator};
use crate::error::{Error, Result};
use crate::grid::Grid;
use crate::key::StepKey;

/// The L positions of each of B samples: tokens that may be dropped, tokens that must stay, and padding behind them. Text,
/// audio, series of any kind.
///
/// Masks of it keep all tokens that must stay and, of each sample's others, the share that a generator keeps of as many
/// positions: the ratio is of each sample's own length. Samples then keep different numbers; a shortened batch is as
/// long as the longest of them, and [`Mask::attention_mask`] tells tokens from what fills it up. Padding is never kept.
///
/// ```
/// use candle_core::{Device, Tensor};
/// use masksub::{RandomMasking, Seed, Sequences};
/// const PAD: u32 = 0;
/// const SEP: u32 = 1;
/// let ids = Tensor::new(&[[5u32, 6, SEP, 7, 8, 9], [4, SEP, 3, PAD, PAD, PAD]], &Device::Cpu)?;
/// let sequences = Sequences::new(&ids.ne(PAD)?)?.keeping(&ids.eq(SEP)?)?;
/// let mask = sequences.draw(&RandomMasking::new(0.6)?, Seed::new(0).at(0))?;
/// // Two of five, one of two, and each sample's separator.
/// assert_eq!(mask.rows().map(<[u32]>::len).collect::<Vec<_>>(), [3, 1 + 1]);
/// assert!(mask.rows().nth(1).unwrap().contains(&1));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sequences {
    /// L.
    len: usize,
    /// Tokens of each sample.
    lengths: Vec<usize>,
    /// Of each of B * L positions, true where it must stay.
    stays: Vec<bool>,
}

impl Sequences {
    /// Sequences whose positions are tokens where `attention_mask` `[B, L]` is not 0, as Hugging Face's, and padding behind
    /// them.
    ///
    /// # Errors
    /// [`Error::Shape`] when it is not `[B, L]` with B, L > 0; [`Error::InvalidArgument`] when a sample has no token, or
    /// padding before one.
    pub fn new(attention_mask: &Tensor) -> Result<Self> {
        let expected = "[B, L] with B > 0 and L > 0";
        let &[_, len] = attention_mask.dims() else {
            return Err(Error::shape("attention_mask", attention_mask.dims(), expected));
        };
        if attention_mask.elem_count() == 0 {
            return Err(Error::shape("attention_mask", attention_mask.dims(), expected));
        }
        Grid::new(1, len).check_numbered()?;
        let tokens = on_host(attention_mask)?;
        let length = |(sample, tokens): (usize, &[bool])| {
            let length = tokens.iter().filter(|&&token| token).count();
            if length == 0 || tokens[..length].contains(&false) {
                let what = if length == 0 {
                    "no token"
                } else {
                    "padding before a token"
                };
                let value = format!("{what} in sample {sample}");
                return Err(Error::invalid(
                    "attention_mask",
                    value,
                    "at least one token, and padding behind",
                ));
            }
            Ok(length)
        };
        Ok(Self {
            len,
            lengths: tokens
                .chunks_exact(len)
                .enumerate()
                .map(length)
                .collect::<Result<_>>()?,
            stays: vec![false; tokens.len()],
        })
    }

    /// Keeps tokens where `stays` `[B, L]` is not 0, beside those that stay already: separators, say, or what a classifier
    /// reads. Padding is never kept, whatever `stays` says of it: Hugging Face's `special_tokens_mask`, which may be given
    /// as it is, marks padding too (transformers, `tokenization_utils_base.py`, `_pad`).
    ///
    /// # Errors
    /// [`Error::Shape`] when it is not `[B, L]` as the tokens are.
    pub fn keeping(mut self, stays: &Tensor) -> Result<Self> {
        let (batch, len) = (self.lengths.len(), self.len);
        if stays.dims() != [batch, len] {
            return Err(Error::shape("stays", stays.dims(), format!("[{batch}, {len}]")));
        }
        let stays = on_host(stays)?;
        for (at, stays) in stays.into_iter().enumerate() {
            self.stays[at] |= stays && at % len < self.lengths[at / len];
        }
        Ok(self)
    }

    /// Tokens of each of the B samples.
    pub fn lengths(&self) -> &[usize] {
        &self.lengths
    }

    /// The mask of a main branch: all L positions as they are, of which [`Mask::rows`] are the tokens.
    pub fn whole(&self) -> Mask {
        Mask::of_first(Grid::new(1, self.len), self.lengths.clone())
    }

    /// The mask of a sub-branch: the tokens that must stay and, of a sample's n others, those that `masking` keeps of
    /// 1 x n positions, in their order. (A single one is always kept.)
    ///
    /// # Errors
    /// Those of `masking`; [`Error::InvalidArgument`] when it gives a mask for something else.
    pub fn draw(&self, masking: &(impl MaskGenerator + ?Sized), key: StepKey) -> candle_core::Result<Mask> {
        let samples = self.stays.chunks_exact(self.len).zip(&self.lengths).enumerate();
        let rows = samples.map(|(sample, (stays, &length))| {
            let free: Vec<u32> = (0..length).filter(|&at| !stays[at]).map(|at| at as u32).collect();
            let mut keep: Vec<u32> = (0..length).filter(|&at| stays[at]).map(|at| at as u32).collect();
            match free[..] {
                [] => {}
                [single] => keep.push(single),
                _ => {
                    let grid = Grid::new(1, free.len());
                    let mask = masking.generate(1, grid, key.of_sample(sample))?;
                    keep.extend(mask.indices_on(grid, 1)?.iter().map(|&at| free[at as usize]));
                }
            }
            keep.sort_unstable();
            Ok(keep)
        });
        let rows = rows.collect::<candle_core::Result<Vec<_>>>()?;
        let lengths: Vec<usize> = rows.iter().map(Vec::len).collect();
        let longest = lengths.iter().copied().max().unwrap_or(1);
        let mut keep = Vec::with_capacity(rows.len() * longest);
        for row in &rows {
            keep.extend(row);
            // What fills a row up is told from tokens by the lengths: any position will do.
            keep.resize(keep.len() + longest - row.len(), 0);
        }
        Ok(Mask::of_lengths(Grid::new(1, self.len), keep, lengths))
    }
}

/// Of each element, true where it is not 0.
fn on_host(tensor: &Tensor) -> Result<Vec<bool>> {
    let tensor = tensor.to_device(&Device::Cpu)?;
    let set = tensor.ne(&tensor.zeros_like()?)?.to_dtype(DType::U8)?;
    let set = set.flatten_all()?.to_vec1::<u8>()?;
    Ok(set.into_iter().map(|set| set != 0).collect())
}
