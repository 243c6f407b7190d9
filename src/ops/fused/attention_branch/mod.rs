//! The attention of a transformer block (Vaswani et al. 2017, arXiv 1706.03762) as one operation, from norm to residual
//! sum.

mod operation;

use candle_core::{Result, Tensor};

pub(crate) use self::operation::{apply, Windowed};
use super::affine::{affines, Affine};
use super::{packed, residual};
use crate::check;
use crate::error::Result as OurResult;
use crate::ops::attention::{self, Dims};
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
/// [B N, 3 D] and [B N, D], are kept. All parameters get gradients.
///
/// # Arguments
///
/// - `xs`: [B, N, D]
/// - `branch`: the parameters
/// - `tokens`: whether all N are computed, or the first only
/// - `drop_path`: s, a factor for each of the B samples (stochastic depth), 1 where there is none; where it is 0 the
///   branch of that sample is not computed
///
/// Returns [B, N, D], or [B, 1, D].
///
/// # PyTorch
///
/// ```text
/// q, k, v = qkv(norm(xs)).reshape(B, N, 3, num_heads, d).permute(2, 0, 3, 1, 4)
/// ys = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(B, N, D)
/// xs + drop_path(gamma * proj(ys))
/// ```
///
/// # Errors
///
/// If shapes do not fit, dtypes differ or are no floating-point ones, `num_heads` does not divide D, or `eps` is
/// negative or not finite.
///
/// ```
/// use candle_core::{DType, Device, Tensor};
/// use masksub::ops::{attention_branch, Affine, AttentionBranch, Tokens};
/// let tensor = |shape: &[usize]| Tensor::ones(shape, DType::F32, &Device::Cpu);
/// let (d, packed) = ((tensor(&[4])?, tensor(&[4, 4])?), (tensor(&[12])?, tensor(&[12, 4])?));
/// let branch = AttentionBranch {
///     norm: Affine { weight: &d.0, bias: &d.0 },
///     eps: 1e-6,
///     qkv: Affine { weight: &packed.1, bias: &packed.0 },
///     num_heads: 2,
///     proj: Affine { weight: &d.1, bias: &d.0 },
///     gamma: None,
/// };
/// let xs = tensor(&[2, 3, 4])?;
/// assert_eq!(attention_branch(&xs, &branch, Tokens::First, None)?.dims(), [2, 1, 4]);
/// # Ok::<(), candle_core::Error>(())
/// ```
pub fn attention_branch(
    xs: &Tensor,
    branch: &AttentionBranch,
    tokens: Tokens,
    drop_path: Option<&[f32]>,
) -> Result<Tensor> {
    let [batch, length, width] = branch.check(xs, drop_path)?;
    let dims = Dims::of(&[batch, length, 3 * width], branch.num_heads)?;
    routed(xs, branch, dims, tokens, drop_path)
}

/// [`attention_branch`] of arguments that fit.
fn routed(
    xs: &Tensor,
    branch: &AttentionBranch,
    dims: Dims,
    tokens: Tokens,
    drop_path: Option<&[f32]>,
) -> Result<Tensor> {
    let params = branch.params();
    let tensors: Vec<_> = [xs].into_iter().chain(params.iter().copied()).collect();
    match Route::of(&tensors) {
        Route::Kernel => {
            let queries = match tokens {
                Tokens::All => dims.tokens,
                Tokens::First => 1,
            };
            let dims = Dims { queries, ..dims };
            apply(xs, branch.eps, &params, dims, None, drop_path)
        }
        Route::InF32 => in_f32(&tensors, |t| {
            routed(&t[0], &branch.with(&t[1..]), dims, tokens, drop_path)
        }),
        Route::Composition => packed::compose(xs, drop_path, |xs, drop_path| {
            let batch = xs.dim(0)?;
            compose(xs, branch, Dims { batch, ..dims }, tokens, drop_path)
        }),
    }
}

/// [`attention_branch`] of the operations one by one.
pub fn composition(xs: &Tensor, branch: &AttentionBranch, tokens: Tokens, drop_path: Option<&[f32]>) -> Result<Tensor> {
    let (batch, length, width) = xs.dims3()?;
    let dims = Dims::of(&[batch, length, 3 * width], branch.num_heads)?;
    compose(xs, branch, dims, tokens, drop_path)
}

fn compose(
    xs: &Tensor,
    branch: &AttentionBranch,
    dims: Dims,
    tokens: Tokens,
    drop_path: Option<&[f32]>,
) -> Result<Tensor> {
    let ys = branch.norm.layer_norm(xs, branch.eps)?;
    let ys = attention::routed(&branch.qkv.linear(&ys)?, dims)?;
    let (xs, ys) = match tokens {
        Tokens::All => (xs.clone(), ys),
        Tokens::First => (xs.narrow(1, 0, 1)?, ys.narrow(1, 0, 1)?.contiguous()?),
    };
    residual::add(&xs, branch.proj.linear(&ys)?, branch.gamma, drop_path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::{check, check_derivative, random, rng};
    use rand::Rng as _;

    fn branch(args: &[Tensor], num_heads: usize) -> AttentionBranch<'_> {
        let [norm, qkv, proj] = affines(&args[1..]);
        AttentionBranch {
            norm,
            eps: 0.1,
            qkv,
            num_heads,
            proj,
            gamma: args.get(7),
        }
    }

    type Factors<'a> = Option<&'a [f32]>;

    fn kernel(
        heads: usize,
        tokens: Tokens,
        drop_path: Factors<'_>,
    ) -> impl Fn(&[Tensor]) -> Result<Tensor> + Sync + '_ {
        move |args| attention_branch(&args[0], &branch(args, heads), tokens, drop_path)
    }

    fn reference(
        heads: usize,
        tokens: Tokens,
        drop_path: Factors<'_>,
    ) -> impl Fn(&[Tensor]) -> Result<Tensor> + Sync + '_ {
        move |args| composition(&args[0], &branch(args, heads), tokens, drop_path)
    }

    fn shapes(b: usize, n: usize, d: usize) -> Vec<Vec<usize>> {
        let shapes = [
            vec![b, n, d],
            vec![d],
            vec![d],
            vec![3 * d, d],
            vec![3 * d],
            vec![d, d],
            vec![d],
            vec![d],
        ];
        shapes.into()
    }

    fn check_one(b: usize, n: usize, heads: usize, d: usize, seed: u64) {
        let shapes = shapes(b, n, heads * d);
        let shapes: Vec<&[usize]> = shapes.iter().map(Vec::as_slice).collect();
        let factors: Vec<f32> = (0..b).map(|i| [1.25, 0.0, 2.0][i % 3]).collect();
        let none = vec![0.0; b];
        for (tokens, drop_path, given) in [
            (Tokens::First, Some(none.as_slice()), 8),
            (Tokens::All, None, 8),
            (Tokens::All, Some(factors.as_slice()), 7),
            (Tokens::First, Some(factors.as_slice()), 8),
            (Tokens::First, None, 7),
        ] {
            let (kernel, reference) = (kernel(heads, tokens, drop_path), reference(heads, tokens, drop_path));
            // Small weights, as models have them: the softmax is not all on a few keys.
            let small = |op: &dyn Fn(&[Tensor]) -> Result<Tensor>, args: &[Tensor]| {
                let mut args = args.to_vec();
                args[3] = (&args[3] * 0.125)?;
                op(&args)
            };
            check(
                &|args| small(&kernel, args),
                &|args| small(&reference, args),
                &shapes[..given],
                seed,
            );
        }
    }

    #[test]
    fn equals_its_composition() {
        let mut rng = rng(9);
        for seed in 0..3 {
            let mut size = |most| rng.random_range(1..=most);
            check_one(size(4), 1 + size(20), size(3), 2 + size(12), seed);
        }
    }

    #[test]
    fn equals_its_composition_at_the_edges() {
        check_one(1, 1, 1, 5, 0);
        // More than one piece of work. (Of longer sequences the gradients' means over tokens nearly vanish: f32 itself,
        // in the composition too, is then further than 2e-6 from f64.)
        check_one(6, 65, 3, 16, 1);
    }

    #[test]
    fn composition_has_the_right_derivative() {
        let shapes = shapes(2, 3, 4);
        let shapes: Vec<&[usize]> = shapes.iter().map(Vec::as_slice).collect();
        check_derivative(&reference(2, Tokens::All, Some(&[0.5, 2.0])), &shapes, 0);
        check_derivative(&reference(1, Tokens::First, None), &shapes[..7], 1);
    }

    #[test]
    fn errors_name_the_argument() {
        let message = |heads: usize, change: &dyn Fn(&mut Vec<Vec<usize>>)| {
            let mut shapes = shapes(2, 3, 4);
            change(&mut shapes);
            let args: Vec<_> = shapes.iter().map(|shape| random(shape, 0)).collect();
            kernel(heads, Tokens::All, None)(&args).unwrap_err().to_string()
        };
        assert_eq!(
            message(1, &|s| s[0] = vec![2, 4]),
            "xs has shape [2, 4], but must be [B, N, D]"
        );
        assert_eq!(
            message(1, &|s| s[3] = vec![4, 4]),
            "qkv.weight has shape [4, 4], but must be [12, 4]"
        );
        assert_eq!(
            message(1, &|s| s[6] = vec![5]),
            "proj.bias has shape [5], but must be [4]"
        );
        let many = message(3, &|_| {});
        assert_eq!(many, "num_heads is 3, but must be a divisor of D = 4");
    }
}
