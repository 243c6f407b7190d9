//! What the recipes do to an image: as Pillow computes it, on eight-bit pixels and on one image at a time.
//!
//! Settings that draw take their generator; nothing here knows where it comes from.

#![allow(dead_code)] // each program uses its own part

pub mod blur;
pub mod colour;
pub mod crop;
pub mod erase;
pub mod geometry;
pub mod jitter;
pub mod normalize;
pub mod op;
pub mod pixels;
pub mod rand_augment;
mod simd;
pub mod three_augment;
pub mod tone;
