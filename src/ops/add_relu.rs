//! A residual sum and the ReLU after it.

use candle_core::{CpuStorage, CustomOp2, Layout, Result, Shape, Tensor};

use super::cpu::channels::through_relu;
use super::cpu::kernel::{self, Elements};
use super::route::Route;
use crate::check;
use crate::error::Error;

/// max(a + b, 0): how a ResNet's block ends (He et al., arXiv 1512.03385).
///
/// # Arguments
///
/// - `a`, `b`: of the same shape and dtype
///
/// Returns a tensor of that shape.
///
/// # Derivative
///
/// da = db = g, the gradient of the result, where that is above 0 or NaN, and 0 elsewhere.
///
/// # PyTorch
///
/// `torch.relu(a + b)`
///
/// # Errors
///
/// If shapes or dtypes differ, or the dtype is no floating-point one.
///
/// ```
/// use candle_core::{Device, Tensor};
/// let (a, b) = (Tensor::new(&[1f32, 2.0], &Device::Cpu)?, Tensor::new(&[1f32, -3.0], &Device::Cpu)?);
/// assert_eq!(masksub::ops::add_relu(&a, &b)?.to_vec1::<f32>()?, [2.0, 0.0]);
/// # Ok::<(), candle_core::Error>(())
/// ```
pub fn add_relu(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    check::float("a", a)?;
    if a.dims() != b.dims() {
        return Err(Error::shape("b", b.dims(), format!("{:?} like a", a.dims())).into());
    }
    check::same_dtype("b", b, "a", a)?;
    routed(a, b)
}

/// [`add_relu`] of arguments that fit.
pub(crate) fn routed(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    match Route::of(&[a, b]) {
        Route::Kernel => a.contiguous()?.apply_op2(&b.contiguous()?, AddRelu),
        // candle rounds the sum once, too.
        Route::InF32 | Route::Composition => composition(a, b),
    }
}

/// [`add_relu`] of candle's operations.
pub fn composition(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    (a + b)?.relu()
}

struct AddRelu;

kernel::simd_fn! {
    fn forward<S>(a: &[f32], b: &[f32], ys: &mut [f32]) -> () {
        for ((y, &a), &b) in ys.iter_mut().zip(a).zip(b) {
            let sum = a + b;
            // Not `f32::max`, which would turn what is undefined to 0.
            *y = if sum < 0.0 { 0.0 } else { sum };
        }
    }
}

impl CustomOp2 for AddRelu {
    fn name(&self) -> &'static str {
        "add-relu"
    }

    fn cpu_fwd(&self, s1: &CpuStorage, l1: &Layout, s2: &CpuStorage, l2: &Layout) -> Result<(CpuStorage, Shape)> {
        let (a, b) = (kernel::elements(s1, l1)?, kernel::elements(s2, l2)?);
        let mut ys = vec![0f32; a.len()];
        kernel::for_rows(&mut ys, 1, |first, ys| {
            let range = first..first + ys.len();
            forward(&a[range.clone()], &b[range], ys);
        });
        Ok((CpuStorage::F32(ys), l1.shape().clone()))
    }

    fn bwd(&self, a: &Tensor, b: &Tensor, ys: &Tensor, grad: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let grad = grad.contiguous()?;
        let (y, g) = (Elements::of(ys)?, Elements::of(&grad)?);
        let mut out = vec![0f32; y.len()];
        through_relu(&y, &g, &mut out);
        // One tensor is the gradient of both.
        let through = kernel::tensor(out, ys.dims())?;
        Ok((a.track_op().then(|| through.clone()), b.track_op().then_some(through)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::{check, check_derivative};
    use candle_core::{DType, Device, Var};

    fn kernel(args: &[Tensor]) -> Result<Tensor> {
        add_relu(&args[0], &args[1])
    }

    fn reference(args: &[Tensor]) -> Result<Tensor> {
        composition(&args[0], &args[1])
    }

    #[test]
    fn equals_its_composition() {
        for (seed, shape) in (0..).zip([&[3, 5, 7][..], &[1], &[300, 211], &[2, 3, 4, 5]]) {
            check(&kernel, &reference, &[shape, shape], seed);
        }
    }

    #[test]
    fn composition_has_the_right_derivative() {
        check_derivative(&reference, &[&[4, 3], &[4, 3]], 1);
    }

    #[test]
    fn both_may_be_the_same() {
        let var = Var::new(&[1f32, -1.0, 0.0], &Device::Cpu).unwrap();
        let ys = add_relu(&var, &var).unwrap();
        let grads = ys.sum_all().unwrap().backward().unwrap();
        assert_eq!(ys.to_vec1::<f32>().unwrap(), [2.0, 0.0, 0.0]);
        assert_eq!(grads.get(&var).unwrap().to_vec1::<f32>().unwrap(), [2.0, 0.0, 0.0]);
    }

    #[test]
    fn what_is_undefined_lets_gradients_through() {
        let (a, b) = (
            Var::new(&[f32::NAN, 1.0], &Device::Cpu).unwrap(),
            Tensor::new(&[0f32, -2.0], &Device::Cpu).unwrap(),
        );
        let grads = add_relu(&a, &b).unwrap().sum_all().unwrap().backward().unwrap();
        assert_eq!(grads.get(&a).unwrap().to_vec1::<f32>().unwrap(), [1.0, 0.0]);
    }

    #[test]
    fn errors_name_the_argument() {
        let tensor = |shape: &[usize], dtype| Tensor::zeros(shape, dtype, &Device::Cpu).unwrap();
        let error = |a: &Tensor, b: &Tensor| Error::from(add_relu(a, b).unwrap_err());
        let floats = tensor(&[2, 3], DType::F32);
        assert!(matches!(
            error(&floats, &tensor(&[3, 2], DType::F32)),
            Error::Shape { argument: "b", .. }
        ));
        assert!(matches!(
            error(&floats, &tensor(&[2, 3], DType::F64)),
            Error::DType { argument: "b", .. }
        ));
        let integers = tensor(&[2], DType::U32);
        assert!(matches!(
            error(&integers, &integers),
            Error::DType { argument: "a", .. }
        ));
    }
}
