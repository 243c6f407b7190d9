//! ResNet (arXiv 1512.03385), as timm and torchvision have it.

mod model;

pub use model::ResNet;
pub use model::{BlockKind, Config};
