//! Differentiable operations for training.
//!
//! On the CPU in `f32` they run kernels with a forward and a backward of their own, compiled for several instruction
//! sets and dispatched at run time; everywhere else they are composed of candle's operations, as those are everywhere
//! that only move tokens. In `bf16` and `f16` normalisations, softmax and activations are computed in `f32` and rounded
//! once at the end; on the CPU everything that multiplies is, too.
//!
//! Of those that candle-nn also has, [`layer_norm`](layer_norm()), [`rms_norm`](rms_norm()), [`softmax_last_dim`] and
//! [`rotary_emb`] stop gradients there, silently: a model that uses them trains only a part of its weights. The
//! functions here take the same arguments, and [`crate::nn`] has the layers.
//!
//! The same input gives the same bits, whatever the number of threads.
//!
//! # Methods of `Tensor` that do not train
//!
//! What candle 0.11.1 computes no gradient for, which [`MaskSub::backward`](crate::MaskSub::backward) reports with what
//! to call instead, and where it computes a wrong one, which nothing reports:
//!
//! | of candle | its backward | instead |
//! |---|---|---|
//! | `max_pool2d` | none for windows that overlap; of others, gradients divided by the window's size | [`max_pool2d`](max_pool2d()) |
//! | `avg_pool2d` | none for windows that overlap; wrong where they do not fill the image | [`avg_pool2d`] |
//! | `upsample_nearest2d`, `interpolate2d`, `..1d` | for the same whole scale of both sides only; forgets what their input gets from elsewhere | [`upsample_nearest2d`], [`upsample_nearest1d`] |
//! | `upsample_bilinear2d`, `.._with_scale` | none | [`upsample_bilinear2d`], [`upsample_bilinear2d_with_scale`] |
//! | `conv1d` | on the CPU, a wrong one by the weight, of more than one sample | [`conv1d`](conv1d()), [`nn::Conv1d`](crate::nn::Conv1d) |
//! | `conv2d` | an error, a panic or wrong, for some paddings and where a stride leaves unlike remainders of the sides | [`conv2d`](conv2d()), [`nn::Conv2d`](crate::nn::Conv2d) |
//! | `conv_transpose1d` | none; on the CPU, also the result may be wrong | [`conv_transpose1d`], [`nn::ConvTranspose1d`](crate::nn::ConvTranspose1d) |
//! | `relu`, `gelu`, `gelu_erf` | 1 at 0; constants of six digits | [`relu`](relu()), [`gelu_tanh`](gelu_tanh()), [`gelu`](gelu()) |
//! | `matmul` | on the CPU, the result is wrong for a transposed batch and a factor from `broadcast_left`; so is `candle_nn::Linear`'s | [`linear`](linear()), or `contiguous()` of the batch |
//! | `scatter`, `scatter_add` | that of what is written over or added to is the other one's | `xs.add(&zeros.scatter_add(..)?)` |
//!
//! # Normalisation
//!
//! - [`batch_norm`](batch_norm()) by the statistics of the batch, which it returns as [`BatchStatistics`]
//! - [`batch_norm_eval`] by statistics that are given
//! - [`group_norm`](group_norm())
//! - [`layer_norm`](layer_norm())
//! - [`rms_norm`](rms_norm())
//!
//! # Attention and windows
//!
//! - [`attention`](attention()) in several heads, of a packed projection
//! - [`biased_attention`](biased_attention()): the same with a [`RelativeBias`] for each query and key
//! - [`rotary_emb`]: rotary position embeddings; [`rotary_qkv`](rotary_qkv()): of a packed projection, by the [`Pairs`] of
//!   a [`Rotation`]
//! - [`window_partition`], [`window_reverse`]: the tokens of a grid in the order of its windows, and back
//! - [`merge_neighbours`]: four tokens of a grid in one
//! - [`relative_position_bias`], [`shift_mask`]: the two terms that are added to the scores within windows
//! - [`window_attention`](window_attention()) with both
//!
//! # Convolution and pooling
//!
//! - [`add_relu`](add_relu()): the end of a residual block
//! - [`avg_pool2d`]
//! - [`conv1d`](conv1d()), [`conv2d`](conv2d()), with a bias, groups and dilation
//! - [`conv_transpose1d`], [`conv_transpose2d`]
//! - [`max_pool2d`](max_pool2d())
//! - [`upsample_bilinear2d`], [`upsample_bilinear2d_with_scale`], [`upsample_nearest1d`], [`upsample_nearest2d`]
//!
//! # Tokens and patches
//!
//! - [`gather_rows`](gather_rows()): the tokens that are kept
//! - [`linear`](linear()) of the last dimension
//! - [`patchify`](patchify()): images cut in patches
//!
//! # Activations
//!
//! - [`Activation`]: the choice of one
//! - [`gelu`](gelu()), [`gelu_tanh`](gelu_tanh()), [`quick_gelu`](quick_gelu())
//! - [`mish`](mish()), [`relu`](relu()), [`sigmoid`](sigmoid()), [`silu`]
//! - [`softmax`](softmax()), [`softmax_last_dim`]
//!
//! # Scales and gates
//!
//! - [`broadcast_mul`](broadcast_mul()): a layer scale, a gate of channels
//!
//! # Whole branches in one operation
//!
//! The same as the operations one by one, without what they write and read in between.
//!
//! - [`attention_branch`], [`mlp_branch`]: the two branches of a transformer's block, with their parameters in an
//!   [`AttentionBranch`] and an [`MlpBranch`]
//! - [`window_attention_branch`]: the first one of a Swin Transformer, within [`Windows`]
//! - [`gated_mlp_branch`]: the second with a gate, of [`Gated`] layers, in a [`GatedMlpBranch`]
//! - [`conv_mlp_branch`]: the block of a ConvNeXt, a [`ConvMlpBranch`]
//! - [`patch_embed`]: a [`PatchEmbed`] of the tokens that are kept
//! - [`residual_blocks`], [`stem`]: a ResNet's stages and what is before them, of [`ConvNorm`]s
//!
//! # Memory
//!
//! - [`empty_cache`] gives back what waits for the next step
//! - [`keep_freed_memory`] has the C library keep candle's tensors for the next ones, too

// Normalisation
mod batch_norm;
mod group_norm;
mod layer_norm;
mod rms_norm;

// Attention and windows
mod attention;
mod biased_attention;
pub mod rotary_emb;
mod rotary_qkv;
mod window;
mod window_attention;

// Convolution and pooling
mod add_relu;
mod conv1d;
mod conv2d;
mod max_pool2d;
mod resample;

// Tokens and patches
mod gather_rows;
mod linear;
mod patchify;

// Activations
mod activation;
mod gelu;
mod gelu_tanh;
mod mish;
mod pointwise;
mod quick_gelu;
mod relu;
mod sigmoid;
mod softmax;

// Scales and gates
mod broadcast_mul;

// Whole branches in one operation
mod fused;

// Tensors that have no gradients
mod finite;
mod fresh;
mod lerp;
mod on_host;
mod sum_of_squares;

// The ground that all stand on
mod autograd;
pub(crate) mod cpu;
#[cfg(any(feature = "cuda", all(test, target_os = "linux")))]
pub(crate) mod cuda;
mod route;
#[cfg(test)]
pub(crate) mod testing;

pub use batch_norm::{batch_norm, batch_norm_eval, BatchStatistics};
pub use group_norm::group_norm;
pub use layer_norm::layer_norm;
pub(crate) use layer_norm::layer_norm_with;
pub use rms_norm::rms_norm;
pub(crate) use rms_norm::rms_norm_with;

pub(crate) use attention::attend;
pub use attention::attention;
pub use biased_attention::{biased_attention, RelativeBias};
pub use rotary_qkv::{rotary_qkv, Pairs, Rotation};
pub use window::{merge_neighbours, relative_position_bias, shift_mask, window_partition, window_reverse};
pub use window_attention::window_attention;

pub use add_relu::add_relu;
pub use conv1d::conv1d;
pub use conv2d::{conv2d, conv_transpose1d, conv_transpose2d};
pub use max_pool2d::max_pool2d;
pub use resample::{
    avg_pool2d, upsample_bilinear2d, upsample_bilinear2d_with_scale, upsample_nearest1d, upsample_nearest2d,
};

pub(crate) use gather_rows::gather;
pub use gather_rows::gather_rows;
pub use linear::linear;
pub use patchify::patchify;

pub use activation::Activation;
pub use gelu::gelu;
pub use gelu_tanh::gelu_tanh;
pub use mish::mish;
pub use quick_gelu::quick_gelu;
pub use relu::relu;
pub use sigmoid::{sigmoid, silu};
pub use softmax::{softmax, softmax_last_dim};

pub use broadcast_mul::broadcast_mul;

pub use fused::affine::Affine;
pub use fused::attention_branch::{attention_branch, AttentionBranch, Positions, Tokens};
pub use fused::conv_mlp_branch::{conv_mlp_branch, ConvMlpBranch};
pub use fused::conv_norm::{ConvNorm, RunningStatistics};
pub use fused::gated_mlp_branch::{gated_mlp_branch, Gated, GatedMlpBranch};
pub use fused::mlp_branch::{mlp_branch, MlpBranch};
pub use fused::patch_embed::{patch_embed, PatchEmbed};
pub(crate) use fused::residual::add as add_branch;
pub use fused::residual_blocks::{residual_blocks, ResidualBlock};
pub use fused::stem::{stem, Pooling};
pub(crate) use fused::stream::Stream;
pub use fused::window_attention_branch::{window_attention_branch, Windows};

pub(crate) use finite::first_not_finite;
pub(crate) use fresh::fresh;
pub(crate) use lerp::{lerp, lerp_all};
pub(crate) use on_host::on_host;
pub(crate) use sum_of_squares::{sum_of_squares, sums_of_squares};

pub(crate) use autograd::accumulator::{accumulate, add_to, Gradients};
pub use cpu::buffer::empty_cache;
pub(crate) use cpu::heap::advise_huge_pages;
pub use cpu::heap::keep_freed_memory;
#[cfg(feature = "cuda")]
pub(crate) use cpu::kernel::address as storage_address;
pub(crate) use cpu::kernel::{on_own_threads, own_threads, Elements};
#[cfg(feature = "cuda")]
pub(crate) use route::on_cuda;
pub(crate) use route::{in_f32, is_f32_slice, is_half};

/// The operations composed of candle's own: what runs on other devices and dtypes, the oracle of the kernels' tests,
/// and what `benches/ops` measures them against.
#[doc(hidden)]
pub mod reference {
    pub use super::add_relu::composition as add_relu;
    pub use super::attention::composition as attention;
    pub use super::batch_norm::{composition as batch_norm, composition_eval as batch_norm_eval};
    pub use super::biased_attention::composition as biased_attention;
    pub use super::broadcast_mul::composition as broadcast_mul;
    pub use super::conv1d::composition as conv1d;
    pub use super::conv2d::{
        composition as conv2d, composition_transposed as conv_transpose2d,
        composition_transposed_1d as conv_transpose1d,
    };
    pub use super::fused::attention_branch::composition as attention_branch;
    pub use super::fused::conv_mlp_branch::composition as conv_mlp_branch;
    pub use super::fused::gated_mlp_branch::composition as gated_mlp_branch;
    pub use super::fused::mlp_branch::composition as mlp_branch;
    pub use super::fused::patch_embed::composition as patch_embed;
    pub use super::fused::residual_blocks::composition as residual_blocks;
    pub use super::fused::stem::composition as stem;
    pub use super::fused::window_attention_branch::composition as window_attention_branch;
    pub use super::gelu::composition as gelu;
    pub use super::gelu_tanh::composition as gelu_tanh;
    pub use super::group_norm::composition as group_norm;
    pub use super::layer_norm::composition as layer_norm;
    pub use super::linear::composition as linear;
    pub use super::max_pool2d::composition as max_pool2d;
    pub use super::mish::composition as mish;
    pub use super::patchify::composition as patchify;
    pub use super::quick_gelu::composition as quick_gelu;
    pub use super::relu::composition as relu;
    pub use super::resample::{
        composition_avg_pool2d as avg_pool2d, composition_bilinear2d as upsample_bilinear2d,
        composition_nearest2d as upsample_nearest2d,
    };
    pub use super::rms_norm::composition as rms_norm;
    pub use super::rotary_qkv::composition as rotary_qkv;
    pub use super::sigmoid::{composition as sigmoid, composition_silu as silu};
    pub use super::softmax::composition as softmax;
    pub use super::window::bias::composition as relative_position_bias;
    pub use super::window::mask::composition as shift_mask;
    pub use super::window::partition::{
        composition_partition as window_partition, composition_reverse as window_reverse,
    };
    pub use super::window_attention::composition as window_attention;
}
