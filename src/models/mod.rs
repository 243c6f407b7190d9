//! Vision models that can be trained, under the names their published checkpoints use.

pub mod convnext;
mod init;
mod linear;
mod mlp;
mod path;
mod pool;
mod recompute;
pub(crate) mod resample;
pub mod resnet;
mod rules;
pub mod swin;
pub mod vit;

pub use recompute::Recompute;

/// The place where the values of a published size were read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Source {
    /// The project, or paper.
    pub project: &'static str,
    /// The file of it, or table.
    pub file: &'static str,
    /// The values as they stand there.
    pub option: &'static str,
}

impl Source {
    const fn new(project: &'static str, file: &'static str, option: &'static str) -> Self {
        Self { project, file, option }
    }
}

/// Makes the configuration of one size for a number of classes.
pub type Constructor<C> = fn(usize) -> C;
