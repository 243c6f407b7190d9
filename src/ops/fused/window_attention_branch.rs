//! The attention of a Swin Transformer's block (Liu et al. 2021, arXiv 2103.14030) as one operation, from norm to residual
//! sum.

use candle_core::{DType, Result, Tensor};

use super::attention_branch::{self, AttentionBranch, Windowed};
use super::residual;
use crate::check;
use crate::error::{Error, Result as OurResult};
use crate::grid::Grid;
use crate::ops::attention::{Dims, Heads};
use crate::ops::layer_norm::layer_norm_with;
use crate::ops::route;
use crate::ops::window::{self, relative_position_bias, window_partition, window_reverse};
use crate::ops::window_attention::window_attention;

/// The windows of [`window_attention_branch`], and what they add to the scores.
#[derive(Clone, Copy, Debug)]
pub struct Windows<'a> {
    /// The positions of a sample, L of them.
    pub grid: Grid,
    /// Side of a window, of which both sides of the grid are multiples.
    pub window: usize,
    /// By how much the grid is rolled up and left before it is cut; less than `window`.
    pub shift: usize,
    /// [(2 window - 1)², num_heads]: see [`relative_position_bias`].
    pub table: &'a Tensor,
    /// [windows, window², window²], where there is one: [`shift_mask`](super::shift_mask). Of any floating-point dtype.
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
        check::same_dtype("table", table, xs)?;
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

/// y = x + s γ reverse(proj(attention(qkv(partition(norm(x)))))), with attention within the windows of a grid.
///
/// The same as the operations one by one, without what they write and read in between: no token leaves its place, and
/// attention alone goes window by window. For the backward two matrices, [B L, 3 D] and [B L, D], are kept. Gradients of
/// all parameters arrive as ever.
///
/// # Arguments
///
/// - `xs`: [B, L, D], the grid's positions row by row
/// - `branch`: the parameters
/// - `windows`: how the grid is cut, and what is added to the scores; the mask is a constant and gets no gradient
/// - `drop_path`: s, a factor for each of the B samples (stochastic depth), 1 where there is none
///
/// Returns [B, L, D].
///
/// # PyTorch
///
/// With N = window², n windows in the grid, and what [`window_partition`] and [`window_reverse`] are there:
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
/// `num_heads` does not divide D, a side of the grid is no multiple of `window`, `shift` is not less, or `eps` is negative
/// or not finite.
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
    let [batch, length, width] = branch.check(xs, drop_path)?;
    let order = windows.check(xs, branch.num_heads)?;
    let Windows {
        window, table, mask, ..
    } = *windows;
    let mut params = branch.params();
    // candle's products of half-precision matrices are slow on a CPU, where there are any.
    if xs.device().is_cpu() && route::is_half(xs) {
        let tensors: Vec<_> = [xs, table].into_iter().chain(params).collect();
        return route::in_f32(&tensors, |t| {
            let windows = Windows {
                table: &t[1],
                ..*windows
            };
            window_attention_branch(&t[0], &branch.with(&t[2..]), &windows, drop_path)
        });
    }
    params.push(table);
    let on_cpu = route::on_cpu_f32(&params) && route::on_cpu_f32(&[xs]);
    if !on_cpu || mask.is_some_and(|mask| !mask.device().is_cpu()) {
        return composition(xs, branch, windows, drop_path);
    }
    let mask = match mask {
        Some(mask) => Some(mask.detach().to_dtype(DType::F32)?.contiguous()?),
        None => None,
    };
    let positions = window * window;
    let dims = Dims::of(&[batch, length, 3 * width], branch.num_heads)?;
    let within = Dims::of(&[batch * length / positions, positions, 3 * width], branch.num_heads)?;
    let heads = Heads::of_windows(within, order);
    let windowed = Some(Windowed { window, mask });
    attention_branch::apply(xs, branch.eps, &params, dims, heads, windowed, drop_path)
}

/// [`window_attention_branch`] of the operations one by one.
pub fn composition(
    xs: &Tensor,
    branch: &AttentionBranch,
    windows: &Windows,
    drop_path: Option<&[f32]>,
) -> Result<Tensor> {
    let &Windows {
        grid,
        window,
        shift,
        table,
        mask,
    } = windows;
    let ys = layer_norm_with(xs, branch.norm.weight, Some(branch.norm.bias), branch.eps)?;
    let ys = branch.qkv.linear(&window_partition(&ys, grid, window, shift)?)?;
    let bias = relative_position_bias(table, window)?;
    let ys = window_attention(&ys, branch.num_heads, &bias, mask)?;
    let ys = window_reverse(&branch.proj.linear(&ys)?, grid, window, shift)?;
    residual::add(xs, ys, branch.gamma, drop_path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::shift_mask;
    use crate::ops::testing::{check, check_derivative, random, rng};
    use candle_core::Device;
    use rand::Rng as _;

    /// How a test cuts its grid.
    #[derive(Clone, Copy)]
    struct Cut {
        grid: Grid,
        window: usize,
        shift: usize,
        heads: usize,
    }

    impl Cut {
        fn new(rows: usize, columns: usize, window: usize, shift: usize, heads: usize) -> Self {
            let grid = Grid::new(rows * window, columns * window);
            Self {
                grid,
                window,
                shift,
                heads,
            }
        }

        fn mask(self) -> Tensor {
            shift_mask(self.grid, self.window, self.shift, &Device::Cpu).unwrap()
        }

        fn shapes(self, b: usize, head_width: usize) -> Vec<Vec<usize>> {
            let (d, side) = (self.heads * head_width, 2 * self.window - 1);
            let shapes = [
                vec![b, self.grid.len(), d],
                vec![side * side, self.heads],
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
    }

    type Branch = fn(&Tensor, &AttentionBranch, &Windows, Option<&[f32]>) -> Result<Tensor>;

    /// A function of tokens, table, norm, qkv, proj and, if given, γ.
    fn of<'a>(
        f: Branch,
        cut: Cut,
        mask: Option<&'a Tensor>,
        drop_path: Option<&'a [f32]>,
    ) -> impl Fn(&[Tensor]) -> Result<Tensor> + Sync + 'a {
        move |args| {
            let [norm, qkv, proj] = residual::affines(&args[2..]);
            let branch = AttentionBranch {
                norm,
                eps: 0.1,
                qkv,
                num_heads: cut.heads,
                proj,
                gamma: args.get(8),
            };
            let windows = Windows {
                grid: cut.grid,
                window: cut.window,
                shift: cut.shift,
                table: &args[1],
                mask,
            };
            f(&args[0], &branch, &windows, drop_path)
        }
    }

    fn check_one(cut: Cut, b: usize, head_width: usize, seed: u64) {
        let shapes = cut.shapes(b, head_width);
        let shapes: Vec<&[usize]> = shapes.iter().map(Vec::as_slice).collect();
        let factors: Vec<f32> = (0..b).map(|i| [1.25, 0., 2.][i % 3]).collect();
        let mask = cut.mask();
        for (mask, drop_path, given) in [
            (Some(&mask), None, 8),
            (Some(&mask), Some(factors.as_slice()), 9),
            (None, Some(factors.as_slice()), 8),
        ] {
            // Small weights, as models have them: the softmax is not all on a few keys.
            let small = |f: Branch| {
                let op = of(f, cut, mask, drop_path);
                move |args: &[Tensor]| {
                    let mut args = args.to_vec();
                    args[4] = (&args[4] * 0.125)?;
                    op(&args)
                }
            };
            check(
                &small(window_attention_branch),
                &small(composition),
                &shapes[..given],
                seed,
            );
        }
    }

    #[test]
    fn equals_its_composition() {
        let mut rng = rng(21);
        for seed in 0..4 {
            let mut size = |most| rng.random_range(1..=most);
            let (rows, columns, window) = (size(3), size(3), 1 + size(4));
            let shift = seed as usize % 2 * size(window - 1);
            check_one(
                Cut::new(rows, columns, window, shift, size(3)),
                size(3),
                1 + size(9),
                seed,
            );
        }
    }

    #[test]
    fn equals_its_composition_at_the_edges() {
        check_one(Cut::new(1, 1, 2, 0, 1), 1, 5, 0);
        check_one(Cut::new(1, 1, 3, 1, 2), 1, 3, 1);
        check_one(Cut::new(2, 3, 1, 0, 1), 2, 5, 2);
        // More windows than a head's bias is summed up in, and a Swin's own window.
        check_one(Cut::new(4, 3, 2, 1, 2), 6, 7, 3);
        check_one(Cut::new(2, 2, 7, 3, 3), 2, 32, 4);
    }

    #[test]
    fn composition_has_the_right_derivative() {
        let cut = Cut::new(2, 2, 2, 1, 2);
        let (mask, shapes) = (cut.mask(), cut.shapes(2, 2));
        let shapes: Vec<&[usize]> = shapes.iter().map(Vec::as_slice).collect();
        check_derivative(&of(composition, cut, Some(&mask), Some(&[0.5, 2.])), &shapes, 0);
        check_derivative(&of(composition, cut, None, None), &shapes[..8], 1);
    }

    /// A token learns of those in its window, and of no others: with the mask, of those that are its neighbours there in the
    /// image.
    #[test]
    fn windows_do_not_see_each_other() {
        let cut = Cut::new(2, 2, 3, 1, 1);
        let (b, side) = (2, 6);
        let args: Vec<_> = cut.shapes(b, 4).iter().map(|shape| random(shape, 3)).collect();
        let args: Vec<_> = args.iter().map(|t| t.to_dtype(DType::F32).unwrap()).collect();
        let mask = cut.mask();
        let values = |tokens: &Tensor, mask| {
            let mut args = args[..8].to_vec();
            args[0] = tokens.clone();
            let ys = of(window_attention_branch, cut, mask, None)(&args).unwrap();
            ys.to_vec3::<f32>().unwrap()
        };
        // The token at row 1, column 5 of the second sample.
        let at = side + 5;
        let mut moved = args[0].to_vec3::<f32>().unwrap();
        moved[1][at][0] += 1.;
        let moved = Tensor::new(moved, &Device::Cpu).unwrap();
        for mask in [None, Some(&mask)] {
            let (before, after) = (values(&args[0], mask), values(&moved, mask));
            for (sample, token) in (0..b * side * side).map(|i| (i / (side * side), i % (side * side))) {
                let (row, column) = (token / side, token % side);
                // Rolled by one, windows are rows 1 to 3, and 4, 5 and 0; and columns likewise.
                let together = (1..=3).contains(&row) && !(1..=3).contains(&column);
                let seen = sample == 1 && together && (mask.is_none() || column > 3);
                let same = before[sample][token] == after[sample][token];
                assert_eq!(seen, !same, "sample {sample}, row {row}, column {column}");
            }
        }
    }

    #[test]
    fn errors_name_the_argument() {
        let cut = Cut::new(2, 3, 2, 1, 2);
        let message = |cut: Cut, at: usize, shape: &[usize], mask: &[usize], factors: &[f32]| {
            let mut shapes = Cut::new(2, 3, 2, 1, 2).shapes(2, 2);
            shapes[at] = shape.to_vec();
            let args: Vec<_> = shapes.iter().map(|shape| random(shape, 0)).collect();
            let mask = random(mask, 0);
            let op = of(window_attention_branch, cut, Some(&mask), Some(factors));
            op(&args).unwrap_err().to_string()
        };
        let fits = [6, 4, 4];
        let shape = |at, shape: &[usize]| message(cut, at, shape, &fits, &[1., 1.]);
        assert_eq!(shape(0, &[2, 4]), "xs has shape [2, 4], but must be [B, N, D]");
        assert_eq!(
            shape(0, &[2, 25, 4]),
            "xs has shape [2, 25, 4], but must be [B, 24, D], not empty, for a grid of 4 x 6"
        );
        let empty = message(cut, 0, &[0, 24, 4], &fits, &[]);
        assert_eq!(
            empty,
            "xs has shape [0, 24, 4], but must be [B, 24, D], not empty, for a grid of 4 x 6"
        );
        assert_eq!(shape(2, &[3]), "norm.weight has shape [3], but must be [4]");
        assert_eq!(shape(4, &[4, 4]), "qkv.weight has shape [4, 4], but must be [12, 4]");
        assert_eq!(shape(7, &[5]), "proj.bias has shape [5], but must be [4]");
        assert_eq!(shape(8, &[5]), "gamma has shape [5], but must be [4]");
        assert_eq!(
            shape(1, &[8, 2]),
            "table has shape [8, 2], but must be [9, num_heads] for a window of 2"
        );
        assert_eq!(shape(1, &[9, 3]), "table has shape [9, 3], but must be [9, 2]");
        let with = |cut| message(cut, 8, &[4], &fits, &[1., 1.]);
        assert_eq!(
            with(Cut { heads: 3, ..cut }),
            "num_heads is 3, but must be a divisor of D = 4"
        );
        assert_eq!(
            with(Cut { shift: 2, ..cut }),
            "shift is 2, but must be less than the window, 2"
        );
        assert_eq!(
            with(Cut { window: 4, ..cut }),
            "grid is 4 x 6, but must be of sides that are multiples of the window, 4"
        );
        assert_eq!(with(Cut { window: 0, ..cut }), "window is 0, but must be 1 to 128");
        for mask in [&[3, 4, 4][..], &[6, 4, 5], &[4, 4]] {
            assert_eq!(
                message(cut, 8, &[4], mask, &[1., 1.]),
                format!("mask has shape {mask:?}, but must be [6, 4, 4]")
            );
        }
        assert_eq!(
            message(cut, 8, &[4], &fits, &[1.]),
            "drop_path is 1 factors, but must be 2, one for each sample"
        );
        let shapes = cut.shapes(2, 2);
        let mut args: Vec<_> = shapes.iter().map(|shape| random(shape, 0)).collect();
        args[1] = args[1].to_dtype(DType::F32).unwrap();
        let error = of(window_attention_branch, cut, None, None)(&args).unwrap_err();
        assert_eq!(error.to_string(), "table has dtype F32, but must be F64 like xs");
    }
}
