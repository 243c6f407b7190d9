//! Residual blocks of convolutions (He et al. 2016, arXiv 1512.03385) as one operation.

use std::sync::{Arc, OnceLock};

use candle_core::{CpuStorage, CustomOp2, DType, Layout, Result, Shape, Tensor};

use super::conv_norm::{Bound, ConvNorm, Layer, Names, Sink};
use super::residual::Affine;
use crate::check;
use crate::error::{Error, Result as OurResult};
use crate::ops::add_relu::add_relu;
use crate::ops::autograd::deliver::Deliveries;
use crate::ops::batch_norm::{BatchStatistics, Then};
use crate::ops::cpu::buffer::{Buffer, Kept};
use crate::ops::cpu::channels::{through_relu, Moments, Upstream};
use crate::ops::cpu::kernel::{self, Elements};
use crate::ops::cpu::write::Write;
use crate::ops::route;

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

/// For one block after the other: y = max(identity(x) + s branch(x), 0), where the branch is convolutions with a batch norm
/// behind each and a ReLU between two, and the identity x itself or its projection; and what the batch norms saw.
///
/// The same as the operations one by one, with less memory: for the backward only the results of the convolutions and of
/// the blocks are kept, until it has used them; normalised values are computed again. Gradients of all parameters arrive
/// as ever. (As in PyTorch, parameters must not change between a forward and its backward.)
///
/// # Arguments
///
/// - `xs`: [B, C, H, W]
/// - `blocks`: the parameters, at least one block's
///
/// Returns [B, C', H', W'], and the statistics of each norm, block by block, a projection's after those of the branch; none
/// where the norm does not normalise by them (see [`ConvNorm::running`]). No gradient flows through them.
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
/// If there is no block or no convolution in one, shapes do not fit or something is empty, a projection is missing or does
/// not fit, there is not one of `drop_path`'s factors for each sample, a stride is 0, a norm has one value per channel only
/// to normalise by, an `eps` is negative or not finite, or dtypes differ or are no floating-point ones.
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
    let params: Vec<_> = blocks.iter().flat_map(ResidualBlock::params).collect();
    if xs.device().is_cpu() && route::is_half(xs) {
        // As in the other operations, rounded once at the end.
        let dtype = xs.dtype();
        let wide = |t: &&Tensor| t.to_dtype(DType::F32);
        let params = params.iter().map(wide).collect::<Result<Vec<_>>>()?;
        let blocks = blocks.iter().zip(&checked);
        let blocks: Vec<_> = blocks
            .map(|(block, checked)| block.with(&params[checked.first_param..]))
            .collect();
        let (ys, seen) = residual_blocks(&wide(&xs)?, &blocks)?;
        let seen = seen
            .into_iter()
            .map(|seen| seen.map(|seen| seen.to_dtype(dtype)).transpose());
        let seen = seen.collect::<Result<_>>()?;
        return Ok((ys.to_dtype(dtype)?, seen));
    }
    if !route::on_cpu_f32(&params) || !route::on_cpu_f32(&[xs]) {
        return composition(xs, blocks);
    }
    let (ticket, params) = Deliveries::new(&params)?;
    let moments = Arc::new(OnceLock::new());
    let layers = checked.iter().flat_map(|block| &block.layers);
    let counts: Vec<_> = layers.map(Layer::count_seen).collect();
    let op = Op {
        blocks: checked,
        keep: xs.track_op() || ticket.track_op(),
        params,
        moments: moments.clone(),
        kept: Kept::default(),
    };
    let ys = xs.contiguous()?.apply_op2(&ticket, op)?;
    let seen = moments.get().into_iter().flatten().flatten().zip(counts);
    let seen = seen.map(|(moments, count)| count.map(|count| BatchStatistics::of(moments, count)).transpose());
    Ok((ys, seen.collect::<Result<_>>()?))
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
    for block in blocks {
        let block = Block::new(block, &dims, first_param, xs)?;
        first_param += 3 * block.layers.len();
        dims = block.result_dims().to_vec();
        checked.push(block);
    }
    Ok(checked)
}

/// [`residual_blocks`] of the operations one by one.
pub fn composition(xs: &Tensor, blocks: &[ResidualBlock]) -> Result<(Tensor, Vec<Option<BatchStatistics>>)> {
    let mut seen = Vec::new();
    let mut layer = |layer: &ConvNorm, then, xs: &Tensor| -> Result<Tensor> {
        let (ys, statistics) = layer.composition(then, xs)?;
        seen.push(statistics);
        Ok(ys)
    };
    let mut xs = xs.clone();
    for block in blocks {
        let mut ys = xs.clone();
        for (i, conv) in block.convs.iter().enumerate() {
            let then = match i + 1 < block.convs.len() {
                true => Then::Relu,
                false => Then::Nothing,
            };
            ys = layer(conv, then, &ys)?;
        }
        if let Some(factors) = &block.drop_path {
            let factors = Tensor::from_slice(factors, (factors.len(), 1, 1, 1), xs.device())?;
            ys = ys.broadcast_mul(&factors.to_dtype(xs.dtype())?)?;
        }
        let identity = match &block.downsample {
            Some(downsample) => layer(downsample, Then::Nothing, &xs)?,
            None => xs,
        };
        xs = add_relu(&ys, &identity)?;
    }
    Ok((xs, seen))
}

/// A block without its parameters.
struct Block {
    /// The convolutions, the projection last.
    layers: Vec<Layer>,
    has_downsample: bool,
    drop_path: Option<Vec<f32>>,
    /// Where its parameters begin, of which each layer has three.
    first_param: usize,
}

impl Block {
    fn new(block: &ResidualBlock, xs: &[usize], first_param: usize, like: &Tensor) -> OurResult<Self> {
        if block.convs.is_empty() {
            return Err(Error::invalid("convs", "empty", "at least one convolution"));
        }
        let mut layers = Vec::with_capacity(block.convs.len() + 1);
        let mut dims = xs.to_vec();
        for conv in &block.convs {
            let input = match layers.is_empty() && first_param == 0 {
                true => "xs",
                false => "the input of a later convolution",
            };
            let names = Names {
                input,
                weight: "convs.weight",
                norm: ["convs.norm.weight", "convs.norm.bias"],
                running: ["convs.running.mean", "convs.running.var"],
            };
            let layer = Layer::new(&names, conv, &dims, like)?;
            dims = layer.conv.result_dims().to_vec();
            layers.push(layer);
        }
        let identity = match &block.downsample {
            None => xs.to_vec(),
            Some(conv) => {
                let input = if first_param == 0 {
                    "xs"
                } else {
                    "the input of a downsample"
                };
                let names = Names {
                    input,
                    weight: "downsample.weight",
                    norm: ["downsample.norm.weight", "downsample.norm.bias"],
                    running: ["downsample.running.mean", "downsample.running.var"],
                };
                let layer = Layer::new(&names, conv, xs, like)?;
                let dims = layer.conv.result_dims().to_vec();
                layers.push(layer);
                dims
            }
        };
        if identity != dims {
            let allowed = format!("so that it is {dims:?}, as what is added to it");
            return Err(Error::invalid("downsample", format!("one to {identity:?}"), allowed));
        }
        check::drop_path(block.drop_path.as_deref(), dims[0])?;
        Ok(Self {
            layers,
            has_downsample: block.downsample.is_some(),
            drop_path: block.drop_path.clone(),
            first_param,
        })
    }

    fn result_dims(&self) -> [usize; 4] {
        let last = self.layers.len() - 1 - usize::from(self.has_downsample);
        self.layers[last].conv.result_dims()
    }

    /// With its parameters out of those of all blocks.
    fn bind<'a>(&'a self, params: &'a [Elements]) -> Result<BoundBlock<'a>> {
        let layers = self.layers.iter().zip(params[self.first_param..].chunks_exact(3));
        let branch = layers.map(|(layer, params)| layer.bind(params));
        let mut branch = branch.collect::<Result<Vec<_>>>()?;
        let downsample = if self.has_downsample { branch.pop() } else { None };
        Ok(BoundBlock {
            branch,
            downsample,
            drop_path: self.drop_path.as_deref(),
            first_param: self.first_param,
        })
    }
}

/// A block and the elements of its parameters.
struct BoundBlock<'a> {
    branch: Vec<Bound<'a>>,
    downsample: Option<Bound<'a>>,
    drop_path: Option<&'a [f32]>,
    first_param: usize,
}

/// The moments of each layer's result.
type BlockMoments = Vec<Vec<Moments>>;

impl BoundBlock<'_> {
    /// What the convolutions give, the last one alone unless all are to be kept, and the moments that their norms normalise
    /// by: those `given`, or else the running statistics or what they see. Writes the block's result to `ys`, if there is a
    /// place for it.
    fn forward(
        &self,
        xs: &[f32],
        given: Option<&BlockMoments>,
        keep: bool,
        ys: Option<&mut [f32]>,
    ) -> (Results, BlockMoments) {
        let given = |i: usize| given.map(|given| &given[i][..]);
        let (mut results, mut moments) = (Vec::new(), Vec::new());
        let mut active: Option<Buffer> = None;
        let last = self.branch.len() - 1;
        for (i, layer) in self.branch.iter().enumerate() {
            let result = layer.convolve(active.as_deref().unwrap_or(xs));
            if i < last {
                let (next, seen) = layer.activate(&result, given(i));
                active = Some(next);
                moments.push(seen);
                if !keep {
                    continue;
                }
            }
            results.push(result);
        }
        drop(active);
        let projection = self.downsample.as_ref().map(|layer| layer.convolve(xs));
        if let Some(ys) = ys {
            let of_projection = self.downsample.as_ref().zip(projection.as_ref());
            let of_projection = of_projection.map(|(layer, result)| {
                let given = layer.moments(given(last + 1));
                layer.norm.forward(result, given, f32::NEG_INFINITY, ys)
            });
            if of_projection.is_none() {
                kernel::for_rows(ys, 1, |first, ys| ys.copy_from_slice(&xs[first..][..ys.len()]));
            }
            let layer = &self.branch[last];
            let given = layer.moments(given(last));
            let result = results.last().map_or(&[][..], |result| result);
            moments.push(layer.norm.forward_onto(result, given, self.drop_path, ys));
            moments.extend(of_projection);
        }
        let results = Results {
            branch: results,
            projection,
        };
        (results, moments)
    }

    /// Writes the gradients of the input to `dxs`, where they are asked for, and leaves those of the parameters in `sink`. Of
    /// `results`, what the convolutions gave, each is let go when nothing needs it any more.
    fn backward(
        &self,
        [xs, ys, grads]: [&[f32]; 3],
        results: Results,
        moments: &BlockMoments,
        mut dxs: Option<&mut [f32]>,
        sink: &mut Sink,
    ) -> Result<()> {
        let upstream = Upstream {
            grads: Some(grads),
            relu: Some(ys),
            factors: None,
        };
        let first = |layer: usize| self.first_param + 3 * layer;
        match self.downsample.as_ref().zip(results.projection) {
            None => {
                if let Some(dxs) = &mut dxs {
                    through_relu(ys, grads, dxs);
                }
            }
            Some((layer, result)) => {
                let i = self.branch.len();
                let mut grads = Buffer::new(result.len());
                sink.layer(first(i), layer, [xs, &result], &moments[i], upstream, &mut grads)?;
                drop(result);
                if let Some(dxs) = &mut dxs {
                    layer.conv.backward_xs(layer.weight, &grads, dxs, Write::Replace);
                }
            }
        }
        let mut upstream = Upstream {
            factors: self.drop_path,
            ..upstream
        };
        let mut grads = Buffer::new(ys.len());
        let mut active: Buffer;
        let mut results = results.branch;
        // From the last one down to the first, whose input is the block's.
        while let Some(result) = results.pop() {
            let i = results.len();
            let layer = &self.branch[i];
            let Some(before) = results.last() else {
                sink.layer(first(i), layer, [xs, &result], &moments[i], upstream, &mut grads)?;
                drop(result);
                if let Some(dxs) = &mut dxs {
                    // The identity's are there.
                    layer.conv.backward_xs(layer.weight, &grads, dxs, Write::Add);
                }
                break;
            };
            let (seen, _) = self.branch[i - 1].activate(before, Some(&moments[i - 1]));
            sink.layer(first(i), layer, [&seen, &result], &moments[i], upstream, &mut grads)?;
            drop(result);
            let mut below = Buffer::new(seen.len());
            layer.conv.backward_xs(layer.weight, &grads, &mut below, Write::Replace);
            grads = below;
            active = seen;
            upstream = Upstream {
                grads: None,
                relu: Some(&active),
                factors: None,
            };
        }
        Ok(())
    }
}

struct Op {
    blocks: Vec<Block>,
    params: Deliveries,
    /// Whether there will be a backward.
    keep: bool,
    /// Of each block.
    moments: Arc<OnceLock<Vec<BlockMoments>>>,
    kept: Kept<Vec<KeptBlock>>,
}

/// What the convolutions of a block gave.
struct Results {
    branch: Vec<Buffer>,
    projection: Option<Buffer>,
}

struct KeptBlock {
    results: Results,
    /// Its own result, unless it is the last one.
    ys: Option<Buffer>,
}

impl Op {
    fn with_blocks<T>(&self, f: impl FnOnce(&[BoundBlock]) -> Result<T>) -> Result<T> {
        let params: Vec<_> = self.params.params().iter().map(Elements::of).collect::<Result<_>>()?;
        let blocks = self.blocks.iter().map(|block| block.bind(&params));
        let blocks = blocks.collect::<Result<Vec<_>>>()?;
        f(&blocks)
    }

    /// What there is to keep, and the moments: those `given`, or else what the blocks give. Writes the last block's result to
    /// `last`, if there is a place for it.
    fn forward(
        &self,
        xs: &[f32],
        blocks: &[BoundBlock],
        given: Option<&[BlockMoments]>,
        mut last: Option<&mut [f32]>,
    ) -> (Vec<KeptBlock>, Vec<BlockMoments>) {
        let mut kept: Vec<KeptBlock> = Vec::new();
        let mut moments = Vec::new();
        for (i, block) in blocks.iter().enumerate() {
            let xs = kept.last().and_then(|before| before.ys.as_deref()).unwrap_or(xs);
            let given = given.map(|given| &given[i]);
            let mut ys = (i + 1 < blocks.len()).then(|| Buffer::new(self.blocks[i].result_dims().iter().product()));
            let place = ys.as_deref_mut().or_else(|| last.take());
            let (results, seen) = block.forward(xs, given, self.keep, place);
            moments.push(seen);
            if !self.keep {
                kept.clear();
            }
            kept.push(KeptBlock { results, ys });
        }
        (kept, moments)
    }

    /// The gradients of the input, where `wants_dxs`, and those of the parameters.
    fn backward(
        &self,
        node: &Tensor,
        [xs, ys, grads]: [&[f32]; 3],
        wants_dxs: bool,
        blocks: &[BoundBlock],
    ) -> Result<(Vec<f32>, Vec<Option<Tensor>>)> {
        let Some(moments) = self.moments.get() else {
            candle_core::bail!("the backward of masksub's residual blocks was called before its forward");
        };
        let again = || self.forward(xs, blocks, Some(moments), None).0;
        let mut kept = self.kept.take().unwrap_or_else(again);
        let mut sink = Sink::new(&self.params, node);
        let mut dxs = vec![0f32; if wants_dxs { xs.len() } else { 0 }];
        let mut above: Option<Buffer> = None;
        while let Some(KeptBlock { results, ys: own }) = kept.pop() {
            let i = kept.len();
            let (ys, grads) = match (&own, &above) {
                (Some(own), Some(grads)) => (&own[..], &grads[..]),
                _ => (ys, grads),
            };
            let below = kept.last().and_then(|below| below.ys.as_deref());
            let mut next = below.map(|below| Buffer::new(below.len()));
            let into = match &mut next {
                Some(next) => Some(&mut next[..]),
                None => wants_dxs.then_some(&mut dxs[..]),
            };
            let slices = [below.unwrap_or(xs), ys, grads];
            blocks[i].backward(slices, results, &moments[i], into, &mut sink)?;
            above = next;
        }
        Ok((dxs, sink.gradients))
    }
}

impl CustomOp2 for Op {
    fn name(&self) -> &'static str {
        "residual-blocks"
    }

    fn cpu_fwd(&self, s1: &CpuStorage, l1: &Layout, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        let xs = kernel::elements(s1, l1)?;
        let Some(last) = self.blocks.last() else {
            candle_core::bail!("there are no residual blocks");
        };
        let dims = last.result_dims();
        let mut ys = vec![0f32; dims.iter().product()];
        let (kept, moments) = self.with_blocks(|blocks| Ok(self.forward(xs, blocks, None, Some(&mut ys))))?;
        self.moments.get_or_init(|| moments);
        if self.keep {
            self.kept.keep(kept);
        }
        Ok((CpuStorage::F32(ys), Shape::from(&dims)))
    }

    fn bwd(
        &self,
        xs: &Tensor,
        ticket: &Tensor,
        node: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let grad = grad.contiguous()?;
        let (x, y, g) = (Elements::of(xs)?, Elements::of(node)?, Elements::of(&grad)?);
        let (dxs, gradients) = self.with_blocks(|blocks| self.backward(node, [&x, &y, &g], xs.track_op(), blocks))?;
        self.params.give(ticket, gradients, dxs, xs)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::{check as check_op, check_derivative, random, relative, rng};
    use crate::ops::RunningStatistics;
    use candle_core::Device;
    use rand::Rng as _;

    /// A block's geometry: channels, side of the kernel, stride and padding of each convolution.
    struct Sizes {
        xs: [usize; 4],
        convs: Vec<[usize; 4]>,
        downsample: Option<[usize; 4]>,
    }

    impl Sizes {
        fn layers(&self) -> Vec<[usize; 4]> {
            self.convs.iter().copied().chain(self.downsample).collect()
        }

        /// Of the input and of all parameters.
        fn shapes(&self) -> Vec<Vec<usize>> {
            let mut shapes = vec![self.xs.to_vec()];
            let mut inputs = self.xs[1];
            for (i, [channels, side, ..]) in self.layers().into_iter().enumerate() {
                if i == self.convs.len() {
                    inputs = self.xs[1];
                }
                shapes.extend([vec![channels, inputs, side, side], vec![channels], vec![channels]]);
                inputs = channels;
            }
            shapes
        }

        fn block<'a>(&self, params: &'a [Tensor]) -> ResidualBlock<'a> {
            let layers = self.layers().into_iter().zip(params.chunks_exact(3));
            let mut convs: Vec<_> = layers
                .map(|([_, _, stride, padding], params)| ConvNorm {
                    weight: &params[0],
                    stride,
                    padding,
                    norm: Affine {
                        weight: &params[1],
                        bias: &params[2],
                    },
                    eps: 1e-2,
                    running: None,
                })
                .collect();
            let downsample = self.downsample.and_then(|_| convs.pop());
            ResidualBlock {
                convs,
                downsample,
                drop_path: None,
            }
        }

        fn dropping<'a>(&self, drop_path: Option<&[f32]>, params: &'a [Tensor]) -> ResidualBlock<'a> {
            let drop_path = drop_path.map(<[f32]>::to_vec);
            ResidualBlock {
                drop_path,
                ..self.block(params)
            }
        }

        fn check(&self, drop_path: Option<&[f32]>, seed: u64) {
            let shapes = self.shapes();
            let shapes: Vec<_> = shapes.iter().map(Vec::as_slice).collect();
            let kernel = |args: &[Tensor]| Ok(residual_blocks(&args[0], &[self.dropping(drop_path, &args[1..])])?.0);
            let reference = |args: &[Tensor]| Ok(composition(&args[0], &[self.dropping(drop_path, &args[1..])])?.0);
            check_op(&kernel, &reference, &shapes, seed);
        }
    }

    fn basic(xs: [usize; 4]) -> Sizes {
        Sizes {
            xs,
            convs: vec![[xs[1], 3, 1, 1]; 2],
            downsample: None,
        }
    }

    fn bottleneck(xs: [usize; 4], width: usize, channels: usize, stride: usize) -> Sizes {
        Sizes {
            xs,
            convs: vec![[width, 1, 1, 0], [width, 3, stride, 1], [channels, 1, 1, 0]],
            downsample: Some([channels, 1, stride, 0]),
        }
    }

    #[test]
    fn equals_its_composition() {
        let mut rng = rng(14);
        for seed in 0..3 {
            let mut size = |most| rng.random_range(1..=most);
            basic([size(3), size(6), 2 + size(6), 2 + size(6)]).check(None, seed);
            let (batch, stride) = (size(3), size(2));
            let factors: Vec<f32> = (0..batch).map(|i| [0.5, 0., 2.][i % 3]).collect();
            let xs = [batch, size(5), 3 + size(6), 3 + size(6)];
            bottleneck(xs, size(6), size(9), stride).check(Some(&factors), seed);
        }
    }

    /// With norms in evaluation: all, or those of a few layers, which are then frozen in training.
    #[test]
    fn equals_its_composition_with_running_statistics() {
        let mut rng = rng(15);
        let statistics: Vec<_> = (0..4u64)
            .map(|layer| [random(&[9], layer), random(&[9], 20 + layer).sqr().unwrap()])
            .collect();
        for (seed, frozen) in (0..).zip([[true; 4], [true, false, true, false], [false, true, false, true]]) {
            let mut size = |most| rng.random_range(1..=most);
            let (batch, stride) = (1 + size(2), size(2));
            let sizes = bottleneck([batch, size(5), 3 + size(6), 3 + size(6)], 9, 9, stride);
            let factors: Vec<f32> = (0..batch).map(|i| [0.5, 0., 2.][i % 3]).collect();
            fn block<'a>(
                sizes: &Sizes,
                factors: &[f32],
                params: &'a [Tensor],
                running: &'a [Option<[Tensor; 2]>],
            ) -> [ResidualBlock<'a>; 1] {
                [frozen_at(sizes.dropping(Some(factors), params), running)]
            }
            let running: Vec<_> = statistics
                .iter()
                .zip(frozen)
                .map(|(statistics, frozen)| frozen.then(|| statistics.clone()))
                .collect();
            let shapes = sizes.shapes();
            let shapes: Vec<_> = shapes.iter().map(Vec::as_slice).collect();
            let kernel = |args: &[Tensor]| residual_blocks(&args[0], &block(&sizes, &factors, &args[1..], &running));
            let reference = |args: &[Tensor]| composition(&args[0], &block(&sizes, &factors, &args[1..], &running));
            check_op(
                &|args| Ok(kernel(args)?.0),
                &|args| Ok(reference(args)?.0),
                &shapes,
                seed,
            );
            let args = tensors(&sizes, DType::F32);
            let [(_, seen), (_, expected)] = [kernel(&args).unwrap(), reference(&args).unwrap()];
            assert_eq!((seen.len(), expected.len()), (4, 4));
            for ((seen, expected), frozen) in seen.iter().zip(&expected).zip(frozen) {
                assert_eq!((seen.is_none(), expected.is_none()), (frozen, frozen));
                if let (Some(seen), Some(expected)) = (seen, expected) {
                    assert!(relative(&seen.mean, &expected.mean) < 1e-5);
                    assert!(relative(&seen.unbiased_var, &expected.unbiased_var) < 1e-5);
                }
            }
        }
    }

    /// The layers that have statistics (mean and variance) normalise by them.
    fn frozen_at<'a>(mut block: ResidualBlock<'a>, running: &'a [Option<[Tensor; 2]>]) -> ResidualBlock<'a> {
        for (layer, running) in block.convs.iter_mut().chain(&mut block.downsample).zip(running) {
            layer.running = running.as_ref().map(|[mean, var]| RunningStatistics { mean, var });
        }
        block
    }

    /// They are no parameters, though a batch norm keeps them in variables.
    #[test]
    fn running_statistics_get_no_gradient() {
        let sizes = bottleneck([2, 3, 5, 5], 6, 6, 1);
        for dtype in [DType::F32, DType::F64, DType::BF16] {
            let var = |seed| candle_core::Var::from_tensor(&random(&[6], seed).sqr().unwrap().to_dtype(dtype).unwrap());
            let vars = [var(0).unwrap(), var(1).unwrap()];
            let running = vec![Some(vars.each_ref().map(|var| var.as_tensor().clone())); 4];
            let mut args = tensors(&sizes, dtype);
            args[1] = candle_core::Var::from_tensor(&args[1]).unwrap().as_tensor().clone();
            let block = frozen_at(sizes.block(&args[1..]), &running);
            let (ys, _) = residual_blocks(&args[0], &[block]).unwrap();
            let grads = ys.sum_all().unwrap().backward().unwrap();
            assert!(grads.get(&args[1]).is_some());
            assert!(vars.iter().all(|var| grads.get(var).is_none()), "{dtype:?}");
        }
    }

    #[test]
    fn equals_its_composition_at_the_edges() {
        // One convolution; one position; many pieces of work.
        let single = Sizes {
            xs: [2, 3, 4, 5],
            convs: vec![[3, 1, 1, 0]],
            downsample: None,
        };
        single.check(None, 0);
        // (Of few values a ReLU may let all through, and a bias before a norm then has no gradient but rounding.)
        bottleneck([23, 3, 1, 1], 2, 4, 1).check(None, 1);
        bottleneck([2, 8, 40, 33], 9, 16, 2).check(Some(&[0.7, 1.1]), 2);
        basic([3, 17, 20, 31]).check(None, 3);
    }

    /// Blocks one after the other, whose results are kept, are those one by one.
    #[test]
    fn several_blocks_are_one_after_the_other() {
        // Of one convolution each, so that errors of rounding do not add up.
        let single = |xs, stride, downsample| Sizes {
            xs,
            convs: vec![[5, 3, stride, 1]],
            downsample,
        };
        let same = || single([2, 5, 5, 4], 1, None);
        let sizes = [single([2, 3, 9, 8], 2, Some([5, 1, 2, 0])), same(), same()];
        let mut shapes = vec![sizes[0].xs.to_vec()];
        shapes.extend(sizes.iter().flat_map(|sizes| sizes.shapes().into_iter().skip(1)));
        let shapes: Vec<_> = shapes.iter().map(Vec::as_slice).collect();
        fn blocks<'a>(sizes: &[Sizes], mut params: &'a [Tensor]) -> Vec<ResidualBlock<'a>> {
            let mut blocks = Vec::new();
            for sizes in sizes {
                let (mine, others) = params.split_at(3 * sizes.layers().len());
                blocks.push(sizes.dropping(Some(&[0.5, 2.]), mine));
                params = others;
            }
            blocks
        }
        let kernel = |args: &[Tensor]| Ok(residual_blocks(&args[0], &blocks(&sizes, &args[1..]))?.0);
        let reference = |args: &[Tensor]| Ok(composition(&args[0], &blocks(&sizes, &args[1..]))?.0);
        check_op(&kernel, &reference, &shapes, 5);
    }

    /// A stage of a ResNet-50 in small: numbers and gradients are those of its blocks run apart, to the bit.
    #[test]
    fn a_stage_is_its_blocks_one_after_the_other() {
        check_stage(|_| false);
        check_stage(|_| true);
        check_stage(|layer| layer % 3 == 1);
    }

    /// With running statistics in some of the layers.
    fn check_stage(is_frozen: impl Fn(usize) -> bool) {
        let same = || Sizes {
            downsample: None,
            ..bottleneck([3, 8, 5, 4], 2, 8, 1)
        };
        let sizes = [bottleneck([3, 4, 9, 8], 2, 8, 2), same(), same()];
        let factors = [[0., 2., 0.5], [1., 0., 3.], [2., 2., 0.]];
        let shapes = sizes.iter().flat_map(|sizes| sizes.shapes().into_iter().skip(1));
        let shapes: Vec<_> = [sizes[0].xs.to_vec()].into_iter().chain(shapes).collect();
        let vars = |seed: u64| {
            let tensor = |shape: &Vec<usize>, i| random(shape, seed + i).to_dtype(DType::F32).unwrap();
            let vars = shapes
                .iter()
                .zip(0..)
                .map(|(shape, i)| candle_core::Var::from_tensor(&tensor(shape, i)));
            vars.collect::<Result<Vec<_>>>().unwrap()
        };
        let vars = vars(70);
        let args: Vec<_> = vars.iter().map(|var| var.as_tensor().clone()).collect();
        let channels = args[1..].chunks_exact(3).map(|params| params[1].dims());
        let running: Vec<_> = channels
            .enumerate()
            .map(|(layer, c)| {
                is_frozen(layer).then(|| [random(c, layer as u64), random(c, 30 + layer as u64).sqr().unwrap()])
            })
            .collect();
        let (mut rest, mut rest_running) = (&args[1..], &running[..]);
        let blocks: Vec<_> = sizes
            .iter()
            .zip(&factors)
            .map(|(sizes, factors)| {
                let layers = sizes.layers().len();
                let (mine, running);
                (mine, rest) = rest.split_at(3 * layers);
                (running, rest_running) = rest_running.split_at(layers);
                frozen_at(sizes.dropping(Some(factors), mine), running)
            })
            .collect();
        let (together, seen) = residual_blocks(&args[0], &blocks).unwrap();
        let mut apart = args[0].clone();
        let mut seen_apart = vec![];
        for block in &blocks {
            let (ys, seen) = residual_blocks(&apart, std::slice::from_ref(block)).unwrap();
            apart = ys;
            seen_apart.extend(seen);
        }
        let bits = |t: &Tensor| t.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        assert_eq!(bits(&together), bits(&apart));
        assert_eq!((seen.len(), seen_apart.len()), (10, 10));
        let all_bits = |seen: &Option<BatchStatistics>| {
            let BatchStatistics { mean, unbiased_var } = seen.as_ref()?;
            Some([bits(mean), bits(unbiased_var)])
        };
        for (layer, (a, b)) in seen.iter().zip(&seen_apart).enumerate() {
            assert_eq!(all_bits(a), all_bits(b));
            assert_eq!(a.is_none(), is_frozen(layer));
        }
        let upstream = random(together.dims(), 3).to_dtype(DType::F32).unwrap();
        let [together, apart] = [together, apart].map(|ys| (ys * &upstream).unwrap().sum_all().unwrap().backward());
        let (together, apart) = (together.unwrap(), apart.unwrap());
        for (i, var) in vars.iter().enumerate() {
            assert_eq!(
                bits(together.get(var).unwrap()),
                bits(apart.get(var).unwrap()),
                "input {i}"
            );
        }
    }

    #[test]
    fn composition_has_the_right_derivative() {
        for (sizes, seed) in [(basic([2, 2, 3, 3]), 0), (bottleneck([2, 2, 4, 3], 2, 3, 2), 1)] {
            let shapes = sizes.shapes();
            let shapes: Vec<_> = shapes.iter().map(Vec::as_slice).collect();
            let reference = |args: &[Tensor]| Ok(composition(&args[0], &[sizes.block(&args[1..])])?.0);
            check_derivative(&reference, &shapes, seed);
        }
    }

    fn tensors(sizes: &Sizes, dtype: DType) -> Vec<Tensor> {
        let shapes = sizes.shapes().into_iter().zip(0..);
        shapes
            .map(|(shape, seed)| random(&shape, seed).to_dtype(dtype).unwrap())
            .collect()
    }

    #[test]
    fn statistics_are_those_of_the_norms() {
        let sizes = bottleneck([3, 4, 6, 5], 3, 5, 2);
        let (single, wide) = (tensors(&sizes, DType::F32), tensors(&sizes, DType::F64));
        let (_, expected) = composition(&wide[0], &[sizes.block(&wide[1..])]).unwrap();
        let (_, seen) = residual_blocks(&single[0], &[sizes.block(&single[1..])]).unwrap();
        assert_eq!((seen.len(), expected.len()), (4, 4));
        for (seen, expected) in seen.iter().zip(&expected) {
            let (seen, expected) = (seen.as_ref().unwrap(), expected.as_ref().unwrap());
            assert!(relative(&seen.mean, &expected.mean) < 1e-6);
            assert!(relative(&seen.unbiased_var, &expected.unbiased_var) < 1e-6);
            assert!(!seen.mean.track_op() && !seen.unbiased_var.track_op());
        }
        let half = tensors(&sizes, DType::BF16);
        let (ys, seen) = residual_blocks(&half[0], &[sizes.block(&half[1..])]).unwrap();
        assert!(ys.dtype() == DType::BF16 && seen[3].as_ref().unwrap().mean.dtype() == DType::BF16);
    }

    #[test]
    fn frozen_and_trained_parameters_give_the_same() {
        let sizes = bottleneck([2, 3, 5, 5], 4, 6, 1);
        let args = tensors(&sizes, DType::F32);
        let mut trained = args.clone();
        for i in [1, 5, 11] {
            trained[i] = candle_core::Var::from_tensor(&args[i]).unwrap().as_tensor().clone();
        }
        let values = |args: &[Tensor]| {
            let (ys, _) = residual_blocks(&args[0], &[sizes.block(&args[1..])]).unwrap();
            ys.flatten_all().unwrap().to_vec1::<f32>().unwrap()
        };
        assert_eq!(values(&args), values(&trained));
        let (ys, _) = residual_blocks(&trained[0], &[sizes.block(&trained[1..])]).unwrap();
        let grads = ys.sum_all().unwrap().backward().unwrap();
        let found: Vec<_> = (0..trained.len())
            .filter(|&i| grads.get(&trained[i]).is_some())
            .collect();
        assert_eq!(found, [1, 5, 11]);
    }

    #[test]
    fn errors_name_the_argument() {
        let sizes = bottleneck([2, 3, 5, 5], 4, 6, 2);
        let message = |change: &dyn Fn(&mut Vec<Tensor>, &mut Sizes)| {
            let mut args = tensors(&sizes, DType::F32);
            let mut sizes = bottleneck([2, 3, 5, 5], 4, 6, 2);
            change(&mut args, &mut sizes);
            let drop_path = (sizes.xs[0] == 0).then(|| vec![1.; 3]);
            let block = ResidualBlock {
                drop_path,
                ..sizes.block(&args[1..])
            };
            residual_blocks(&args[0], &[block]).unwrap_err().to_string()
        };
        let tensor = |shape: &[usize]| random(shape, 0).to_dtype(DType::F32).unwrap();
        assert_eq!(
            message(&|args, _| args[0] = tensor(&[2, 3, 5])),
            "xs has shape [2, 3, 5], but must be [B, 3, H, W], not empty"
        );
        assert_eq!(
            message(&|args, _| args[4] = tensor(&[4, 3, 3, 3])),
            "convs.weight has shape [4, 3, 3, 3], but must be [C', 4, k, k]"
        );
        assert_eq!(
            message(&|args, _| args[8] = tensor(&[5])),
            "convs.norm.weight has shape [5], but must be [6]"
        );
        assert_eq!(
            message(&|args, _| args[12] = tensor(&[5])),
            "downsample.norm.bias has shape [5], but must be [6]"
        );
        assert_eq!(
            message(&|args, _| args[10] = args[10].to_dtype(DType::F64).unwrap()),
            "downsample.weight has dtype F64, but must be F32 like xs"
        );
        assert_eq!(
            message(&|_, sizes| sizes.downsample = None),
            "downsample is one to [2, 3, 5, 5], but must be so that it is [2, 6, 3, 3], as what is added to it"
        );
        assert_eq!(
            message(&|_, sizes| sizes.convs[0][2] = 0),
            "stride is 0, but must be at least 1"
        );
        assert_eq!(
            message(&|_, sizes| sizes.xs[0] = 0),
            "drop_path is 3 factors, but must be 2, one for each sample"
        );
        let single = tensors(&bottleneck([1, 3, 1, 1], 4, 6, 1), DType::F32);
        let block = bottleneck([1, 3, 1, 1], 4, 6, 1);
        assert_eq!(
            residual_blocks(&single[0], &[block.block(&single[1..])])
                .unwrap_err()
                .to_string(),
            "xs has shape [1, 3, 1, 1], but must be so large that each norm has more than one value per channel"
        );
        let args = tensors(&sizes, DType::F32);
        let frozen = |layer: usize, c: [usize; 2]| {
            let mut running = vec![None; 4];
            running[layer] = Some(c.map(|c| random(&[c], 0)));
            let block = frozen_at(sizes.block(&args[1..]), &running);
            residual_blocks(&args[0], &[block]).unwrap_err().to_string()
        };
        assert_eq!(frozen(1, [4, 5]), "convs.running.var has shape [5], but must be [4]");
        assert_eq!(
            frozen(3, [5, 6]),
            "downsample.running.mean has shape [5], but must be [6]"
        );
        let none = ResidualBlock {
            convs: vec![],
            downsample: None,
            drop_path: None,
        };
        let xs = Tensor::zeros((1, 1, 2, 2), DType::F32, &Device::Cpu).unwrap();
        assert_eq!(
            residual_blocks(&xs, &[none]).unwrap_err().to_string(),
            "convs is empty, but must be at least one convolution"
        );
    }
}
