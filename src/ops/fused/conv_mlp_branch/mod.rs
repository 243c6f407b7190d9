//! The block of a ConvNeXt (Liu et al. 2022, arXiv 2201.03545) as one operation: a depthwise convolution and an MLP in one
//! residual branch.

mod operation;
mod response;
#[cfg(test)]
mod tests;

use candle_core::{Result, Tensor};
use candle_nn::Conv2dConfig;

use self::operation::Op;
use super::affine::{affines, Affine};
use super::stream::{with_params, Stream};
use super::{packed, residual};
use crate::check;
use crate::error::{Error, Result as OurResult};
use crate::grid::Grid;
use crate::ops::activation::Activation;
use crate::ops::conv2d::{self, channels_last::ChannelsLast, Conv2d};
use crate::ops::route::{in_f32, Route};

/// The parameters of [`conv_mlp_branch`].
#[derive(Clone, Copy, Debug)]
pub struct ConvMlpBranch<'a> {
    /// The depthwise convolution, [C, 1, k, k] and `[C]`, with k odd; k / 2 zeros around the map.
    pub conv: Affine<'a>,
    /// The layer norm over the channels, `[C]`.
    pub norm: Affine<'a>,
    /// Number that the norm adds to the variance.
    pub eps: f64,
    /// The first layer, [H, C].
    pub fc1: Affine<'a>,
    /// Global response normalisation (Woo et al. 2023, arXiv 2301.00808), `[H]`, where there is one.
    pub response: Option<Affine<'a>>,
    /// The second layer, [C, H].
    pub fc2: Affine<'a>,
    /// LayerScale (Touvron et al. 2021, arXiv 2103.17239), `[C]`, where there is one.
    pub gamma: Option<&'a Tensor>,
}

impl<'a> ConvMlpBranch<'a> {
    /// An error unless `xs`, the grid, the parameters and the factors on top fit.
    fn check(&self, xs: &Tensor, grid: Grid, drop_path: Option<&[f32]>) -> OurResult<()> {
        let [_, positions, width] = residual::check(xs, self.gamma, drop_path)?;
        if xs.elem_count() == 0 || positions != grid.len() {
            let expected = format!("[B, {}, C], not empty, for a grid of {grid}", grid.len());
            return Err(Error::shape("xs", xs.dims(), expected));
        }
        match *self.conv.weight.dims() {
            [channels, 1, rows, columns] if channels == width && rows == columns && rows % 2 == 1 => {}
            _ => {
                let expected = format!("[{width}, 1, k, k] with an odd k");
                return Err(Error::shape("conv.weight", self.conv.weight.dims(), expected));
            }
        }
        self.conv.check_factors(["conv.weight", "conv.bias"], xs)?;
        check::vector("conv.bias", self.conv.bias, width)?;
        self.norm.check_norm(width, self.eps, xs)?;
        let hidden = self.fc1.weight.dims().first().copied().unwrap_or_default();
        self.fc1.check(["fc1.weight", "fc1.bias"], hidden, width, xs)?;
        if let Some(response) = self.response {
            for (name, tensor) in [("response.weight", response.weight), ("response.bias", response.bias)] {
                check::same_dtype(name, tensor, "xs", xs)?;
                check::vector(name, tensor, hidden)?;
            }
        }
        self.fc2.check(["fc2.weight", "fc2.bias"], width, hidden, xs)
    }

    /// The parameters: the convolution, the response normalisation, and those of a residual branch.
    fn params(&self) -> Vec<&'a Tensor> {
        let Self { norm, fc1, fc2, .. } = self;
        let ends = [Some(self.conv), self.response, Some(*norm), Some(*fc1), Some(*fc2)];
        let affines = ends.into_iter().flatten();
        affines
            .flat_map(|affine| [affine.weight, affine.bias])
            .chain(self.gamma)
            .collect()
    }

    /// The same with other parameters.
    fn with(self, params: &'a [Tensor]) -> Self {
        let pair = |params: &'a [Tensor]| Affine {
            weight: &params[0],
            bias: &params[1],
        };
        let branch = &params[if self.response.is_some() { 4 } else { 2 }..];
        let [norm, fc1, fc2] = affines(branch);
        Self {
            conv: pair(params),
            response: self.response.map(|_| pair(&params[2..])),
            norm,
            fc1,
            fc2,
            gamma: branch.get(6),
            ..self
        }
    }
}

/// y = x + s γ fc2(response(gelu(fc1(norm(conv(x)))))), with LayerScale γ (1 where there is none) and drop path's factors
/// s; `response` is there in the second version of the ConvNeXt, and γ in the first.
///
/// The global response normalisation of a sample a is a + weight · a · n + bias, where n = |a| / mean |a| tells a channel's
/// norm over all positions, |a|, as a share of the channels' mean.
///
/// The same as the operations one by one, without what they write and read in between, and without a change of layout:
/// the convolution, too, takes the channels of a position together. For the backward two matrices are kept, [B L, C] and
/// [B L, H]. All parameters get gradients.
///
/// # Arguments
///
/// - `xs`: [B, L, C], a map's positions row by row
/// - `grid`: these rows, L positions
/// - `branch`: the parameters
/// - `drop_path`: s, a factor for each of the B samples (stochastic depth), 1 where there is none; where it is 0 the
///   branch of that sample is not computed
///
/// Returns [B, L, C].
///
/// # PyTorch
///
/// timm's `ConvNeXtBlock` (`timm/models/convnext.py`) with `conv_mlp=False`, of maps that are stored so
///
/// # Errors
///
/// If `xs` does not fit the grid or is empty, other shapes do not fit, the kernel is not square or its side is even, dtypes
/// differ or are no floating-point ones, or `eps` is negative or not finite.
///
/// ```
/// use candle_core::{DType, Device, Tensor};
/// use masksub::ops::{conv_mlp_branch, Affine, ConvMlpBranch};
/// use masksub::Grid;
/// let tensor = |shape: &[usize]| Tensor::ones(shape, DType::F32, &Device::Cpu);
/// let (c, h, ch, hc) = (tensor(&[4])?, tensor(&[8])?, tensor(&[4, 8])?, tensor(&[8, 4])?);
/// let branch = ConvMlpBranch {
///     conv: Affine { weight: &tensor(&[4, 1, 7, 7])?, bias: &c },
///     norm: Affine { weight: &c, bias: &c },
///     eps: 1e-6,
///     fc1: Affine { weight: &hc, bias: &h },
///     response: None,
///     fc2: Affine { weight: &ch, bias: &c },
///     gamma: None,
/// };
/// let ys = conv_mlp_branch(&tensor(&[2, 6, 4])?, Grid::new(2, 3), &branch, Some(&[0., 1.]))?;
/// assert_eq!(ys.get(0)?.to_vec2::<f32>()?, [[1.; 4]; 6]);
/// # Ok::<(), candle_core::Error>(())
/// ```
pub fn conv_mlp_branch(xs: &Tensor, grid: Grid, branch: &ConvMlpBranch, drop_path: Option<&[f32]>) -> Result<Tensor> {
    let mut stream = Stream::new(xs);
    stream.conv_mlp_branch(grid, branch, drop_path)?;
    stream.tokens()
}

impl Stream {
    /// [`conv_mlp_branch`] of the tokens, which are the positions of `grid`.
    pub(crate) fn conv_mlp_branch(
        &mut self,
        grid: Grid,
        branch: &ConvMlpBranch,
        drop_path: Option<&[f32]>,
    ) -> Result<()> {
        branch.check(self.start(), grid, drop_path)?;
        routed(self, grid, branch, drop_path)
    }
}

/// [`Stream::conv_mlp_branch`] with arguments that fit.
fn routed(stream: &mut Stream, grid: Grid, branch: &ConvMlpBranch, drop_path: Option<&[f32]>) -> Result<()> {
    let params = branch.params();
    match Route::of(&with_params(stream.start(), &params)) {
        Route::Kernel => {
            let (batch, _, channels) = stream.start().dims3()?;
            let (side, hidden) = (branch.conv.weight.dim(3)?, branch.fc1.weight.dim(0)?);
            let op = packed::branch(batch, drop_path, |share| {
                Ok(Op {
                    conv: ChannelsLast {
                        batch: share.batch,
                        height: grid.height,
                        width: grid.width,
                        channels,
                        side,
                    },
                    hidden,
                    eps: branch.eps as f32,
                    has_response: branch.response.is_some(),
                    drop_path: share.drop_path.map(<[f32]>::to_vec),
                })
            })?;
            stream.push(op, &params)
        }
        Route::InF32 => stream.then(|xs| {
            in_f32(&with_params(xs, &params), |t| {
                let mut stream = Stream::new(&t[0]);
                routed(&mut stream, grid, &branch.with(&t[1..]), drop_path)?;
                stream.tokens()
            })
        }),
        Route::Composition => stream.then(|xs| {
            packed::compose(xs, drop_path, |xs, share| {
                composition(xs, grid, branch, share.drop_path)
            })
        }),
    }
}

/// [`conv_mlp_branch`] of the operations one by one.
pub fn composition(xs: &Tensor, grid: Grid, branch: &ConvMlpBranch, drop_path: Option<&[f32]>) -> Result<Tensor> {
    let (batch, _, channels) = xs.dims3()?;
    let Affine { weight, bias } = branch.conv;
    let maps = xs
        .to_dtype(weight.dtype())?
        .transpose(1, 2)?
        .reshape((batch, channels, grid.height, grid.width))?;
    let config = Conv2dConfig {
        padding: weight.dim(3)? / 2,
        groups: channels,
        ..Default::default()
    };
    let conv = Conv2d::new(["xs", "conv.weight"], maps.dims(), weight.dims(), config)?;
    let ys = conv2d::routed(&maps, weight, Some(bias), conv)?;
    let ys = ys.flatten_from(2)?.transpose(1, 2)?.contiguous()?;
    let ys = branch.norm.layer_norm(&ys, branch.eps)?;
    let ys = branch.fc1.activated(&ys, Activation::Gelu)?;
    let ys = match branch.response {
        Some(response) => response::composition(&ys, response)?,
        None => ys,
    };
    residual::add(xs, branch.fc2.linear(&ys)?, branch.gamma, drop_path)
}
