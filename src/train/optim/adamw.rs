//! AdamW.

use candle_core::Tensor;

#[cfg(feature = "cuda")]
use super::rule::private::{CudaRule, CudaStep};
use super::rule::private::{Piece, Update, UpdateSettings};
use super::rule::Rule;
use crate::check;
use crate::error::Result;
use crate::ops::cpu::kernel::{self, fma};

/// AdamW (Loshchilov and Hutter, arXiv 1711.05101): Adam with weight decay apart from the gradient.
/// `torch.optim.AdamW`.
///
/// With m and v the moments of the gradient g, at update t:
///
/// ```text
/// w -= lr weight_decay w
/// m += (1 - beta1) (g - m),  v = beta2 v + (1 - beta2) g²
/// w -= lr / (1 - beta1^t) m / (sqrt(v / (1 - beta2^t)) + eps)
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct AdamWConfig {
    /// Learning rate; 1e-3.
    pub lr: f64,
    /// Decay of the first moment, within [0, 1); 0.9.
    pub beta1: f64,
    /// Decay of the second moment, within [0, 1); 0.999.
    pub beta2: f64,
    /// Number that is added to the root of the second moment; 1e-8.
    pub eps: f64,
    /// Weight decay, a multiple of the learning rate; 0.01.
    pub weight_decay: f64,
}

impl Default for AdamWConfig {
    fn default() -> Self {
        Self {
            lr: 1e-3,
            beta1: 0.9,
            beta2: 0.999,
            eps: 1e-8,
            weight_decay: 0.01,
        }
    }
}

impl Rule for AdamWConfig {}

/// The factors of an update, in single precision.
#[derive(Clone, Copy)]
struct Factors {
    keep: f32,
    grad_scale: f32,
    beta1_rest: f32,
    beta2: f32,
    beta2_rest: f32,
    root_scale: f32,
    eps: f32,
    step_size: f32,
}

kernel::simd_fn! {
    fn update<S>(f: Factors, weights: &mut [f32], grads: &[f32], m: &mut [f32], v: &mut [f32]) -> () {
        for (((w, &g), m), v) in weights.iter_mut().zip(grads).zip(m).zip(v) {
            let g = g * f.grad_scale;
            *m = fma::<S>(g - *m, f.beta1_rest, *m);
            *v = fma::<S>(g * g, f.beta2_rest, *v * f.beta2);
            let root = fma::<S>(v.sqrt(), f.root_scale, f.eps);
            *w = fma::<S>(-f.step_size, *m / root, *w * f.keep);
        }
    }
}

impl Update for AdamWConfig {
    fn lr(&self) -> f64 {
        self.lr
    }

    fn set_lr(&mut self, lr: f64) {
        self.lr = lr
    }

    fn weight_decay(&self) -> f64 {
        self.weight_decay
    }

    fn check(&self) -> Result<()> {
        check_adam(self.lr, [self.beta1, self.beta2], self.eps, self.weight_decay)
    }

    fn buffers(&self) -> &'static [&'static str] {
        &["exp_avg", "exp_avg_sq"]
    }

    fn first_pass(&self, settings: &UpdateSettings, piece: &mut Piece) -> [f64; 2] {
        let factors = Factors {
            keep: (1.0 - settings.lr * settings.weight_decay) as f32,
            grad_scale: settings.grad_scale as f32,
            beta1_rest: (1.0 - self.beta1) as f32,
            beta2: self.beta2 as f32,
            beta2_rest: (1.0 - self.beta2) as f32,
            root_scale: (1.0 / bias_correction(self.beta2, settings.step).sqrt()) as f32,
            eps: self.eps as f32,
            step_size: (settings.lr / bias_correction(self.beta1, settings.step)) as f32,
        };
        if let [m, v] = &mut piece.buffers[..] {
            update(factors, piece.weights, piece.grads, m, v);
        }
        [0.0; 2]
    }

    #[cfg(feature = "cuda")]
    fn cuda_step(&self) -> Option<CudaStep> {
        Some(CudaStep {
            rule: CudaRule::AdamW,
            betas: [self.beta1, self.beta2],
            eps: self.eps,
        })
    }

    fn compose(
        &self,
        settings: &UpdateSettings,
        weights: &Tensor,
        grad: &Tensor,
        buffers: &[Tensor],
    ) -> Result<(Tensor, Vec<Tensor>)> {
        let [m, v] = buffers else {
            return Ok((weights.clone(), buffers.to_vec()));
        };
        let (m, v, direction) = compose_adam(settings, grad, [m, v], [self.beta1, self.beta2], self.eps)?;
        let weights = ((weights * (1.0 - settings.lr * settings.weight_decay))? - (direction * settings.lr)?)?;
        Ok((weights, vec![m, v]))
    }
}

/// The moments `m` and `v` after `grad`, and the direction of Adam's step (Kingma and Ba, arXiv 1412.6980, algorithm 1), of
/// candle's operations.
pub(super) fn compose_adam(
    settings: &UpdateSettings,
    grad: &Tensor,
    [m, v]: [&Tensor; 2],
    [beta1, beta2]: [f64; 2],
    eps: f64,
) -> Result<(Tensor, Tensor, Tensor)> {
    let grad = (grad * settings.grad_scale)?;
    let m = ((m * beta1)? + (&grad * (1.0 - beta1))?)?;
    let v = ((v * beta2)? + (grad.sqr()? * (1.0 - beta2))?)?;
    let root = ((&v / bias_correction(beta2, settings.step))?.sqrt()? + eps)?;
    let direction = ((&m / bias_correction(beta1, settings.step))? / root)?;
    Ok((m, v, direction))
}

/// 1 - beta^t: what a moment that started at 0 is short of.
pub(super) fn bias_correction(beta: f64, step: u64) -> f64 {
    1.0 - beta.powf(step as f64)
}

/// An error unless the settings that all of Adam's kin have are within their ranges.
pub(super) fn check_adam(lr: f64, [beta1, beta2]: [f64; 2], eps: f64, weight_decay: f64) -> Result<()> {
    check::rate("beta1", beta1)?;
    check::rate("beta2", beta2)?;
    for (argument, value) in [("eps", eps), ("lr", lr), ("weight_decay", weight_decay)] {
        check::non_negative(argument, value)?;
    }
    Ok(())
}
