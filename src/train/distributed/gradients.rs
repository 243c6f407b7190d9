//! Gradients, weights and metrics of all ranks.

use std::hash::{DefaultHasher, Hash, Hasher};

use candle_core::backprop::GradStore;
use candle_core::{DType, Device, Tensor, Var};
use candle_nn::VarMap;

use super::agreement::{exchange, other};
use super::bucket::travel;
use super::Communicator;
use crate::error::{Error, Result};
use crate::params::{self, Params};
use crate::train::optim::check_like;

/// Replaces the gradients of `params` by their mean over the ranks, the same bits on each. They travel in a few large
/// buckets, in the order of the parameters' names. Where a parameter has none on some ranks it counts as 0 there, and
/// where it has none on any, it has none.
///
/// [`Share::run`](super::Share::run) does it.
///
/// # Errors
/// [`Error::OtherRank`] when a rank has other parameters or could not go on; [`Error::Shape`] for a gradient that has not
/// its parameter's shape, on all ranks; those of the [`Communicator`]. The gradients are as they were then.
pub fn mean_gradients(ranks: &dyn Communicator, grads: &mut GradStore, params: &Params) -> Result<()> {
    let ((), told) = exchange(ranks, tell(grads, params).map(|told| ((), told)))?;
    mean_told(ranks, grads, params, &told)
}

/// Which parameters have a gradient, for [`mean_told`]; behind what tells them from others.
pub(super) fn tell(grads: &GradStore, params: &Params) -> Result<Vec<u8>> {
    let mut told = fingerprint(params.iter()).to_vec();
    for (name, var) in params.iter() {
        let grad = grads.get_id(var.id());
        if let Some(grad) = grad {
            check_like(name, var, grad)?;
        }
        told.push(grad.is_some().into());
    }
    Ok(told)
}

/// [`mean_gradients`], once it is known what each rank has.
pub(super) fn mean_told(
    ranks: &dyn Communicator,
    grads: &mut GradStore,
    params: &Params,
    told: &[Vec<u8>],
) -> Result<()> {
    if ranks.size() == 1 {
        return Ok(());
    }
    same(ranks, told.iter().map(|told| told.get(..FINGERPRINT)))?;
    let anywhere = |i: usize| told.iter().any(|told| told.get(FINGERPRINT + i) == Some(&1));
    let vars: Vec<&Var> = (params.iter().enumerate())
        .filter(|(i, _)| anywhere(*i))
        .map(|(_, (_, var))| var)
        .collect();
    let grad = |var: &&Var| match grads.get_id(var.id()) {
        Some(grad) => Ok(grad.to_dtype(var.dtype())?.to_device(var.device())?),
        None => Ok(var.zeros_like()?),
    };
    let own: Vec<Tensor> = vars.iter().map(grad).collect::<Result<_>>()?;
    let mean = |bucket: &Tensor| Ok((ranks.sum(bucket)? / ranks.size() as f64)?);
    // All of them, before the first is put in place: a later bucket may not come back.
    let mut means = Vec::with_capacity(own.len());
    travel(&own, mean, |i, mean| {
        means.push((vars[i].id(), mean));
        Ok(())
    })?;
    means.into_iter().for_each(|(id, mean)| {
        grads.insert_id(id, mean);
    });
    Ok(())
}

/// Gives all ranks the variables of rank 0, running statistics among them, so that nothing depends on each rank having made
/// the same ones: once, directly after the model is made.
///
/// Before the optimizer and the [`Ema`](crate::train::ema::Ema) are made, since they copy weights: the one keeps f32 masters
/// of weights in half precision, the other begins its average with them. Made earlier, they keep those of their own rank.
///
/// # Errors
/// [`Error::OtherRank`] when a rank has other variables; [`Error::DType`] for one that is no float.
pub fn synchronize(ranks: &dyn Communicator, varmap: &VarMap) -> Result<()> {
    if ranks.size() == 1 {
        return Ok(());
    }
    let data = params::lock(varmap);
    let mut named: Vec<(&str, &Var)> = data.iter().map(|(name, var)| (name.as_str(), var)).collect();
    named.sort_unstable_by_key(|(name, _)| *name);
    let no_float = named.iter().find(|(_, var)| !var.dtype().is_float());
    let told = match no_float {
        Some((name, var)) => Err(Error::DType {
            argument: "varmap",
            got: var.dtype(),
            expected: format!("f32, f64, f16 or bf16 for {name}"),
        }),
        None => Ok(((), fingerprint(named.iter().copied()).to_vec())),
    };
    let ((), told) = exchange(ranks, told)?;
    same(ranks, told.iter().map(|told| Some(&told[..])))?;
    let own: Vec<Tensor> = named.iter().map(|(_, var)| var.as_detached_tensor()).collect();
    let put = |i: usize, value: Tensor| Ok(named[i].1.set(&value)?);
    travel(&own, |bucket| ranks.broadcast(bucket, 0), put)
}

/// Replaces each of `values` by its sum over the ranks: of losses, hits and counts.
///
/// # Errors
/// Those of the [`Communicator`].
pub fn sum(ranks: &dyn Communicator, values: &mut [f64]) -> Result<()> {
    if ranks.size() == 1 || values.is_empty() {
        return Ok(());
    }
    let sum = ranks.sum(&Tensor::new(&*values, &Device::Cpu)?)?;
    values.copy_from_slice(&sum.to_dtype(DType::F64)?.to_vec1()?);
    Ok(())
}

const FINGERPRINT: usize = 8;

/// A number that tells variables from others by names, shapes and dtypes.
fn fingerprint<'a>(named: impl Iterator<Item = (&'a str, &'a Var)>) -> [u8; FINGERPRINT] {
    let mut hasher = DefaultHasher::new();
    for (name, var) in named {
        (name, var.dims(), var.dtype().as_str()).hash(&mut hasher);
    }
    hasher.finish().to_le_bytes()
}

/// An error that names the first rank that tells something else than this one.
fn same<'a>(ranks: &dyn Communicator, told: impl Iterator<Item = Option<&'a [u8]>>) -> Result<()> {
    let told: Vec<_> = told.collect();
    match told.iter().position(|theirs| *theirs != told[ranks.rank()]) {
        None => Ok(()),
        Some(rank) => Err(other(rank, "it has other variables, by name, shape or dtype")),
    }
}
