//! How gradients of many parameters arrive in candle's backward, which knows operations of three tensors at most.

pub(crate) mod accumulate;
pub(crate) mod deliver;
