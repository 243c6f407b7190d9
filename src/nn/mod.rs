//! Normalisation layers for models that are trained.
//!
//! candle-nn's [`LayerNorm`](candle_nn::LayerNorm) and [`RmsNorm`](candle_nn::RmsNorm) call kernels that have no
//! backward. Nothing fails: the loss falls, but these layers and everything before them on that path learn nothing. The
//! two here have the same constructors, accessors and weight names; a model is repaired by changing
//! `use candle_nn::{layer_norm, LayerNorm, ..}` to `use masksub::nn::{layer_norm, LayerNorm, ..}`. (The functions with
//! the same defect are in [`crate::ops`].)
//!
//! [`BatchNorm`] is a layer of its own: it takes candle-nn's configuration and weight names, but leaves its running
//! statistics alone until a step is accepted.
//!
//! ```
//! use candle_core::{DType, Device, Module, Tensor};
//! use candle_nn::{VarBuilder, VarMap};
//! use masksub::nn::layer_norm;
//!
//! let vars = VarMap::new();
//! let norm = layer_norm(4, 1e-6, VarBuilder::from_varmap(&vars, DType::F32, &Device::Cpu))?;
//! let xs = Tensor::new(&[[1f32, 2.0, 3.0, 4.0]], &Device::Cpu)?;
//! let grads = norm.forward(&xs)?.sqr()?.sum_all()?.backward()?;
//! assert!(vars.all_vars().iter().all(|var| grads.get(var).is_some()));
//! # Ok::<(), candle_core::Error>(())
//! ```

mod batch_norm;
mod layer_norm;
mod rms_norm;

pub(crate) use batch_norm::batch_norm_from;
pub use batch_norm::{batch_norm, BatchNorm};
pub use candle_nn::{BatchNormConfig, LayerNormConfig};
pub use layer_norm::{layer_norm, layer_norm_no_bias, LayerNorm};
pub use rms_norm::{rms_norm, RmsNorm};
