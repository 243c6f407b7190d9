//! How one parameter is updated: what the optimizers differ in.

use std::fmt::Debug;

use candle_core::Tensor;

use crate::error::Result;

/// Update rule of one parameter. Sealed: the configurations of this module implement it, and a `Box<dyn Rule>` of any of
/// them, for a trainer that chooses at run time.
pub trait Rule: Debug + private::Update {}

pub(super) mod private {
    use super::*;

    /// The part of [`Rule`] that is not for users: kernels and their compositions.
    pub trait Update: Send + Sync {
        /// The learning rate.
        fn lr(&self) -> f64;
        /// Changes the learning rate.
        fn set_lr(&mut self, lr: f64);
        /// Decay of the parameters that decay.
        fn weight_decay(&self) -> f64;
        /// An error that names the first setting that is out of its range.
        fn check(&self) -> Result<()>;
        /// Names of the tensors that are kept for each parameter, of its shape, 0 at first.
        fn buffers(&self) -> &'static [&'static str];
        /// The global gradient norm above which gradients are scaled down to it.
        fn max_grad_norm(&self) -> Option<f64> {
            None
        }
        /// Updates a piece of a parameter from its gradient, in its memory: all of it, or what goes before a
        /// [second pass](Self::second_pass), which is then told the sums of what this returns.
        fn first_pass(&self, settings: &UpdateSettings, piece: &mut Piece) -> [f64; 2];
        /// Whether there is a second pass.
        fn has_second_pass(&self) -> bool {
            false
        }
        /// Updates a piece further, once the first pass is done with the whole parameter and the sums over it are
        /// known.
        fn second_pass(&self, _settings: &UpdateSettings, _sums: [f64; 2], _piece: &mut Piece) {}
        /// The kernels that make such a step on CUDA, where there are any.
        #[cfg(feature = "cuda")]
        fn cuda_step(&self) -> Option<CudaStep> {
            None
        }
        /// The same, composed of candle's operations: the new weights and buffers.
        fn compose(
            &self,
            settings: &UpdateSettings,
            weights: &Tensor,
            grad: &Tensor,
            buffers: &[Tensor],
        ) -> Result<(Tensor, Vec<Tensor>)>;
    }

    /// A step whose kernels there are for CUDA, with the decays of the moments and what is added to a root.
    #[cfg(feature = "cuda")]
    #[derive(Clone, Copy, Debug)]
    pub struct CudaStep {
        pub rule: CudaRule,
        pub betas: [f64; 2],
        pub eps: f64,
    }

    #[cfg(feature = "cuda")]
    #[derive(Clone, Copy, Debug)]
    pub enum CudaRule {
        AdamW,
        Lamb,
    }

    /// A part of a parameter, on the CPU: slices of the same length.
    pub struct Piece<'a> {
        pub weights: &'a mut [f32],
        pub grads: &'a [f32],
        /// In the order of their names.
        pub buffers: Vec<&'a mut [f32]>,
    }

    /// What differs from parameter to parameter and from step to step.
    #[derive(Clone, Copy, Debug)]
    pub struct UpdateSettings {
        /// Learning rate of this parameter.
        pub lr: f64,
        /// Weight decay of this parameter.
        pub weight_decay: f64,
        /// Number of this update, from 1.
        pub step: u64,
        /// What gradients are multiplied by.
        pub grad_scale: f64,
    }
}
use private::{Piece, Update, UpdateSettings};

impl Update for Box<dyn Rule> {
    fn lr(&self) -> f64 {
        (**self).lr()
    }
    fn set_lr(&mut self, lr: f64) {
        (**self).set_lr(lr)
    }
    fn weight_decay(&self) -> f64 {
        (**self).weight_decay()
    }
    fn check(&self) -> Result<()> {
        (**self).check()
    }
    fn buffers(&self) -> &'static [&'static str] {
        (**self).buffers()
    }
    fn max_grad_norm(&self) -> Option<f64> {
        (**self).max_grad_norm()
    }
    fn first_pass(&self, settings: &UpdateSettings, piece: &mut Piece) -> [f64; 2] {
        (**self).first_pass(settings, piece)
    }
    fn has_second_pass(&self) -> bool {
        (**self).has_second_pass()
    }
    fn second_pass(&self, settings: &UpdateSettings, sums: [f64; 2], piece: &mut Piece) {
        (**self).second_pass(settings, sums, piece)
    }
    #[cfg(feature = "cuda")]
    fn cuda_step(&self) -> Option<private::CudaStep> {
        (**self).cuda_step()
    }
    fn compose(
        &self,
        settings: &UpdateSettings,
        weights: &Tensor,
        grad: &Tensor,
        buffers: &[Tensor],
    ) -> Result<(Tensor, Vec<Tensor>)> {
        (**self).compose(settings, weights, grad, buffers)
    }
}
impl Rule for Box<dyn Rule> {}
