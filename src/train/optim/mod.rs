//! Optimizers with parameter groups, whose state can be read and restored to the bit.
//!
//! candle-nn's `AdamW` keeps its moments to itself, so a run that uses it cannot be resumed; it has no groups, and
//! there is no LAMB and no momentum. These are `candle_nn::Optimizer`s, too.
//!
//! ```
//! use candle_core::{DType, Device};
//! use masksub::train::optim::{AdamW, AdamWConfig, ParamGroups};
//! use masksub::{grad, Params, Seed, Weights};
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let weights = Weights::seeded(Seed::new(0));
//! # let layer = candle_nn::linear(4, 2, weights.var_builder(DType::F32, &Device::Cpu).pp("head"))?;
//! # let images = candle_core::Tensor::ones((3, 4), DType::F32, &Device::Cpu)?;
//! let params = Params::from_varmap(weights.varmap());
//! let groups = ParamGroups::new(&params).without_decay(ParamGroups::usually_without_decay);
//! let mut opt = AdamW::new(groups, AdamWConfig { lr: 1e-3, weight_decay: 0.05, ..Default::default() })?;
//!
//! let loss = candle_nn::Module::forward(&layer, &images)?.sqr()?.mean_all()?;
//! opt.step(&grad::backward(&loss, &params)?)?;
//! let saved = opt.state()?; // by name, for a checkpoint
//! opt.load_state(&saved)?;
//! # Ok(()) }
//! ```

mod adamw;
mod groups;
mod in_place;
mod lamb;
mod lost;
#[cfg(feature = "cuda")]
mod on_cuda;
mod optimizer;
mod rule;
mod sgd;
mod slot;
mod update;

pub use adamw::AdamWConfig;
pub(super) use groups::check_like;
pub(super) use groups::Group;
pub use groups::ParamGroups;
pub use lamb::LambConfig;
pub use lost::{audit_step, lost_in_sum, LostUpdates};
pub use optimizer::GroupOptimizer;
pub use rule::Rule;
pub use sgd::SgdConfig;

/// AdamW: see [`AdamWConfig`].
pub type AdamW = GroupOptimizer<AdamWConfig>;
/// LAMB: see [`LambConfig`].
pub type Lamb = GroupOptimizer<LambConfig>;
/// SGD with momentum: see [`SgdConfig`].
pub type Sgd = GroupOptimizer<SgdConfig>;
