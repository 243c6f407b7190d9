//! Functions of tensors: candle-nn's, and those that cut gradients replaced by [`crate::ops`]'.

use candle_core::{Result, Tensor, D};

use super::attention::scores::{self, Scores};
use super::tracked;
use crate::check;
use crate::error::Error;

pub use super::dropout::{dropout, Dropout};
pub use crate::ops::{layer_norm, mish, rms_norm, sigmoid, silu, softmax, softmax_last_dim};
pub use candle_nn::ops::{
    hard_sigmoid, layer_norm_slow, leaky_relu, log_softmax, pixel_shuffle, pixel_unshuffle, replication_pad2d,
    rms_norm_slow, Identity,
};

/// A gated activation, silu(a) * b of `xs` = [a, b] along the last dimension, [.., 2 D] to [.., D] (Shazeer 2020, arXiv
/// 2002.05202): [`candle_nn::ops::swiglu`], which panics where the last dimension is 1.
///
/// # Errors
///
/// If the last dimension is odd, or there is none.
pub fn swiglu(xs: &Tensor) -> Result<Tensor> {
    let width = match xs.dims().last() {
        Some(width) if width.is_multiple_of(2) => width / 2,
        _ => return Err(Error::shape("xs", xs.dims(), "[.., 2 D]").into()),
    };
    let half = |from| xs.narrow(D::Minus1, from, width);
    silu(&half(0)?)? * half(width)?
}

/// A self-normalising activation, `gamma` x where x is above 0, else `gamma` `alpha` (exp(x) - 1) (Klambauer et al. 2017,
/// arXiv 1706.02515): [`candle_nn::ops::selu`], whose gradient is NaN above 88.7 and which takes `f32` alone.
///
/// PyTorch's `torch.nn.SELU()`, whose `alpha` is 1.6732632 and `gamma` 1.050701.
///
/// # Errors
///
/// If `xs` holds no floating-point numbers.
pub fn selu(xs: &Tensor, alpha: f32, gamma: f32) -> Result<Tensor> {
    check::float("xs", xs)?;
    let positive = xs.gt(0.0)?;
    // Of numbers above 0 exp may be infinite, and its gradient would be 0 times that.
    let negative = positive.where_cond(&xs.zeros_like()?, xs)?;
    let bent = ((negative.exp()? - 1.0)? * f64::from(alpha))?;
    positive.where_cond(xs, &bent)? * f64::from(gamma)
}

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
/// On Metal, where no gradient is asked for, it is candle-nn's kernel. On the CPU in `f32` or half precision it is one of
/// this crate's, which does not write the scores, unless the mask has a gradient or `softcapping` is not 1.
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nn::testing::single;
    use crate::ops::testing::{check_derivative, relative};
    use candle_core::{DType, Device, Var};

    /// PyTorch's, of `torch.nn.SELU`.
    const ALPHA: f32 = 1.673_263_2;
    const GAMMA: f32 = 1.050_701;

    #[test]
    fn selu_equals_candles_and_is_differentiable() {
        let xs = (single(&[5, 8], 0) * 3.0).unwrap();
        let ours = selu(&xs, ALPHA, GAMMA).unwrap();
        assert!(relative(&ours, &candle_nn::ops::selu(&xs, ALPHA, GAMMA).unwrap()) < 1e-6);
        check_derivative(&|t| selu(&t[0], ALPHA, GAMMA), &[&[5, 8]], 1);
        let half = selu(&xs.to_dtype(DType::BF16).unwrap(), ALPHA, GAMMA).unwrap();
        assert!(half.dtype() == DType::BF16 && relative(&half, &ours) < 0.01);
        let error = selu(&xs.to_dtype(DType::U32).unwrap(), ALPHA, GAMMA).unwrap_err();
        assert!(error.to_string().starts_with("xs has dtype U32"), "{error}");
    }

    #[test]
    fn selu_has_a_gradient_everywhere() {
        type Selu = fn(&Tensor, f32, f32) -> Result<Tensor>;
        let gradient = |of: Selu| {
            let xs = Var::new(
                &[-200f32, -0.0, 0.0, 1.0, 88.0, 89.0, 1e30, f32::INFINITY],
                &Device::Cpu,
            )
            .unwrap();
            let grads = of(&xs, 2.0, 0.5).unwrap().sum_all().unwrap().backward().unwrap();
            grads.get(&xs).unwrap().to_vec1::<f32>().unwrap()
        };
        assert_eq!(gradient(selu), [0.0, 1.0, 1.0, 0.5, 0.5, 0.5, 0.5, 0.5]);
        // Where candle mends it, its own will do.
        assert!(gradient(candle_nn::ops::selu)[5].is_nan());
    }

    #[test]
    fn swiglu_equals_candles_and_is_differentiable() {
        let xs = single(&[3, 2, 8], 0);
        assert!(relative(&swiglu(&xs).unwrap(), &candle_nn::ops::swiglu(&xs).unwrap()) < 1e-6);
        check_derivative(&|t| swiglu(&t[0]), &[&[3, 2, 8]], 1);
        assert_eq!(swiglu(&single(&[3, 0], 0)).unwrap().dims(), [3, 0]);
        for shape in [&[3, 1][..], &[3, 5], &[]] {
            let error = swiglu(&single(shape, 0)).unwrap_err().to_string();
            assert_eq!(error, format!("xs has shape {shape:?}, but must be [.., 2 D]"));
        }
    }
}
