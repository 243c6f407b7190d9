//! Caches of the last positions, written over in turn.

use candle_core::{Device, Result, Tensor};

use super::{check_empty, check_follows, keys_and_values, through_deref, tracked};
use crate::check;
#[cfg(doc)]
use crate::error::Error;

through_deref!(RotatingCache);

/// [`candle_nn::kv_cache::RotatingCache`] through which an empty cache's gradients pass.
#[derive(Clone, Debug)]
pub struct RotatingCache(candle_nn::kv_cache::RotatingCache);

impl RotatingCache {
    /// Empty, for the last `max_seq_len` positions along dimension `dim`.
    pub fn new(dim: usize, max_seq_len: usize) -> Self {
        Self(candle_nn::kv_cache::RotatingCache::new(dim, max_seq_len))
    }

    /// Appends `src`; returns all that can be attended to. Of an empty cache that is `src`, gradients and all.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for a tensor with a gradient when the cache is not empty; [`Error::Shape`] and
    /// [`Error::DType`] for one that cannot follow what is in it. Nothing is appended then.
    pub fn append(&mut self, src: &Tensor) -> Result<Tensor> {
        self.check("src", src)?;
        self.join(src)
    }

    /// The positions of what is returned once `seq_len` more are appended.
    pub fn positions(&self, seq_len: usize) -> Vec<usize> {
        if seq_len == 0 && self.max_seq_len() == 0 {
            return Vec::new(); // candle-nn's would divide by nothing
        }
        self.0.positions(seq_len)
    }

    /// An error where [`join`](Self::join) would give one.
    fn check(&self, argument: &'static str, xs: &Tensor) -> Result<()> {
        if tracked(&[xs]) {
            check_empty(argument, self.current_seq_len())?;
        }
        // candle-nn's would divide by nothing.
        check::at_least_one("max_seq_len", self.max_seq_len())?;
        check_follows(argument, xs, self.dim(), self.all_data().as_ref())
    }

    fn join(&mut self, xs: &Tensor) -> Result<Tensor> {
        let all = self.0.append(&xs.detach())?;
        Ok(if tracked(&[xs]) { xs.clone() } else { all })
    }
}

keys_and_values!(
    /// [`candle_nn::kv_cache::RotatingKvCache`] through which an empty cache's gradients pass.
    RotatingKvCache of RotatingCache;
    /// Empty, for the last `max_seq_len` positions along dimension `dim`.
    new;
    /// Appends keys and values; returns all that can be attended to. Of an empty cache those are `k` and `v`, gradients
    /// and all.
    append
);

impl RotatingKvCache {
    /// The place of the next position that is written.
    pub fn offset(&self) -> usize {
        self.k.offset()
    }

    /// The mask for `seq_len` more positions, 1 where a key is hidden; none where there is nothing to hide.
    ///
    /// # Errors
    /// candle's.
    pub fn attn_mask(&self, seq_len: usize, device: &Device) -> Result<Option<Tensor>> {
        self.k.attn_mask(seq_len, device)
    }

    /// The positions of what is returned once `seq_len` more are appended.
    pub fn positions(&self, seq_len: usize) -> Vec<usize> {
        self.k.positions(seq_len)
    }
}
