//! Vision models that can be trained, under the names their published checkpoints use.

mod init;
mod linear;
mod mlp;
mod path;
mod pool;
pub mod resnet;
mod rules;
pub mod swin;
pub mod vit;

/// Makes the configuration of one size for a number of classes.
pub type Constructor<C> = fn(usize) -> C;
