//! LAMB.

use candle_core::Tensor;

use super::adamw::{bias_correction, check_adam, compose_adam};
#[cfg(feature = "cuda")]
use super::rule::private::{CudaRule, CudaStep};
use super::rule::private::{Piece, Update, UpdateSettings};
use super::rule::Rule;
use crate::check;
use crate::error::Result;
use crate::ops::cpu::kernel::{self, fma};

/// LAMB (You et al., arXiv 1904.00962) as timm has it and DeiT-III and ResNet's RSB recipes use it: gradients are first
/// scaled down to a global norm, and the step of a weight that decays is as long as the weight, times the learning rate.
///
/// With m and v the moments of the scaled gradient g, at update t:
///
/// ```text
/// m = beta1 m + (1 - beta1) g,  v = beta2 v + (1 - beta2) g²
/// u = m / (1 - beta1^t) / (sqrt(v / (1 - beta2^t)) + eps) + weight_decay w
/// w -= lr u ||w|| / ||u||   where weight decay applies and neither norm is 0, else
/// w -= lr u
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct LambConfig {
    /// Learning rate; 1e-3.
    pub lr: f64,
    /// Decay of the first moment, within [0, 1); 0.9.
    pub beta1: f64,
    /// Decay of the second moment, within [0, 1); 0.999.
    pub beta2: f64,
    /// Number that is added to the root of the second moment; 1e-6.
    pub eps: f64,
    /// Weight decay, added to the update; 0.01.
    pub weight_decay: f64,
    /// The global norm that gradients are scaled down to; 1. None leaves them as they are.
    pub max_grad_norm: Option<f64>,
}

impl Default for LambConfig {
    fn default() -> Self {
        Self {
            lr: 1e-3,
            beta1: 0.9,
            beta2: 0.999,
            eps: 1e-6,
            weight_decay: 0.01,
            max_grad_norm: Some(1.0),
        }
    }
}

impl Rule for LambConfig {}

/// The factors of an update, in single precision.
#[derive(Clone, Copy)]
struct Factors {
    grad_scale: f32,
    beta1: f32,
    beta1_rest: f32,
    beta2: f32,
    beta2_rest: f32,
    m_scale: f32,
    root_scale: f32,
    eps: f32,
    weight_decay: f32,
}

impl Factors {
    /// The update before the trust ratio.
    #[inline(always)]
    fn direction<S: pulp::Simd>(self, w: f32, m: f32, v: f32) -> f32 {
        let root = fma::<S>(v.sqrt(), self.root_scale, self.eps);
        fma::<S>(w, self.weight_decay, m * self.m_scale / root)
    }
}

kernel::simd_fn! {
    fn update_moments<S>(f: Factors, grads: &[f32], m: &mut [f32], v: &mut [f32]) -> () {
        for ((&g, m), v) in grads.iter().zip(m).zip(v) {
            let g = g * f.grad_scale;
            *m = fma::<S>(*m, f.beta1, g * f.beta1_rest);
            *v = fma::<S>(g * g, f.beta2_rest, *v * f.beta2);
        }
    }
}

kernel::simd_fn! {
    /// The squared norms of the weights and of the direction.
    fn squares<S>(f: Factors, weights: &[f32], m: &[f32], v: &[f32]) -> [f64; 2] {
        let direction = |[w, m, v]: [f32; 3]| {
            let u = f.direction::<S>(w, m, v);
            u * u
        };
        [kernel::sum_by([weights], |[w]| w * w), kernel::sum_by([weights, m, v], direction)].map(f64::from)
    }
}

kernel::simd_fn! {
    fn apply<S>(f: Factors, lr: f32, weights: &mut [f32], m: &[f32], v: &[f32]) -> () {
        for ((w, &m), &v) in weights.iter_mut().zip(m).zip(v) {
            *w = fma::<S>(-lr, f.direction::<S>(*w, m, v), *w);
        }
    }
}

/// ||w|| / ||u||, and 1 where that means nothing.
fn trust_ratio([weights, direction]: [f64; 2]) -> f64 {
    if weights > 0.0 && direction > 0.0 {
        (weights / direction).sqrt()
    } else {
        1.0
    }
}

impl LambConfig {
    fn factors(&self, settings: &UpdateSettings) -> Factors {
        Factors {
            grad_scale: settings.grad_scale as f32,
            beta1: self.beta1 as f32,
            beta1_rest: (1.0 - self.beta1) as f32,
            beta2: self.beta2 as f32,
            beta2_rest: (1.0 - self.beta2) as f32,
            m_scale: (1.0 / bias_correction(self.beta1, settings.step)) as f32,
            root_scale: (1.0 / bias_correction(self.beta2, settings.step).sqrt()) as f32,
            eps: self.eps as f32,
            weight_decay: settings.weight_decay as f32,
        }
    }
}

impl Update for LambConfig {
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
        if let Some(max) = self.max_grad_norm {
            check::bound("max_grad_norm", max)?;
        }
        check_adam(self.lr, [self.beta1, self.beta2], self.eps, self.weight_decay)
    }

    fn buffers(&self) -> &'static [&'static str] {
        &["exp_avg", "exp_avg_sq"]
    }

    fn max_grad_norm(&self) -> Option<f64> {
        self.max_grad_norm
    }

    fn first_pass(&self, settings: &UpdateSettings, piece: &mut Piece) -> [f64; 2] {
        let factors = self.factors(settings);
        let [m, v] = &mut piece.buffers[..] else {
            return [0.0; 2];
        };
        update_moments(factors, piece.grads, m, v);
        if settings.weight_decay > 0.0 {
            squares(factors, piece.weights, m, v)
        } else {
            [0.0; 2]
        }
    }

    fn has_second_pass(&self) -> bool {
        true
    }

    fn second_pass(&self, settings: &UpdateSettings, sums: [f64; 2], piece: &mut Piece) {
        let lr = (settings.lr * trust_ratio(sums)) as f32;
        if let [m, v] = &piece.buffers[..] {
            apply(self.factors(settings), lr, piece.weights, m, v);
        }
    }

    #[cfg(feature = "cuda")]
    fn cuda_step(&self) -> Option<CudaStep> {
        Some(CudaStep {
            rule: CudaRule::Lamb,
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
        let direction = (direction + (weights * settings.weight_decay)?)?;
        let mut lr = settings.lr;
        if settings.weight_decay > 0.0 {
            let square = |tensor: &Tensor| crate::ops::sum_of_squares(tensor);
            lr *= trust_ratio([square(weights)?, square(&direction)?]);
        }
        Ok(((weights - (direction * lr)?)?, vec![m, v]))
    }
}
