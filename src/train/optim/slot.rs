//! One parameter with its state.

use std::ops::Range;

use candle_core::{DType, Tensor, Var};

use super::groups::Group;
use super::rule::private::{Update, UpdateSettings};
use crate::error::{Error, Result};
use crate::ops;

/// Name of the master copy in the state.
const MASTER: &str = "master";

/// A parameter with its state.
#[derive(Debug)]
pub(super) struct Slot {
    pub(super) name: String,
    pub(super) var: Var,
    pub(super) lr_scale: f64,
    pub(super) decays: bool,
    /// The weights in full precision, where the variable is of half.
    pub(super) master: Option<Tensor>,
    pub(super) buffers: Vec<Tensor>,
    /// Updates so far.
    pub(super) steps: u64,
}

impl Slot {
    pub(super) fn new(group: Group, buffers: usize) -> Result<Self> {
        let is_half = ops::is_half(&group.var);
        let dtype = match group.var.dtype() {
            dtype @ (DType::F32 | DType::F64) => dtype,
            _ if is_half => DType::F32,
            got => {
                return Err(Error::DType {
                    argument: "groups",
                    got,
                    expected: format!("f32, f64, f16 or bf16 for {}", group.name),
                })
            }
        };
        let master = if is_half {
            Some(group.var.as_detached_tensor().to_dtype(dtype)?)
        } else {
            None
        };
        let zeros = || Ok(Tensor::zeros(group.var.shape(), dtype, group.var.device())?);
        let buffers = (0..buffers).map(|_| zeros()).collect::<Result<_>>()?;
        Ok(Self {
            name: group.name,
            var: group.var,
            lr_scale: group.lr_scale,
            decays: group.decays,
            master,
            buffers,
            steps: 0,
        })
    }

    /// What is updated.
    pub(super) fn weights(&self) -> &Tensor {
        self.master.as_ref().unwrap_or(self.var.as_tensor())
    }

    /// The memory of that, see [`memory`].
    pub(super) fn memory(&self) -> Result<Option<Range<*const f32>>> {
        memory(self.weights())
    }

    /// What is kept beside the number of steps, by its name.
    pub(super) fn tensors<'a>(
        &'a self,
        buffers: &'a [&'static str],
    ) -> impl Iterator<Item = (&'static str, &'a Tensor)> {
        let master = self.master.iter().map(|master| (MASTER, master));
        master.chain(buffers.iter().copied().zip(&self.buffers))
    }

    /// Whether it is updated in its memory, by kernels: `f32` on the CPU.
    pub(super) fn in_memory(&self) -> bool {
        let mut tensors = std::iter::once(self.weights()).chain(&self.buffers);
        tensors.all(ops::is_f32_slice)
    }

    /// Updates it by candle's operations.
    pub(super) fn compose(&mut self, rule: &dyn Update, settings: &UpdateSettings, grad: &Tensor) -> Result<()> {
        let (weights, buffers) = rule.compose(settings, &self.weights().detach(), grad, &self.buffers)?;
        match &mut self.master {
            Some(master) => *master = weights,
            None => self.var.set(&weights)?,
        }
        self.buffers = buffers;
        Ok(())
    }

    /// Rounds the weights in full precision to the variable's, where there are such.
    pub(super) fn round(&self) -> Result<()> {
        match &self.master {
            Some(master) => Ok(self.var.set(&master.to_dtype(self.var.dtype())?)?),
            None => Ok(()),
        }
    }
}

/// The memory of a tensor, where kernels may write to it.
pub(super) fn memory(tensor: &Tensor) -> Result<Option<Range<*const f32>>> {
    if ops::is_f32_slice(tensor) {
        Ok(Some(ops::Elements::of(tensor)?.as_ptr_range()))
    } else {
        Ok(None)
    }
}
