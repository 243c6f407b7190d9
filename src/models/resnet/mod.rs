//! ResNet (arXiv 1512.03385), as timm and torchvision have it.

mod block;
mod config;
mod conv_batch_norm;
mod model;

pub use config::{BlockKind, Config};
pub use model::ResNet;
