//! What kernels on `f32` slices are made of: loops for several instruction sets, partitions, matrix products, memory.
//!
//! Nothing here knows of gradients, and next to nothing of tensors.

pub(crate) mod buffer;
pub(crate) mod channels;
pub(crate) mod elementwise;
pub(crate) mod heap;
pub(crate) mod kernel;
pub(crate) mod math;
pub(crate) mod matrix;
pub(crate) mod sliding;
pub(crate) mod write;
