//! Ranks that are threads: what they compute, and what they do when one of them fails.

#[path = "../common/mod.rs"]
mod common;
mod exchange;
mod failures;
mod one_device;
mod sharded;

use std::collections::BTreeMap;

use candle_core::backprop::GradStore;
use candle_core::{DType, Tensor, Var};
use common::{bits, randn};
use masksub::{Error, Params, Result};

const CLASSES: usize = 5;
const BATCH: usize = 8;

type Values = BTreeMap<String, Tensor>;

fn same_bits(a: &Values, b: &Values) -> bool {
    a.len() == b.len() && a.iter().all(|(name, value)| bits(value) == bits(&b[name]))
}

/// The rank that an error names, and what it says of it.
fn of_other<T>(ended: &Result<T>) -> Option<(usize, &str)> {
    match ended {
        Err(Error::OtherRank { rank, message }) => Some((*rank, message)),
        _ => None,
    }
}

fn gradients(params: &Params, step: usize) -> GradStore {
    let mut grads = GradStore::default();
    for (name, var) in params.iter().filter(|(name, _)| step != 1 || *name != "b") {
        let grad = randn(var.shape(), &format!("{name}{step}"))
            .to_dtype(var.dtype())
            .unwrap();
        grads.insert(var, grad);
    }
    grads
}

fn values(params: &Params) -> Values {
    let value = |(name, var): (&str, &Var)| {
        (
            name.to_string(),
            var.as_detached_tensor().copy().unwrap().to_dtype(DType::F32).unwrap(),
        )
    };
    params.iter().map(value).collect()
}

fn as_f32(state: &Values) -> Values {
    state
        .iter()
        .map(|(name, value)| (name.clone(), value.to_dtype(DType::F32).unwrap()))
        .collect()
}
