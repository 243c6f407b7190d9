//! The MLP of a transformer block (Vaswani et al. 2017, arXiv 1706.03762) as one operation, from norm to residual sum.

use std::marker::PhantomData;

use candle_core::{Result, Tensor};
use gemm::Parallelism;
use pulp::{Simd, WithSimd};

use super::residual::{self, Affine, Rows, MIDDLE};
use crate::error::Result as OurResult;
use crate::ops::activation::Activation;
use crate::ops::autograd::{apply, Backward, Operation, ParamGrads};
use crate::ops::cpu::buffer::Buffer;
use crate::ops::cpu::kernel;
use crate::ops::cpu::matrix::{self, Mat, MatMut};
use crate::ops::cpu::write::Write;
use crate::ops::gelu::Gelu;
use crate::ops::linear;
use crate::ops::pointwise::Pointwise;
use crate::ops::quick_gelu::QuickGelu;
use crate::ops::route::{in_f32, Route};

/// The parameters of [`mlp_branch`].
#[derive(Clone, Copy, Debug)]
pub struct MlpBranch<'a> {
    /// The layer norm in front, `[D]`.
    pub norm: Affine<'a>,
    /// Number that the norm adds to the variance.
    pub eps: f64,
    /// The first layer, [H, D].
    pub fc1: Affine<'a>,
    /// Activation between the layers.
    pub activation: Activation,
    /// The second layer, [D, H].
    pub fc2: Affine<'a>,
    /// LayerScale (Touvron et al. 2021, arXiv 2103.17239), `[D]`, where there is one.
    pub gamma: Option<&'a Tensor>,
}

impl<'a> MlpBranch<'a> {
    /// An error unless `xs`, the parameters and the factors on top fit.
    fn check(&self, xs: &Tensor, drop_path: Option<&[f32]>) -> OurResult<()> {
        let [_, _, width] = residual::check(xs, self.gamma, drop_path)?;
        self.norm.check_norm(width, self.eps, xs)?;
        let hidden = self.fc1.weight.dims().first().copied().unwrap_or_default();
        self.fc1.check(["fc1.weight", "fc1.bias"], hidden, width, xs)?;
        self.fc2.check(["fc2.weight", "fc2.bias"], width, hidden, xs)
    }

    /// The parameters: norm, fc1, fc2, γ.
    fn params(&self) -> Vec<&'a Tensor> {
        let Self { norm, fc1, fc2, .. } = self;
        let params = [norm.weight, norm.bias, fc1.weight, fc1.bias, fc2.weight, fc2.bias];
        params.into_iter().chain(self.gamma).collect()
    }

    /// The same with other parameters.
    fn with(self, params: &'a [Tensor]) -> Self {
        let [norm, fc1, fc2] = residual::affines(params);
        Self {
            norm,
            fc1,
            fc2,
            gamma: params.get(6),
            ..self
        }
    }
}

/// y = x + s γ fc2(activation(fc1(norm(x)))).
///
/// The same as the operations one by one, without what they write and read in between: for the backward one matrix
/// [B N, H] is kept. Gradients of all parameters arrive as ever.
///
/// # Arguments
///
/// - `xs`: [B, N, D]
/// - `branch`: the parameters
/// - `drop_path`: s, a factor for each of the B samples (stochastic depth), 1 where there is none
///
/// Returns [B, N, D].
///
/// # PyTorch
///
/// `xs + drop_path(gamma * fc2(F.gelu(fc1(norm(xs)))))`
///
/// # Errors
///
/// If shapes do not fit, dtypes differ or are no floating-point ones, or `eps` is negative or not finite.
///
/// ```
/// use candle_core::{DType, Device, Tensor};
/// use masksub::ops::{mlp_branch, Activation, Affine, MlpBranch};
/// let tensor = |shape: &[usize]| Tensor::ones(shape, DType::F32, &Device::Cpu);
/// let (d, h, dh, hd) = (tensor(&[4])?, tensor(&[8])?, tensor(&[4, 8])?, tensor(&[8, 4])?);
/// let branch = MlpBranch {
///     norm: Affine { weight: &d, bias: &d },
///     eps: 1e-6,
///     fc1: Affine { weight: &hd, bias: &h },
///     activation: Activation::Gelu,
///     fc2: Affine { weight: &dh, bias: &d },
///     gamma: None,
/// };
/// let ys = mlp_branch(&tensor(&[2, 3, 4])?, &branch, Some(&[0., 1.]))?;
/// assert_eq!(ys.get(0)?.to_vec2::<f32>()?, [[1.; 4]; 3]);
/// # Ok::<(), candle_core::Error>(())
/// ```
pub fn mlp_branch(xs: &Tensor, branch: &MlpBranch, drop_path: Option<&[f32]>) -> Result<Tensor> {
    branch.check(xs, drop_path)?;
    routed(xs, branch, drop_path)
}

/// [`mlp_branch`] of arguments that fit.
fn routed(xs: &Tensor, branch: &MlpBranch, drop_path: Option<&[f32]>) -> Result<Tensor> {
    let params = branch.params();
    let tensors: Vec<_> = [xs].into_iter().chain(params.iter().copied()).collect();
    match Route::of(&tensors) {
        Route::Kernel => {
            let op = Op {
                dims: xs.dims3()?.into(),
                hidden: branch.fc1.weight.dim(0)?,
                eps: branch.eps as f32,
                activation: branch.activation,
                drop_path: drop_path.map(<[f32]>::to_vec),
            };
            apply(op, xs, &params)
        }
        Route::InF32 => in_f32(&tensors, |t| routed(&t[0], &branch.with(&t[1..]), drop_path)),
        Route::Composition => composition(xs, branch, drop_path),
    }
}

/// [`mlp_branch`] of the operations one by one.
pub fn composition(xs: &Tensor, branch: &MlpBranch, drop_path: Option<&[f32]>) -> Result<Tensor> {
    let ys = branch.norm.layer_norm(xs, branch.eps)?;
    let ys = branch.activation.routed(&branch.fc1.linear(&ys)?)?;
    residual::add(xs, branch.fc2.linear(&ys)?, branch.gamma, drop_path)
}

struct Op {
    /// B, N and D.
    dims: [usize; 3],
    hidden: usize,
    eps: f32,
    activation: Activation,
    drop_path: Option<Vec<f32>>,
}

/// activation(h + b) of rows of `bias.len()`.
struct Activate<'a, A> {
    bias: &'a [f32],
    hidden: &'a [f32],
    out: &'a mut [f32],
    by: PhantomData<A>,
}

impl<A: Pointwise> WithSimd for Activate<'_, A> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        let width = self.bias.len();
        for (h, out) in self.hidden.chunks_exact(width).zip(self.out.chunks_exact_mut(width)) {
            for ((out, &h), &b) in out.iter_mut().zip(h).zip(self.bias) {
                *out = A::value::<S>(h + b);
            }
        }
    }
}

/// Writes activation(h + b) to `active`; turns the gradients of that, in `grads`, into those of h; adds them to `dbias`.
struct ActivateBackward<'a, A> {
    bias: &'a [f32],
    hidden: &'a [f32],
    active: &'a mut [f32],
    grads: &'a mut [f32],
    dbias: &'a mut [f32],
    by: PhantomData<A>,
}

impl<A: Pointwise> WithSimd for ActivateBackward<'_, A> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        let width = self.bias.len();
        let rows = self.hidden.chunks_exact(width).zip(self.active.chunks_exact_mut(width));
        for ((h, active), grads) in rows.zip(self.grads.chunks_exact_mut(width)) {
            let terms = h
                .iter()
                .zip(self.bias)
                .zip(active)
                .zip(grads)
                .zip(self.dbias.iter_mut());
            for ((((&h, &b), active), grad), dbias) in terms {
                let (value, derivative) = A::both::<S>(h + b);
                *active = value;
                *grad *= derivative;
                *dbias += *grad;
            }
        }
    }
}

impl Op {
    fn activate(&self, hidden: &[f32], bias: &[f32]) -> Buffer {
        fn run<A: Pointwise>(hidden: &[f32], bias: &[f32], out: &mut [f32]) {
            kernel::for_rows(out, bias.len(), |first, out| {
                kernel::dispatch(Activate::<A> {
                    bias,
                    hidden: &hidden[first * bias.len()..][..out.len()],
                    out,
                    by: PhantomData,
                });
            });
        }
        let mut out = Buffer::new(hidden.len());
        match self.activation {
            Activation::Gelu => run::<Gelu>(hidden, bias, &mut out),
            Activation::QuickGelu => run::<QuickGelu>(hidden, bias, &mut out),
        }
        out
    }

    /// What [`ActivateBackward`] does; returns the gradient of the bias.
    fn activate_backward(&self, hidden: &[f32], bias: &[f32], outs: [&mut [f32]; 2]) -> Vec<f32> {
        fn run<A: Pointwise>(hidden: &[f32], bias: &[f32], outs: [&mut [f32]; 2]) -> Vec<f32> {
            let width = bias.len();
            kernel::for_two_rows_summing(outs, width, width, |first, [active, grads], dbias| {
                kernel::dispatch(ActivateBackward::<A> {
                    bias,
                    hidden: &hidden[first * width..][..active.len()],
                    active,
                    grads,
                    dbias,
                    by: PhantomData,
                });
            })
        }
        match self.activation {
            Activation::Gelu => run::<Gelu>(hidden, bias, outs),
            Activation::QuickGelu => run::<QuickGelu>(hidden, bias, outs),
        }
    }
}

impl Operation for Op {
    const NAME: &'static str = "mlp-branch";

    /// What the first layer gave, without its bias: [B N, H].
    type Kept = Buffer;

    fn result_dims(&self) -> Vec<usize> {
        self.dims.to_vec()
    }

    fn forward(&self, xs: &[f32], params: &[&[f32]], _: bool) -> Result<(Vec<f32>, Buffer)> {
        let (_, [_, bias], fc2) = residual::parts(params, self.eps);
        let hidden = self.recompute(xs, params)?;
        let active = self.activate(&hidden, bias);
        let ys = fc2.add_to(Rows { data: xs, step: 1 }, &active, self.drop_path.as_deref());
        Ok((ys, hidden))
    }

    fn recompute(&self, xs: &[f32], params: &[&[f32]]) -> Result<Buffer> {
        let ([batch, tokens, width], hidden) = (self.dims, self.hidden);
        let rows = batch * tokens;
        let (norm, [fc1, _], _) = residual::parts(params, self.eps);
        let mut h = Buffer::new(rows * hidden);
        matrix::matmul(
            &mut MatMut::rows(&mut h, rows, hidden, hidden),
            Write::Replace,
            1.0,
            Mat::rows(&norm.forward(xs), rows, width, width),
            Mat::rows(fc1, hidden, width, width).t(),
            Parallelism::Rayon(0),
        );
        Ok(h)
    }

    fn backward(&self, of: Backward, kept: Buffer, param_grads: &mut ParamGrads) -> Result<Vec<f32>> {
        let ([batch, tokens, width], hidden) = (self.dims, self.hidden);
        let rows = batch * tokens;
        let Backward { xs, grads, params, .. } = of;
        let (norm, [fc1, bias], fc2) = residual::parts(params, self.eps);
        let dropped = residual::dropped(grads, width, self.drop_path.as_deref());
        let mut dh = fc2.backward(&dropped);
        let mut active = Buffer::new(rows * hidden);
        let dbias = self.activate_backward(&kept, bias, [&mut active, &mut dh]);
        drop(kept);
        fc2.param_gradients(param_grads, &dropped, &active)?;
        drop((active, dropped));

        param_grads.write(MIDDLE, |out, write| {
            linear::weight_gradient(out, write, &dh, hidden, &norm.forward(xs), width);
        })?;
        param_grads.set(MIDDLE + 1, dbias)?;
        let mut dnormed = Buffer::new(rows * width);
        matrix::matmul(
            &mut MatMut::rows(&mut dnormed, rows, width, width),
            Write::Replace,
            1.0,
            Mat::rows(&dh, rows, hidden, hidden),
            Mat::rows(fc1, hidden, width, width),
            Parallelism::Rayon(0),
        );
        drop(dh);
        let mut dxs = grads.to_vec();
        norm.backward(xs, &dnormed, &mut dxs, param_grads)?;
        Ok(dxs)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::{check, check_derivative, random, rng};
    use rand::Rng as _;

    fn branch<'a>(args: &'a [Tensor], activation: Activation) -> MlpBranch<'a> {
        let [norm, fc1, fc2] = residual::affines(&args[1..]);
        MlpBranch {
            norm,
            eps: 0.1,
            fc1,
            activation,
            fc2,
            gamma: args.get(7),
        }
    }

    type Factors<'a> = Option<&'a [f32]>;

    fn kernel(activation: Activation, drop_path: Factors<'_>) -> impl Fn(&[Tensor]) -> Result<Tensor> + Sync + '_ {
        move |args| mlp_branch(&args[0], &branch(args, activation), drop_path)
    }

    fn reference(activation: Activation, drop_path: Factors<'_>) -> impl Fn(&[Tensor]) -> Result<Tensor> + Sync + '_ {
        move |args| composition(&args[0], &branch(args, activation), drop_path)
    }

    fn shapes(b: usize, n: usize, d: usize, h: usize) -> Vec<Vec<usize>> {
        let shapes = [
            vec![b, n, d],
            vec![d],
            vec![d],
            vec![h, d],
            vec![h],
            vec![d, h],
            vec![d],
            vec![d],
        ];
        shapes.into()
    }

    fn check_one(b: usize, n: usize, d: usize, h: usize, seed: u64) {
        let shapes = shapes(b, n, d, h);
        let shapes: Vec<&[usize]> = shapes.iter().map(Vec::as_slice).collect();
        let factors: Vec<f32> = (0..b).map(|i| [1.25, 0., 2.][i % 3]).collect();
        let (gelu, quick) = (Activation::Gelu, Activation::QuickGelu);
        check(&kernel(gelu, None), &reference(gelu, None), &shapes, seed);
        let some = Some(factors.as_slice());
        check(&kernel(quick, some), &reference(quick, some), &shapes[..7], seed);
    }

    #[test]
    fn equals_its_composition() {
        let mut rng = rng(8);
        for seed in 0..4 {
            let mut size = |most| rng.random_range(1..=most);
            check_one(size(4), size(20), 4 + size(30), size(60), seed);
        }
    }

    #[test]
    fn equals_its_composition_at_the_edges() {
        check_one(1, 1, 5, 1, 0);
        // Many pieces of work.
        check_one(3, 197, 48, 192, 1);
    }

    #[test]
    fn composition_has_the_right_derivative() {
        let shapes = shapes(2, 2, 3, 4);
        let shapes: Vec<&[usize]> = shapes.iter().map(Vec::as_slice).collect();
        check_derivative(&reference(Activation::Gelu, Some(&[0.5, 2.])), &shapes, 0);
        check_derivative(&reference(Activation::QuickGelu, None), &shapes[..7], 1);
    }

    #[test]
    fn frozen_and_trained_parameters_give_the_same() {
        let args: Vec<_> = shapes(2, 5, 8, 16).iter().map(|shape| random(shape, 3)).collect();
        let args: Vec<_> = args
            .iter()
            .map(|t| t.to_dtype(candle_core::DType::F32).unwrap())
            .collect();
        let var = candle_core::Var::from_tensor(&args[3]).unwrap();
        let mut trained = args.clone();
        trained[3] = var.as_tensor().clone();
        let values = |args: &[Tensor]| {
            let ys = kernel(Activation::Gelu, None)(args).unwrap();
            ys.flatten_all().unwrap().to_vec1::<f32>().unwrap()
        };
        assert_eq!(values(&args), values(&trained));
    }

    #[test]
    fn errors_name_the_argument() {
        let message = |change: &dyn Fn(&mut Vec<Vec<usize>>), drop_path: Factors| {
            let mut shapes = shapes(2, 3, 4, 8);
            change(&mut shapes);
            let args: Vec<_> = shapes.iter().map(|shape| random(shape, 0)).collect();
            kernel(Activation::Gelu, drop_path)(&args).unwrap_err().to_string()
        };
        assert_eq!(
            message(&|s| s[0] = vec![2, 4], None),
            "xs has shape [2, 4], but must be [B, N, D]"
        );
        assert_eq!(
            message(&|s| s[1] = vec![3], None),
            "norm.weight has shape [3], but must be [4]"
        );
        assert_eq!(
            message(&|s| s[3] = vec![8, 5], None),
            "fc1.weight has shape [8, 5], but must be [8, 4]"
        );
        assert_eq!(
            message(&|s| s[6] = vec![5], None),
            "fc2.bias has shape [5], but must be [4]"
        );
        assert_eq!(
            message(&|s| s[7] = vec![5], None),
            "gamma has shape [5], but must be [4]"
        );
        assert_eq!(
            message(&|_| {}, Some(&[1.])),
            "drop_path is 1 factors, but must be 2, one for each sample"
        );
    }

    #[test]
    fn of_nothing_is_nothing() {
        let args: Vec<_> = shapes(0, 3, 4, 8).iter().map(|shape| random(shape, 0)).collect();
        assert_eq!(kernel(Activation::Gelu, None)(&args).unwrap().dims(), [0, 3, 4]);
    }
}
