//! The Vision Transformer (arXiv 2010.11929) in its published forms.

mod attention_pool;
mod block;
mod config;
mod embedding;
mod features;
mod head;
mod model;
pub(crate) mod names;
mod positions;
mod recipes;
mod sizes;
mod sources;
mod swiglu;
mod two_heads;

pub use crate::ops::Activation;
pub use config::{Config, DropPathSchedule, Gate, Pool, QkvBias, Rotary, WeightNames};
pub use features::Features;
pub use model::VisionTransformer;
pub use two_heads::TwoHeads;
