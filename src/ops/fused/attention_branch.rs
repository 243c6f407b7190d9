//! The attention of a transformer block (Vaswani et al. 2017, arXiv 1706.03762) as one operation, from norm to residual
//! sum.

use std::sync::OnceLock;

use candle_core::{CpuStorage, CustomOp2, Layout, Result, Shape, Tensor};
use gemm::Parallelism;

use super::residual::{self, Affine, Rows};
use crate::error::{Error, Result as OurResult};
use crate::ops::attention::{self, Added, Dims, Heads};
use crate::ops::autograd::deliver::Deliveries;
use crate::ops::cpu::buffer::Buffer;
use crate::ops::cpu::kernel::{self, Elements};
use crate::ops::cpu::matrix::{self, Mat, MatMut};
use crate::ops::cpu::write::Write;
use crate::ops::layer_norm::layer_norm_with;
use crate::ops::linear;
use crate::ops::route;
use crate::ops::window;

/// The parameters of [`attention_branch`].
#[derive(Clone, Copy, Debug)]
pub struct AttentionBranch<'a> {
    /// The layer norm in front, `[D]`.
    pub norm: Affine<'a>,
    /// What the norm adds to the variance.
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
        match self.num_heads > 0 && width.is_multiple_of(self.num_heads) {
            true => Ok(dims),
            false => {
                let allowed = format!("a divisor of D = {width}");
                Err(Error::invalid("num_heads", self.num_heads, allowed))
            }
        }
    }

    /// The parameters: norm, qkv, proj, γ.
    pub(crate) fn params(&self) -> Vec<&'a Tensor> {
        let Self { norm, qkv, proj, .. } = self;
        let params = [norm.weight, norm.bias, qkv.weight, qkv.bias, proj.weight, proj.bias];
        params.into_iter().chain(self.gamma).collect()
    }

    /// The same with other parameters.
    pub(crate) fn with(self, params: &'a [Tensor]) -> Self {
        let [norm, qkv, proj] = residual::affines(params);
        Self {
            norm,
            qkv,
            proj,
            gamma: params.get(6),
            ..self
        }
    }
}

/// Which tokens of a sequence a block is to compute.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tokens {
    /// All N.
    All,
    /// The first one, from which a classifier reads: the last block needs keys and values of all tokens, but nothing else
    /// of the others.
    First,
}

/// y = x + s γ proj(attention(qkv(norm(x)))), of all tokens or of the first.
///
/// The same as the operations one by one, without what they write and read in between: for the backward two matrices,
/// [B N, 3 D] and [B N, D], are kept. Gradients of all parameters arrive as ever.
///
/// # Arguments
///
/// - `xs`: [B, N, D]
/// - `branch`: the parameters
/// - `tokens`: whether all N are computed, or the first only
/// - `drop_path`: s, a factor for each of the B samples (stochastic depth), 1 where there is none
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
/// If shapes do not fit, dtypes differ or are no floating-point ones, `num_heads` does not divide D, or `eps` is negative
/// or not finite.
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
    let params = branch.params();
    // candle's products of half-precision matrices are slow on a CPU, where there are any.
    if xs.device().is_cpu() && route::is_half(xs) {
        let tensors: Vec<_> = [xs].into_iter().chain(params).collect();
        return route::in_f32(&tensors, |t| {
            attention_branch(&t[0], &branch.with(&t[1..]), tokens, drop_path)
        });
    }
    if !route::on_cpu_f32(&params) || !route::on_cpu_f32(&[xs]) || xs.elem_count() == 0 {
        return composition(xs, branch, tokens, drop_path);
    }
    let queries = match tokens {
        Tokens::All => length,
        Tokens::First => 1,
    };
    let dims = Dims { queries, ..dims };
    apply(xs, branch.eps, &params, dims, Heads::new(dims), None, drop_path)
}

/// The operation on `xs` [B, N, D], once all has been checked.
pub(crate) fn apply(
    xs: &Tensor,
    eps: f64,
    params: &[&Tensor],
    dims: Dims,
    heads: Heads,
    windowed: Option<Windowed>,
    drop_path: Option<&[f32]>,
) -> Result<Tensor> {
    let (ticket, params) = Deliveries::new(params)?;
    let op = Op {
        dims,
        eps: eps as f32,
        heads,
        windowed,
        drop_path: drop_path.map(<[f32]>::to_vec),
        keep: xs.track_op() || ticket.track_op(),
        params,
        kept: OnceLock::new(),
    };
    xs.contiguous()?.apply_op2(&ticket, op)
}

/// [`attention_branch`] of the operations one by one.
pub fn composition(xs: &Tensor, branch: &AttentionBranch, tokens: Tokens, drop_path: Option<&[f32]>) -> Result<Tensor> {
    let ys = layer_norm_with(xs, branch.norm.weight, Some(branch.norm.bias), branch.eps)?;
    let ys = attention::attention(&branch.qkv.linear(&ys)?, branch.num_heads)?;
    let (xs, ys) = match tokens {
        Tokens::All => (xs.clone(), ys),
        Tokens::First => (xs.narrow(1, 0, 1)?, ys.narrow(1, 0, 1)?.contiguous()?),
    };
    residual::add(&xs, branch.proj.linear(&ys)?, branch.gamma, drop_path)
}

struct Op {
    dims: Dims,
    eps: f32,
    heads: Heads,
    windowed: Option<Windowed>,
    drop_path: Option<Vec<f32>>,
    /// Those of the branch and, if it is windowed, the table.
    params: Deliveries,
    /// Whether there will be a backward.
    keep: bool,
    kept: OnceLock<Kept>,
}

/// What attention within windows adds to the scores: biases from a table, which is the last of the parameters, and a mask.
pub(crate) struct Windowed {
    /// Side of a window.
    pub(crate) window: usize,
    /// [windows, window², window²], contiguous `f32` on the CPU.
    pub(crate) mask: Option<Tensor>,
}

struct Kept {
    /// [B, N, 3 D]. Where the first tokens alone are computed, the others' queries are whatever was left in the memory, and
    /// nobody reads them: not the heads, and not the products and sums, which go by [`Op::parts`].
    qkv: Buffer,
    /// What the heads gave, [B, queries, D].
    heads: Buffer,
}

/// Some columns of some rows of a matrix [B, N, ..]: queries, or keys and values.
#[derive(Clone, Copy)]
struct Part {
    /// First column and number of columns in 3 D.
    columns: [usize; 2],
    rows: usize,
    /// From one row to the next, in rows of [B N].
    step: usize,
}

impl Op {
    /// The parameters of the branch, and the table that comes last where there is one.
    fn split_params(&self) -> (&[Tensor], Option<&Tensor>) {
        match (&self.windowed, self.params.params()) {
            (Some(_), [branch @ .., table]) => (branch, Some(table)),
            (_, branch) => (branch, None),
        }
    }

    /// Calls `f` with what is added to the scores.
    fn with_added<T>(&self, f: impl FnOnce(Option<Added>) -> T) -> Result<T> {
        let (Some(Windowed { window, mask }), (_, Some(table))) = (&self.windowed, self.split_params()) else {
            return Ok(f(None));
        };
        let bias = window::bias_of(&Elements::of(table)?, self.dims.heads, *window);
        let mask = mask.as_ref().map(Elements::of).transpose()?;
        let mask = mask.as_deref().unwrap_or(&[]);
        Ok(f(Some(Added { bias: &bias, mask })))
    }

    /// The parts of `qkv` that are computed: all of it, or the queries of the first tokens and all keys and values.
    fn parts(&self) -> Vec<Part> {
        let d = self.dims.width();
        let (batch, tokens, queries) = (self.dims.batch, self.dims.tokens, self.dims.queries);
        let all = |columns| Part {
            columns,
            rows: batch * tokens,
            step: 1,
        };
        if queries == tokens {
            return vec![all([0, 3 * d])];
        }
        let first = Part {
            columns: [0, d],
            rows: batch,
            step: tokens,
        };
        vec![first, all([d, 2 * d])]
    }

    fn project(&self, normed: &[f32], weight: &[f32], bias: &[f32]) -> Buffer {
        let d = self.dims.width();
        let mut qkv = Buffer::new(3 * normed.len());
        for part in self.parts() {
            let [start, columns] = part.columns;
            kernel::for_rows(&mut qkv, 3 * d, |first, rows| {
                for (row, qkv) in (first..).zip(rows.chunks_exact_mut(3 * d)) {
                    if row % part.step == 0 {
                        qkv[start..start + columns].copy_from_slice(&bias[start..start + columns]);
                    }
                }
            });
            matrix::matmul(
                &mut MatMut::rows(&mut qkv[start..], part.rows, columns, part.step * 3 * d),
                Write::Add,
                1.,
                Mat::rows(normed, part.rows, d, part.step * d),
                Mat::rows(&weight[start * d..], columns, d, d).t(),
                Parallelism::Rayon(0),
            );
        }
        qkv
    }

    /// The gradient of the weight of the projection to queries, keys and values: written to `out`, or added to it.
    fn project_weight(&self, out: &mut [f32], write: Write, normed: &[f32], dqkv: &[f32]) {
        let d = self.dims.width();
        for part in self.parts() {
            let [start, columns] = part.columns;
            matrix::matmul(
                &mut MatMut::rows(&mut out[start * d..], columns, d, d),
                write,
                1.,
                Mat::rows(&dqkv[start..], part.rows, columns, part.step * 3 * d).t(),
                Mat::rows(normed, part.rows, d, part.step * d),
                Parallelism::Rayon(0),
            );
        }
    }

    /// The gradients of the normed input, and of the projection's bias.
    fn project_backward(&self, dqkv: &[f32], weight: &[f32]) -> (Buffer, Vec<f32>) {
        let d = self.dims.width();
        let mut dnormed = Buffer::new(dqkv.len() / 3);
        let mut dbias = vec![0f32; 3 * d];
        // Keys and values first, which every token has: queries are then added where there are any.
        for (i, part) in self.parts().into_iter().rev().enumerate() {
            let [start, columns] = part.columns;
            matrix::matmul(
                &mut MatMut::rows(&mut dnormed, part.rows, d, part.step * d),
                if i == 0 { Write::Replace } else { Write::Add },
                1.,
                Mat::rows(&dqkv[start..], part.rows, columns, part.step * 3 * d),
                Mat::rows(&weight[start * d..], columns, d, d),
                Parallelism::Rayon(0),
            );
            let sums = kernel::sum_over_rows(part.rows, columns, columns, |first, rows, sums| {
                for row in first..first + rows {
                    linear::add_rows_to(&dqkv[row * part.step * 3 * d + start..][..columns], sums);
                }
            });
            dbias[start..start + columns].copy_from_slice(&sums);
        }
        (dnormed, dbias)
    }
}

impl CustomOp2 for Op {
    fn name(&self) -> &'static str {
        "attention-branch"
    }

    fn cpu_fwd(&self, s1: &CpuStorage, l1: &Layout, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        let xs = kernel::elements(s1, l1)?;
        let Dims {
            batch, tokens, queries, ..
        } = self.dims;
        let width = self.dims.width();
        let (branch, _) = self.split_params();
        let ys = residual::with_params(branch, self.eps, |norm, [weight, bias], proj| -> Result<_> {
            let qkv = self.project(&norm.forward(xs), weight, bias);
            let mut heads = Buffer::new(batch * queries * width);
            self.with_added(|added| self.heads.forward_into(&qkv, added, &mut heads))?;
            let step = tokens / queries;
            let ys = proj.add_to(Rows { data: xs, step }, &heads, self.drop_path.as_deref());
            if self.keep {
                // An operation is run once, when it is applied.
                self.kept.get_or_init(|| Kept { qkv, heads });
            }
            Ok(ys)
        })??;
        Ok((CpuStorage::F32(ys), (batch, queries, width).into()))
    }

    fn bwd(
        &self,
        xs: &Tensor,
        ticket: &Tensor,
        node: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let Some(kept) = self.kept.get() else {
            candle_core::bail!("the backward of masksub's attention_branch was called before its forward");
        };
        let width = self.dims.width();
        let step = self.dims.tokens / self.dims.queries;
        let grad = grad.contiguous()?;
        let (x, g) = (Elements::of(xs)?, Elements::of(&grad)?);
        let (branch, table) = self.split_params();
        let with_table = table.is_some() && self.params.wanted(branch.len());
        let (dx, gradients) = residual::with_params(branch, self.eps, |norm, [weight, _], proj| -> Result<_> {
            let dropped = residual::dropped(&g, width, self.drop_path.as_deref());
            let dheads = proj.backward(&dropped);
            let of_proj = proj.gradients(&self.params, node, &dropped, &kept.heads)?;
            let mut dqkv = Buffer::new(kept.qkv.len());
            let dscores = self.with_added(|added| {
                self.heads
                    .backward_into(&kept.qkv, added, &kept.heads, &dheads, &mut dqkv, with_table)
            })??;
            let windowed = self.windowed.as_ref().filter(|_| with_table);
            let dtable = windowed.zip(table).map(|(of, table)| {
                kernel::tensor(
                    window::table_gradient(&dscores, self.dims.heads, of.window),
                    table.dims(),
                )
            });
            let dtable = dtable.transpose()?;
            drop((dheads, dropped));
            let dweight = self.params.gradient(2, node, |out, write| {
                self.project_weight(out, write, &norm.forward(&x), &dqkv);
            })?;
            let (dnormed, dbias) = self.project_backward(&dqkv, weight);
            drop(dqkv);
            let mut dx = match step {
                1 => g.to_vec(),
                _ => {
                    let mut dx = vec![0f32; x.len()];
                    for (dx, g) in dx.chunks_exact_mut(step * width).zip(g.chunks_exact(width)) {
                        dx[..width].copy_from_slice(g);
                    }
                    dx
                }
            };
            let dnorm = norm.backward(&x, &dnormed, &mut dx)?;
            let dbias = Some(kernel::tensor(dbias, &[3 * width])?);
            let mut gradients = [&dnorm[..], &[dweight, dbias], &of_proj].concat();
            gradients.truncate(branch.len());
            gradients.push(dtable);
            Ok((dx, gradients))
        })??;
        self.params.give(ticket, gradients, dx, xs)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::{check, check_derivative, random, rng};
    use rand::Rng as _;

    fn branch(args: &[Tensor], num_heads: usize) -> AttentionBranch<'_> {
        let [norm, qkv, proj] = residual::affines(&args[1..]);
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
        let factors: Vec<f32> = (0..b).map(|i| [1.25, 0., 2.][i % 3]).collect();
        for (tokens, drop_path, given) in [
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
        // More than one piece of work. (Of longer sequences the gradients' means over tokens nearly vanish: f32 itself, in the
        // composition too, is then further than 2e-6 from f64.)
        check_one(6, 65, 3, 16, 1);
    }

    #[test]
    fn composition_has_the_right_derivative() {
        let shapes = shapes(2, 3, 4);
        let shapes: Vec<&[usize]> = shapes.iter().map(Vec::as_slice).collect();
        check_derivative(&reference(2, Tokens::All, Some(&[0.5, 2.])), &shapes, 0);
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
