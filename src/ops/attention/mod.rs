//! Multi-head self-attention (Vaswani et al. 2017, arXiv 1706.03762) of a packed projection.

mod added;
mod dims;
mod head;
mod heads;
mod rows;
mod separate;
#[cfg(test)]
mod tests;

use candle_core::{CpuStorage, CustomOp1, DType, Layout, Result, Shape, Tensor, D};

use super::cpu::kernel;
use super::route::{self, in_f32, Route};
use super::softmax;
use crate::check;

pub(crate) use added::Added;
pub(crate) use dims::Dims;
pub(crate) use heads::Heads;
pub(crate) use separate::attend;

/// y = softmax(q kᵀ / √d) v in each head, the heads' results side by side.
///
/// # Arguments
///
/// - `qkv`: [B, N, 3 D], in the last dimension queries, keys and values in turn, each in heads of d = D / num_heads
///   elements: timm's packing, `reshape(B, N, 3, num_heads, d)`
/// - `num_heads`: divides D
///
/// Returns [B, N, D].
///
/// # Derivative
///
/// With p the softmax, g the gradient of the result and, in each head, h = g vᵀ: dv = pᵀ g; ds = p (h - Σ p h), the sum
/// over keys; dq = ds k / √d, dk = dsᵀ q / √d. The CPU kernel keeps two numbers for each query and computes p again: of
/// N² numbers a head it never holds more than one head's for each thread.
///
/// # PyTorch
///
/// ```text
/// q, k, v = qkv.reshape(B, N, 3, num_heads, d).permute(2, 0, 3, 1, 4)
/// torch.nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(B, N, D)
/// ```
///
/// # Errors
///
/// If `qkv` has another rank or no floating-point dtype, or its last dimension is no multiple of `3 * num_heads`.
///
/// ```
/// use candle_core::{Device, Tensor};
/// // Two tokens of width 1: equal keys, so that both queries get the mean of the values.
/// let qkv = Tensor::new(&[[[5f32, 1.0, 0.0], [-7.0, 1.0, 4.0]]], &Device::Cpu)?;
/// assert_eq!(masksub::ops::attention(&qkv, 1)?.to_vec3::<f32>()?, [[[2.0], [2.0]]]);
/// # Ok::<(), candle_core::Error>(())
/// ```
pub fn attention(qkv: &Tensor, num_heads: usize) -> Result<Tensor> {
    let dims = Dims::of(qkv.dims(), num_heads)?;
    check::float("qkv", qkv)?;
    routed(qkv, dims)
}

/// [`attention`] of arguments that fit.
pub(crate) fn routed(qkv: &Tensor, dims: Dims) -> Result<Tensor> {
    match Route::of(&[qkv]) {
        Route::Kernel => qkv.contiguous()?.apply_op1(Attention(Heads::new(dims))),
        Route::InF32 => in_f32(&[qkv], |t| routed(&t[0], dims)),
        Route::Composition => composed(qkv, dims),
    }
}

/// candle's products, and on CUDA the kernel of a scaled softmax between them.
fn composed(qkv: &Tensor, dims: Dims) -> Result<Tensor> {
    #[cfg(feature = "cuda")]
    if route::on_cuda(&[qkv]) {
        let [q, k, v] = parts(qkv, dims)?;
        let probabilities = softmax::scaled(&q.matmul(&k.t()?)?, dims.scale())?;
        return weighted(&probabilities, &v, dims);
    }
    composition_with(qkv, dims, Ok)
}

/// [`attention`] of candle's operations.
pub fn composition(qkv: &Tensor, num_heads: usize) -> Result<Tensor> {
    composition_with(qkv, Dims::of(qkv.dims(), num_heads)?, Ok)
}

/// [`composition`] with something done to the scores, [B, num_heads, N, N], before the softmax.
pub(crate) fn composition_with(
    qkv: &Tensor,
    dims: Dims,
    scores: impl FnOnce(Tensor) -> Result<Tensor>,
) -> Result<Tensor> {
    if qkv.elem_count() == 0 {
        return qkv.narrow(2, 0, dims.width());
    }
    let [q, k, v] = parts(qkv, dims)?;
    let products = ((q * (dims.head_width as f64).powf(-0.5))?).matmul(&k.t()?)?;
    // In bf16 and f16 the products stay what a GPU is fast at; the softmax is computed in f32 as everywhere.
    let wide = if route::is_half(&products) {
        products.to_dtype(DType::F32)?
    } else {
        products
    };
    let scores = scores(wide)?;
    #[cfg(feature = "cuda")]
    if route::on_cuda(&[&scores]) {
        return weighted(&softmax::scaled(&scores, 1.0)?.to_dtype(v.dtype())?, &v, dims);
    }
    weighted(
        &softmax::composition(&scores, D::Minus1)?.to_dtype(v.dtype())?,
        &v,
        dims,
    )
}

/// Queries, keys and values [B, num_heads, N, d].
fn parts(qkv: &Tensor, dims: Dims) -> Result<[Tensor; 3]> {
    let Dims {
        batch,
        tokens,
        heads,
        head_width,
        ..
    } = dims;
    let qkv = qkv
        .reshape((batch, tokens, 3, heads, head_width))?
        .permute((2, 0, 3, 1, 4))?;
    let part = |i| qkv.get(i)?.contiguous();
    Ok([part(0)?, part(1)?, part(2)?])
}

/// The values `v` weighted by probabilities [B, num_heads, N, N], the heads side by side.
fn weighted(probabilities: &Tensor, v: &Tensor, dims: Dims) -> Result<Tensor> {
    let ys = probabilities.matmul(v)?.transpose(1, 2)?;
    ys.reshape((dims.batch, dims.tokens, dims.width()))
}

struct Attention(Heads);

impl CustomOp1 for Attention {
    fn name(&self) -> &'static str {
        "attention"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        Ok(self.0.forward(kernel::elements(storage, layout)?, None))
    }

    fn bwd(&self, qkv: &Tensor, ys: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let (dqkv, _) = self.0.backward(qkv, None, ys, grad, false)?;
        Ok(Some(dqkv))
    }
}
