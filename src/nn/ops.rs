//! Functions of tensors: candle-nn's, and those that cut gradients replaced by [`crate::ops`]'.

use candle_core::{Result, Tensor};

use super::attention::scores::{self, Scores};
use super::tracked;
use crate::check;

pub use super::dropout::{dropout, Dropout};
pub use crate::ops::{layer_norm, mish, rms_norm, sigmoid, silu, softmax, softmax_last_dim};
pub use candle_nn::ops::{
    hard_sigmoid, layer_norm_slow, leaky_relu, log_softmax, pixel_shuffle, pixel_unshuffle, replication_pad2d,
    rms_norm_slow, selu, swiglu, Identity,
};

/// Attention, softmax(cap(`scale` q kᵀ) + `mask`) v: [`candle_nn::ops::sdpa`] with a backward, on any device.
///
/// # Arguments
///
/// - `q`: [B, H, S, D]
/// - `k`: [B, H', T, D], `v`: [B, H', T, E], H' a divisor of H: as many query heads in turn share a key and value head
/// - `mask`: added to the scores, of a shape that is broadcast to [B, H, S, T]
/// - `do_causal`: hides from query i the keys after i + T - S; of more queries than keys the first see none
/// - `softcapping`: c in cap(x) = c tanh(x / c); 1 stands for none, as in candle-nn
///
/// Returns [B, H, S, E]. A query from which every key is hidden gets zeros.
///
/// On Metal, where no gradient is asked for, it is candle-nn's kernel.
///
/// # PyTorch
///
/// `torch.nn.functional.scaled_dot_product_attention(q, k, v, mask, is_causal=do_causal, scale=scale, enable_gqa=True)`,
/// where S = T.
///
/// # Errors
///
/// If shapes do not fit, the dtypes differ or are no floating-point ones, or `softcapping` is not above 0.
pub fn sdpa(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    mask: Option<&Tensor>,
    do_causal: bool,
    scale: f32,
    softcapping: f32,
) -> Result<Tensor> {
    if q.device().is_metal() && !tracked(&[q, k, v]) && mask.is_none_or(|mask| !tracked(&[mask])) {
        return candle_nn::ops::sdpa(q, k, v, mask, do_causal, scale, softcapping);
    }
    let softcapping = check::positive("softcapping", f64::from(softcapping))?;
    let (queries, keys) = scores::lengths(q, k)?;
    let causal = do_causal.then(|| scores::Causal::at_the_end(queries, keys));
    let causal = causal.map(|causal| causal.bias(q)).transpose()?;
    let mask = match mask {
        Some(mask) => {
            scores::check_mask(mask, [q.dim(0)?, q.dim(1)?, queries, keys])?;
            Some(mask.to_dtype(scores::wide(q))?)
        }
        None => None,
    };
    let bias = match (mask, causal) {
        (Some(mask), Some(causal)) => Some(mask.broadcast_add(&causal)?),
        (mask, causal) => mask.or(causal),
    };
    let scores = Scores {
        scale: f64::from(scale),
        softcap: (softcapping != 1.0).then_some(softcapping),
        bias,
    };
    scores.attend(q, k, v)
}
