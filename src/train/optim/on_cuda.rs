//! One step over all parameters on a CUDA device, in a few launches.

use std::collections::HashSet;

use candle_core::{DType, Tensor};

use super::adamw::bias_correction;
use super::rule::private::{CudaRule, CudaStep, Update, UpdateSettings};
use super::slot::Slot;
use super::update::Job;
use crate::error::Result;
use crate::ops;
use crate::ops::cuda::optimizer::on_device::{adamw, lamb, Tensors};
use crate::ops::cuda::optimizer::{Adam, Settings};

/// Whether kernels update a parameter in its memory: it is `f32` as its gradient, and the rule has kernels.
pub(super) fn takes(rule: &dyn Update, slot: &Slot, grad: &Tensor) -> bool {
    let tensors: Vec<_> = [slot.weights(), grad].into_iter().chain(&slot.buffers).collect();
    let is_whole = |tensor: &&Tensor| tensor.is_contiguous() && tensor.dtype() == DType::F32;
    rule.cuda_step().is_some() && tensors.iter().all(is_whole) && ops::on_cuda(&tensors)
}

/// Updates parameters that [`takes`] has taken, those of each device together.
pub(super) fn update(rule: &dyn Update, jobs: &[Job]) -> Result<()> {
    let Some(step) = rule.cuda_step() else { return Ok(()) };
    // A gradient may be a variable's own memory (that of w²/2 is w), which kernels write to.
    let weights: HashSet<_> = jobs
        .iter()
        .map(|job| ops::storage_address(job.slot.weights()))
        .collect();
    let own = |job: &Job| match weights.contains(&ops::storage_address(&job.grad)) {
        true => ops::fresh(&job.grad),
        false => Ok(job.grad.clone()),
    };
    let grads = jobs.iter().map(own).collect::<candle_core::Result<Vec<_>>>()?;
    let mut devices: Vec<Vec<(&Job, &Tensor)>> = vec![];
    for pair in jobs.iter().zip(&grads) {
        let is_there = |(_, grad): &(&Job, &Tensor)| grad.device().same_device(pair.1.device());
        match devices.iter_mut().find(|jobs| jobs.iter().all(is_there)) {
            Some(jobs) => jobs.push(pair),
            None => devices.push(vec![pair]),
        }
    }
    devices.iter().try_for_each(|jobs| update_on_one(step, jobs))?;
    jobs.iter().try_for_each(|job| job.slot.round())
}

fn update_on_one(step: CudaStep, jobs: &[(&Job, &Tensor)]) -> Result<()> {
    let CudaStep { rule, betas, eps } = step;
    let parameters = jobs.iter().map(|(job, grad)| {
        let [m, v] = [0, 1].map(|i| job.slot.buffers.get(i));
        Tensors {
            tensors: [Some(job.slot.weights()), Some(grad), m, v],
            settings: settings(&job.settings, betas),
        }
    });
    let parameters: Vec<_> = parameters.collect();
    let adam = Adam {
        grad_scale: jobs.first().map_or(1.0, |(job, _)| job.settings.grad_scale),
        beta1: betas[0],
        beta2: betas[1],
        eps,
    };
    match rule {
        CudaRule::AdamW => adamw(&parameters, &adam)?,
        CudaRule::Lamb => lamb(&parameters, &adam)?,
    }
    Ok(())
}

fn settings(of: &UpdateSettings, [beta1, beta2]: [f64; 2]) -> Settings {
    Settings {
        lr: of.lr as f32,
        weight_decay: of.weight_decay as f32,
        m_scale: (1.0 / bias_correction(beta1, of.step)) as f32,
        root_scale: (1.0 / bias_correction(beta2, of.step).sqrt()) as f32,
    }
}
