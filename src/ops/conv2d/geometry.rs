//! The sizes of a convolution.

use candle_core::conv::CudnnFwdAlgo;
use candle_nn::Conv2dConfig;

use crate::check;
use crate::error::{Error, Result};
use crate::ops::cpu::sliding::{check_padding, extent, Sliding};

/// A convolution, without its weight.
#[derive(Clone, Copy)]
pub(crate) struct Conv2d {
    pub(super) batch: usize,
    pub(super) groups: usize,
    /// Of one group, as all that follows.
    pub(super) in_channels: usize,
    pub(super) out_channels: usize,
    pub(super) rows: Sliding,
    pub(super) columns: Sliding,
    pub(super) algorithm: Option<CudnnFwdAlgo>,
}

impl Conv2d {
    /// A convolution of images [B, C, H, W] with a weight [C', C / groups, kH, kW], which an error calls by `names`.
    pub(crate) fn new(names: [&'static str; 2], xs: &[usize], weight: &[usize], config: Conv2dConfig) -> Result<Self> {
        let (channels, sides) = Channels::of::<2>(names, xs, weight, &config)?;
        let axes = Self::axes(names[0], xs, &sides, &config)?;
        Self::of(channels, axes, &config)
    }

    /// As [`new`](Self::new), of sequences [B, C, L] with a weight [C', C / groups, k]: images of one row.
    pub(crate) fn of_sequences(
        names: [&'static str; 2],
        xs: &[usize],
        weight: &[usize],
        config: Conv2dConfig,
    ) -> Result<Self> {
        let (channels, sides) = Channels::of::<1>(names, xs, weight, &config)?;
        let [columns] = Self::axes(names[0], xs, &sides, &config)?;
        Self::of(channels, [ONE_ROW, columns], &config)
    }

    /// The axes along which a kernel slides over images, of the sides of the latter and the former.
    fn axes<const N: usize>(
        input: &'static str,
        xs: &[usize],
        [sides, kernel]: &[[usize; N]; 2],
        config: &Conv2dConfig,
    ) -> Result<[Sliding; N]> {
        let &Conv2dConfig {
            stride,
            padding,
            dilation,
            ..
        } = config;
        check_padding(xs[0].saturating_mul(xs[1]), sides, padding)?;
        let mut axes = [ONE_ROW; N];
        for (axis, (&side, &window)) in axes.iter_mut().zip(sides.iter().zip(kernel)) {
            *axis = Sliding::dilated(side, window, stride, padding, dilation)
                .ok_or_else(|| Error::shape(input, xs, image(xs[1], kernel, config)))?;
        }
        Ok(axes)
    }

    fn of(channels: Channels, [rows, columns]: [Sliding; 2], config: &Conv2dConfig) -> Result<Self> {
        let Channels { batch, inputs, outputs } = channels;
        let out = [outputs, rows.out, columns.out];
        let count = out.iter().try_fold(batch, |count, &dim| count.checked_mul(dim));
        check::fits_memory("padding", config.padding, count, size_of::<f32>())?;
        Ok(Self {
            batch,
            groups: config.groups,
            in_channels: inputs / config.groups,
            out_channels: outputs / config.groups,
            rows,
            columns,
            algorithm: config.cudnn_fwd_algo,
        })
    }

    /// Positions of a sample's result.
    pub(super) fn positions(&self) -> usize {
        self.rows.out * self.columns.out
    }

    /// Elements of a channel of a sample.
    pub(super) fn area(&self) -> usize {
        self.rows.side * self.columns.side
    }

    /// Elements of the kernel in each channel.
    pub(super) fn taps(&self) -> usize {
        self.rows.window * self.columns.window
    }

    /// True if the matrix of what the kernel sees is the image itself.
    pub(super) fn is_direct(&self) -> bool {
        let direct = |axis: Sliding| axis.window == 1 && axis.stride == 1 && axis.padding == 0 && axis.side == axis.out;
        direct(self.rows) && direct(self.columns)
    }

    /// Channels of the result.
    pub(super) fn num_outputs(&self) -> usize {
        self.groups * self.out_channels
    }

    /// Elements of the result.
    pub(crate) fn result_len(&self) -> usize {
        self.batch * self.num_outputs() * self.positions()
    }

    /// Shape of the result.
    pub(crate) fn result_dims(&self) -> [usize; 4] {
        [self.batch, self.num_outputs(), self.rows.out, self.columns.out]
    }
}

/// The axis of rows where there is only one.
pub(super) const ONE_ROW: Sliding = Sliding {
    side: 1,
    window: 1,
    stride: 1,
    padding: 0,
    dilation: 1,
    out: 1,
};

/// The samples and channels of a convolution, of all groups.
struct Channels {
    batch: usize,
    inputs: usize,
    outputs: usize,
}

impl Channels {
    /// Of an input and a weight with N axes of positions; and the sides of both along these.
    fn of<const N: usize>(
        [input, name]: [&'static str; 2],
        xs: &[usize],
        weight: &[usize],
        config: &Conv2dConfig,
    ) -> Result<(Self, [[usize; N]; 2])> {
        let &Conv2dConfig {
            stride,
            dilation,
            groups,
            ..
        } = config;
        check_steps(stride, dilation, groups)?;
        let of_weight = match (N, groups) {
            (1, 1) => "[C', C, k], not empty",
            (1, _) => "[C', C / groups, k], not empty",
            (_, 1) => "[C', C, kH, kW], not empty",
            (..) => "[C', C / groups, kH, kW], not empty",
        };
        let ([outputs, inputs], kernel) = split(name, weight, || of_weight.into())?;
        check::divisor("groups", groups, outputs, format!("C' = {outputs}"))?;
        let Some(inputs) = inputs.checked_mul(groups) else {
            return Err(Error::invalid("groups", groups, "a divisor of C"));
        };
        let of_input = || image(inputs, &kernel, config);
        let ([batch, channels], sides) = split(input, xs, of_input)?;
        if channels != inputs {
            return Err(Error::shape(input, xs, of_input()));
        }
        let channels = Self { batch, inputs, outputs };
        Ok((channels, [sides, kernel]))
    }
}

/// Refuses steps that lead nowhere, and channels in no group.
pub(super) fn check_steps(stride: usize, dilation: usize, groups: usize) -> Result<()> {
    for (argument, value) in [("stride", stride), ("dilation", dilation), ("groups", groups)] {
        check::at_least_one(argument, value)?;
    }
    Ok(())
}

/// The first two sides of an input or a weight, which is not empty, and those of its N axes of positions.
pub(super) fn split<const N: usize>(
    argument: &'static str,
    dims: &[usize],
    expected: impl FnOnce() -> String,
) -> Result<([usize; 2], [usize; N])> {
    if let [first, second, ref sides @ ..] = *dims {
        if let (Ok(sides), false) = (sides.try_into(), dims.contains(&0)) {
            return Ok(([first, second], sides));
        }
    }
    Err(Error::shape(argument, dims, expected()))
}

/// The input that a kernel of these sides asks for, in words.
fn image(channels: usize, kernel: &[usize], config: &Conv2dConfig) -> String {
    let &Conv2dConfig { padding, dilation, .. } = config;
    let letters = if kernel.len() == 1 { "L" } else { "H, W" };
    let least = |&window: &usize| {
        let extent = extent(window, dilation).unwrap_or(usize::MAX);
        extent.saturating_sub(padding.saturating_mul(2)).max(1)
    };
    let least: Vec<_> = kernel.iter().map(least).collect();
    if least.iter().all(|&least| least == 1) {
        return format!("[B, {channels}, {letters}], not empty");
    }
    let dilated = match dilation {
        1 => String::new(),
        dilation => format!(", a dilation of {dilation}"),
    };
    format!(
        "[B, {channels}, {letters}], with sides of at least {} for a kernel of {}{dilated} and a padding of {padding}",
        check::sides(&least),
        check::sides(kernel)
    )
}
