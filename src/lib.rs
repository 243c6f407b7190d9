//! MaskSub for candle.
mod error;

pub use error::{Error, Result};
