//! The Swin Transformer (arXiv 2103.14030), with a mask token for its sub-branch.

mod model;

pub use model::SwinTransformer;
pub use model::{Config, WeightNames};
