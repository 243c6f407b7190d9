//! Attention within windows (Liu et al. 2021, arXiv 2103.14030).

use candle_core::{CpuStorage, CustomOp2, DType, Layout, Result, Shape, Tensor};

use super::attention::{self, Added, Dims, Heads};
use super::cpu::kernel::{self, Elements};
use super::route::{in_f32, is_half, Route};
use crate::check;
use crate::error::Error;

/// y = softmax(q kᵀ / √d + bias + mask) v in each head, the heads' results side by side.
///
/// As [`attention`](super::attention()), with something added to the scores.
///
/// # Arguments
///
/// - `qkv`: [B * windows, N, 3 D], in the last dimension queries, keys and values in turn, each in heads of
///   d = D / num_heads elements
/// - `num_heads`: divides D
/// - `bias`: [num_heads, N, N], added in each window: [`relative_position_bias`](super::relative_position_bias). Of the
///   dtype of `qkv`, or f32 where that is bf16 or f16.
/// - `mask`: [windows, N, N], added in each head: [`shift_mask`](super::shift_mask). Of any floating-point dtype.
///
/// Returns [B * windows, N, D].
///
/// # Derivative
///
/// As that of [`attention`](super::attention()); the bias's is that of the scores, added up over all windows. The mask
/// is a constant: it gets none.
///
/// # PyTorch
///
/// `torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=bias + mask.unsqueeze(1))` for a single sample,
/// of what [`attention`](super::attention()) unpacks and packs.
///
/// # Errors
///
/// If the shapes do not fit, the dtypes of `qkv` and `bias` differ, or one is no floating-point one.
///
/// ```
/// use candle_core::{Device, Tensor};
/// // Two tokens of width 1: equal keys, but the bias keeps each to itself.
/// let qkv = Tensor::new(&[[[5f32, 1.0, 0.0], [-7.0, 1.0, 4.0]]], &Device::Cpu)?;
/// let bias = Tensor::new(&[[[0f32, -100.0], [-100.0, 0.0]]], &Device::Cpu)?;
/// let ys = masksub::ops::window_attention(&qkv, 1, &bias, None)?;
/// assert_eq!(ys.to_vec3::<f32>()?, [[[0.0], [4.0]]]);
/// # Ok::<(), candle_core::Error>(())
/// ```
pub fn window_attention(qkv: &Tensor, num_heads: usize, bias: &Tensor, mask: Option<&Tensor>) -> Result<Tensor> {
    let dims = check(qkv, num_heads, bias, mask)?;
    routed(qkv, dims, bias, mask)
}

/// [`window_attention`] of arguments that fit; the bias may be f32 where `qkv` is bf16 or f16. A mask of another dtype has
/// no part in the route: a constant, it is brought to that of the scores on each.
pub(crate) fn routed(qkv: &Tensor, dims: Dims, bias: &Tensor, mask: Option<&Tensor>) -> Result<Tensor> {
    match Route::of(&[qkv]) {
        Route::Kernel if mask.is_none_or(|mask| mask.device().is_cpu()) => {
            let mask = match mask {
                Some(mask) => Some(mask.detach().to_dtype(DType::F32)?.contiguous()?),
                None => None,
            };
            let op = WindowAttention {
                heads: Heads::new(dims),
                mask,
            };
            qkv.contiguous()?.apply_op2(&bias.contiguous()?, op)
        }
        Route::InF32 => in_f32(&[qkv, bias], |t| routed(&t[0], dims, &t[1], mask)),
        Route::Kernel | Route::Composition => compose(qkv, dims, bias, mask),
    }
}

fn check(qkv: &Tensor, num_heads: usize, bias: &Tensor, mask: Option<&Tensor>) -> crate::error::Result<Dims> {
    let dims = Dims::of(qkv.dims(), num_heads)?;
    let n = dims.tokens;
    check::float("qkv", qkv)?;
    if bias.dims() != [num_heads, n, n] {
        let expected = format!("[{num_heads}, {n}, {n}]");
        return Err(Error::shape("bias", bias.dims(), expected));
    }
    if !(is_half(qkv) && bias.dtype() == DType::F32) {
        check::same_dtype("bias", bias, "qkv", qkv)?;
    }
    if let Some(mask) = mask {
        check::float("mask", mask)?;
        match *mask.dims() {
            [windows, rows, columns]
                if windows > 0 && dims.batch.is_multiple_of(windows) && (rows, columns) == (n, n) => {}
            _ => {
                let expected = format!("[windows, {n}, {n}] with windows a divisor of {}", dims.batch);
                return Err(Error::shape("mask", mask.dims(), expected));
            }
        }
    }
    Ok(dims)
}

/// [`window_attention`] of candle's operations.
pub fn composition(qkv: &Tensor, num_heads: usize, bias: &Tensor, mask: Option<&Tensor>) -> Result<Tensor> {
    compose(qkv, Dims::of(qkv.dims(), num_heads)?, bias, mask)
}

fn compose(qkv: &Tensor, dims: Dims, bias: &Tensor, mask: Option<&Tensor>) -> Result<Tensor> {
    attention::composition_with(qkv, dims, |scores| {
        let scores = scores.broadcast_add(&bias.to_dtype(scores.dtype())?)?;
        let Some(mask) = mask else {
            return Ok(scores);
        };
        let (rows, heads, n, _) = scores.dims4()?;
        let windows = mask.dim(0)?;
        let mask = mask.detach().to_dtype(scores.dtype())?.unsqueeze(1)?;
        scores
            .reshape((rows / windows, windows, heads, n, n))?
            .broadcast_add(&mask)?
            .reshape((rows, heads, n, n))
    })
}

struct WindowAttention {
    heads: Heads,
    mask: Option<Tensor>,
}

impl WindowAttention {
    fn with_added<T>(&self, bias: &[f32], f: impl FnOnce(Option<Added>) -> T) -> Result<T> {
        let mask = self.mask.as_ref().map(Elements::of).transpose()?;
        let mask = mask.as_deref().unwrap_or(&[]);
        Ok(f(Some(Added::Square { bias, mask })))
    }
}

impl CustomOp2 for WindowAttention {
    fn name(&self) -> &'static str {
        "window-attention"
    }

    fn cpu_fwd(&self, s1: &CpuStorage, l1: &Layout, s2: &CpuStorage, l2: &Layout) -> Result<(CpuStorage, Shape)> {
        let qkv = kernel::elements(s1, l1)?;
        self.with_added(kernel::elements(s2, l2)?, |added| self.heads.forward(qkv, added))
    }

    fn bwd(&self, qkv: &Tensor, bias: &Tensor, ys: &Tensor, grad: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let with_bias = bias.track_op();
        let b = Elements::of(bias)?;
        let (dqkv, dbias) = self.with_added(&b, |added| self.heads.backward(qkv, added, ys, grad, with_bias))??;
        let dbias = if with_bias {
            Some(kernel::tensor(dbias, bias.dims())?)
        } else {
            None
        };
        Ok((qkv.track_op().then_some(dqkv), dbias))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::{check, check_derivative, random, rng};
    use candle_core::Device;
    use rand::Rng as _;

    /// Random, with a tenth of the pairs hidden.
    fn mask(windows: usize, n: usize, seed: u64) -> Tensor {
        let drawn = random(&[windows, n, n], seed);
        let hidden = drawn.ge(1.28).unwrap().to_dtype(DType::F64).unwrap();
        (drawn - (hidden * 100.0).unwrap()).unwrap()
    }

    fn check_windows(batch: usize, windows: usize, n: usize, heads: usize, d: usize, seed: u64) {
        let shapes: [&[usize]; 2] = [&[batch * windows, n, 3 * heads * d], &[heads, n, n]];
        for mask in [None, Some(&mask(windows, n, seed + 50))] {
            check(
                &|args| window_attention(&args[0], heads, &args[1], mask),
                &|args| composition(&args[0], heads, &args[1], mask),
                &shapes,
                seed,
            );
        }
    }

    #[test]
    fn equals_its_composition() {
        let mut rng = rng(14);
        for seed in 0..6 {
            let mut size = |most| rng.random_range(1..=most);
            check_windows(size(3), size(4), 1 + size(30), size(4), size(40), seed);
        }
    }

    #[test]
    fn equals_its_composition_at_the_edges() {
        check_windows(1, 1, 1, 1, 1, 0);
        check_windows(1, 4, 49, 3, 32, 1);
        // More windows than a head's bias is summed up in, and more heads than that.
        check_windows(13, 9, 4, 2, 3, 2);
        check_windows(1, 2, 5, 70, 2, 3);
        // More queries than a block holds.
        check_windows(1, 2, 300, 2, 5, 4);
    }

    /// The plain one, where nothing is added; and adding the same number to all of a query's scores changes nothing.
    #[test]
    fn is_attention() {
        let qkv = random(&[6, 5, 24], 0);
        let plain = attention::composition(&qkv, 2).unwrap();
        let bias = Tensor::full(3f64, (2, 5, 5), &Device::Cpu).unwrap();
        let mask = random(&[3, 5, 1], 1).broadcast_as((3, 5, 5)).unwrap();
        let ys = composition(&qkv, 2, &bias, Some(&mask)).unwrap();
        assert!(crate::ops::testing::relative(&ys, &plain) < 1e-12);
    }

    /// Each window has its mask, each head its bias, queries in rows: a pair that one of them hides has no share.
    #[test]
    fn what_is_added_belongs_to_its_window_and_head() {
        let (windows, heads, n) = (3, 2, 4);
        // Equal scores, and values that tell tokens apart.
        let mut qkv = vec![0f32; 2 * windows * n * 3 * heads];
        for (row, qkv) in qkv.chunks_exact_mut(3 * heads).enumerate() {
            qkv[2 * heads..].fill((row % n) as f32);
        }
        let qkv = Tensor::from_vec(qkv, (2 * windows, n, 3 * heads), &Device::Cpu).unwrap();
        let hide = |shape: [usize; 3], at: [usize; 3]| {
            let mut data = vec![0f32; shape.iter().product()];
            data[(at[0] * shape[1] + at[1]) * shape[2] + at[2]] = f32::NEG_INFINITY;
            Tensor::from_vec(data, &shape, &Device::Cpu).unwrap()
        };
        let bias = hide([heads, n, n], [1, 2, 3]);
        let mask = hide([windows, n, n], [2, 0, 3]);
        let ys = window_attention(&qkv, heads, &bias, Some(&mask)).unwrap();
        let ys = ys.to_vec3::<f32>().unwrap();
        for (row, query, head) in (0..2 * windows * n * heads).map(|i| (i / (n * heads), i / heads % n, i % heads)) {
            let y = ys[row][query][head];
            let hidden = (query == 2 && head == 1) || (query == 0 && row % windows == 2);
            // The mean of 0, 1, 2 and, unless it is hidden, 3.
            let mean = if hidden { 1.0 } else { 1.5 };
            assert!((y - mean).abs() < 1e-6, "{row} {query} {head}: {y}");
        }
    }

    #[test]
    fn composition_has_the_right_derivative() {
        let mask = mask(2, 3, 9);
        check_derivative(
            &|args| composition(&args[0], 2, &args[1], Some(&mask)),
            &[&[4, 3, 12], &[2, 3, 3]],
            0,
        );
        check_derivative(
            &|args| composition(&args[0], 1, &args[1], None),
            &[&[1, 2, 9], &[1, 2, 2]],
            1,
        );
    }

    #[test]
    fn errors_name_the_argument() {
        let message = |qkv: &[usize], heads, bias: &[usize], mask: &[usize]| {
            window_attention(&random(qkv, 0), heads, &random(bias, 0), Some(&random(mask, 0)))
                .unwrap_err()
                .to_string()
        };
        let (qkv, bias, mask) = ([6, 4, 12], [2, 4, 4], [3, 4, 4]);
        assert_eq!(
            message(&qkv, 3, &bias, &mask),
            "qkv has shape [6, 4, 12], but must be [B, N, 3 D] with D a multiple of num_heads = 3"
        );
        assert_eq!(
            message(&qkv, 2, &[2, 4], &mask),
            "bias has shape [2, 4], but must be [2, 4, 4]"
        );
        assert_eq!(
            message(&qkv, 2, &[1, 4, 4], &mask),
            "bias has shape [1, 4, 4], but must be [2, 4, 4]"
        );
        let expected = "[windows, 4, 4] with windows a divisor of 6";
        for mask in [&[4, 4, 4][..], &[0, 4, 4], &[3, 4, 5], &[4, 4]] {
            let error = message(&qkv, 2, &bias, mask);
            assert_eq!(error, format!("mask has shape {mask:?}, but must be {expected}"));
        }
        let single = random(&bias, 0).to_dtype(DType::F32).unwrap();
        let error = window_attention(&random(&qkv, 0), 2, &single, None).unwrap_err();
        assert_eq!(error.to_string(), "bias has dtype F32, but must be F64 like qkv");
    }

    #[test]
    fn of_nothing_is_nothing() {
        let qkv = Tensor::zeros((0, 4, 12), DType::F32, &Device::Cpu).unwrap();
        let bias = Tensor::zeros((2, 4, 4), DType::F32, &Device::Cpu).unwrap();
        assert_eq!(window_attention(&qkv, 2, &bias, None).unwrap().dims(), [0, 4, 4]);
    }
}
