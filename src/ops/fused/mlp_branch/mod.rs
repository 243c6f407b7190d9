//! The MLP of a transformer block (Vaswani et al. 2017, arXiv 1706.03762) as one operation, from norm to residual sum.

mod operation;
#[cfg(test)]
mod tests;

use candle_core::{Result, Tensor};

use self::operation::Op;
use super::affine::{affines, Affine};
use super::stream::{with_params, Stream};
use super::{packed, residual};
use crate::error::Result as OurResult;
use crate::ops::activation::Activation;
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
    /// True to compute again in the backward, bit by bit, what would be kept for it: less memory, for the time of most of
    /// another forward pass. On the CPU; other devices, and f64, keep what candle keeps.
    pub recompute: bool,
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
        let [norm, fc1, fc2] = affines(params);
        Self {
            norm,
            fc1,
            fc2,
            gamma: params.get(6),
            ..self
        }
    }
}

/// y = x + s γ fc2(activation(fc1(norm(x)))), with LayerScale γ (1 where there is none) and drop path's factors s.
///
/// The same as the operations one by one, without what they write and read in between: for the backward one matrix
/// [B N, H] is kept, unless [`recompute`](MlpBranch::recompute) says otherwise. All parameters get gradients.
///
/// # Arguments
///
/// - `xs`: [B, N, D]
/// - `branch`: the parameters
/// - `drop_path`: s, a factor for each of the B samples (stochastic depth), 1 where there is none; where it is 0 the
///   branch of that sample is not computed
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
///     recompute: false,
/// };
/// let ys = mlp_branch(&tensor(&[2, 3, 4])?, &branch, Some(&[0., 1.]))?;
/// assert_eq!(ys.get(0)?.to_vec2::<f32>()?, [[1.; 4]; 3]);
/// # Ok::<(), candle_core::Error>(())
/// ```
pub fn mlp_branch(xs: &Tensor, branch: &MlpBranch, drop_path: Option<&[f32]>) -> Result<Tensor> {
    let mut stream = Stream::new(xs);
    stream.mlp_branch(branch, drop_path)?;
    stream.tokens()
}

impl Stream {
    /// [`mlp_branch`] of the tokens.
    pub(crate) fn mlp_branch(&mut self, branch: &MlpBranch, drop_path: Option<&[f32]>) -> Result<()> {
        branch.check(self.start(), drop_path)?;
        routed(self, branch, drop_path)
    }
}

/// [`Stream::mlp_branch`] with arguments that fit.
fn routed(stream: &mut Stream, branch: &MlpBranch, drop_path: Option<&[f32]>) -> Result<()> {
    let params = branch.params();
    match Route::of(&with_params(stream.start(), &params)) {
        Route::Kernel => {
            let (batch, _, width) = stream.start().dims3()?;
            let (tokens, hidden) = (stream.length()?, branch.fc1.weight.dim(0)?);
            let op = packed::branch(batch, drop_path, |share| {
                Ok(Op {
                    dims: [share.batch, tokens, width],
                    hidden,
                    eps: branch.eps as f32,
                    activation: branch.activation,
                    recompute: branch.recompute,
                    drop_path: share.drop_path.map(<[f32]>::to_vec),
                })
            })?;
            stream.push(op, &params)
        }
        Route::InF32 => stream.then(|xs| {
            in_f32(&with_params(xs, &params), |t| {
                let mut stream = Stream::new(&t[0]);
                routed(&mut stream, &branch.with(&t[1..]), drop_path)?;
                stream.tokens()
            })
        }),
        Route::Composition => {
            stream.then(|xs| packed::compose(xs, drop_path, |xs, share| composition(xs, branch, share.drop_path)))
        }
    }
}

/// [`mlp_branch`] of the operations one by one.
pub fn composition(xs: &Tensor, branch: &MlpBranch, drop_path: Option<&[f32]>) -> Result<Tensor> {
    let ys = branch.norm.layer_norm(xs, branch.eps)?;
    let ys = branch.fc1.activated(&ys, branch.activation)?;
    residual::add(xs, branch.fc2.linear(&ys)?, branch.gamma, drop_path)
}
