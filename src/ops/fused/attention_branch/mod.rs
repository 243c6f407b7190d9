//! The attention of a transformer block (Vaswani et al. 2017, arXiv 1706.03762) as one operation, from norm to residual
//! sum.

mod operation;
mod positions;

use candle_core::{Result, Tensor};

pub(crate) use self::operation::{operation, Places, Windowed};
pub use self::positions::Positions;
use super::affine::{affines, Affine};
use super::stream::{with_params, Stream};
use super::{packed, residual};
use crate::check;
use crate::error::Result as OurResult;
use crate::ops::attention::Dims;
use crate::ops::biased_attention::RelativeBias;
use crate::ops::rotary_qkv::Rotate;
use crate::ops::route::{in_f32, Route};

/// The parameters of [`attention_branch`].
#[derive(Clone, Copy, Debug)]
pub struct AttentionBranch<'a> {
    /// The layer norm in front, `[D]`.
    pub norm: Affine<'a>,
    /// Number that the norm adds to the variance.
    pub eps: f64,
    /// The projection to queries, keys and values, packed as [`attention`](crate::ops::attention()) has them: [3 D, D].
    pub qkv: Affine<'a>,
    /// Attention heads, a divisor of D.
    pub num_heads: usize,
    /// The projection of the heads' results, [D, D].
    pub proj: Affine<'a>,
    /// LayerScale (Touvron et al. 2021, arXiv 2103.17239), `[D]`, where there is one.
    pub gamma: Option<&'a Tensor>,
    /// True to compute again in the backward, bit by bit, what would be kept for it: less memory, for the time of most of
    /// another forward pass. On the CPU; other devices, and f64, keep what candle keeps.
    pub recompute: bool,
}

impl<'a> AttentionBranch<'a> {
    /// B, N and D of `xs`, once it, the parameters and the factors on top fit.
    pub(crate) fn check(&self, xs: &Tensor, drop_path: Option<&[f32]>) -> OurResult<[usize; 3]> {
        let dims @ [_, _, width] = residual::check(xs, self.gamma, drop_path)?;
        self.norm.check_norm(width, self.eps, xs)?;
        self.qkv.check(["qkv.weight", "qkv.bias"], 3 * width, width, xs)?;
        self.proj.check(["proj.weight", "proj.bias"], width, width, xs)?;
        check::divisor("num_heads", self.num_heads, width, format_args!("D = {width}"))?;
        Ok(dims)
    }

    /// The parameters: norm, qkv, proj, γ.
    pub(crate) fn params(&self) -> Vec<&'a Tensor> {
        let Self { norm, qkv, proj, .. } = self;
        let params = [norm.weight, norm.bias, qkv.weight, qkv.bias, proj.weight, proj.bias];
        params.into_iter().chain(self.gamma).collect()
    }

    /// The same with other parameters.
    pub(crate) fn with(self, params: &'a [Tensor]) -> Self {
        let [norm, qkv, proj] = affines(params);
        Self {
            norm,
            qkv,
            proj,
            gamma: params.get(6),
            ..self
        }
    }
}

/// Tokens of a sequence that a block is to compute.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tokens {
    /// All N.
    All,
    /// The first one, from which a classifier reads: the last block needs keys and values of all tokens, but nothing
    /// else of the others.
    First,
}

/// y = x + s γ proj(attention(qkv(norm(x)))), of all tokens or of the first, with LayerScale γ (1 where there is none) and
/// drop path's factors s.
///
/// The same as the operations one by one, without what they write and read in between: for the backward two matrices,
/// [B N, 3 D] and [B N, D], are kept, unless [`recompute`](AttentionBranch::recompute) says otherwise. All parameters get
/// gradients.
///
/// # Arguments
///
/// - `xs`: [B, N, D]
/// - `branch`: the parameters
/// - `tokens`: whether all N are computed, or the first only
/// - `positions`: rotary angles and a bias of relative positions, where there are any
/// - `drop_path`: s, a factor for each of the B samples (stochastic depth), 1 where there is none; where it is 0 the
///   branch of that sample is not computed
///
/// Returns [B, N, D], or [B, 1, D].
///
/// # PyTorch
///
/// ```text
/// q, k, v = qkv(norm(xs)).reshape(B, N, 3, num_heads, d).permute(2, 0, 3, 1, 4)
/// q, k = rotate(q), rotate(k)              # where there is a rotation
/// bias = table[index].permute(0, 3, 1, 2)  # where there is a bias
/// ys = F.scaled_dot_product_attention(q, k, v, attn_mask=bias).transpose(1, 2).reshape(B, N, D)
/// xs + drop_path(gamma * proj(ys))
/// ```
///
/// # Errors
///
/// If shapes do not fit, dtypes differ or are no floating-point ones, `num_heads` does not divide D, or `eps` is
/// negative or not finite; with positions, if heads have an odd width to turn, an angle asks for a gradient, or an index
/// is not `u32` below the rows of its table.
///
/// ```
/// use candle_core::{DType, Device, Tensor};
/// use masksub::ops::{attention_branch, Affine, AttentionBranch, Positions, Tokens};
/// let tensor = |shape: &[usize]| Tensor::ones(shape, DType::F32, &Device::Cpu);
/// let (d, packed) = ((tensor(&[4])?, tensor(&[4, 4])?), (tensor(&[12])?, tensor(&[12, 4])?));
/// let branch = AttentionBranch {
///     norm: Affine { weight: &d.0, bias: &d.0 },
///     eps: 1e-6,
///     qkv: Affine { weight: &packed.1, bias: &packed.0 },
///     num_heads: 2,
///     proj: Affine { weight: &d.1, bias: &d.0 },
///     gamma: None,
///     recompute: false,
/// };
/// let xs = tensor(&[2, 3, 4])?;
/// assert_eq!(attention_branch(&xs, &branch, Tokens::First, &Positions::default(), None)?.dims(), [2, 1, 4]);
/// # Ok::<(), candle_core::Error>(())
/// ```
pub fn attention_branch(
    xs: &Tensor,
    branch: &AttentionBranch,
    tokens: Tokens,
    positions: &Positions,
    drop_path: Option<&[f32]>,
) -> Result<Tensor> {
    let mut stream = Stream::new(xs);
    stream.attention_branch(branch, tokens, positions, drop_path)?;
    stream.tokens()
}

impl Stream {
    /// [`attention_branch`] of the tokens.
    pub(crate) fn attention_branch(
        &mut self,
        branch: &AttentionBranch,
        tokens: Tokens,
        positions: &Positions,
        drop_path: Option<&[f32]>,
    ) -> Result<()> {
        let [batch, _, width] = branch.check(self.start(), drop_path)?;
        let dims = Dims::of(&[batch, self.length()?, 3 * width], branch.num_heads)?;
        positions.check(dims, self.start())?;
        routed(self, branch, dims, tokens, positions, drop_path)
    }
}

/// [`Stream::attention_branch`] with arguments that fit.
fn routed(
    stream: &mut Stream,
    branch: &AttentionBranch,
    dims: Dims,
    tokens: Tokens,
    positions: &Positions,
    drop_path: Option<&[f32]>,
) -> Result<()> {
    let params = branch.params();
    let table = positions.bias.map(|bias| bias.table);
    // The table is the last parameter.
    let params: Vec<_> = params.into_iter().chain(table).collect();
    match Route::of(&with_params(stream.start(), &params)) {
        Route::Kernel => {
            let queries = match tokens {
                Tokens::All => dims.tokens,
                Tokens::First => 1,
            };
            let dims = Dims { queries, ..dims };
            let tensors = with_params(stream.start(), &params);
            let op = operation(branch, dims, drop_path, |samples| {
                let selected = positions.select(samples)?;
                let positions = positions.with(&selected);
                let rotate = |rotation| Rotate::new(&rotation, dims, &tensors);
                Ok(Places::Sequence {
                    rotate: positions.rotation.map(rotate).transpose()?,
                    index: positions.bias.map(|bias| bias.index.clone()),
                })
            })?;
            stream.push(op, &params)
        }
        Route::InF32 => stream.then(|xs| {
            in_f32(&with_params(xs, &params), |t| {
                let with_table = |bias| RelativeBias {
                    table: &t[t.len() - 1],
                    ..bias
                };
                let positions = Positions {
                    bias: positions.bias.map(with_table),
                    ..*positions
                };
                let params = &t[1..t.len() - usize::from(table.is_some())];
                let mut stream = Stream::new(&t[0]);
                routed(&mut stream, &branch.with(params), dims, tokens, &positions, drop_path)?;
                stream.tokens()
            })
        }),
        Route::Composition => stream.then(|xs| {
            packed::compose(xs, drop_path, |xs, share| {
                let selected = positions.select(share.samples)?;
                composition(xs, branch, tokens, &positions.with(&selected), share.drop_path)
            })
        }),
    }
}

/// [`attention_branch`] of the operations one by one.
pub fn composition(
    xs: &Tensor,
    branch: &AttentionBranch,
    tokens: Tokens,
    positions: &Positions,
    drop_path: Option<&[f32]>,
) -> Result<Tensor> {
    let ys = branch.norm.layer_norm(xs, branch.eps)?;
    let ys = positions.attend(&branch.qkv.linear(&ys)?, branch.num_heads)?;
    let (xs, ys) = match tokens {
        Tokens::All => (xs.clone(), ys),
        Tokens::First => (xs.narrow(1, 0, 1)?, ys.narrow(1, 0, 1)?.contiguous()?),
    };
    residual::add(&xs, branch.proj.linear(&ys)?, branch.gamma, drop_path)
}

#[cfg(test)]
mod tests;
