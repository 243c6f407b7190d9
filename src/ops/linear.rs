//! The affine map of the last dimension.

use candle_core::{Result, Tensor};
use gemm::Parallelism;

use super::autograd::{apply, Backward, Operation, ParamGrads};
use super::cpu::kernel;
use super::cpu::matrix::{self, Mat, MatMut};
use super::cpu::write::Write;
#[cfg(feature = "cuda")]
use super::cuda;
#[cfg(feature = "cuda")]
use super::route;
use super::route::{in_f32, Route};
use crate::check;
use crate::error::Error;

/// y = x Wᵀ + b, with the bias's addition and all gradients in one operation.
///
/// # Arguments
///
/// - `xs`: [.., I], of any number of leading dimensions
/// - `weight`: [O, I]
/// - `bias`: `[O]`
///
/// Returns [.., O].
///
/// # Derivative
///
/// With g the gradient of the result: dx = g W, dW = gᵀ x, db = the sum of g over all leading dimensions.
///
/// # PyTorch
///
/// `torch.nn.functional.linear(xs, weight, bias)`
///
/// # Errors
///
/// If the shapes do not fit, or the dtypes differ or are no floating-point ones.
///
/// ```
/// use candle_core::{Device, Tensor};
/// let xs = Tensor::new(&[[1f32, 2.0]], &Device::Cpu)?;
/// let weight = Tensor::new(&[[1f32, 0.0], [0.0, 1.0], [1.0, 1.0]], &Device::Cpu)?;
/// let bias = Tensor::new(&[0.5f32, 0.0, 0.0], &Device::Cpu)?;
/// let ys = masksub::ops::linear(&xs, &weight, Some(&bias))?;
/// assert_eq!(ys.to_vec2::<f32>()?, [[1.5, 2.0, 3.0]]);
/// # Ok::<(), candle_core::Error>(())
/// ```
pub fn linear(xs: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    check(xs, weight, bias)?;
    routed(xs, weight, bias)
}

/// [`linear`] of arguments that fit.
pub(crate) fn routed(xs: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    let params: Vec<_> = [weight].into_iter().chain(bias).collect();
    let tensors: Vec<_> = [xs].into_iter().chain(params.iter().copied()).collect();
    match Route::of(&tensors) {
        Route::Kernel => {
            let (out_features, in_features) = weight.dims2()?;
            let op = Linear {
                dims: xs.dims().to_vec(),
                out_features,
                in_features,
            };
            apply(op, xs, &params)
        }
        Route::InF32 => in_f32(&tensors, |t| routed(&t[0], &t[1], t.get(2))),
        Route::Composition => product(xs, weight, bias),
    }
}

fn check(xs: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> crate::error::Result<()> {
    check::float("xs", xs)?;
    check::same_dtype("weight", weight, "xs", xs)?;
    let [out_features, in_features] = *weight.dims() else {
        return Err(Error::shape("weight", weight.dims(), "[O, I]"));
    };
    if xs.dims().last() != Some(&in_features) {
        return Err(Error::shape(
            "xs",
            xs.dims(),
            format!("[.., {in_features}] for a weight of [O, {in_features}]"),
        ));
    }
    if let Some(bias) = bias {
        check::same_dtype("bias", bias, "xs", xs)?;
        check::vector("bias", bias, out_features)?;
    }
    Ok(())
}

/// candle's product, and the bias, which on CUDA is added by a kernel.
fn product(xs: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    #[cfg(feature = "cuda")]
    if let Some(bias) = bias.filter(|bias| route::on_cuda(&[xs, weight, bias])) {
        return cuda::activation::on_device::biased("identity", &composition(xs, weight, None)?, bias);
    }
    composition(xs, weight, bias)
}

/// [`linear`] of candle's operations.
pub fn composition(xs: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    let mut shape = xs.dims().to_vec();
    let in_features = weight.dim(1)?;
    let rows = xs.elem_count() / in_features.max(1);
    // One product of matrices: candle's batched product would need the weight repeated.
    let ys = xs.reshape((rows, in_features))?.matmul(&weight.t()?)?;
    if let Some(last) = shape.last_mut() {
        *last = weight.dim(0)?;
    }
    let ys = ys.reshape(shape)?;
    match bias {
        Some(bias) => ys.broadcast_add(bias),
        None => Ok(ys),
    }
}

/// Where the parameters stand.
const WEIGHT: usize = 0;
const BIAS: usize = 1;

struct Linear {
    /// Of `xs`.
    dims: Vec<usize>,
    out_features: usize,
    in_features: usize,
}

impl Operation for Linear {
    const NAME: &'static str = "linear";

    type Kept = ();

    fn result_dims(&self) -> Vec<usize> {
        let mut dims = self.dims.clone();
        if let Some(last) = dims.last_mut() {
            *last = self.out_features;
        }
        dims
    }

    fn forward(&self, xs: &[f32], params: &[&[f32]], _: bool) -> Result<(Vec<f32>, ())> {
        let &Self {
            out_features,
            in_features,
            ..
        } = self;
        let rows = xs.len() / in_features;
        let mut ys = vec![0f32; rows * out_features];
        let write = match params.get(BIAS) {
            // The product is then added to the bias while it is in registers, instead of in a pass of its own.
            Some(bias) => {
                kernel::for_rows(&mut ys, out_features, |_, ys| {
                    for y in ys.chunks_exact_mut(out_features) {
                        y.copy_from_slice(bias);
                    }
                });
                Write::Add
            }
            None => Write::Replace,
        };
        matrix::matmul(
            &mut MatMut::rows(&mut ys, rows, out_features, out_features),
            write,
            1.0,
            Mat::rows(xs, rows, in_features, in_features),
            Mat::rows(params[WEIGHT], out_features, in_features, in_features).t(),
            Parallelism::Rayon(0),
        );
        Ok((ys, ()))
    }

    fn recompute(&self, _: &[f32], _: &[&[f32]]) -> Result<()> {
        Ok(())
    }

    fn backward(&self, of: Backward, _: (), param_grads: &mut ParamGrads) -> Result<Vec<f32>> {
        let &Self {
            out_features,
            in_features,
            ..
        } = self;
        let Backward { xs, grads, .. } = of;
        let rows = xs.len() / in_features;
        let mut dxs = Vec::new();
        let input_gradient = || {
            if of.wants_dxs {
                dxs.resize(xs.len(), 0.0);
                matrix::matmul(
                    &mut MatMut::rows(&mut dxs, rows, in_features, in_features),
                    Write::Replace,
                    1.0,
                    Mat::rows(grads, rows, out_features, out_features),
                    Mat::rows(of.params[WEIGHT], out_features, in_features, in_features),
                    Parallelism::Rayon(0),
                );
            }
        };
        param_grads.write_beside(WEIGHT, input_gradient, |out, write| {
            weight_gradient(out, write, grads, out_features, xs, in_features);
        })?;
        if param_grads.wants(BIAS) {
            param_grads.set(BIAS, sum_rows(grads, out_features))?;
        }
        Ok(dxs)
    }
}

/// `out` [O, I] = gᵀ x, or that added to it, of `grads` [R, O] and `xs` [R, I].
pub(crate) fn weight_gradient(out: &mut [f32], write: Write, grads: &[f32], outputs: usize, xs: &[f32], inputs: usize) {
    let rows = xs.len() / inputs;
    matrix::matmul(
        &mut MatMut::rows(out, outputs, inputs, inputs),
        write,
        1.0,
        Mat::rows(grads, rows, outputs, outputs).t(),
        Mat::rows(xs, rows, inputs, inputs),
        Parallelism::Rayon(0),
    );
}

/// The sum of the rows of `xs`, each `width` long.
pub(crate) fn sum_rows(xs: &[f32], width: usize) -> Vec<f32> {
    kernel::sum_over_rows(xs.len() / width, width, width, |first, rows, sum| {
        add_rows_to(&xs[first * width..][..rows * width], sum);
    })
}

kernel::simd_fn! {
    pub(crate) fn add_rows_to<S>(xs: &[f32], sum: &mut [f32]) -> () {
        for row in xs.chunks_exact(sum.len()) {
            for (s, x) in sum.iter_mut().zip(row) {
                *s += x;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::{check, check_derivative, rng};
    use rand::Rng as _;

    fn kernel(args: &[Tensor]) -> Result<Tensor> {
        linear(&args[0], &args[1], args.get(2))
    }

    fn reference(args: &[Tensor]) -> Result<Tensor> {
        composition(&args[0], &args[1], args.get(2))
    }

    #[test]
    fn equals_its_composition() {
        let mut rng = rng(1);
        for seed in 0..8 {
            let mut size = |most| rng.random_range(1..=most);
            let (b, n, i, o) = (size(4), size(40), size(70), size(70));
            check(&kernel, &reference, &[&[b, n, i], &[o, i], &[o]], seed);
            check(&kernel, &reference, &[&[b * n, i], &[o, i]], seed);
        }
    }

    #[test]
    fn equals_its_composition_at_the_edges() {
        check(&kernel, &reference, &[&[1, 1], &[1, 1], &[1]], 0);
        check(&kernel, &reference, &[&[7], &[3, 7], &[3]], 1);
        check(&kernel, &reference, &[&[2, 2, 1, 3, 5], &[1, 5]], 2);
        // Many pieces of work.
        check(&kernel, &reference, &[&[3, 197, 96], &[129, 96], &[129]], 3);
    }

    #[test]
    fn composition_has_the_right_derivative() {
        check_derivative(&reference, &[&[2, 3, 4], &[5, 4], &[5]], 0);
        check_derivative(&reference, &[&[3, 2], &[1, 2]], 1);
    }

    #[test]
    fn errors_name_the_argument() {
        use crate::ops::testing::random;
        let message = |xs: &[usize], weight: &[usize], bias: &[usize]| {
            linear(&random(xs, 0), &random(weight, 0), Some(&random(bias, 0)))
                .unwrap_err()
                .to_string()
        };
        assert_eq!(
            message(&[2, 3], &[5, 4], &[5]),
            "xs has shape [2, 3], but must be [.., 4] for a weight of [O, 4]"
        );
        assert_eq!(
            message(&[], &[5, 4], &[5]),
            "xs has shape [], but must be [.., 4] for a weight of [O, 4]"
        );
        assert_eq!(
            message(&[2, 4], &[5, 4, 1], &[5]),
            "weight has shape [5, 4, 1], but must be [O, I]"
        );
        assert_eq!(message(&[2, 4], &[5, 4], &[4]), "bias has shape [4], but must be [5]");
        let wide = random(&[2, 4], 0);
        let narrow = random(&[5, 4], 0).to_dtype(candle_core::DType::F32).unwrap();
        let error = linear(&wide, &narrow, None).unwrap_err().to_string();
        assert_eq!(error, "weight has dtype F32, but must be F64 like xs");
    }

    #[test]
    fn of_nothing_is_nothing() {
        let xs = Tensor::zeros((0, 4), candle_core::DType::F32, &candle_core::Device::Cpu).unwrap();
        let weight = Tensor::ones((3, 4), candle_core::DType::F32, &candle_core::Device::Cpu).unwrap();
        assert_eq!(linear(&xs, &weight, None).unwrap().dims(), [0, 3]);
    }
}
