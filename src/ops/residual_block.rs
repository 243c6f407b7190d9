//! A residual block of convolutions (He et al. 2016, arXiv 1512.03385) as one operation.

use std::sync::{Arc, OnceLock};

use candle_core::{CpuStorage, CustomOp2, DType, Layout, Result, Shape, Tensor};

use super::add_relu::add_relu;
use super::batch_norm::{batch_norm_then, BatchStatistics, Then};
use super::buffer::{Buffer, Kept};
use super::channels::{through_relu, Moments, Upstream};
use super::conv2d::conv2d;
use super::conv_norm::{Bound, ConvNorm, Layer};
use super::deliver::Deliveries;
use super::kernel::{self, Elements, Write};
use super::residual::Affine;
use crate::error::{Error, Result as OurResult};

/// The parameters of [`residual_block`].
#[derive(Clone, Debug)]
pub struct ResidualBlock<'a> {
    /// One after the other, with a ReLU between two of them: two in a ResNet's basic block, three in a bottleneck.
    pub convs: Vec<ConvNorm<'a>>,
    /// The projection of the input, where it has not the shape of what is added to it.
    pub downsample: Option<ConvNorm<'a>>,
}

impl<'a> ResidualBlock<'a> {
    /// The convolutions, the projection last.
    fn layers(&self) -> impl Iterator<Item = &ConvNorm<'a>> {
        self.convs.iter().chain(&self.downsample)
    }

    /// Weight, norm's weight and norm's bias of each layer.
    fn params(&self) -> Vec<&'a Tensor> {
        let of = |layer: &ConvNorm<'a>| [layer.weight, layer.norm.weight, layer.norm.bias];
        self.layers().flat_map(of).collect()
    }

    /// The same with other parameters.
    fn with<'b>(&self, params: &'b [Tensor]) -> ResidualBlock<'b> {
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
            })
            .collect();
        let downsample = self.downsample.and_then(|_| convs.pop());
        ResidualBlock { convs, downsample }
    }
}

/// y = max(identity(x) + s branch(x), 0), in training: the branch is convolutions with a batch norm behind each and a ReLU
/// between two, the identity x itself or its projection; and what the batch norms saw.
///
/// The same as the operations one by one, with less memory: for the backward only the results of the convolutions are
/// kept, of which normalised values are computed again. Gradients of all parameters arrive as ever.
///
/// # Arguments
///
/// - `xs`: [B, C, H, W]
/// - `block`: the parameters
/// - `drop_path`: s, a factor for each of the B samples (stochastic depth), 1 where there is none
///
/// Returns [B, C', H', W'], and the statistics of each norm, of the projection's last; no gradient flows through them.
///
/// # PyTorch
///
/// A bottleneck without a projection, with norms in training mode:
///
/// ```text
/// ys = F.relu(bn1(F.conv2d(xs, w1)))
/// ys = F.relu(bn2(F.conv2d(ys, w2, stride=stride, padding=1)))
/// F.relu(xs + drop_path(bn3(F.conv2d(ys, w3))))
/// ```
///
/// # Errors
///
/// If there is no convolution, shapes do not fit or something is empty, a norm has one value per channel only, an `eps` is
/// negative or not finite, or dtypes differ or are no floating-point ones.
///
/// ```
/// use candle_core::{DType, Device, Tensor};
/// use masksub::ops::{residual_block, Affine, ConvNorm, ResidualBlock};
/// let tensor = |shape: &[usize]| Tensor::ones(shape, DType::F32, &Device::Cpu);
/// let (weight, zero, one) = (tensor(&[2, 2, 3, 3])?, (tensor(&[2])? * 0.)?, tensor(&[2])?);
/// let conv = ConvNorm {
///     weight: &weight,
///     stride: 1,
///     padding: 1,
///     norm: Affine { weight: &zero, bias: &one },
///     eps: 1e-5,
/// };
/// let block = ResidualBlock { convs: vec![conv, conv], downsample: None };
/// let (ys, statistics) = residual_block(&tensor(&[1, 2, 4, 4])?, &block, None)?;
/// assert_eq!(ys.flatten_all()?.to_vec1::<f32>()?, [2.; 32]);
/// assert_eq!(statistics.len(), 2);
/// # Ok::<(), candle_core::Error>(())
/// ```
pub fn residual_block(
    xs: &Tensor,
    block: &ResidualBlock,
    drop_path: Option<&[f32]>,
) -> Result<(Tensor, Vec<BatchStatistics>)> {
    let layers = check(xs, block, drop_path)?;
    let params = block.params();
    if xs.device().is_cpu() && kernel::is_half(xs) {
        // As in the other operations, rounded once at the end.
        let dtype = xs.dtype();
        let wide = |t: &&Tensor| t.to_dtype(DType::F32);
        let params = params.iter().map(wide).collect::<Result<Vec<_>>>()?;
        let (ys, seen) = residual_block(&wide(&xs)?, &block.with(&params), drop_path)?;
        let seen = seen.iter().map(|seen| seen.to_dtype(dtype)).collect::<Result<_>>()?;
        return Ok((ys.to_dtype(dtype)?, seen));
    }
    if !kernel::on_cpu_f32(&params) || !kernel::on_cpu_f32(&[xs]) {
        return composition(xs, block, drop_path);
    }
    let (ticket, params) = Deliveries::new(&params)?;
    let moments = Arc::new(OnceLock::new());
    let op = Op {
        has_downsample: block.downsample.is_some(),
        drop_path: drop_path.map(<[f32]>::to_vec),
        keep: xs.track_op() || ticket.track_op(),
        params,
        moments: moments.clone(),
        kept: Kept::default(),
        layers,
    };
    let counts: Vec<_> = op.layers.iter().map(|layer| layer.dims().count()).collect();
    let ys = xs.contiguous()?.apply_op2(&ticket, op)?;
    let seen = moments.get().map_or(&[][..], Vec::as_slice);
    let seen = seen
        .iter()
        .zip(counts)
        .map(|(moments, count)| BatchStatistics::of(moments, count));
    Ok((ys, seen.collect::<Result<_>>()?))
}

/// The layers, once everything fits.
fn check(xs: &Tensor, block: &ResidualBlock, drop_path: Option<&[f32]>) -> OurResult<Vec<Layer>> {
    kernel::check_float("xs", xs)?;
    if block.convs.is_empty() {
        return Err(Error::invalid("convs", "empty", "at least one convolution"));
    }
    let mut layers = Vec::with_capacity(block.convs.len() + 1);
    let mut dims = xs.dims().to_vec();
    for conv in &block.convs {
        let layer = Layer::new(
            ["convs.weight", "convs.norm.weight", "convs.norm.bias"],
            conv,
            &dims,
            xs,
        )?;
        dims = layer.conv.result_dims().to_vec();
        layers.push(layer);
    }
    let identity = match &block.downsample {
        None => xs.dims().to_vec(),
        Some(conv) => {
            let names = ["downsample.weight", "downsample.norm.weight", "downsample.norm.bias"];
            let layer = Layer::new(names, conv, xs.dims(), xs)?;
            let dims = layer.conv.result_dims().to_vec();
            layers.push(layer);
            dims
        }
    };
    if identity != dims {
        let allowed = format!("so that it is {dims:?}, as what is added to it");
        return Err(Error::invalid("downsample", format!("one to {identity:?}"), allowed));
    }
    match drop_path {
        Some(factors) if factors.len() != dims[0] => Err(Error::invalid(
            "drop_path",
            format!("{} factors", factors.len()),
            format!("{}, one for each sample", dims[0]),
        )),
        _ => Ok(layers),
    }
}

/// [`residual_block`] of the operations one by one.
pub fn composition(
    xs: &Tensor,
    block: &ResidualBlock,
    drop_path: Option<&[f32]>,
) -> Result<(Tensor, Vec<BatchStatistics>)> {
    let mut seen = Vec::new();
    let mut layer = |layer: &ConvNorm, then, xs: &Tensor| -> Result<Tensor> {
        let ys = conv2d(xs, layer.weight, layer.stride, layer.padding)?;
        let (ys, statistics) = batch_norm_then(then, &ys, layer.norm.weight, layer.norm.bias, layer.eps)?;
        seen.push(statistics);
        Ok(ys)
    };
    let mut ys = xs.clone();
    for (i, conv) in block.convs.iter().enumerate() {
        let then = match i + 1 < block.convs.len() {
            true => Then::Relu,
            false => Then::Nothing,
        };
        ys = layer(conv, then, &ys)?;
    }
    if let Some(factors) = drop_path {
        let factors = Tensor::from_slice(factors, (factors.len(), 1, 1, 1), xs.device())?;
        ys = ys.broadcast_mul(&factors.to_dtype(xs.dtype())?)?;
    }
    let identity = match &block.downsample {
        Some(downsample) => layer(downsample, Then::Nothing, xs)?,
        None => xs.clone(),
    };
    Ok((add_relu(&ys, &identity)?, seen))
}

struct Op {
    /// The convolutions, the projection last.
    layers: Vec<Layer>,
    has_downsample: bool,
    drop_path: Option<Vec<f32>>,
    /// Three of each layer.
    params: Deliveries,
    /// Whether there will be a backward.
    keep: bool,
    /// Of what each convolution gave.
    moments: Arc<OnceLock<Vec<Vec<Moments>>>>,
    /// What each convolution gave.
    kept: Kept<Vec<Buffer>>,
}

impl Op {
    /// Calls `f` with the layers of the branch and the projection.
    fn with_layers<T>(&self, f: impl FnOnce(&[Bound], Option<&Bound>) -> Result<T>) -> Result<T> {
        let elements: Vec<_> = self.params.params().iter().map(Elements::of).collect::<Result<_>>()?;
        let layers = self.layers.iter().zip(elements.chunks_exact(3));
        let mut branch: Vec<_> = layers.map(|(layer, params)| layer.bind(params)).collect();
        let downsample = if self.has_downsample { branch.pop() } else { None };
        f(&branch, downsample.as_ref())
    }

    /// What the convolutions give, the projection last: those of the branch one after the other, normalised by the moments
    /// that are `given`, or else by their own, which come with them.
    fn convolve(
        &self,
        xs: &[f32],
        branch: &[Bound],
        downsample: Option<&Bound>,
        given: Option<&[Vec<Moments>]>,
    ) -> (Vec<Buffer>, Vec<Vec<Moments>>) {
        let (mut results, mut moments) = (Vec::new(), Vec::new());
        let mut active: Option<Buffer> = None;
        for (i, layer) in branch.iter().enumerate() {
            let ys = layer.conv(active.as_deref().unwrap_or(xs));
            if i + 1 < branch.len() {
                let (next, seen) = layer.activate(&ys, given.map(|given| &given[i][..]));
                active = Some(next);
                moments.push(seen);
            }
            results.push(ys);
        }
        drop(active);
        results.extend(downsample.map(|layer| layer.conv(xs)));
        (results, moments)
    }

    fn forward(&self, xs: &[f32], branch: &[Bound], downsample: Option<&Bound>) -> Vec<f32> {
        let (results, mut moments) = self.convolve(xs, branch, downsample, None);
        let last = branch.len() - 1;
        let mut ys = vec![0f32; results[last].len()];
        let of_projection = downsample.map(|layer| {
            let projected = &results[branch.len()];
            layer.norm.forward(projected, None, f32::NEG_INFINITY, &mut ys)
        });
        if of_projection.is_none() {
            kernel::for_rows(&mut ys, 1, |first, ys| ys.copy_from_slice(&xs[first..][..ys.len()]));
        }
        let norm = &branch[last].norm;
        moments.push(norm.forward_onto(&results[last], self.drop_path.as_deref(), &mut ys));
        moments.extend(of_projection);
        self.moments.get_or_init(|| moments);
        if self.keep {
            self.kept.keep(results);
        }
        ys
    }

    /// The gradients of the input, and those of the parameters.
    fn backward(
        &self,
        node: &Tensor,
        [xs, ys, grads]: [&[f32]; 3],
        branch: &[Bound],
        downsample: Option<&Bound>,
    ) -> Result<(Vec<f32>, Vec<Option<Tensor>>)> {
        let Some(moments) = self.moments.get() else {
            candle_core::bail!("the backward of masksub's residual_block was called before its forward");
        };
        let again = || self.convolve(xs, branch, downsample, Some(moments)).0;
        let mut kept = self.kept.take().unwrap_or_else(again);
        let mut gradients = vec![None; self.params.params().len()];
        let upstream = Upstream {
            grads: Some(grads),
            relu: Some(ys),
            factors: None,
        };
        // Turns the gradients of a layer's norm, whose input was `result`, into those of that and its parameters.
        let mut backward =
            |i: usize, layer: &Bound, [seen, result]: [&[f32]; 2], upstream: Upstream, grads: &mut Buffer| {
                let of_norm = layer.norm.backward(result, &moments[i], true, upstream, grads);
                gradients[3 * i] = self.params.gradient(3 * i, node, |out, write| {
                    layer.conv.backward_weight(seen, grads, out, write);
                })?;
                for (gradient, data) in gradients[3 * i + 1..].iter_mut().zip(of_norm) {
                    let channels = data.len();
                    *gradient = Some(kernel::tensor(data, &[channels])?);
                }
                Ok::<_, candle_core::Error>(())
            };
        let mut dxs = vec![0f32; xs.len()];
        match downsample {
            None => through_relu(ys, grads, &mut dxs),
            Some(layer) => {
                let result = kept.pop().unwrap_or_else(|| layer.conv(xs));
                let mut grads = Buffer::new(result.len());
                backward(branch.len(), layer, [xs, &result], upstream, &mut grads)?;
                drop(result);
                layer.conv.backward_xs(layer.weight, &grads, &mut dxs, Write::Replace);
            }
        }
        let mut upstream = Upstream {
            factors: self.drop_path.as_deref(),
            ..upstream
        };
        let mut grads = Buffer::new(ys.len());
        let mut active: Buffer;
        // From the last one down, each let go when nothing below needs it.
        let mut index = branch.len();
        while let Some(result) = kept.pop() {
            index -= 1;
            let layer = &branch[index];
            let Some(before) = kept.last() else {
                backward(index, layer, [xs, &result], upstream, &mut grads)?;
                drop(result);
                layer.conv.backward_xs(layer.weight, &grads, &mut dxs, Write::Add);
                break;
            };
            let seen = branch[index - 1].activate(before, Some(&moments[index - 1])).0;
            backward(index, layer, [&seen, &result], upstream, &mut grads)?;
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
        Ok((dxs, gradients))
    }
}

impl CustomOp2 for Op {
    fn name(&self) -> &'static str {
        "residual-block"
    }

    fn cpu_fwd(&self, s1: &CpuStorage, l1: &Layout, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        let xs = kernel::elements(s1, l1)?;
        let ys = self.with_layers(|branch, downsample| Ok(self.forward(xs, branch, downsample)))?;
        let last = self.layers.len() - 1 - usize::from(self.has_downsample);
        let dims = self.layers[last].conv.result_dims();
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
        let (dxs, gradients) =
            self.with_layers(|branch, downsample| self.backward(node, [&x, &y, &g], branch, downsample))?;
        super::residual::deliver(&self.params, ticket, gradients, dxs, xs)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::{check as check_op, check_derivative, random, relative, rng};
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
                })
                .collect();
            let downsample = self.downsample.and_then(|_| convs.pop());
            ResidualBlock { convs, downsample }
        }

        fn check(&self, drop_path: Option<&[f32]>, seed: u64) {
            let shapes = self.shapes();
            let shapes: Vec<_> = shapes.iter().map(Vec::as_slice).collect();
            let kernel = |args: &[Tensor]| Ok(residual_block(&args[0], &self.block(&args[1..]), drop_path)?.0);
            let reference = |args: &[Tensor]| Ok(composition(&args[0], &self.block(&args[1..]), drop_path)?.0);
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

    #[test]
    fn composition_has_the_right_derivative() {
        for (sizes, seed) in [(basic([2, 2, 3, 3]), 0), (bottleneck([2, 2, 4, 3], 2, 3, 2), 1)] {
            let shapes = sizes.shapes();
            let shapes: Vec<_> = shapes.iter().map(Vec::as_slice).collect();
            let reference = |args: &[Tensor]| Ok(composition(&args[0], &sizes.block(&args[1..]), Some(&[0.5, 2.]))?.0);
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
        let (_, expected) = composition(&wide[0], &sizes.block(&wide[1..]), None).unwrap();
        let (_, seen) = residual_block(&single[0], &sizes.block(&single[1..]), None).unwrap();
        assert_eq!((seen.len(), expected.len()), (4, 4));
        for (seen, expected) in seen.iter().zip(&expected) {
            assert!(relative(&seen.mean, &expected.mean) < 1e-6);
            assert!(relative(&seen.unbiased_var, &expected.unbiased_var) < 1e-6);
            assert!(!seen.mean.track_op() && !seen.unbiased_var.track_op());
        }
        let half = tensors(&sizes, DType::BF16);
        let (ys, seen) = residual_block(&half[0], &sizes.block(&half[1..]), None).unwrap();
        assert!(ys.dtype() == DType::BF16 && seen[3].mean.dtype() == DType::BF16);
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
            let (ys, _) = residual_block(&args[0], &sizes.block(&args[1..]), None).unwrap();
            ys.flatten_all().unwrap().to_vec1::<f32>().unwrap()
        };
        assert_eq!(values(&args), values(&trained));
        let (ys, _) = residual_block(&trained[0], &sizes.block(&trained[1..]), None).unwrap();
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
            let drop_path = [1.; 3];
            let drop_path = (sizes.xs[0] == 0).then_some(&drop_path[..]);
            residual_block(&args[0], &sizes.block(&args[1..]), drop_path)
                .unwrap_err()
                .to_string()
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
            residual_block(&single[0], &block.block(&single[1..]), None)
                .unwrap_err()
                .to_string(),
            "xs has shape [1, 3, 1, 1], but must be so large that each norm has more than one value per channel"
        );
        let none = ResidualBlock {
            convs: vec![],
            downsample: None,
        };
        let xs = Tensor::zeros((1, 1, 2, 2), DType::F32, &Device::Cpu).unwrap();
        assert_eq!(
            residual_block(&xs, &none, None).unwrap_err().to_string(),
            "convs is empty, but must be at least one convolution"
        );
    }
}
