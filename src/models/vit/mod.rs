//! The Vision Transformer (arXiv 2010.11929) in its published forms: DeiT-III, MAE fine-tuning, Hugging Face, CLIP.

mod block;
mod config;
mod embedding;
mod model;
pub(crate) mod names;
mod sizes;
mod sources;

pub use crate::ops::Activation;
pub use config::{Config, DropPathSchedule, Pool, WeightNames};
pub use model::VisionTransformer;
