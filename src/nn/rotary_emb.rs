//! Rotary position embeddings: candle-nn's functions, those that cut gradients replaced by [`crate::ops::rotary_emb`]'s.

pub use crate::ops::rotary_emb::{rope, rope_i, rope_thd};
pub use candle_nn::rotary_emb::{rope_i_slow, rope_slow};
