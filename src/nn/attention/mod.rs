//! Attention by candle-nn's functions for the CPU, with a backward.
//!
//! candle-nn's kernels keep no scores, and have no backward. They still compute where no gradient is asked for. Where one
//! is, the CPU has a kernel of this crate's that has one, of `f32`, and of half precision in that; elsewhere a composition
//! with the same result computes.

pub mod cpu_flash;
pub(crate) mod scores;
#[cfg(test)]
mod tests;
pub mod varlen;

pub use candle_nn::attention::AttnMask;
pub use cpu_flash::flash_attn;
pub use cpu_flash::varlen::flash_attn_varlen_cpu;
pub use varlen::flash_attn_varlen_unfused;
