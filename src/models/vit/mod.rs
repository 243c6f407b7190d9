//! The Vision Transformer (arXiv 2010.11929) in its four published forms: DeiT-III, MAE fine-tuning, Hugging Face, CLIP.

mod model;
pub(crate) mod names;

pub use model::VisionTransformer;
pub use model::{Activation, Config, DropPathSchedule, Pool, WeightNames};
