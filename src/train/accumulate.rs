//! Gradients of a batch that is too large to be run at once.

use std::collections::HashMap;

use candle_core::backprop::GradStore;
use candle_core::{DType, Tensor, TensorId};

use crate::check;
use crate::error::{Error, Result};
use crate::ops;
use crate::params::Params;

/// Mean gradient of micro-batches, weighted by their numbers of samples: that of the whole batch, for a loss that is a mean
/// over its samples.
///
/// Give each micro-batch the key of where its first sample stands in the whole,
/// [`StepKey::with_first_sample`](crate::StepKey::with_first_sample): masks, dropout and drop path are then those of
/// the whole batch, and so are the gradients, to rounding. (Batch norm sees each micro-batch alone, and updates its
/// statistics in each.) Mixup and cutmix come first, on the whole batch.
///
/// ```
/// # use candle_core::{DType, Device, Tensor};
/// # use masksub::{Criterion, MaskSub, Params, PatchDrop, RandomMasking, Weights};
/// use masksub::{train::accumulate::Accumulator, Seed};
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let weights = Weights::seeded(Seed::new(0));
/// # let vb = weights.var_builder(DType::F32, &Device::Cpu);
/// # let net = candle_nn::seq().add_fn(|xs| xs.flatten_from(1)).add(candle_nn::linear(64, 10, vb.pp("fc"))?);
/// # let params = Params::from_varmap(weights.varmap());
/// # let model = MaskSub::wrap(net, PatchDrop::new(RandomMasking::new(0.5)?, 4)?, &params);
/// # let criterion = Criterion::cross_entropy();
/// # let images = Tensor::ones((6, 1, 8, 8), DType::F32, &Device::Cpu)?;
/// # let labels = Tensor::new(&[3u32, 7, 1, 1, 0, 2], &Device::Cpu)?;
/// let key = Seed::new(7).at(0);
/// let mut accumulator = Accumulator::new(&params);
/// for first in [0, 4] {
///     let n = 4.min(6 - first);
///     let (xs, ys) = (images.narrow(0, first, n)?, labels.narrow(0, first, n)?);
///     let step = model.backward(&xs, key.with_first_sample(first), |logits| criterion.forward(logits, &ys))?;
///     accumulator.add(&step.grads, n)?;
/// }
/// let grads = accumulator.take()?; // for the optimizer
/// # Ok(()) }
/// ```
#[derive(Debug)]
pub struct Accumulator {
    params: Vec<(String, TensorId, DType)>,
    /// In f32 where gradients are of half precision.
    means: HashMap<TensorId, Tensor>,
    samples: usize,
}

impl Accumulator {
    /// Collects the gradients of `params`.
    pub fn new(params: &Params) -> Self {
        Self {
            params: (params.iter())
                .map(|(name, var)| (name.to_string(), var.id(), var.dtype()))
                .collect(),
            means: HashMap::new(),
            samples: 0,
        }
    }

    /// Adds the gradients of a micro-batch of `samples` samples. A parameter that has none in it counts as 0 there.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] when `samples` is 0; [`Error::Shape`] when a gradient has another shape than before.
    /// Nothing is added then.
    pub fn add(&mut self, grads: &GradStore, samples: usize) -> Result<()> {
        check::at_least_one("samples", samples)?;
        for (name, id, _) in &self.params {
            if let (Some(mean), Some(grad)) = (self.means.get(id), grads.get_id(*id)) {
                if mean.dims() != grad.dims() {
                    let expected = format!("{:?} for {name}, as before", mean.dims());
                    return Err(Error::shape("grads", grad.dims(), expected));
                }
            }
        }
        // A running mean: the first micro-batch's gradients come in as they are, to the bit.
        let share = samples as f64 / (self.samples + samples) as f64;
        for (_, id, _) in &self.params {
            let grad = match grads.get_id(*id) {
                Some(grad) if ops::is_half(grad) => Some(grad.to_dtype(DType::F32)?),
                grad => grad.cloned(),
            };
            let mean = match (self.means.remove(id), grad) {
                (Some(mean), Some(grad)) => ops::lerp(mean, &grad.contiguous()?, share)?,
                (Some(mean), None) => (mean * (1.0 - share))?,
                (None, Some(grad)) if self.samples == 0 => grad.contiguous()?.copy()?,
                (None, Some(grad)) => (grad * share)?,
                (None, None) => continue,
            };
            self.means.insert(*id, mean.detach());
        }
        self.samples += samples;
        Ok(())
    }

    /// Number of samples that were added.
    pub fn samples(&self) -> usize {
        self.samples
    }

    /// The gradients of all that was added; what is added from here on is another batch.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] when nothing was added.
    pub fn take(&mut self) -> Result<GradStore> {
        if self.samples == 0 {
            return Err(Error::invalid("samples", 0, "at least 1 before gradients are taken"));
        }
        self.samples = 0;
        let mut grads = GradStore::default();
        for (_, id, dtype) in &self.params {
            if let Some(mean) = self.means.remove(id) {
                grads.insert_id(*id, mean.to_dtype(*dtype)?);
            }
        }
        Ok(grads)
    }
}
