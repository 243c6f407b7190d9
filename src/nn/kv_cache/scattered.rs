//! Caches of the streams of a batch, each of which stands at a place of its own.

use candle_core::{DType, Device, Result, Tensor};

use super::{through_deref, tracked, IndicesAndMask};
use crate::error::Error;

through_deref!(ScatteredKvCache, ScatteredCacheBuilder);

/// [`candle_nn::kv_cache::ScatteredKvCache`], for the streams of a batch: it refuses gradients that it would cut.
#[derive(Clone, Debug)]
pub struct ScatteredKvCache(candle_nn::kv_cache::ScatteredKvCache);

impl ScatteredKvCache {
    /// Writes keys and values [B, H, S, D] to where `iam` says; returns all that it has. Where S is the whole context or
    /// more those are `k` and `v`, gradients and all.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for a tensor with a gradient that is shorter than the context; [`Error::Shape`] for
    /// values of another shape than the keys; candle-nn's.
    pub fn append(&mut self, k: &Tensor, v: &Tensor, iam: &IndicesAndMask) -> Result<(Tensor, Tensor)> {
        let context = self.k().dim(2)?;
        if v.dims() != k.dims() {
            return Err(Error::shape("v", v.dims(), format!("{:?} like k", k.dims())).into());
        }
        if tracked(&[k, v]) && k.dim(2)? < context {
            let value = format!("a tensor of {} positions with a gradient", k.dim(2)?);
            let allowed =
                format!("detached, or of the context's {context} positions: others are copied without a gradient");
            return Err(Error::invalid("k", value, allowed).into());
        }
        self.0.append(k, v, iam)
    }
}

/// [`candle_nn::kv_cache::ScatteredCacheBuilder`], which makes [`ScatteredKvCache`]s.
#[derive(Clone, Debug)]
pub struct ScatteredCacheBuilder(candle_nn::kv_cache::ScatteredCacheBuilder);

impl ScatteredCacheBuilder {
    /// For `batch_size` streams of which the last `context` positions are kept.
    ///
    /// # Errors
    /// candle-nn's.
    pub fn new(batch_size: usize, context: usize, dtype: DType, device: &Device) -> Result<Self> {
        candle_nn::kv_cache::ScatteredCacheBuilder::new(batch_size, context, dtype, device).map(Self)
    }

    /// A cache for `num_heads` heads of width `head_dim`.
    ///
    /// # Errors
    /// candle-nn's.
    pub fn make_cache(&self, num_heads: usize, head_dim: usize) -> Result<ScatteredKvCache> {
        self.0.make_cache(num_heads, head_dim).map(ScatteredKvCache)
    }
}
