//! Caches that grow: all that was ever appended.

use candle_core::{Result, Tensor};

use super::{check_empty, check_follows, keys_and_values, through_deref, tracked};
use crate::check;
#[cfg(doc)]
use crate::error::Error;
use crate::nn::refuse_gradients;

through_deref!(Cache);

/// [`candle_nn::kv_cache::Cache`] that is not asked for gradients of what it holds.
#[derive(Clone, Debug)]
pub struct Cache(candle_nn::kv_cache::Cache);

impl Cache {
    /// Empty, for `max_seq_len` positions along dimension `dim`; it grows by as many.
    pub fn new(dim: usize, max_seq_len: usize) -> Self {
        Self(candle_nn::kv_cache::Cache::new(dim, max_seq_len))
    }

    /// Appends `src`.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for a tensor with a gradient, which nothing that the cache gives out would bring back
    /// (as [`KvCache::append`] does), and for a cache of no positions; [`Error::Shape`] and [`Error::DType`] for one that
    /// cannot follow what is in it.
    pub fn append(&mut self, src: &Tensor) -> Result<()> {
        refuse_gradients("src", src)?;
        self.check("src", src)?;
        self.0.append(&src.contiguous()?)
    }

    /// An error where [`join`](Self::join) would give one.
    fn check(&self, argument: &'static str, xs: &Tensor) -> Result<()> {
        if tracked(&[xs]) {
            check_empty(argument, self.current_seq_len())?;
        }
        // candle-nn's would grow by nothing for ever.
        check::at_least_one("max_seq_len", self.max_seq_len())?;
        check_follows(argument, xs, self.dim(), self.all_data().as_ref())
    }

    /// Appends `xs`, checked, and returns all that it has: of an empty cache `xs`, where it has a gradient.
    fn join(&mut self, xs: &Tensor) -> Result<Tensor> {
        self.0.append(&xs.detach().contiguous()?)?;
        match self.current_data()? {
            Some(all) if !tracked(&[xs]) => Ok(all),
            _ => Ok(xs.clone()),
        }
    }
}

keys_and_values!(
    /// [`candle_nn::kv_cache::KvCache`] through which an empty cache's gradients pass.
    KvCache of Cache;
    /// Empty, for `max_seq_len` positions along dimension `dim`; it grows by as many.
    new;
    /// Appends keys and values; returns all that it has. Of an empty cache those are `k` and `v`, gradients and all.
    append
);
