use candle_core::DType;

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
        let factors: Vec<f32> = (0..batch).map(|i| [0.5, 0.0, 2.0][i % 3]).collect();
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
        let factors: Vec<f32> = (0..batch).map(|i| [0.5, 0.0, 2.0][i % 3]).collect();
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
            blocks.push(sizes.dropping(Some(&[0.5, 2.0]), mine));
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
    let factors = [[0.0, 2.0, 0.5], [1.0, 0.0, 3.0], [2.0, 2.0, 0.0]];
    let shapes = sizes.iter().flat_map(|sizes| sizes.shapes().into_iter().skip(1));
    let shapes: Vec<_> = [sizes[0].xs.to_vec()].into_iter().chain(shapes).collect();
    let var = |(shape, seed): (&Vec<usize>, u64)| {
        candle_core::Var::from_tensor(&random(shape, seed).to_dtype(DType::F32).unwrap()).unwrap()
    };
    let vars: Vec<_> = shapes.iter().zip(70..).map(var).collect();
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
    assert_eq!(bits(&together), bits(&apart));
    assert_eq!((seen.len(), seen_apart.len()), (10, 10));
    for (layer, (a, b)) in seen.iter().zip(&seen_apart).enumerate() {
        assert_eq!(statistics_bits(a), statistics_bits(b));
        assert_eq!(a.is_none(), is_frozen(layer));
    }
    let upstream = random(together.dims(), 3).to_dtype(DType::F32).unwrap();
    let backward = |ys: Tensor| (ys * &upstream).unwrap().sum_all().unwrap().backward().unwrap();
    let (together, apart) = (backward(together), backward(apart));
    for (i, var) in vars.iter().enumerate() {
        assert_eq!(
            bits(together.get(var).unwrap()),
            bits(apart.get(var).unwrap()),
            "input {i}"
        );
    }
}

fn bits(t: &Tensor) -> Vec<f32> {
    t.flatten_all().unwrap().to_vec1().unwrap()
}

fn statistics_bits(seen: &Option<BatchStatistics>) -> Option<[Vec<f32>; 2]> {
    let BatchStatistics { mean, unbiased_var } = seen.as_ref()?;
    Some([bits(mean), bits(unbiased_var)])
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
        let drop_path = (sizes.xs[0] == 0).then(|| vec![1.0; 3]);
        let block = ResidualBlock {
            drop_path,
            ..sizes.block(&args[1..])
        };
        residual_blocks(&args[0], &[block]).unwrap_err().to_string()
    };
    let tensor = |shape: &[usize]| random(shape, 0).to_dtype(DType::F32).unwrap();
    assert_eq!(
        message(&|args, _| args[0] = tensor(&[2, 3, 5])),
        "xs has shape [2, 3, 5], but must be [B, 3, H, W], not empty, for blocks[0].convs[0]"
    );
    assert_eq!(
        message(&|args, _| args[4] = tensor(&[4, 3, 3, 3])),
        "convs.weight has shape [4, 3, 3, 3], but must be [C', 4, k, k], for blocks[0].convs[1]"
    );
    assert_eq!(
        message(&|args, _| args[8] = tensor(&[5])),
        "convs.norm.weight has shape [5], but must be [6], for blocks[0].convs[2]"
    );
    assert_eq!(
        message(&|args, _| args[12] = tensor(&[5])),
        "downsample.norm.bias has shape [5], but must be [6], for blocks[0].downsample"
    );
    assert_eq!(
        message(&|args, _| args[10] = args[10].to_dtype(DType::F64).unwrap()),
        "downsample.weight has dtype F64, but must be F32 like xs, for blocks[0].downsample"
    );
    assert_eq!(
        message(&|_, sizes| sizes.downsample = None),
        "downsample is None, but must be a projection to [2, 6, 3, 3], the shape of the branch's result, for blocks[0]"
    );
    assert_eq!(
        message(&|_, sizes| sizes.convs[0][2] = 0),
        "stride is 0, but must be at least 1, for blocks[0].convs[0]"
    );
    assert_eq!(
        message(&|_, sizes| sizes.xs[0] = 0),
        "drop_path is 3 factors, but must be 2, one for each sample, for blocks[0]"
    );
}

#[test]
fn errors_name_what_norms_lack() {
    let single = tensors(&bottleneck([1, 3, 1, 1], 4, 6, 1), DType::F32);
    let block = bottleneck([1, 3, 1, 1], 4, 6, 1);
    assert_eq!(
        residual_blocks(&single[0], &[block.block(&single[1..])])
            .unwrap_err()
            .to_string(),
        "xs has shape [1, 3, 1, 1], but must be so large that each norm has more than one value per channel, for blocks[0].convs[0]"
    );
    let sizes = bottleneck([2, 3, 5, 5], 4, 6, 2);
    let args = tensors(&sizes, DType::F32);
    let frozen = |layer: usize, c: [usize; 2]| {
        let mut running = vec![None; 4];
        running[layer] = Some(c.map(|c| random(&[c], 0)));
        let block = frozen_at(sizes.block(&args[1..]), &running);
        residual_blocks(&args[0], &[block]).unwrap_err().to_string()
    };
    assert_eq!(
        frozen(1, [4, 5]),
        "convs.running.var has shape [5], but must be [4], for blocks[0].convs[1]"
    );
    assert_eq!(
        frozen(3, [5, 6]),
        "downsample.running.mean has shape [5], but must be [6], for blocks[0].downsample"
    );
}

/// Of two blocks, the second does not fit what the first gives.
#[test]
fn errors_of_a_later_block_tell_which() {
    let sizes = bottleneck([2, 3, 5, 5], 4, 6, 2);
    let args = tensors(&sizes, DType::F32);
    let block = sizes.block(&args[1..]);
    assert_eq!(
        residual_blocks(&args[0], &[block.clone(), block.clone()])
            .unwrap_err()
            .to_string(),
        "convs.weight has shape [4, 3, 1, 1], but must be [C', 6, k, k], for blocks[1].convs[0]"
    );
    // Same channels, but a side of 3 for the branch's convolution with a stride and 5 for the projection's without.
    let unlike = ResidualBlock {
        downsample: block.downsample.map(|conv| ConvNorm { stride: 1, ..conv }),
        ..block
    };
    assert_eq!(
        residual_blocks(&args[0], &[unlike]).unwrap_err().to_string(),
        "downsample is a projection to [2, 6, 5, 5], but must be a projection to [2, 6, 3, 3], the shape of the branch's \
         result, for blocks[0]"
    );
}

#[test]
fn there_must_be_a_convolution() {
    let none = ResidualBlock {
        convs: vec![],
        downsample: None,
        drop_path: None,
    };
    let xs = Tensor::zeros((1, 1, 2, 2), DType::F32, &Device::Cpu).unwrap();
    assert_eq!(
        residual_blocks(&xs, &[none]).unwrap_err().to_string(),
        "convs is empty, but must be at least one convolution, for blocks[0]"
    );
}
