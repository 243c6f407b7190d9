//! The gated MLP of a transformer block (SwiGLU, Shazeer 2020, arXiv 2002.05202) as one operation, from norm to residual
//! sum.

mod operation;
#[cfg(test)]
mod tests;

use candle_core::{Result, Tensor, D};

use self::operation::{Op, Part};
use super::affine::Affine;
use super::stream::{with_params, Stream};
use super::{packed, residual};
use crate::check;
use crate::error::Result as OurResult;
use crate::ops::pointwise;
use crate::ops::route::{in_f32, Route};
use crate::ops::sigmoid::Silu;

/// The layers that make gate and value.
#[derive(Clone, Copy, Debug)]
pub enum Gated<'a> {
    /// One layer [2 H, D] for the two, the gate first.
    Packed(Affine<'a>),
    /// A layer [H, D] each, that of the gate first.
    Apart([Affine<'a>; 2]),
}

impl<'a> Gated<'a> {
    fn layers(&self) -> &[Affine<'a>] {
        match self {
            Self::Packed(both) => std::slice::from_ref(both),
            Self::Apart(layers) => layers,
        }
    }

    /// Names of weights and biases in errors.
    fn names(&self) -> &'static [[&'static str; 2]] {
        match self {
            Self::Packed(_) => &[["gated.weight", "gated.bias"]],
            Self::Apart(_) => &[["gate.weight", "gate.bias"], ["value.weight", "value.bias"]],
        }
    }

    /// The rows of a layer, of which `hidden` make a gate.
    fn rows(&self, hidden: usize) -> usize {
        match self {
            Self::Packed(_) => 2 * hidden,
            Self::Apart(_) => hidden,
        }
    }
}

/// The parameters of [`gated_mlp_branch`].
#[derive(Clone, Copy, Debug)]
pub struct GatedMlpBranch<'a> {
    /// The layer norm in front, `[D]`.
    pub norm: Affine<'a>,
    /// Number that the norms add to the variance.
    pub eps: f64,
    /// The first layers.
    pub gated: Gated<'a>,
    /// The layer norm before the last layer, `[H]`, where there is one.
    pub inner_norm: Option<Affine<'a>>,
    /// The last layer, [D, H].
    pub fc2: Affine<'a>,
    /// LayerScale (Touvron et al. 2021, arXiv 2103.17239), `[D]`, where there is one.
    pub gamma: Option<&'a Tensor>,
}

impl<'a> GatedMlpBranch<'a> {
    /// An error unless `xs`, the parameters and the factors on top fit.
    fn check(&self, xs: &Tensor, drop_path: Option<&[f32]>) -> OurResult<()> {
        let [_, _, width] = residual::check(xs, self.gamma, drop_path)?;
        self.norm.check_norm(width, self.eps, xs)?;
        let hidden = self.hidden();
        for (layer, names) in self.gated.layers().iter().zip(self.gated.names()) {
            layer.check(*names, self.gated.rows(hidden), width, xs)?;
        }
        if let Some(norm) = self.inner_norm {
            for (name, tensor) in [("inner_norm.weight", norm.weight), ("inner_norm.bias", norm.bias)] {
                check::same_dtype(name, tensor, "xs", xs)?;
                check::vector(name, tensor, hidden)?;
            }
        }
        self.fc2.check(["fc2.weight", "fc2.bias"], width, hidden, xs)
    }

    /// H.
    fn hidden(&self) -> usize {
        self.fc2.weight.dims().get(1).copied().unwrap_or_default()
    }

    /// The parameters: norm, the layers of gate and value, the inner norm, fc2, γ.
    fn params(&self) -> Vec<&'a Tensor> {
        let layers = self.gated.layers().iter().copied();
        let affines = [self.norm]
            .into_iter()
            .chain(layers)
            .chain(self.inner_norm)
            .chain([self.fc2]);
        affines
            .flat_map(|affine| [affine.weight, affine.bias])
            .chain(self.gamma)
            .collect()
    }

    /// The same with other parameters.
    fn with(self, params: &'a [Tensor]) -> Self {
        let mut affines = params.chunks_exact(2).map(|pair| Affine {
            weight: &pair[0],
            bias: &pair[1],
        });
        let mut next = |same: Affine<'a>| affines.next().unwrap_or(same);
        Self {
            norm: next(self.norm),
            gated: match self.gated {
                Gated::Packed(both) => Gated::Packed(next(both)),
                Gated::Apart(layers) => Gated::Apart(layers.map(&mut next)),
            },
            inner_norm: self.inner_norm.map(&mut next),
            fc2: next(self.fc2),
            gamma: self.gamma.and(params.last()),
            ..self
        }
    }
}

/// y = x + s γ fc2(norm'(silu(g) v)), where g and v are two linear maps of norm(x), with a second norm where there is one,
/// LayerScale γ (1 where there is none) and drop path's factors s.
///
/// The same as the operations one by one, without what they write and read in between: for the backward one matrix
/// [B N, 2 H] is kept. All parameters get gradients.
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
/// ```text
/// g, v = gated(norm(xs)).chunk(2, dim=-1)
/// xs + drop_path(gamma * fc2(inner_norm(F.silu(g) * v)))
/// ```
///
/// # Errors
///
/// If shapes do not fit, dtypes differ or are no floating-point ones, or `eps` is negative or not finite.
///
/// ```
/// use candle_core::{DType, Device, Tensor};
/// use masksub::ops::{gated_mlp_branch, Affine, Gated, GatedMlpBranch};
/// let tensor = |shape: &[usize]| Tensor::ones(shape, DType::F32, &Device::Cpu);
/// let (d, h, dh, hd) = (tensor(&[4])?, tensor(&[12])?, tensor(&[4, 6])?, tensor(&[12, 4])?);
/// let branch = GatedMlpBranch {
///     norm: Affine { weight: &d, bias: &d },
///     eps: 1e-6,
///     gated: Gated::Packed(Affine { weight: &hd, bias: &h }),
///     inner_norm: None,
///     fc2: Affine { weight: &dh, bias: &d },
///     gamma: None,
/// };
/// let ys = gated_mlp_branch(&tensor(&[2, 3, 4])?, &branch, Some(&[0., 1.]))?;
/// assert_eq!(ys.get(0)?.to_vec2::<f32>()?, [[1.; 4]; 3]);
/// # Ok::<(), candle_core::Error>(())
/// ```
pub fn gated_mlp_branch(xs: &Tensor, branch: &GatedMlpBranch, drop_path: Option<&[f32]>) -> Result<Tensor> {
    let mut stream = Stream::new(xs);
    stream.gated_mlp_branch(branch, drop_path)?;
    stream.tokens()
}

impl Stream {
    /// [`gated_mlp_branch`] of the tokens.
    pub(crate) fn gated_mlp_branch(&mut self, branch: &GatedMlpBranch, drop_path: Option<&[f32]>) -> Result<()> {
        branch.check(self.start(), drop_path)?;
        routed(self, branch, drop_path)
    }
}

/// [`Stream::gated_mlp_branch`] with arguments that fit.
fn routed(stream: &mut Stream, branch: &GatedMlpBranch, drop_path: Option<&[f32]>) -> Result<()> {
    let params = branch.params();
    match Route::of(&with_params(stream.start(), &params)) {
        Route::Kernel => {
            let (batch, _, width) = stream.start().dims3()?;
            let (tokens, hidden) = (stream.length()?, branch.hidden());
            let columns = branch.gated.rows(hidden);
            let starts = (0..2 * hidden).step_by(columns);
            let op = packed::branch(batch, drop_path, |share| {
                Ok(Op {
                    dims: [share.batch, tokens, width],
                    hidden,
                    eps: branch.eps as f32,
                    parts: starts.map(|start| Part { start, columns }).collect(),
                    has_inner_norm: branch.inner_norm.is_some(),
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

/// [`gated_mlp_branch`] of the operations one by one.
pub fn composition(xs: &Tensor, branch: &GatedMlpBranch, drop_path: Option<&[f32]>) -> Result<Tensor> {
    let ys = branch.norm.layer_norm(xs, branch.eps)?;
    let [gate, value] = match branch.gated {
        Gated::Packed(both) => {
            let (ys, hidden) = (both.linear(&ys)?, branch.hidden());
            [ys.narrow(D::Minus1, 0, hidden)?, ys.narrow(D::Minus1, hidden, hidden)?]
        }
        Gated::Apart([gate, value]) => [gate.linear(&ys)?, value.linear(&ys)?],
    };
    let ys = (pointwise::routed::<Silu>(&gate)? * value)?;
    let ys = match branch.inner_norm {
        Some(norm) => norm.layer_norm(&ys, branch.eps)?,
        None => ys,
    };
    residual::add(xs, branch.fc2.linear(&ys)?, branch.gamma, drop_path)
}
