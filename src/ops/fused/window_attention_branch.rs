//! The attention of a Swin Transformer's block (Liu et al. 2021, arXiv 2103.14030) as one operation, from norm to
//! residual sum.

use candle_core::{DType, Result, Tensor};

use super::attention_branch::{self, AttentionBranch, Places, Windowed};
use super::stream::{with_params, Stream};
use super::{packed, residual};
use crate::check;
use crate::error::{Error, Result as OurResult};
use crate::grid::Grid;
use crate::ops::attention::Dims;
use crate::ops::route::{in_f32, Route};
use crate::ops::window::{self, bias, partition};
use crate::ops::window_attention;

/// The windows of [`window_attention_branch`], and what they add to the scores.
#[derive(Clone, Copy, Debug)]
pub struct Windows<'a> {
    /// The positions of a sample, L of them.
    pub grid: Grid,
    /// Side of a window, of which both sides of the grid are multiples.
    pub window: usize,
    /// Positions by which the grid is rolled up and left before it is cut; less than `window`.
    pub shift: usize,
    /// [(2 window - 1)², num_heads]: see [`relative_position_bias`](crate::ops::relative_position_bias).
    pub table: &'a Tensor,
    /// [windows, window², window²], where there is one: [`shift_mask`](crate::ops::shift_mask). Of any floating-point
    /// dtype.
    pub mask: Option<&'a Tensor>,
}

impl Windows<'_> {
    /// The rows of the grid, window by window, once all fits.
    fn check(&self, xs: &Tensor, num_heads: usize) -> OurResult<Vec<u32>> {
        let &Self {
            grid,
            window,
            shift,
            table,
            mask,
        } = self;
        let order = window::partition_order(grid, window, shift)?;
        if xs.elem_count() == 0 || xs.dims().get(1) != Some(&grid.len()) {
            let expected = format!("[B, {}, D], not empty, for a grid of {grid}", grid.len());
            return Err(Error::shape("xs", xs.dims(), expected));
        }
        check::same_dtype("table", table, "xs", xs)?;
        if window::check_table(table, window)? != num_heads {
            let expected = format!("[{}, {num_heads}]", (2 * window - 1) * (2 * window - 1));
            return Err(Error::shape("table", table.dims(), expected));
        }
        if let Some(mask) = mask {
            check::float("mask", mask)?;
            let positions = window * window;
            let expected = [grid.len() / positions, positions, positions];
            if mask.dims() != expected {
                return Err(Error::shape("mask", mask.dims(), format!("{expected:?}")));
            }
        }
        Ok(order)
    }
}

/// y = x + s γ reverse(proj(attention(qkv(partition(norm(x)))))), with attention within the windows of a grid, LayerScale γ
/// (1 where there is none) and drop path's factors s.
///
/// The same as the operations one by one, without what they write and read in between: no token leaves its place, and
/// attention alone goes window by window. For the backward two matrices, [B L, 3 D] and [B L, D], are kept,
/// unless [`recompute`](AttentionBranch::recompute) says otherwise. All parameters get gradients.
///
/// # Arguments
///
/// - `xs`: [B, L, D], the grid's positions row by row
/// - `branch`: the parameters
/// - `windows`: how the grid is cut, and what is added to the scores; the mask is a constant and gets no gradient
/// - `drop_path`: s, a factor for each of the B samples (stochastic depth), 1 where there is none; where it is 0 the
///   branch of that sample is not computed
///
/// Returns [B, L, D].
///
/// # PyTorch
///
/// With N = window², n windows in the grid, and what [`window_partition`](crate::ops::window_partition) and
/// [`window_reverse`](crate::ops::window_reverse) are there:
///
/// ```text
/// q, k, v = qkv(window_partition(norm(xs))).reshape(B * n, N, 3, num_heads, d).permute(2, 0, 3, 1, 4)
/// bias = table[relative_position_index.view(-1)].view(N, N, num_heads).permute(2, 0, 1)
/// added = (bias + mask.unsqueeze(1)).repeat(B, 1, 1, 1)
/// ys = F.scaled_dot_product_attention(q, k, v, attn_mask=added).transpose(1, 2).reshape(B * n, N, D)
/// xs + drop_path(gamma * window_reverse(proj(ys)))
/// ```
///
/// # Errors
///
/// If `xs` does not fit the grid or is empty, other shapes do not fit, dtypes differ or are no floating-point ones,
/// `num_heads` does not divide D, a side of the grid is no multiple of `window`, `shift` is not less, or `eps` is
/// negative or not finite.
///
/// ```
/// use candle_core::{DType, Device, Tensor};
/// use masksub::ops::{shift_mask, window_attention_branch, Affine, AttentionBranch, Windows};
/// use masksub::Grid;
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
/// let (grid, window, shift) = (Grid::new(4, 6), 2, 1);
/// let (table, mask) = (tensor(&[9, 2])?, shift_mask(grid, window, shift, &Device::Cpu)?);
/// let windows = Windows { grid, window, shift, table: &table, mask: Some(&mask) };
/// let xs = tensor(&[3, 24, 4])?;
/// assert_eq!(window_attention_branch(&xs, &branch, &windows, None)?.dims(), [3, 24, 4]);
/// # Ok::<(), candle_core::Error>(())
/// ```
pub fn window_attention_branch(
    xs: &Tensor,
    branch: &AttentionBranch,
    windows: &Windows,
    drop_path: Option<&[f32]>,
) -> Result<Tensor> {
    let mut stream = Stream::new(xs);
    stream.window_attention_branch(branch, windows, drop_path)?;
    stream.tokens()
}

impl Stream {
    /// [`window_attention_branch`] of the tokens, behind other branches that leave their number as it is.
    pub(crate) fn window_attention_branch(
        &mut self,
        branch: &AttentionBranch,
        windows: &Windows,
        drop_path: Option<&[f32]>,
    ) -> Result<()> {
        let [batch, length, width] = branch.check(self.start(), drop_path)?;
        let order = windows.check(self.start(), branch.num_heads)?;
        let dims = Dims::of(&[batch, length, 3 * width], branch.num_heads)?;
        routed(self, branch, dims, windows, order, drop_path)
    }
}

/// [`Stream::window_attention_branch`] with arguments that fit, the sizes of a sample and the order of its windows.
fn routed(
    stream: &mut Stream,
    branch: &AttentionBranch,
    dims: Dims,
    windows: &Windows,
    order: Vec<u32>,
    drop_path: Option<&[f32]>,
) -> Result<()> {
    let Windows {
        window, table, mask, ..
    } = *windows;
    let params: Vec<_> = branch.params().into_iter().chain([table]).collect();
    match Route::of(&with_params(stream.start(), &params)) {
        Route::Kernel if mask.is_none_or(|mask| mask.device().is_cpu()) => {
            let mask = match mask {
                Some(mask) => Some(mask.detach().to_dtype(DType::F32)?.contiguous()?),
                None => None,
            };
            let windowed = Windowed { window, order, mask };
            let op = attention_branch::operation(branch, dims, drop_path, |_| Ok(Places::Windows(windowed)))?;
            stream.push(op, &params)
        }
        Route::InF32 => stream.then(|xs| {
            in_f32(&with_params(xs, &params), |t| {
                let table = t.len() - 1;
                let windows = Windows {
                    table: &t[table],
                    ..*windows
                };
                let mut stream = Stream::new(&t[0]);
                routed(
                    &mut stream,
                    &branch.with(&t[1..table]),
                    dims,
                    &windows,
                    order,
                    drop_path,
                )?;
                stream.tokens()
            })
        }),
        Route::Kernel | Route::Composition => stream.then(|xs| {
            packed::compose(xs, drop_path, |xs, share| {
                let dims = Dims {
                    batch: share.batch,
                    ..dims
                };
                compose(xs, branch, dims, windows, &order, share.drop_path)
            })
        }),
    }
}

/// [`window_attention_branch`] of the operations one by one.
pub fn composition(
    xs: &Tensor,
    branch: &AttentionBranch,
    windows: &Windows,
    drop_path: Option<&[f32]>,
) -> Result<Tensor> {
    let (batch, length, width) = xs.dims3()?;
    let dims = Dims::of(&[batch, length, 3 * width], branch.num_heads)?;
    let order = window::partition_order(windows.grid, windows.window, windows.shift)?;
    compose(xs, branch, dims, windows, &order, drop_path)
}

fn compose(
    xs: &Tensor,
    branch: &AttentionBranch,
    dims: Dims,
    windows: &Windows,
    order: &[u32],
    drop_path: Option<&[f32]>,
) -> Result<Tensor> {
    let &Windows {
        window, table, mask, ..
    } = windows;
    let sizes = [dims.batch, dims.tokens, dims.width()];
    let ys = branch.norm.layer_norm(xs, branch.eps)?;
    let ys = branch.qkv.linear(&partition::partition(&ys, sizes, order, window)?)?;
    let bias = bias::routed(table, dims.heads, window)?;
    let ys = window_attention::routed(&ys, dims.within(window), &bias, mask)?;
    let ys = partition::reverse(&branch.proj.linear(&ys)?, sizes, order)?;
    residual::add(xs, ys, branch.gamma, drop_path)
}

#[cfg(test)]
mod tests;
