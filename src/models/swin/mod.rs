//! The Swin Transformer (arXiv 2103.14030), with a mask token for its sub-branch.

mod block;
mod config;
mod model;
mod stages;
#[cfg(test)]
mod tests;

pub use config::{Config, WeightNames};
pub use model::SwinTransformer;
