//! The statistics of a mini-batch.

use candle_core::{DType, Result, Tensor};

use crate::ops::cpu::channels::Moments;
use crate::ops::cpu::kernel;

/// The statistics that a batch norm saw of a mini-batch, detached.
#[derive(Clone, Debug)]
pub struct BatchStatistics {
    /// Mean of each channel, `[C]`.
    pub mean: Tensor,
    /// Unbiased variance of each channel, `[C]`, which a running average takes up. (The biased one normalises.)
    pub unbiased_var: Tensor,
}

impl BatchStatistics {
    /// Of channels of `count` values each.
    pub(crate) fn of(moments: &[Moments], count: usize) -> Result<Self> {
        // What makes the variance of a sample that of what it was drawn from.
        let unbiased = count as f64 / (count - 1) as f64;
        let vector = |of: &dyn Fn(&Moments) -> f64| {
            let data: Vec<f32> = moments.iter().map(|m| of(m) as f32).collect();
            kernel::tensor(data, &[moments.len()])
        };
        Ok(Self {
            mean: vector(&|m| m.mean)?,
            unbiased_var: vector(&|m| m.var * unbiased)?,
        })
    }

    pub(crate) fn to_dtype(&self, dtype: DType) -> Result<Self> {
        Ok(Self {
            mean: self.mean.to_dtype(dtype)?,
            unbiased_var: self.unbiased_var.to_dtype(dtype)?,
        })
    }
}
