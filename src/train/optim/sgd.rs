//! SGD with momentum.

use candle_core::Tensor;

use super::rule::private::{Piece, Update, UpdateSettings};
use super::rule::Rule;
use crate::check;
use crate::error::Result;
use crate::ops::cpu::kernel::{self, fma};

/// Stochastic gradient descent with momentum and weight decay added to the gradient: `torch.optim.SGD`, with Nesterov's
/// momentum of 0.9 by default (PyTorch's has none).
///
/// ```text
/// d = g + weight_decay w
/// b = momentum b + d
/// w -= lr (d + momentum b)   with Nesterov's, else
/// w -= lr b
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct SgdConfig {
    /// Learning rate; 0.1.
    pub lr: f64,
    /// Momentum, within [0, 1); 0.9.
    pub momentum: f64,
    /// Nesterov's momentum instead of the plain one; true.
    pub nesterov: bool,
    /// Weight decay, added to the gradient; 0.
    pub weight_decay: f64,
}

impl Default for SgdConfig {
    fn default() -> Self {
        Self {
            lr: 0.1,
            momentum: 0.9,
            nesterov: true,
            weight_decay: 0.0,
        }
    }
}

impl Rule for SgdConfig {}

#[derive(Clone, Copy)]
struct Factors {
    lr: f32,
    momentum: f32,
    nesterov: bool,
    weight_decay: f32,
    grad_scale: f32,
}

kernel::simd_fn! {
    fn update<S>(f: Factors, weights: &mut [f32], grads: &[f32], buffer: &mut [f32]) -> () {
        // Of the direction d + momentum b, or b alone.
        let (of_d, of_b) = if f.nesterov { (1.0, f.momentum) } else { (0.0, 1.0) };
        for ((w, &g), b) in weights.iter_mut().zip(grads).zip(buffer) {
            let d = fma::<S>(*w, f.weight_decay, g * f.grad_scale);
            *b = fma::<S>(*b, f.momentum, d);
            *w = fma::<S>(-f.lr, fma::<S>(*b, of_b, d * of_d), *w);
        }
    }
}

impl Update for SgdConfig {
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
        check::rate("momentum", self.momentum)?;
        check::non_negative("lr", self.lr)?;
        check::non_negative("weight_decay", self.weight_decay).map(drop)
    }

    fn buffers(&self) -> &'static [&'static str] {
        &["momentum_buffer"]
    }

    fn first_pass(&self, settings: &UpdateSettings, piece: &mut Piece) -> [f64; 2] {
        let factors = Factors {
            lr: settings.lr as f32,
            momentum: self.momentum as f32,
            nesterov: self.nesterov,
            weight_decay: settings.weight_decay as f32,
            grad_scale: settings.grad_scale as f32,
        };
        if let [buffer] = &mut piece.buffers[..] {
            update(factors, piece.weights, piece.grads, buffer);
        }
        [0.0; 2]
    }

    fn compose(
        &self,
        settings: &UpdateSettings,
        weights: &Tensor,
        grad: &Tensor,
        buffers: &[Tensor],
    ) -> Result<(Tensor, Vec<Tensor>)> {
        let [buffer] = buffers else {
            return Ok((weights.clone(), buffers.to_vec()));
        };
        let d = ((grad * settings.grad_scale)? + (weights * settings.weight_decay)?)?;
        let buffer = ((buffer * self.momentum)? + &d)?;
        let direction = if self.nesterov {
            (d + (&buffer * self.momentum)?)?
        } else {
            buffer.clone()
        };
        Ok(((weights - (direction * settings.lr)?)?, vec![buffer]))
    }
}
