//! Which positions of an image or a token sequence a sample keeps, and how they are chosen.

mod block;
mod fill;
mod ragged;
mod random;
mod ratio;
mod sequences;

pub use block::BlockMasking;
pub use fill::Fill;
pub(crate) use random::name_block;
pub use random::RandomMasking;
pub use ratio::{num_keep, MaskRatio};
pub use sequences::Sequences;

use std::sync::Arc;

use candle_core::{DType, Device, Tensor};

use crate::check;
use crate::error::{Error, Result};
use crate::grid::Grid;
use crate::key::StepKey;
use crate::ops;

/// Chooses the positions that each sample keeps. Object-safe: `Box<dyn MaskGenerator>`, `Arc<..>` and `&..` are generators, too.
///
/// The draw for a sample may depend on the key and the sample's number only, never on other samples or on earlier
/// steps; that is what lets a run resume and a batch be cut in micro-batches. (A test of it: with
/// [`StepKey::with_first_sample`]`(n)` a smaller batch gets the rows of a larger one from `n` on.) A generator with a ratio
/// takes a [`MaskRatio`], whose `at` gives the step's, and [`num_keep`].
///
/// ```
/// use masksub::{Grid, Mask, MaskGenerator, Purpose, StepKey};
/// use masksub::rand::Rng;
///
/// /// Keeps one half of the columns, the left one or the right one.
/// struct Side;
///
/// impl MaskGenerator for Side {
///     fn generate(&self, batch: usize, grid: Grid, key: StepKey) -> candle_core::Result<Mask> {
///         let half = grid.width as u32 / 2;
///         let keep = |sample| {
///             let first = if key.rng(sample, Purpose::MASK).random() { 0 } else { half };
///             let rows = (0..grid.height as u32).map(|row| row * grid.width as u32 + first);
///             rows.flat_map(|start| start..start + half).collect::<Vec<u32>>()
///         };
///         Ok(Mask::from_keep_indices(grid, &(0..batch).map(keep).collect::<Vec<_>>())?)
///     }
/// }
/// ```
#[diagnostic::on_unimplemented(
    message = "`{Self}` does not say which positions are kept",
    label = "does not implement `MaskGenerator`",
    note = "a mask ratio alone is no generator: write `RandomMasking::new(0.5)?`, or `BlockMasking::new(0.5, block)?`"
)]
pub trait MaskGenerator: Send + Sync {
    /// A mask for `batch` samples with positions laid out as `grid`.
    ///
    /// # Errors
    /// When the grid does not fit the generator or nothing can be drawn; implementations outside this crate return
    /// whatever error they like.
    fn generate(&self, batch: usize, grid: Grid, key: StepKey) -> candle_core::Result<Mask>;
}

macro_rules! through_a_pointer {
    ($($pointer:ty),+) => {$(
        impl<G: MaskGenerator + ?Sized> MaskGenerator for $pointer {
            fn generate(&self, batch: usize, grid: Grid, key: StepKey) -> candle_core::Result<Mask> {
                (**self).generate(batch, grid, key)
            }
        }
    )+};
}

through_a_pointer!(&G, Box<G>, std::sync::Arc<G>);

/// Positions that each sample keeps: K of the L positions of a [`Grid`], for B samples. The indices live on the host.
///
/// Cloning is cheap. Every sample keeps the same number, so that a batch of shortened sequences is a tensor. Samples of
/// different lengths ([`Sequences`]) may keep fewer than K: their rows are filled up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mask {
    grid: Grid,
    batch: usize,
    num_keep: usize,
    /// `[B, K]`, row by row.
    keep: Arc<[u32]>,
    /// How many of each row are kept, where it is not all: what follows fills the row up.
    lengths: Option<Arc<[usize]>>,
}

impl Mask {
    /// Of each index while a mask is made: in the list, and as the mask's own.
    const BYTES: usize = 2 * size_of::<u32>();

    /// A mask from the positions that each sample keeps, in the order in which a shortened sequence shall have them.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] when there is no sample, a sample keeps none, samples keep different numbers, or a
    /// position is out of range or repeated; when `grid` has no position or more than 32 bits can number.
    ///
    /// ```
    /// use masksub::{Grid, Mask};
    /// let mask = Mask::from_keep_indices(Grid::new(2, 2), &[[0, 3], [2, 1]])?;
    /// assert_eq!(mask.num_keep(), 2);
    /// assert!(Mask::from_keep_indices(Grid::new(2, 2), &[[0, 4]]).is_err());
    /// # Ok::<(), masksub::Error>(())
    /// ```
    pub fn from_keep_indices(grid: Grid, rows: &[impl AsRef<[u32]>]) -> Result<Self> {
        grid.check_numbered()?;
        let num_keep = rows.first().map_or(0, |row| row.as_ref().len());
        let mut keep = Vec::with_capacity(rows.len() * num_keep);
        let mut sorted = Vec::new();
        for (sample, row) in rows.iter().enumerate() {
            let row = row.as_ref();
            if row.len() != num_keep {
                let lengths = format!("{} positions in sample {sample}, {num_keep} in sample 0", row.len());
                return Err(Error::invalid("keep_indices", lengths, "as many in every sample"));
            }
            if let Some(index) = row.iter().find(|index| **index as usize >= grid.len()) {
                let value = format!("{index} in sample {sample}");
                return Err(Error::invalid("keep_indices", value, format!("below {}", grid.len())));
            }
            // Not a list of all positions: a few may be of billions.
            sorted.clear();
            sorted.extend_from_slice(row);
            sorted.sort_unstable();
            if let Some(twice) = sorted.windows(2).find(|pair| pair[0] == pair[1]) {
                let twice = format!("{} twice in sample {sample}", twice[0]);
                return Err(Error::invalid("keep_indices", twice, "distinct positions"));
            }
            keep.extend_from_slice(row);
        }
        if keep.is_empty() {
            return Err(Error::invalid(
                "keep_indices",
                "empty",
                "at least one position of one sample",
            ));
        }
        Ok(Self::trusted(grid, rows.len(), keep))
    }

    /// The `num_keep` positions with the smallest `noise`, in that order; of equal ones the lower position first.
    ///
    /// This is how the paper's code chooses (uniform `noise` `[B, L]`, sorted); it is here so that masks recorded
    /// elsewhere can be made again. The generators choose in linear time.
    ///
    /// # Errors
    /// [`Error::Shape`] when `noise` is not `[B, L]` with L = `grid.len()`; [`Error::InvalidArgument`] when `num_keep` is
    /// not within 1..=L or a noise is NaN.
    pub fn from_noise(grid: Grid, noise: &Tensor, num_keep: usize) -> Result<Self> {
        let positions = grid.len();
        if noise.rank() != 2 || noise.dims()[1] != positions || noise.dims()[0] == 0 {
            return Err(Error::shape(
                "noise",
                noise.dims(),
                format!("[B, {positions}] with B > 0"),
            ));
        }
        if num_keep == 0 || num_keep > positions {
            return Err(Error::invalid("num_keep", num_keep, format!("within 1..={positions}")));
        }
        let batch = noise.dims()[0];
        let noise = ops::on_host(noise)?;
        if noise.iter().any(|n| n.is_nan()) {
            return Err(Error::invalid("noise", "NaN", "ordered numbers"));
        }
        let mut keep = Vec::with_capacity(batch * num_keep);
        for row in noise.chunks_exact(positions) {
            let mut order: Vec<u32> = (0..positions as u32).collect();
            // Stable, so ties keep the order of positions; 0 and -0 are one, which `total_cmp` would tell apart.
            let compare = |a: f64, b: f64| a.partial_cmp(&b).unwrap_or(std::cmp::Ordering::Equal);
            order.sort_by(|&a, &b| compare(row[a as usize], row[b as usize]));
            keep.extend_from_slice(&order[..num_keep]);
        }
        Ok(Self::trusted(grid, batch, keep))
    }

    /// For indices that are known to be right: B rows of as many distinct positions below L.
    pub(crate) fn trusted(grid: Grid, batch: usize, keep: impl Into<Arc<[u32]>>) -> Self {
        let keep = keep.into();
        Self {
            grid,
            batch,
            num_keep: keep.len() / batch,
            keep,
            lengths: None,
        }
    }

    /// The grid on which the L positions lie.
    pub fn grid(&self) -> Grid {
        self.grid
    }

    /// B, the number of samples.
    pub fn batch(&self) -> usize {
        self.batch
    }

    /// K, the number of positions that each sample keeps, or the length of their rows where some keep fewer.
    pub fn num_keep(&self) -> usize {
        self.num_keep
    }

    /// The positions that each sample keeps, sample by sample.
    pub fn rows(&self) -> impl ExactSizeIterator<Item = &[u32]> {
        let rows = self.keep.chunks_exact(self.num_keep).enumerate();
        rows.map(|(sample, row)| &row[..self.length(sample)])
    }

    /// All [`rows`](Self::rows), one after the other, if this is a mask for `batch` samples on `grid`.
    pub(crate) fn indices_on(&self, grid: Grid, batch: usize) -> Result<&[u32]> {
        if (self.grid, self.batch) != (grid, batch) {
            let given = format!("for {} samples on {}", self.batch, self.grid);
            return Err(Error::invalid("mask", given, format!("for {batch} samples on {grid}")));
        }
        self.check_not_ragged()?;
        Ok(&self.keep)
    }

    /// The kept positions, `[B, K]` u32. Where samples keep fewer, any position fills the row up.
    ///
    /// # Errors
    /// When the device cannot hold it.
    pub fn keep_indices(&self, device: &Device) -> Result<Tensor> {
        Ok(Tensor::from_slice(&self.keep, (self.batch, self.num_keep), device)?)
    }

    /// The positions that are not kept, `[B, L-K]` u32, ascending in every sample.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] when samples keep different numbers; when memory or the device cannot hold it.
    pub fn dropped_indices(&self, device: &Device) -> Result<Tensor> {
        self.check_not_ragged()?;
        let dense = self.dense()?;
        let dropped: Vec<u32> = dense
            .chunks_exact(self.grid.len())
            .flat_map(|kept| (0u32..).zip(kept))
            .filter(|(_, kept)| !**kept)
            .map(|(at, _)| at)
            .collect();
        let shape = (self.batch, self.grid.len() - self.num_keep);
        Ok(Tensor::from_vec(dropped, shape, device)?)
    }

    /// 1 where a position is kept and 0 elsewhere, `[B, L]` of `dtype`.
    ///
    /// # Errors
    /// When memory, the device or the dtype cannot hold it.
    pub fn to_dense(&self, dtype: DType, device: &Device) -> Result<Tensor> {
        let dense: Vec<u8> = self.dense()?.into_iter().map(u8::from).collect();
        let dense = Tensor::from_vec(dense, (self.batch, self.grid.len()), device)?;
        Ok(dense.to_dtype(dtype)?)
    }

    /// The same mask on a grid `factor` times finer: every position becomes `factor` x `factor` positions, kept or not
    /// as it was. Kept positions are ascending.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] when `factor` is 0, or so large that positions no longer fit in 32 bits or the mask in
    /// memory, and when samples keep different numbers.
    pub fn upsample(&self, factor: usize) -> Result<Self> {
        self.check_not_ragged()?;
        let [height, width] = [self.grid.height, self.grid.width].map(|side| side.saturating_mul(factor));
        let fine = Grid::new(height, width);
        if fine.check_numbered().is_err() {
            return Err(Error::invalid(
                "factor",
                factor,
                "at least 1, for at most 2^32 - 1 positions",
            ));
        }
        let indices = self.batch.checked_mul(fine.len());
        check::fits_memory("factor", factor, indices, Self::BYTES)?;
        let mut keep = Vec::with_capacity(self.keep.len() * factor * factor);
        for dense in self.dense()?.chunks_exact(self.grid.len()) {
            for position in 0..fine.len() {
                let (row, column) = (position / fine.width, position % fine.width);
                if dense[row / factor * self.grid.width + column / factor] {
                    keep.push(position as u32);
                }
            }
        }
        Ok(Self::trusted(fine, self.batch, keep))
    }

    /// Shortens a token sequence to its `num_prefix_tokens` P first tokens, which are never dropped, and the kept ones:
    /// `tokens` `[B, P+L, D]` to `[B, P+K, D]`. Differentiable: rows are copied once, the backward puts them back; where
    /// all are kept in their order, the tokens are returned as they are. Where a sample keeps fewer than K, some token
    /// fills the sequence up; [`attention_mask`](Self::attention_mask) tells.
    ///
    /// # Errors
    /// [`Error::Shape`] when `tokens` is not `[B, P+L, D]` with this mask's B and L.
    pub fn gather(&self, tokens: &Tensor, num_prefix_tokens: usize) -> Result<Tensor> {
        let sequence = num_prefix_tokens.checked_add(self.grid.len());
        if tokens.rank() != 3 || tokens.dims()[0] != self.batch || Some(tokens.dims()[1]) != sequence {
            let expected = format!("[{}, {num_prefix_tokens} + {}, D]", self.batch, self.grid.len());
            return Err(Error::shape("tokens", tokens.dims(), expected));
        }
        if self.keeps_all_in_order() {
            return Ok(tokens.clone());
        }
        let dims = [self.batch, tokens.dims()[1], tokens.dims()[2]];
        Ok(ops::gather(tokens, dims, &self.keep, num_prefix_tokens)?)
    }

    /// Puts `mask_token` (D numbers in any shape) in the place of the tokens `[B, L, D]` that are not kept. Differentiable
    /// in both; kept tokens stay as they are, bit for bit.
    ///
    /// # Errors
    /// [`Error::Shape`] when `tokens` is not `[B, L, D]` with this mask's B and L, or `mask_token` has not D numbers;
    /// [`Error::DType`] when their dtypes differ.
    pub fn replace(&self, tokens: &Tensor, mask_token: &Tensor) -> Result<Tensor> {
        let (batch, positions) = (self.batch, self.grid.len());
        if tokens.rank() != 3 || tokens.dims()[..2] != [batch, positions] {
            return Err(Error::shape(
                "tokens",
                tokens.dims(),
                format!("[{batch}, {positions}, D]"),
            ));
        }
        let width = tokens.dims()[2];
        if mask_token.elem_count() != width {
            return Err(Error::shape(
                "mask_token",
                mask_token.dims(),
                format!("{width} numbers like a token"),
            ));
        }
        check::same_dtype("mask_token", mask_token, "tokens", tokens)?;
        let kept = self.to_dense(DType::U8, tokens.device())?.unsqueeze(2)?;
        let token = mask_token.reshape((1, 1, width))?;
        Ok(kept
            .broadcast_as(tokens.shape())?
            .where_cond(tokens, &token.broadcast_as(tokens.shape())?)?)
    }

    /// Of each of B * L positions, true where it is kept.
    fn dense(&self) -> Result<Vec<bool>> {
        /// With what is made of each of them.
        const BYTES: usize = size_of::<u64>() + size_of::<bool>();
        let positions = self.batch.checked_mul(self.grid.len());
        check::fits_memory("grid", self.grid, positions, BYTES)?;
        let mut dense = vec![false; positions.unwrap_or_default()];
        for (dense, row) in dense.chunks_exact_mut(self.grid.len()).zip(self.rows()) {
            row.iter().for_each(|&index| dense[index as usize] = true);
        }
        Ok(dense)
    }
}
