//! A stand-in for candle-nn: what it has, at the same paths and with the same signatures, in a form that trains. Missing is
//! `moe::cutile` alone, behind a feature of candle-nn that this crate has not; [`moe`] refuses gradients, and
//! [`sampling`]'s draws have none.
//!
//! A source file that was written for candle-nn trains when this line stands at its top:
//!
//! ```
//! use masksub::nn as candle_nn;
//! use candle_nn::{layer_norm, LayerNorm, Module, VarBuilder};
//! # fn main() {}
//! ```
//!
//! and a whole crate when the line stands at its root and paths are written `crate::candle_nn`, or when its dependency
//! `candle-nn` is a crate of one line, `pub use masksub::nn::*;`. Outputs stay what they were, but for rounding, for what is
//! wrong in candle-nn (the table), and for the dtype of attention in `f64`, which candle-nn computes in `f32`.
//!
//! candle-nn's fused kernels (layer norm, RMS norm, softmax, rotary embeddings, attention on the CPU) have no backward.
//! Nothing fails: the loss falls, but those layers and everything before them on that path learn nothing. Here they are
//! replaced. What trains and is fast in candle-nn is candle-nn's own, re-exported: [`VarBuilder`], [`VarMap`], [`Module`],
//! [`Init`], [`Optimizer`] and so on are the same types.
//!
//! | replaced | because in candle-nn |
//! |---|---|
//! | [`LayerNorm`], [`RmsNorm`], [`ops::layer_norm`](ops::layer_norm()), [`ops::rms_norm`](ops::rms_norm()), [`ops::softmax_last_dim`] | gradients stop |
//! | [`rotary_emb`] | gradients stop |
//! | [`attention`], [`cpu_flash_attention`], [`varlen_attention`], [`ops::sdpa`] | gradients stop, or it runs on Metal only |
//! | [`kv_cache`] | keys and values are detached |
//! | [`moe`] | gradients stop: here an error says so |
//! | [`ops::selu`], [`ops::swiglu`] | gradients are NaN above 88.7; a panic where the last dimension is 1 |
//! | [`loss::binary_cross_entropy_with_logit`] | infinite or undefined from logits of 17 up and -90 down |
//! | [`Linear`], [`conv`], [`GroupNorm`], [`Activation`], [`ops::silu`] and its like | slow; some of [`conv`] is wrong for batches |
//! | [`ops::softmax`] | slow |
//! | [`BatchNorm`] | slow; statistics are written even when the step is rejected |
//! | [`Dropout`], [`ops::dropout`] | its draws on the CPU cannot be repeated |
//!
//! Methods of `Tensor` are no matter of this module: [`crate::ops`] has those that candle cannot differentiate.
//!
//! Nor is what a source makes of its variables when it is built. Where a constructor fuses them into others, as those of
//! candle-transformers' RepVGG, MobileOne, FastViT and MobileCLIP fuse branches and batch norms into convolutions, or
//! gathers them, as TinyViT's does attention biases, every variable gets a gradient, and no update reaches the model until
//! it is built anew. No check of gradients sees that: compare the outputs of the model and of one that is built anew after a
//! step.
//!
//! [`BatchNorm`] holds still where the source says so: `forward_t(xs, false)` normalises by the running statistics, and
//! leaves them as they are, also in training. Many sources of candle-transformers do that; fine-tuning at fixed statistics
//! is what they are for.
//!
//! ```
//! use candle_core::{DType, Device, Tensor};
//! use masksub::nn as candle_nn;
//! use candle_nn::{layer_norm, Module, VarBuilder, VarMap};
//!
//! let vars = VarMap::new();
//! let norm = layer_norm(4, 1e-6, VarBuilder::from_varmap(&vars, DType::F32, &Device::Cpu))?;
//! let xs = Tensor::new(&[[1f32, 2.0, 3.0, 4.0]], &Device::Cpu)?;
//! let grads = norm.forward(&xs)?.sqr()?.sum_all()?.backward()?;
//! assert!(vars.all_vars().iter().all(|var| grads.get(var).is_some()));
//! # Ok::<(), candle_core::Error>(())
//! ```

pub mod activation;
pub mod attention;
pub mod batch_norm;
pub mod conv;
pub mod cpu_flash_attention;
mod dropout;
pub mod group_norm;
pub mod kv_cache;
pub mod layer_norm;
pub mod linear;
pub mod loss;
pub mod moe;
pub mod ops;
mod rms_norm;
pub mod rotary_emb;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
/// [`attention::varlen`] under its older name.
pub mod varlen_attention {
    pub use super::attention::varlen::*;
}

// Modules, and where a function is called as its module, that, too.
pub use candle_nn::{embedding, encoding, func, init, optim, rnn, sampling, sequential, var_builder, var_map};

pub use activation::{prelu, Activation, PReLU};
pub(crate) use batch_norm::batch_norm_from;
pub use batch_norm::{batch_norm, BatchNorm, BatchNormConfig};
pub use candle_core::{Module, ModuleT};
pub use conv::{
    conv1d, conv1d_no_bias, conv2d, conv2d_no_bias, conv_transpose1d, conv_transpose1d_no_bias, conv_transpose2d,
    conv_transpose2d_no_bias, Conv1d, Conv1dConfig, Conv2d, Conv2dConfig, ConvTranspose1d, ConvTranspose1dConfig,
    ConvTranspose2d, ConvTranspose2dConfig,
};
pub use embedding::Embedding;
pub use func::{func_t, Func, FuncT};
pub use group_norm::{group_norm, GroupNorm};
pub use init::Init;
pub use layer_norm::{layer_norm, layer_norm_no_bias, rms_norm, LayerNorm, LayerNormConfig, RmsNorm};
pub use linear::{linear, linear_b, linear_no_bias, Linear};
pub use ops::Dropout;
pub use optim::{AdamW, Optimizer, ParamsAdamW, SGD};
pub use rnn::{gru, lstm, GRUConfig, LSTMConfig, GRU, LSTM, RNN};
pub use sequential::{seq, Sequential};
pub use var_builder::VarBuilder;
pub use var_map::VarMap;

use crate::error::{Error, Result};
use candle_core::Tensor;

/// True where the gradient of one of the tensors may be asked for.
pub(crate) fn tracked(tensors: &[&Tensor]) -> bool {
    tensors.iter().any(|tensor| tensor.track_op())
}

/// An error where the gradient of `tensor`, which would be lost, may be asked for.
fn refuse_gradients(argument: &'static str, tensor: &Tensor) -> Result<()> {
    if tracked(&[tensor]) {
        let allowed = "detached: its gradient would be lost silently";
        return Err(Error::invalid(argument, "a tensor with a gradient", allowed));
    }
    Ok(())
}
