//! Residual blocks of convolutions (He et al. 2016, arXiv 1512.03385) as one operation.

mod block;
mod operation;

use std::sync::{Arc, OnceLock};

use candle_core::{Result, Tensor};

use self::block::Block;
use self::operation::Op;
use super::affine::Affine;
use super::conv_norm::{ConvNorm, Layer};
use crate::check;
use crate::error::{Error, Result as OurResult};
use crate::ops::add_relu;
use crate::ops::autograd::apply;
use crate::ops::batch_norm::{BatchStatistics, Epilogue};
use crate::ops::route::{to_f32, Route};

/// One of [`residual_blocks`].
#[derive(Clone, Debug)]
pub struct ResidualBlock<'a> {
    /// One after the other, with a ReLU between two of them: two in a ResNet's basic block, three in a bottleneck.
    pub convs: Vec<ConvNorm<'a>>,
    /// The projection of the input, where it has not the shape of what is added to it.
    pub downsample: Option<ConvNorm<'a>>,
    /// s, a factor for each of the B samples (stochastic depth), 1 where there is none.
    pub drop_path: Option<Vec<f32>>,
}

impl<'a> ResidualBlock<'a> {
    /// The convolutions, the projection last.
    fn layers(&self) -> impl Iterator<Item = &ConvNorm<'a>> {
        self.convs.iter().chain(&self.downsample)
    }

    /// Weight, norm's weight and norm's bias of each layer.
    fn params<'s>(&'s self) -> impl Iterator<Item = &'a Tensor> + use<'s, 'a> {
        let of = |layer: &ConvNorm<'a>| [layer.weight, layer.norm.weight, layer.norm.bias];
        self.layers().flat_map(of)
    }

    /// The same with other parameters.
    fn with<'b>(&self, params: &'b [Tensor]) -> ResidualBlock<'b>
    where
        'a: 'b,
    {
        let layers = self.layers().zip(params.chunks_exact(3));
        let mut convs: Vec<_> = layers
            .map(|(layer, params)| ConvNorm {
                weight: &params[0],
                norm: Affine {
                    weight: &params[1],
                    bias: &params[2],
                },
                stride: layer.stride,
                padding: layer.padding,
                eps: layer.eps,
                running: layer.running,
            })
            .collect();
        let downsample = self.downsample.and_then(|_| convs.pop());
        ResidualBlock {
            convs,
            downsample,
            drop_path: self.drop_path.clone(),
        }
    }
}

/// Blocks of a ResNet, one after the other: y = max(identity(x) + s branch(x), 0), with drop path's factors s. The branch is
/// convolutions, each with a batch norm, and a ReLU between them; the identity is x or its projection. The statistics of
/// the batch are returned, too.
///
/// The same as the operations one by one, with less memory: for the backward only the results of the convolutions and
/// of the blocks are kept, until it has used them; normalised values are computed again. All parameters get
/// gradients. (As in PyTorch, parameters must not change between a forward and its backward.)
///
/// # Arguments
///
/// - `xs`: [B, C, H, W]
/// - `blocks`: the parameters, at least one block's
///
/// Returns [B, C', H', W'], and the statistics of each norm, block by block, a projection's after those of the branch;
/// none where the norm does not normalise by them (see [`ConvNorm::running`]). No gradient flows through them.
///
/// # PyTorch
///
/// A bottleneck without a projection:
///
/// ```text
/// ys = F.relu(bn1(F.conv2d(xs, w1)))
/// ys = F.relu(bn2(F.conv2d(ys, w2, stride=stride, padding=1)))
/// F.relu(xs + drop_path(bn3(F.conv2d(ys, w3))))
/// ```
///
/// # Errors
///
/// If there is no block or no convolution in one, shapes do not fit or something is empty, a projection is missing or
/// does not fit, there is not one of `drop_path`'s factors for each sample, a stride is 0, a norm has one value per
/// channel only to normalise by, an `eps` is negative or not finite, or dtypes differ or are no floating-point ones.
///
/// ```
/// use candle_core::{DType, Device, Tensor};
/// use masksub::ops::{residual_blocks, Affine, ConvNorm, ResidualBlock};
/// let tensor = |shape: &[usize]| Tensor::ones(shape, DType::F32, &Device::Cpu);
/// let (weight, zero, one) = (tensor(&[2, 2, 3, 3])?, (tensor(&[2])? * 0.)?, tensor(&[2])?);
/// let conv = ConvNorm {
///     weight: &weight,
///     stride: 1,
///     padding: 1,
///     norm: Affine { weight: &zero, bias: &one },
///     eps: 1e-5,
///     running: None,
/// };
/// let block = ResidualBlock { convs: vec![conv, conv], downsample: None, drop_path: None };
/// let (ys, statistics) = residual_blocks(&tensor(&[1, 2, 4, 4])?, &[block.clone(), block])?;
/// assert_eq!(ys.flatten_all()?.to_vec1::<f32>()?, [3.; 32]);
/// assert_eq!(statistics.len(), 4);
/// # Ok::<(), candle_core::Error>(())
/// ```
pub fn residual_blocks(xs: &Tensor, blocks: &[ResidualBlock]) -> Result<(Tensor, Vec<Option<BatchStatistics>>)> {
    let checked = check(xs, blocks)?;
    routed(xs, blocks, checked)
}

/// [`residual_blocks`] of arguments that fit.
fn routed(
    xs: &Tensor,
    blocks: &[ResidualBlock],
    checked: Vec<Block>,
) -> Result<(Tensor, Vec<Option<BatchStatistics>>)> {
    let params: Vec<_> = blocks.iter().flat_map(ResidualBlock::params).collect();
    let tensors: Vec<_> = [xs].into_iter().chain(params.iter().copied()).collect();
    match Route::of(&tensors) {
        Route::Kernel => {
            let moments = Arc::new(OnceLock::new());
            let layers = checked.iter().flat_map(|block| &block.layers);
            let counts: Vec<_> = layers.map(Layer::count_seen).collect();
            let op = Op {
                blocks: checked,
                moments: moments.clone(),
            };
            let ys = apply(op, xs, &params)?;
            let seen = moments.get().into_iter().flatten().flatten().zip(counts);
            let seen = seen.map(|(moments, count)| count.map(|count| BatchStatistics::of(moments, count)).transpose());
            Ok((ys, seen.collect::<Result<_>>()?))
        }
        Route::InF32 => {
            let wide = to_f32(&tensors)?;
            let blocks = blocks.iter().zip(&checked);
            let blocks: Vec<_> = blocks
                .map(|(block, checked)| block.with(&wide[1 + checked.first_param..]))
                .collect();
            let (ys, seen) = routed(&wide[0], &blocks, checked)?;
            let rounded = |seen: Option<BatchStatistics>| seen.map(|seen| seen.to_dtype(xs.dtype())).transpose();
            let seen = seen.into_iter().map(rounded).collect::<Result<_>>()?;
            Ok((ys.to_dtype(xs.dtype())?, seen))
        }
        Route::Composition => compose(xs, blocks, &checked),
    }
}

/// The geometry of the blocks, once everything fits.
fn check(xs: &Tensor, blocks: &[ResidualBlock]) -> OurResult<Vec<Block>> {
    check::float("xs", xs)?;
    if blocks.is_empty() {
        return Err(Error::invalid("blocks", "empty", "at least one block"));
    }
    let mut dims = xs.dims().to_vec();
    let mut first_param = 0;
    let mut checked = Vec::with_capacity(blocks.len());
    for (index, block) in blocks.iter().enumerate() {
        let block = Block::new(block, index, &dims, first_param, xs)?;
        first_param += 3 * block.layers.len();
        dims = block.result_dims().to_vec();
        checked.push(block);
    }
    Ok(checked)
}

/// [`residual_blocks`] of the operations one by one.
pub fn composition(xs: &Tensor, blocks: &[ResidualBlock]) -> Result<(Tensor, Vec<Option<BatchStatistics>>)> {
    compose(xs, blocks, &check(xs, blocks)?)
}

fn compose(xs: &Tensor, blocks: &[ResidualBlock], checked: &[Block]) -> Result<(Tensor, Vec<Option<BatchStatistics>>)> {
    let mut seen = Vec::new();
    let mut run = |conv: &ConvNorm, layer: &Layer, epilogue, xs: &Tensor| -> Result<Tensor> {
        let (ys, statistics) = conv.compose(layer, epilogue, xs)?;
        seen.push(statistics);
        Ok(ys)
    };
    let mut xs = xs.clone();
    for (block, Block { layers, .. }) in blocks.iter().zip(checked) {
        let mut ys = xs.clone();
        for (i, conv) in block.convs.iter().enumerate() {
            let epilogue = if i + 1 < block.convs.len() {
                Epilogue::Relu
            } else {
                Epilogue::Nothing
            };
            ys = run(conv, &layers[i], epilogue, &ys)?;
        }
        if let Some(factors) = &block.drop_path {
            let factors = Tensor::from_slice(factors, (factors.len(), 1, 1, 1), xs.device())?;
            ys = ys.broadcast_mul(&factors.to_dtype(xs.dtype())?)?;
        }
        let identity = match &block.downsample {
            Some(downsample) => run(downsample, &layers[block.convs.len()], Epilogue::Nothing, &xs)?,
            None => xs,
        };
        xs = add_relu::routed(&ys, &identity)?;
    }
    Ok((xs, seen))
}

#[cfg(test)]
mod tests;
