//! ConvNeXt (arXiv 2201.03545) and ConvNeXt V2 (arXiv 2301.00808), as timm has them.

mod block;
mod config;
mod model;

pub use config::Config;
pub use model::ConvNeXt;
