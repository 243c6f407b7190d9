//! Caches that join what comes to what is there.

use candle_core::{Result, Tensor};

use super::{check_empty, check_follows, through_deref, tracked};
#[cfg(doc)]
use crate::error::Error;

through_deref!(ConcatKvCache, InterleavedKvCache);

/// [`candle_nn::kv_cache::ConcatKvCache`] through which an empty cache's gradients pass.
#[derive(Clone, Debug)]
pub struct ConcatKvCache(candle_nn::kv_cache::ConcatKvCache);

impl ConcatKvCache {
    /// Empty, along dimension `dim`.
    pub fn new(dim: usize) -> Self {
        Self(candle_nn::kv_cache::ConcatKvCache::new(dim))
    }

    /// Appends keys and values; returns all that it has. Of an empty cache those are `k` and `v`, gradients and all.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for a tensor with a gradient when the cache is not empty; [`Error::Shape`] and
    /// [`Error::DType`] for one that cannot follow what is in it. Nothing is appended then.
    pub fn append(&mut self, k: &Tensor, v: &Tensor) -> Result<(Tensor, Tensor)> {
        check_follows("k", k, self.dim(), self.0.k())?;
        check_follows("v", v, self.dim(), self.0.v())?;
        if !tracked(&[k, v]) {
            return self.0.append(k, v);
        }
        check_empty("k", self.current_seq_len())?;
        let (k, v) = (k.contiguous()?, v.contiguous()?);
        self.0.append(&k, &v)?;
        Ok((k, v))
    }

    /// Keys and values, if there are any.
    pub fn into_inner(self) -> Option<(Tensor, Tensor)> {
        self.0.into_inner()
    }
}

/// [`candle_nn::kv_cache::InterleavedKvCache`] through which an empty cache's gradients pass.
#[derive(Clone, Debug)]
pub struct InterleavedKvCache(candle_nn::kv_cache::InterleavedKvCache);

impl InterleavedKvCache {
    /// Empty, for heads of width `head_dim`.
    pub fn new(head_dim: usize) -> Self {
        Self(candle_nn::kv_cache::InterleavedKvCache::new(head_dim))
    }

    /// Appends keys and values [1, H, S, D] of one sequence; returns all that it has, [S, H, 2 D], each key beside its
    /// value.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for a tensor with a gradient when the cache is not empty; candle-nn's.
    pub fn append(&mut self, k: &Tensor, v: &Tensor) -> Result<Tensor> {
        if !tracked(&[k, v]) {
            return self.0.append(k, v);
        }
        check_empty("k", self.current_seq_len())?;
        self.0.append(&k.detach(), &v.detach())?;
        let positions_first = |xs: &Tensor| xs.squeeze(0)?.transpose(0, 1)?.contiguous();
        Tensor::cat(&[positions_first(k)?, positions_first(v)?], 2)
    }
}
