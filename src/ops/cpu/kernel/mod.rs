//! The parts that every CPU kernel is made of.
//!
//! A kernel is a plain loop that the compiler can vectorise, written with [`simd_fn!`], which compiles it once for the
//! baseline and once for AVX2 with FMA (NEON is the baseline on aarch64) and picks at run time. Reductions keep
//! [`LANES`] partial sums, and work is cut into pieces by the tensor's size alone: neither the number of threads nor
//! the width of the registers changes the order of an addition, so that a run can be repeated to the bit anywhere
//! that has the same fused multiply-add.

mod elements;
mod partition;
mod reduce;
mod scratch;
mod simd;
mod threads;

#[cfg(feature = "cuda")]
pub(crate) use elements::{address, with_storages};
pub(crate) use elements::{contiguous_range, elements, same_storage, shares_memory, tensor, with_elements, Elements};
pub(crate) use partition::{
    add_rows, for_rows, for_rows_summing, for_two_rows_summing, ranges, rows_per_piece, sum_over_rows,
};
pub(crate) use reduce::{max, sum_by, LANES};
pub(crate) use scratch::{free_scratch, with_scratch};
#[cfg(test)]
pub(crate) use simd::SCALAR_ONLY;
pub(crate) use simd::{dispatch, fma, simd_fn};
pub(crate) use threads::{map_tensors, on_own_threads, own_threads};
