//! Mixtures of experts: candle-nn's kernels for CUDA, which have no backward, refused where one would be needed.
//!
//! An expert's product by [`linear`](crate::ops::linear()) on the rows of [`gather_rows`](crate::ops::gather_rows())
//! trains.

use candle_core::quantized::QTensor;
use candle_core::{DType, Result, Tensor};

use super::refuse_gradients;

/// Products of tokens with the weights of the experts that each was sent to: [`candle_nn::moe::moe_gemm`], on CUDA only.
///
/// # Errors
/// [`Error::InvalidArgument`](crate::Error::InvalidArgument) when an argument has a gradient to be computed: candle-nn's
/// kernel would cut it silently.
/// Those of candle-nn's.
pub fn moe_gemm(
    input: &Tensor,
    weights: &Tensor,
    topk_weights: &Option<Tensor>,
    sorted_token_ids: &Tensor,
    experts_ids: &Tensor,
    topk: usize,
    is_prefill: bool,
) -> Result<Tensor> {
    refuse_gradients("input", input)?;
    refuse_gradients("weights", weights)?;
    if let Some(topk_weights) = topk_weights {
        refuse_gradients("topk_weights", topk_weights)?;
    }
    candle_nn::moe::moe_gemm(
        input,
        weights,
        topk_weights,
        sorted_token_ids,
        experts_ids,
        topk,
        is_prefill,
    )
}

/// As [`moe_gemm`], with quantized weights: [`candle_nn::moe::moe_gemm_gguf`].
///
/// # Errors
/// As [`moe_gemm`].
#[expect(clippy::too_many_arguments, reason = "candle-nn's signature")]
pub fn moe_gemm_gguf(
    input: &Tensor,
    weights: &QTensor,
    topk_weights: &Option<Tensor>,
    sorted_token_ids: &Tensor,
    experts_ids: &Tensor,
    topk: usize,
    is_prefill: bool,
    dtype: DType,
) -> Result<Tensor> {
    refuse_gradients("input", input)?;
    if let Some(topk_weights) = topk_weights {
        refuse_gradients("topk_weights", topk_weights)?;
    }
    let (ids, experts) = (sorted_token_ids, experts_ids);
    candle_nn::moe::moe_gemm_gguf(input, weights, topk_weights, ids, experts, topk, is_prefill, dtype)
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{Device, Var};

    #[test]
    fn gradients_are_refused_and_not_cut() {
        let zeros = |shape: &[usize]| Tensor::zeros(shape, DType::F32, &Device::Cpu).unwrap();
        let (input, weights, ids) = (zeros(&[2, 4]), zeros(&[3, 4, 4]), zeros(&[2]));
        let var = Var::from_tensor(&weights).unwrap();
        let message = |weights: &Tensor| {
            moe_gemm(&input, weights, &None, &ids, &ids, 1, true)
                .unwrap_err()
                .to_string()
        };
        assert!(
            message(&var).starts_with("weights is a tensor with a gradient"),
            "{}",
            message(&var)
        );
        // candle's own error, on the CPU.
        assert!(message(&weights).contains("cuda"), "{}", message(&weights));
    }
}
