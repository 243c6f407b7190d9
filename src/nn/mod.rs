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

pub mod activation;
mod batch_norm;
pub mod conv;
mod dropout;
pub mod group_norm;
mod layer_norm;
pub mod linear;
mod rms_norm;
#[cfg(test)]
mod testing;

pub use activation::{prelu, Activation, PReLU};
pub(crate) use batch_norm::batch_norm_from;
pub use batch_norm::{batch_norm, BatchNorm};
pub use candle_nn::{BatchNormConfig, LayerNormConfig};
pub use conv::{
    conv1d, conv1d_no_bias, conv2d, conv2d_no_bias, conv_transpose1d, conv_transpose1d_no_bias, conv_transpose2d,
    conv_transpose2d_no_bias, Conv1d, Conv1dConfig, Conv2d, Conv2dConfig, ConvTranspose1d, ConvTranspose1dConfig,
    ConvTranspose2d, ConvTranspose2dConfig,
};
pub use dropout::{dropout, Dropout};
pub use group_norm::{group_norm, GroupNorm};
pub use layer_norm::{layer_norm, layer_norm_no_bias, LayerNorm};
pub use linear::{linear, linear_b, linear_no_bias, Linear};
pub use rms_norm::{rms_norm, RmsNorm};
