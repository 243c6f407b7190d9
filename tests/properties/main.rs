//! What holds for all shapes, ratios, grids, prefixes, dtypes and layouts, beside oracles that are loops.

mod branches;
#[path = "../common/mod.rs"]
mod common;
mod losses;
mod masks;
mod operations;

use candle_core::{DType, Tensor};
use masksub::{Seed, StepKey};
use proptest::prelude::*;

use common::randn;

/// How a tensor's numbers lie.
#[derive(Clone, Copy, Debug)]
pub enum Lying {
    InOrder,
    Transposed,
    /// As a part of a larger tensor.
    Narrowed,
    /// One sample for all of them.
    Broadcast,
}

pub fn any_lying() -> impl Strategy<Value = Lying> {
    prop_oneof![
        Just(Lying::InOrder),
        Just(Lying::Transposed),
        Just(Lying::Narrowed),
        Just(Lying::Broadcast)
    ]
}

pub fn any_float() -> impl Strategy<Value = DType> {
    prop_oneof![Just(DType::F32), Just(DType::F64), Just(DType::BF16), Just(DType::F16)]
}

/// Half a unit in the last place, for numbers of about 1, and what f32 sums lose.
pub fn tolerance(dtype: DType) -> f64 {
    match dtype {
        DType::BF16 => 8e-3,
        DType::F16 => 1e-3,
        DType::F32 => 2e-5,
        _ => 1e-12,
    }
}

/// Standard normal numbers, the same for the same name.
pub fn normal(shape: &[usize], dtype: DType, lying: Lying, name: &str) -> Tensor {
    let numbers = randn(shape, name).to_dtype(dtype).unwrap();
    let last = shape.len() - 1;
    match lying {
        Lying::InOrder => numbers,
        Lying::Transposed if last == 0 => numbers,
        Lying::Transposed => {
            let swapped = numbers.transpose(last - 1, last).unwrap().contiguous().unwrap();
            swapped.transpose(last - 1, last).unwrap()
        }
        Lying::Narrowed => {
            let wider = numbers.pad_with_zeros(last, 1, 2).unwrap();
            wider.narrow(last, 1, shape[last]).unwrap()
        }
        Lying::Broadcast => numbers.narrow(0, 0, 1).unwrap().broadcast_as(shape).unwrap(),
    }
}

pub fn key(step: usize) -> StepKey {
    Seed::new(16).at(step)
}

/// The largest difference of two lists of numbers, beside 1 or the larger of both.
pub fn furthest(a: &[f64], b: &[f64]) -> f64 {
    assert_eq!(a.len(), b.len());
    let apart = |(a, b): (&f64, &f64)| (a - b).abs() / a.abs().max(b.abs()).max(1.0);
    a.iter().zip(b).map(apart).fold(0.0, f64::max)
}
