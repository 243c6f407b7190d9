//! What the examples share and what is not about the crate: flags, data sets, progress, output.
#![allow(dead_code)] // each example uses its own part

pub mod augment;
pub mod config;
pub mod curves;
pub mod data;
pub mod decode;
pub mod device;
pub mod digits;
pub mod evaluate;
pub mod exit;
pub mod file_list;
pub mod flags;
pub mod image_tree;
pub mod input_flags;
pub mod interrupt;
pub mod mask_only;
pub mod metrics;
pub mod network;
pub mod prefetch;
pub mod progress;
pub mod recipe;
pub mod recipe_flags;
pub mod record;
pub mod run;
pub mod run_dir;
pub mod threads;
pub mod transform;
pub mod wait;
