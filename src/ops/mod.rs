//! Differentiable operations for training vision models.
//!
//! On the CPU in `f32` they run kernels with a forward and a backward of their own, compiled for several instruction sets
//! and dispatched at run time; everywhere else they are composed of candle's operations, as those are everywhere that only
//! move tokens. In `bf16` and `f16` normalisations, softmax and activations are computed in `f32` and rounded once at the
//! end.
//!
//! Of those that candle-nn also has, [`layer_norm`](layer_norm()), [`rms_norm`](rms_norm()), [`softmax_last_dim`] and
//! [`rotary_emb`] stop gradients there, silently: a model that uses them trains only a part of its weights. The functions
//! here take the same arguments, and [`crate::nn`] has the layers.
//!
//! The same input gives the same bits, whatever the number of threads.

mod activation;
mod add_relu;
mod attention;
mod autograd;
mod batch_norm;
mod conv2d;
pub(crate) mod cpu;
mod fused;
mod gather_rows;
mod gelu;
mod layer_norm;
mod lerp;
mod linear;
mod max_pool2d;
mod patchify;
mod quick_gelu;
mod rms_norm;
pub mod rotary_emb;
mod route;
mod softmax;
mod sum_of_squares;
#[cfg(test)]
pub(crate) mod testing;
mod window;
mod window_attention;

pub use activation::Activation;
pub use add_relu::add_relu;
pub use attention::attention;
pub(crate) use autograd::deliver::{add_to, aside, Gradients};
pub use batch_norm::{batch_norm, batch_norm_eval, BatchStatistics};
pub use conv2d::conv2d;
pub(crate) use cpu::kernel::Elements;
pub use fused::attention_branch::{attention_branch, AttentionBranch, Tokens};
pub use fused::conv_norm::{ConvNorm, RunningStatistics};
pub use fused::mlp_branch::{mlp_branch, MlpBranch};
pub use fused::patch_embed::{patch_embed, PatchEmbed};
pub(crate) use fused::residual::add as add_branch;
pub use fused::residual::Affine;
pub use fused::residual_block::{residual_blocks, ResidualBlock};
pub use fused::stem::{stem, Pooling};
pub use fused::window_attention_branch::{window_attention_branch, Windows};
pub use gather_rows::gather_rows;
pub use gelu::gelu;
pub use layer_norm::layer_norm;
pub(crate) use layer_norm::layer_norm_with;
pub(crate) use lerp::lerp;
pub use linear::linear;
pub use max_pool2d::max_pool2d;
pub use patchify::patchify;
pub use quick_gelu::quick_gelu;
pub use rms_norm::rms_norm;
pub(crate) use rms_norm::rms_norm_with;
pub(crate) use route::{in_f32, is_half, on_cpu_f32};
pub use softmax::{softmax, softmax_last_dim};
pub(crate) use sum_of_squares::sum_of_squares;
pub use window::{merge_neighbours, relative_position_bias, shift_mask, window_partition, window_reverse};
pub use window_attention::window_attention;

/// The operations composed of candle's own: what runs on other devices and dtypes, the oracle of the kernels' tests, and
/// what `benches/ops.rs` measures them against.
#[doc(hidden)]
pub mod reference {
    pub use super::add_relu::composition as add_relu;
    pub use super::attention::composition as attention;
    pub use super::batch_norm::{composition as batch_norm, composition_eval as batch_norm_eval};
    pub use super::conv2d::composition as conv2d;
    pub use super::fused::attention_branch::composition as attention_branch;
    pub use super::fused::mlp_branch::composition as mlp_branch;
    pub use super::fused::patch_embed::composition as patch_embed;
    pub use super::fused::residual_block::composition as residual_blocks;
    pub use super::fused::stem::composition as stem;
    pub use super::fused::window_attention_branch::composition as window_attention_branch;
    pub use super::gelu::composition as gelu;
    pub use super::layer_norm::composition as layer_norm;
    pub use super::linear::composition as linear;
    pub use super::max_pool2d::composition as max_pool2d;
    pub use super::patchify::composition as patchify;
    pub use super::quick_gelu::composition as quick_gelu;
    pub use super::rms_norm::composition as rms_norm;
    pub use super::softmax::composition as softmax;
    pub use super::window::bias::composition as relative_position_bias;
    pub use super::window::mask::composition as shift_mask;
    pub use super::window::partition::{
        composition_partition as window_partition, composition_reverse as window_reverse,
    };
    pub use super::window_attention::composition as window_attention;
}
