//! Pieces of a training recipe: optimizers, schedules, averaged weights, mixing, accumulation, replicas, ranks, checkpoints.
//! There is no loop: a trainer owns its own and takes what it needs.
//!
//! ```
//! use candle_core::{DType, Device, Tensor};
//! use masksub::train::ema::Ema;
//! use masksub::train::mix::Mix;
//! use masksub::train::optim::{AdamW, AdamWConfig};
//! use masksub::train::schedule::{Cosine, Schedule};
//! use masksub::{grad, Criterion, MaskSub, Params, PatchDrop, RandomMasking, Seed, Weights};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let seed = Seed::new(0);
//! # let weights = Weights::seeded(seed);
//! # let vb = weights.var_builder(DType::F32, &Device::Cpu);
//! # let net = candle_nn::seq().add_fn(|xs| xs.flatten_from(1)).add(candle_nn::linear(64, 10, vb.pp("fc"))?);
//! # let loader = [(Tensor::ones((2, 1, 8, 8), DType::F32, &Device::Cpu)?, Tensor::new(&[3u32, 7], &Device::Cpu)?)];
//! let params = Params::from_varmap(weights.varmap());
//! let mut opt = AdamW::new(&params, AdamWConfig::default())?;
//! let mut ema = Ema::of(weights.varmap(), 0.9998)?;
//! let schedule = Cosine::new(1e-3, 1000)?;
//! let mix = Mix::new(10, 0.8, 1.0)?;
//! let criterion = Criterion::cross_entropy();
//! let model = MaskSub::wrap(net, PatchDrop::new(RandomMasking::new(0.5)?, 4)?, &params);
//! for (t, (images, labels)) in loader.iter().enumerate() {
//!     opt.set_learning_rate(schedule.at(t));
//!     let key = seed.at(t);
//!     let mixed = mix.apply(images, labels, key)?;
//!     let mut step = model.backward(&mixed.images, key, |logits| criterion.forward(logits, &mixed.targets))?;
//!     grad::clip_grad_norm(&mut step.grads, &params, 1.0)?;
//!     opt.step(&step.grads)?;
//!     ema.update()?;
//! }
//! # Ok(()) }
//! ```

pub mod accumulate;
pub mod checkpoint;
pub mod distributed;
pub mod ema;
pub mod mix;
pub mod optim;
pub mod replicas;
pub mod schedule;
