//! The models: sizes and names, gradients, what their sub-branches hide, and what is dropped.

#[path = "../common/mod.rs"]
mod common;
mod resnet;
mod swin;
mod vit;
