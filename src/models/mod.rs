//! Vision models that can be trained, under the names their published checkpoints use.

mod naming;
pub mod vit;
