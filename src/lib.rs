//! MaskSub for candle.
mod error;
pub mod nn;
pub mod ops;

pub use error::{Error, Result};
