//! Transposed convolution, for training: what a convolution does to gradients, as an operation of its own.

use candle_core::{Result, Tensor, D};
use candle_nn::{ConvTranspose1dConfig, ConvTranspose2dConfig};

use super::geometry::{check_steps, split, Conv2d, ONE_ROW};
use super::{add_bias, sum_positions, BIAS, WEIGHT};
use crate::check;
use crate::error::Error;
use crate::ops::autograd::{apply, Backward, Operation, ParamGrads};
use crate::ops::cpu::kernel;
use crate::ops::cpu::sliding::{extent, Sliding};
use crate::ops::cpu::write::Write;
use crate::ops::route::{in_f32, Route};

/// The gradient of [`conv2d`](super::conv2d()) by its input, of `xs` in the place of the result's gradient: each element
/// of an image becomes as many of the result as the kernel has, `stride` apart from its neighbour's, which are added
/// where they meet.
///
/// [`Tensor::conv_transpose2d`] computes the same. It has a backward, but one without kernels of this crate.
///
/// # Arguments
///
/// - `xs`: [B, C, H, W]
/// - `weight`: [C, C', kH, kW]
/// - `bias`: `[C']`
/// - `config`: as candle-nn's layer has it; `padding` is what is cut off on each side, `output_padding` what is added to
///   the result on one
///
/// Returns [B, C', H', W'], where H' = (H - 1) stride + dilation (kH - 1) + 1 - 2 padding + output_padding, and W'
/// likewise.
///
/// # Derivative
///
/// That by `xs` is the convolution of the result's gradient; that by `weight` is a convolution's, with the two in each
/// other's place.
///
/// # PyTorch
///
/// `torch.nn.functional.conv_transpose2d(xs, weight, bias, stride, padding, output_padding, 1, dilation)`
///
/// # Errors
///
/// If the shapes do not fit or something is empty, nothing of the result is left by `padding`, `stride` or `dilation` is
/// 0, the result does not fit in memory, or the dtypes differ or are no floating-point ones.
///
/// ```
/// use candle_core::{Device, Tensor};
/// use candle_nn::ConvTranspose2dConfig;
/// let xs = Tensor::new(&[[[[1f32, 2.0]]]], &Device::Cpu)?;
/// let weight = Tensor::new(&[[[[1f32, 10.0]]]], &Device::Cpu)?;
/// let config = ConvTranspose2dConfig { stride: 2, ..Default::default() };
/// let ys = masksub::ops::conv_transpose2d(&xs, &weight, None, config)?;
/// assert_eq!(ys.flatten_all()?.to_vec1::<f32>()?, [1.0, 10.0, 2.0, 20.0]);
/// # Ok::<(), candle_core::Error>(())
/// ```
pub fn conv_transpose2d(
    xs: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    config: ConvTranspose2dConfig,
) -> Result<Tensor> {
    let conv = Transposed::new::<2>(xs, weight, Steps::from(config))?;
    conv.check(xs, weight, bias)?;
    routed(xs, weight, bias, conv)
}

/// [`conv_transpose2d`] of sequences, as images of one row.
///
/// [`Tensor::conv_transpose1d`] has no backward, and without groups, padding and dilation its result is wrong on the CPU
/// for more than one sample.
///
/// # Arguments
///
/// - `xs`: [B, C, L]
/// - `weight`: [C, C' / groups, k]
/// - `bias`: `[C']`
/// - `config`: as that of [`conv_transpose2d`], and groups of channels as [`conv1d`](crate::ops::conv1d()) has them
///
/// Returns [B, C', L'], where L' = (L - 1) stride + dilation (k - 1) + 1 - 2 padding + output_padding.
///
/// # Derivative
///
/// As that of [`conv_transpose2d`].
///
/// # PyTorch
///
/// `torch.nn.functional.conv_transpose1d(xs, weight, bias, stride, padding, output_padding, groups, dilation)`
///
/// # Errors
///
/// As those of [`conv_transpose2d`], and if `groups` does not divide C.
///
/// ```
/// use candle_core::{Device, Tensor};
/// let xs = Tensor::new(&[[[1f32, 2.0, 3.0]]], &Device::Cpu)?;
/// let weight = Tensor::new(&[[[1f32, 10.0]]], &Device::Cpu)?;
/// let ys = masksub::ops::conv_transpose1d(&xs, &weight, None, Default::default())?;
/// assert_eq!(ys.flatten_all()?.to_vec1::<f32>()?, [1.0, 12.0, 23.0, 30.0]);
/// # Ok::<(), candle_core::Error>(())
/// ```
pub fn conv_transpose1d(
    xs: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    config: ConvTranspose1dConfig,
) -> Result<Tensor> {
    let conv = Transposed::new::<1>(xs, weight, Steps::from(config))?;
    conv.check(xs, weight, bias)?;
    routed(&xs.unsqueeze(2)?, &weight.unsqueeze(2)?, bias, conv)?.squeeze(2)
}

/// [`conv_transpose2d`] of arguments that fit.
fn routed(xs: &Tensor, weight: &Tensor, bias: Option<&Tensor>, conv: Transposed) -> Result<Tensor> {
    let params: Vec<_> = [weight].into_iter().chain(bias).collect();
    let tensors: Vec<_> = [xs].into_iter().chain(params.iter().copied()).collect();
    match Route::of(&tensors) {
        Route::Kernel => apply(conv, xs, &params),
        Route::InF32 => in_f32(&tensors, |t| routed(&t[0], &t[1], t.get(2), conv)),
        Route::Composition => compose(xs, weight, bias, conv),
    }
}

/// [`conv_transpose2d`] of candle's operations.
pub fn composition(
    xs: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    config: ConvTranspose2dConfig,
) -> Result<Tensor> {
    let conv = Transposed::new::<2>(xs, weight, Steps::from(config))?;
    compose(xs, weight, bias, conv)
}

/// [`conv_transpose1d`] of candle's operations.
pub fn composition_1d(
    xs: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    config: ConvTranspose1dConfig,
) -> Result<Tensor> {
    let conv = Transposed::new::<1>(xs, weight, Steps::from(config))?;
    compose(&xs.unsqueeze(2)?, &weight.unsqueeze(2)?, bias, conv)?.squeeze(2)
}

fn compose(xs: &Tensor, weight: &Tensor, bias: Option<&Tensor>, Transposed(conv): Transposed) -> Result<Tensor> {
    let Sliding { stride, dilation, .. } = conv.columns;
    // candle's backward is right where nothing is cut off or added.
    let of_group = |(xs, weight): (&Tensor, &Tensor)| xs.contiguous()?.conv_transpose2d(weight, 0, 0, stride, dilation);
    let groups = xs.chunk(conv.groups, 1)?;
    let groups = groups
        .iter()
        .zip(&weight.chunk(conv.groups, 0)?)
        .map(of_group)
        .collect::<Result<Vec<_>>>()?;
    let fit = |ys: &Tensor, dim: D, axis: Sliding| -> Result<Tensor> {
        let inside = (ys.dim(dim)? - axis.padding).min(axis.side);
        ys.narrow(dim, axis.padding, inside)?
            .pad_with_zeros(dim, 0, axis.side - inside)
    };
    let ys = fit(&Tensor::cat(&groups, 1)?, D::Minus1, conv.columns)?;
    add_bias(fit(&ys, D::Minus2, conv.rows)?, bias)
}

/// The steps of a transposed convolution.
struct Steps {
    stride: usize,
    padding: usize,
    output_padding: usize,
    dilation: usize,
    groups: usize,
}

impl From<ConvTranspose1dConfig> for Steps {
    fn from(config: ConvTranspose1dConfig) -> Self {
        Self {
            stride: config.stride,
            padding: config.padding,
            output_padding: config.output_padding,
            dilation: config.dilation,
            groups: config.groups,
        }
    }
}

impl From<ConvTranspose2dConfig> for Steps {
    fn from(config: ConvTranspose2dConfig) -> Self {
        Self {
            stride: config.stride,
            padding: config.padding,
            output_padding: config.output_padding,
            dilation: config.dilation,
            groups: 1,
        }
    }
}

impl Steps {
    /// The axis along which a kernel of `window` elements makes something of `out` of the sides of `xs`.
    fn axis(&self, xs: &[usize], window: usize, out: usize) -> crate::error::Result<Sliding> {
        let whole = || {
            let first = (out - 1).checked_mul(self.stride)?;
            let whole = first.checked_add(extent(window, self.dilation)?)?;
            Some((whole, whole.checked_add(self.output_padding)?))
        };
        let (whole, more) = whole().ok_or_else(|| {
            let (argument, value) = self.largest(xs);
            Error::invalid(argument, value, "so small that the result fits in memory")
        })?;
        let side = self.padding.checked_mul(2).and_then(|both| more.checked_sub(both));
        match side {
            Some(side) if side > 0 && self.padding < whole => Ok(Sliding {
                side,
                window,
                stride: self.stride,
                padding: self.padding,
                dilation: self.dilation,
                out,
            }),
            _ => Err(Error::invalid(
                "padding",
                self.padding,
                "so small that something of the result is left",
            )),
        }
    }

    /// The argument that makes a result of `xs` large, and its value.
    fn largest(&self, xs: &[usize]) -> (&'static str, String) {
        let steps = [
            ("stride", self.stride),
            ("dilation", self.dilation),
            ("output_padding", self.output_padding),
        ];
        match steps.into_iter().max_by_key(|&(_, step)| step) {
            Some((argument, step)) if xs.iter().all(|&side| side < step) => (argument, step.to_string()),
            _ => ("xs", format!("{xs:?}")),
        }
    }
}

/// The convolution that a transposed one is the transpose of: from its result to its input.
struct Transposed(Conv2d);

impl Transposed {
    /// With N axes of positions.
    fn new<const N: usize>(xs: &Tensor, weight: &Tensor, steps: Steps) -> crate::error::Result<Self> {
        let Steps {
            stride,
            dilation,
            groups,
            padding,
            ..
        } = steps;
        check_steps(stride, dilation, groups)?;
        let of_weight = if N == 1 {
            "[C, C' / groups, k], not empty"
        } else {
            "[C, C', kH, kW], not empty"
        };
        let ([inputs, outputs], kernel) = split::<N>("weight", weight.dims(), || of_weight.into())?;
        check::divisor("groups", groups, inputs, format!("C = {inputs}"))?;
        let of_input = || {
            let letters = if N == 1 { "L" } else { "H, W" };
            format!("[B, {inputs}, {letters}], not empty")
        };
        let ([batch, channels], sides) = split::<N>("xs", xs.dims(), of_input)?;
        if channels != inputs {
            return Err(Error::shape("xs", xs.dims(), of_input()));
        }
        let mut axes = [ONE_ROW; 2];
        // From the last on: of sequences, what is first is the one row.
        for (axis, (&window, &out)) in axes.iter_mut().rev().zip(kernel.iter().zip(&sides).rev()) {
            *axis = steps.axis(xs.dims(), window, out)?;
        }
        let [rows, columns] = axes;
        // With what is cut off, which a composition makes.
        let padded = |axis: Sliding| padding.checked_mul(2)?.checked_add(axis.side);
        let dims = [Some(groups), Some(outputs), padded(rows), padded(columns)];
        let count = dims.into_iter().try_fold(batch, |count, dim| count.checked_mul(dim?));
        let (argument, value) = steps.largest(xs.dims());
        check::fits_memory(argument, value, count, size_of::<f64>())?;
        Ok(Self(Conv2d {
            batch,
            groups,
            in_channels: outputs,
            out_channels: inputs / groups,
            rows,
            columns,
            algorithm: None,
        }))
    }

    fn check(&self, xs: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> crate::error::Result<()> {
        super::check_tensors(xs, weight, bias, self.num_outputs())
    }

    fn num_outputs(&self) -> usize {
        self.0.groups * self.0.in_channels
    }
}

impl Operation for Transposed {
    const NAME: &'static str = "conv-transpose2d";

    type Kept = ();

    fn result_dims(&self) -> Vec<usize> {
        vec![self.0.batch, self.num_outputs(), self.0.rows.side, self.0.columns.side]
    }

    fn forward(&self, xs: &[f32], params: &[&[f32]], _: bool) -> Result<(Vec<f32>, ())> {
        let mut ys = vec![0f32; self.result_dims().iter().product()];
        let write = match params.get(BIAS) {
            Some(bias) => {
                let area = self.0.area();
                kernel::for_rows(&mut ys, area, |first, ys| {
                    for (plane, ys) in (first..).zip(ys.chunks_exact_mut(area)) {
                        ys.fill(bias[plane % bias.len()]);
                    }
                });
                Write::Add
            }
            None => Write::Replace,
        };
        self.0.backward_xs(params[WEIGHT], xs, &mut ys, write);
        Ok((ys, ()))
    }

    fn recompute(&self, _: &[f32], _: &[&[f32]]) -> Result<()> {
        Ok(())
    }

    fn backward(&self, of: Backward, _: (), param_grads: &mut ParamGrads) -> Result<Vec<f32>> {
        let Backward { xs, grads, .. } = of;
        let mut dxs = Vec::new();
        if of.wants_dxs {
            dxs.resize(xs.len(), 0.0);
            self.0.forward(grads, of.params[WEIGHT], None, &mut dxs);
        }
        param_grads.write(WEIGHT, |out, write| self.0.backward_weight(grads, xs, out, write))?;
        if param_grads.wants(BIAS) {
            param_grads.set(BIAS, sum_positions(grads, self.num_outputs(), self.0.area()))?;
        }
        Ok(dxs)
    }
}

#[cfg(test)]
mod tests;
