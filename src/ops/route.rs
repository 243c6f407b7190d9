//! The route of an operation: what computes with the tensors that it was given, by where they live and how.

use candle_core::{DType, Result, Tensor};

/// A way to compute.
///
/// An operation checks its arguments once and then takes one of these, in a function of its own that does not check
/// again and that [`in_f32`] can call:
///
/// ```text
/// match Route::of(&[xs, weight]) {
///     Route::Kernel => xs.contiguous()?.apply_op2(&weight.contiguous()?, op),
///     Route::InF32 => in_f32(&[xs, weight], |t| routed(&t[0], &t[1])),
///     Route::Composition => composition(xs, weight),
/// }
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Route {
    /// The kernel on slices: all tensors are `f32` on the CPU, and none is empty. (A layout that is not contiguous is
    /// made so first.) Of an operation that has a kernel for CUDA that too, see [`precise_with_cuda`].
    ///
    /// [`precise_with_cuda`]: Self::precise_with_cuda
    Kernel,
    /// The same operation [`in_f32`]: half precision, which is rounded once at the end.
    InF32,
    /// The composition of candle's operations: anything else.
    Composition,
}

impl Route {
    /// The route of an operation that multiplies or moves. In half precision a GPU is fast at that; on the CPU candle's
    /// products are slow, where there are any, and it goes to `f32`.
    ///
    /// `tensors` are those that are computed with, checked to be of one dtype; what an operation takes in any other
    /// dtype is not among them.
    pub(crate) fn of(tensors: &[&Tensor]) -> Self {
        match Self::precise(tensors) {
            Self::InF32 if !tensors.iter().all(|t| t.device().is_cpu()) => Self::Composition,
            route => route,
        }
    }

    /// The route of an operation that loses too much in half precision on any device: a norm, a softmax, an activation.
    pub(crate) fn precise(tensors: &[&Tensor]) -> Self {
        if tensors.iter().all(|t| is_half(t)) {
            Self::InF32
        } else if on_cpu_f32(tensors) && tensors.iter().all(|t| t.elem_count() > 0) {
            Self::Kernel
        } else {
            Self::Composition
        }
    }

    /// [`precise`](Self::precise), of an operation that has a kernel for CUDA, too: that computes in `f32` and rounds
    /// once by itself.
    pub(crate) fn precise_with_cuda(tensors: &[&Tensor]) -> Self {
        if on_cuda(tensors) {
            Self::Kernel
        } else {
            Self::precise(tensors)
        }
    }
}

/// True where a kernel for CUDA takes tensors: all of them `f32`, or all of them `bf16`, on such a device, and none is
/// empty.
#[cfg(feature = "cuda")]
pub(crate) fn on_cuda(tensors: &[&Tensor]) -> bool {
    let Some(first) = tensors.first() else { return false };
    let is_like = |t: &&Tensor| {
        t.device().is_cuda()
            && t.dtype() == first.dtype()
            && t.device().same_device(first.device())
            && t.elem_count() > 0
    };
    matches!(first.dtype(), DType::F32 | DType::BF16)
        && tensors.iter().all(is_like)
        && super::cuda::device::kernels_are_on()
}

/// There are no such kernels without the feature.
#[cfg(not(feature = "cuda"))]
pub(crate) fn on_cuda(_: &[&Tensor]) -> bool {
    false
}

/// True where tensors are `f32` on the CPU.
pub(crate) fn on_cpu_f32(tensors: &[&Tensor]) -> bool {
    tensors.iter().all(|t| t.device().is_cpu() && t.dtype() == DType::F32)
}

/// True where a tensor is a slice that kernels may write to: contiguous `f32` on the CPU.
pub(crate) fn is_f32_slice(tensor: &Tensor) -> bool {
    on_cpu_f32(&[tensor]) && tensor.is_contiguous()
}

/// True for the dtypes that are computed in `f32` and rounded once at the end.
pub(crate) fn is_half(tensor: &Tensor) -> bool {
    matches!(tensor.dtype(), DType::F16 | DType::BF16)
}

/// Runs `op` on the tensors in `f32` and rounds its result to the dtype of the first.
pub(crate) fn in_f32(tensors: &[&Tensor], op: impl FnOnce(&[Tensor]) -> Result<Tensor>) -> Result<Tensor> {
    op(&to_f32(tensors)?)?.to_dtype(tensors[0].dtype())
}

/// The tensors in `f32`, for an operation that returns more than one and rounds them itself.
pub(crate) fn to_f32(tensors: &[&Tensor]) -> Result<Vec<Tensor>> {
    tensors.iter().map(|t| t.to_dtype(DType::F32)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    #[test]
    fn dtype_and_size_decide_on_the_cpu() {
        let tensor = |dtype, len: usize| Tensor::zeros(len, dtype, &Device::Cpu).unwrap();
        let [single, empty] = [2, 0].map(|len| tensor(DType::F32, len));
        let [half, no_half] = [2, 0].map(|len| tensor(DType::BF16, len));
        let double = tensor(DType::F64, 2);
        for (tensors, route) in [
            (&[&single][..], Route::Kernel),
            (&[&single, &single], Route::Kernel),
            (&[&single, &empty], Route::Composition),
            (&[&half], Route::InF32),
            (&[&tensor(DType::F16, 2), &half, &no_half], Route::InF32),
            (&[&half, &single], Route::Composition),
            (&[&single, &half], Route::Composition),
            (&[&double], Route::Composition),
            (&[&tensor(DType::U8, 2)], Route::Composition),
        ] {
            assert_eq!([Route::of(tensors), Route::precise(tensors)], [route; 2], "{tensors:?}");
        }
    }

    #[test]
    fn a_slice_is_contiguous_and_f32() {
        let whole = Tensor::zeros((2, 3), DType::F32, &Device::Cpu).unwrap();
        assert!(is_f32_slice(&whole) && is_f32_slice(&whole.get(1).unwrap()));
        assert!(!is_f32_slice(&whole.t().unwrap()) && !is_f32_slice(&whole.to_dtype(DType::F64).unwrap()));
    }

    #[test]
    fn in_f32_rounds_once() {
        // 256 + 1 is a tie in bf16, and so lost; in f32 the 1 is kept until it is 2.
        let [many, one] = [256f32, 1.0].map(|x| Tensor::new(x, &Device::Cpu).unwrap().to_dtype(DType::BF16).unwrap());
        let sum = in_f32(&[&many, &one], |t| (&t[0] + &t[1])? + &t[1]).unwrap();
        assert_eq!(sum.dtype(), DType::BF16);
        assert_eq!(sum.to_dtype(DType::F32).unwrap().to_scalar::<f32>().unwrap(), 258.0);
    }
}
