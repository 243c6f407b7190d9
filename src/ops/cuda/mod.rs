//! Kernels for CUDA.
//!
//! ```text
//! kernels/*.cu     the kernels, compiled at run time
//! launch.rs        what is launched: names, grids and arguments, on addresses
//! layer_norm.rs ..  which kernels make an operation; and `on_device`, the same of candle's tensors
//! device.rs        how: compiled by NVRTC, on the tensors' memory and stream
//! emulator/        the same launches without a device, for the tests
//! ```

pub(crate) mod activation;
#[cfg(feature = "cuda")]
pub(crate) mod device;
#[cfg(all(test, target_os = "linux"))]
mod emulator;
pub(crate) mod launch;
pub(crate) mod layer_norm;
pub(crate) mod optimizer;
pub(crate) mod residual;
pub(crate) mod rows;
pub(crate) mod softmax;
mod source;
pub(crate) mod sums;
#[cfg(all(test, target_os = "linux"))]
mod tests;
