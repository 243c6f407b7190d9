//! Each operation beside its composition of candle's own, at the sizes of DeiT's vision transformers, ResNet-50 and
//! Swin-T.
//!
//! `cargo bench --bench ops` runs all, `cargo bench --bench ops -- attention` some. `forward` is the forward pass alone,
//! `training` the forward pass and the gradients of all inputs; a row is a model's width and number of tokens, for 8
//! samples: 197 are all of a 224-pixel image, 99 what is left of them when half are dropped. For a ResNet a row is a map's
//! channels and side.

use std::fmt;

use candle_core::{Device, Result, Tensor, Var};
use candle_nn::{Conv1dConfig, Conv2dConfig, ConvTranspose2dConfig};
use divan::Bencher;
use masksub::ops::{
    self, reference, Activation, Affine, AttentionBranch, ConvNorm, MlpBranch, PatchEmbed, Pooling, ResidualBlock,
    Tokens, Windows,
};
use masksub::Grid;

fn main() {
    divan::main();
}

const BATCH: usize = 8;

#[derive(Clone, Copy)]
struct Size {
    name: &'static str,
    width: usize,
    heads: usize,
    tokens: usize,
}

const SIZES: [Size; 6] = [
    size("tiny", 192, 3, 197),
    size("tiny", 192, 3, 99),
    size("small", 384, 6, 197),
    size("small", 384, 6, 99),
    size("base", 768, 12, 197),
    size("base", 768, 12, 99),
];

const fn size(name: &'static str, width: usize, heads: usize, tokens: usize) -> Size {
    Size {
        name,
        width,
        heads,
        tokens,
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "{} {}", self.name, self.tokens)
    }
}

/// A variable with numbers between -1 and 1.
fn var(shape: &[usize]) -> Var {
    let count: usize = shape.iter().product();
    // Steps of the golden ratio: spread evenly, and never repeated.
    let data = (0..count)
        .map(|i| (i as f64 * 0.618_033_988_75).fract() as f32 * 2.0 - 1.0)
        .collect();
    Var::from_vec(data, shape, &Device::Cpu).unwrap()
}

fn forward(bencher: Bencher, inputs: Vec<Var>, op: impl Fn(&[Var]) -> Result<Tensor>) {
    bencher.bench_local(|| op(&inputs).unwrap());
}

fn training(bencher: Bencher, inputs: Vec<Var>, op: impl Fn(&[Var]) -> Result<Tensor>) {
    bencher.bench_local(|| op(&inputs).unwrap().backward().unwrap());
}

/// Four benchmarks of an operation: kernel and composition, forward and training.
macro_rules! bench {
    ($name:ident, $inputs:expr, $kernel:expr, $composition:expr) => {
        bench!($name, SIZES: Size, $inputs, $kernel, $composition);
    };
    ($name:ident, $sizes:ident: $size:ty, $inputs:expr, $kernel:expr, $composition:expr) => {
        mod $name {
            use super::*;

            #[divan::bench(args = $sizes, sample_count = 9, max_time = 1)]
            fn kernel_forward(bencher: Bencher, size: $size) {
                forward(bencher, $inputs(size), $kernel(size));
            }

            #[divan::bench(args = $sizes, sample_count = 9, max_time = 1)]
            fn composed_forward(bencher: Bencher, size: $size) {
                forward(bencher, $inputs(size), $composition(size));
            }

            #[divan::bench(args = $sizes, sample_count = 9, max_time = 1)]
            fn kernel_training(bencher: Bencher, size: $size) {
                training(bencher, $inputs(size), $kernel(size));
            }

            #[divan::bench(args = $sizes, sample_count = 9, max_time = 1)]
            fn composed_training(bencher: Bencher, size: $size) {
                training(bencher, $inputs(size), $composition(size));
            }
        }
    };
}

fn tokens(size: Size, width: usize) -> Var {
    var(&[BATCH, size.tokens, width])
}

// The first layer of the MLP, the largest linear one.
bench!(
    linear,
    |s: Size| vec![tokens(s, s.width), var(&[4 * s.width, s.width]), var(&[4 * s.width])],
    |_| |x: &[Var]| ops::linear(&x[0], &x[1], Some(&x[2])),
    |_| |x: &[Var]| reference::linear(&x[0], &x[1], Some(&x[2]))
);

bench!(
    layer_norm,
    |s: Size| vec![tokens(s, s.width), var(&[s.width]), var(&[s.width])],
    |_| |x: &[Var]| ops::layer_norm(&x[0], &x[1], &x[2], 1e-6),
    |_| |x: &[Var]| reference::layer_norm(&x[0], &x[1], Some(&x[2]), 1e-6)
);

bench!(
    rms_norm,
    |s: Size| vec![tokens(s, s.width), var(&[s.width])],
    |_| |x: &[Var]| ops::rms_norm(&x[0], &x[1], 1e-6),
    |_| |x: &[Var]| reference::rms_norm(&x[0], &x[1], 1e-6)
);

bench!(
    softmax,
    |s: Size| vec![var(&[BATCH, s.heads, s.tokens, s.tokens])],
    |_| |x: &[Var]| ops::softmax_last_dim(&x[0]),
    |_| |x: &[Var]| reference::softmax(&x[0], candle_core::D::Minus1)
);

bench!(
    gelu,
    |s: Size| vec![tokens(s, 4 * s.width)],
    |_| |x: &[Var]| ops::gelu(&x[0]),
    |_| |x: &[Var]| reference::gelu(&x[0])
);

bench!(
    gelu_tanh,
    |s: Size| vec![tokens(s, 4 * s.width)],
    |_| |x: &[Var]| ops::gelu_tanh(&x[0]),
    |_| |x: &[Var]| x[0].gelu()
);

bench!(
    relu,
    |s: Size| vec![tokens(s, 4 * s.width)],
    |_| |x: &[Var]| ops::relu(&x[0]),
    |_| |x: &[Var]| x[0].relu()
);

bench!(
    silu,
    |s: Size| vec![tokens(s, 4 * s.width)],
    |_| |x: &[Var]| ops::silu(&x[0]),
    |_| |x: &[Var]| x[0].silu()
);

bench!(
    sigmoid,
    |s: Size| vec![tokens(s, 4 * s.width)],
    |_| |x: &[Var]| ops::sigmoid(&x[0]),
    |_| |x: &[Var]| candle_nn::ops::sigmoid(&x[0])
);

bench!(
    mish,
    |s: Size| vec![tokens(s, 4 * s.width)],
    |_| |x: &[Var]| ops::mish(&x[0]),
    |_| |x: &[Var]| reference::mish(&x[0])
);

bench!(
    quick_gelu,
    |s: Size| vec![tokens(s, 4 * s.width)],
    |_| |x: &[Var]| ops::quick_gelu(&x[0]),
    |_| |x: &[Var]| reference::quick_gelu(&x[0])
);

bench!(
    attention,
    |s: Size| vec![tokens(s, 3 * s.width)],
    |s: Size| move |x: &[Var]| ops::attention(&x[0], s.heads),
    |s: Size| move |x: &[Var]| reference::attention(&x[0], s.heads)
);

/// Tokens and the parameters of a branch: norm, the layer in the middle, the projection, γ.
fn branch(size: Size, middle: usize, inner: usize) -> Vec<Var> {
    let d = size.width;
    let shapes: [&[usize]; 7] = [&[d], &[d], &[middle, d], &[middle], &[d, inner], &[d], &[d]];
    let params = shapes.into_iter().map(var);
    std::iter::once(tokens(size, d)).chain(params).collect()
}

fn affines(x: &[Var]) -> [Affine<'_>; 3] {
    [1, 3, 5].map(|i| Affine {
        weight: &x[i],
        bias: &x[i + 1],
    })
}

fn of_attention(x: &[Var], num_heads: usize) -> AttentionBranch<'_> {
    let [norm, qkv, proj] = affines(x);
    let (eps, gamma) = (1e-6, Some(x[7].as_tensor()));
    AttentionBranch {
        norm,
        eps,
        qkv,
        num_heads,
        proj,
        gamma,
    }
}

bench!(
    attention_branch,
    |s: Size| branch(s, 3 * s.width, s.width),
    |s: Size| move |x: &[Var]| ops::attention_branch(&x[0], &of_attention(x, s.heads), Tokens::All, None),
    |s: Size| move |x: &[Var]| reference::attention_branch(&x[0], &of_attention(x, s.heads), Tokens::All, None)
);

bench!(
    attention_branch_of_the_first_token,
    |s: Size| branch(s, 3 * s.width, s.width),
    |s: Size| move |x: &[Var]| ops::attention_branch(&x[0], &of_attention(x, s.heads), Tokens::First, None),
    |s: Size| move |x: &[Var]| reference::attention_branch(&x[0], &of_attention(x, s.heads), Tokens::First, None)
);

fn of_mlp(x: &[Var]) -> MlpBranch<'_> {
    let [norm, fc1, fc2] = affines(x);
    MlpBranch {
        norm,
        eps: 1e-6,
        fc1,
        activation: Activation::Gelu,
        fc2,
        gamma: Some(x[7].as_tensor()),
    }
}

bench!(
    mlp_branch,
    |s: Size| branch(s, 4 * s.width, 4 * s.width),
    |_| |x: &[Var]| ops::mlp_branch(&x[0], &of_mlp(x), None),
    |_| |x: &[Var]| reference::mlp_branch(&x[0], &of_mlp(x), None)
);

fn of_patches(x: &[Var]) -> PatchEmbed<'_> {
    PatchEmbed {
        weight: &x[1],
        class_token: &x[2],
        positions: &x[3],
        bias: Some(&x[4]),
    }
}

/// The indices that leave `size.tokens` tokens, the class token among them, of a 224-pixel image in patches of 16.
fn keep_of_all(size: Size) -> Vec<u32> {
    (0..BATCH).flat_map(|_| 0..size.tokens as u32 - 1).collect()
}

bench!(
    patch_embed,
    |size: Size| {
        let d = size.width;
        let params = [var(&[d, 3, 16, 16]), var(&[1, 1, d]), var(&[1, 197, d]), var(&[d])];
        [var(&[BATCH, 3, 224, 224])]
            .into_iter()
            .chain(params)
            .collect::<Vec<_>>()
    },
    // Images need no gradient.
    |size: Size| move |x: &[Var]| ops::patch_embed(
        &x[0].as_detached_tensor(),
        &of_patches(x),
        Some(&keep_of_all(size))
    ),
    |size: Size| move |x: &[Var]| {
        reference::patch_embed(&x[0].as_detached_tensor(), &of_patches(x), Some(&keep_of_all(size)))
    }
);

/// A feature map of a ResNet.
#[derive(Clone, Copy)]
struct Map {
    channels: usize,
    side: usize,
}

impl fmt::Display for Map {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "{} {}", self.channels, self.side)
    }
}

const MAPS: [Map; 5] = [map(64, 112), map(256, 56), map(512, 28), map(1024, 14), map(2048, 7)];

const IMAGE: [Map; 1] = [map(3, 224)];
const STEM: [Map; 1] = [map(64, 112)];

const fn map(channels: usize, side: usize) -> Map {
    Map { channels, side }
}

impl Map {
    fn var(self) -> Var {
        var(&[BATCH, self.channels, self.side, self.side])
    }

    /// Mean and variance of each channel.
    fn statistics(self) -> (Tensor, Tensor) {
        let mean = var(&[self.channels]).as_detached_tensor();
        let variance = mean.sqr().unwrap();
        (mean, variance)
    }
}

bench!(
    batch_norm,
    MAPS: Map,
    |m: Map| vec![m.var(), var(&[m.channels]), var(&[m.channels])],
    |_| |x: &[Var]| Ok(ops::batch_norm(&x[0], &x[1], &x[2], 1e-5)?.0),
    |_| |x: &[Var]| Ok(reference::batch_norm(&x[0], &x[1], &x[2], 1e-5)?.0)
);

bench!(
    add_relu,
    MAPS: Map,
    |m: Map| vec![m.var(), m.var()],
    |_| |x: &[Var]| ops::add_relu(&x[0], &x[1]),
    |_| |x: &[Var]| reference::add_relu(&x[0], &x[1])
);

bench!(
    batch_norm_eval,
    MAPS: Map,
    |m: Map| vec![m.var(), var(&[m.channels]), var(&[m.channels])],
    |m: Map| {
        let (mean, variance) = m.statistics();
        move |x: &[Var]| ops::batch_norm_eval(&x[0], &mean, &variance, &x[1], &x[2], 1e-5)
    },
    |m: Map| {
        let (mean, variance) = m.statistics();
        move |x: &[Var]| reference::batch_norm_eval(&x[0], &mean, &variance, &x[1], &x[2], 1e-5)
    }
);

bench!(
    patchify,
    IMAGE: Map,
    |m: Map| vec![m.var()],
    |_| |x: &[Var]| ops::patchify(&x[0], 16),
    |_| |x: &[Var]| reference::patchify(&x[0], 16)
);

/// A convolution of ResNet-50, with as much padding as keeps the size.
#[derive(Clone, Copy)]
struct Convolution {
    map: Map,
    out_channels: usize,
    kernel: usize,
    stride: usize,
}

impl fmt::Display for Convolution {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let (to, k) = (self.out_channels, self.kernel);
        write!(f, "{k}x{k}/{} {} to {to}", self.stride, self.map)
    }
}

const CONVOLUTIONS: [Convolution; 10] = [
    convolution(map(3, 224), 64, 7, 2),
    convolution(map(64, 56), 64, 1, 1),
    convolution(map(64, 56), 256, 1, 1),
    convolution(map(256, 56), 512, 1, 2),
    convolution(map(64, 56), 64, 3, 1),
    convolution(map(128, 28), 128, 3, 1),
    convolution(map(256, 14), 256, 3, 1),
    convolution(map(512, 14), 512, 3, 2),
    convolution(map(512, 7), 512, 3, 1),
    convolution(map(512, 7), 2048, 1, 1),
];

impl Convolution {
    fn config(self, groups: usize) -> Conv2dConfig {
        Conv2dConfig {
            stride: self.stride,
            padding: self.kernel / 2,
            groups,
            ..Default::default()
        }
    }
}

const fn convolution(map: Map, out_channels: usize, kernel: usize, stride: usize) -> Convolution {
    Convolution {
        map,
        out_channels,
        kernel,
        stride,
    }
}

// Beside candle's own, not the composition, which pads and cuts the image so that candle's backward is right.
bench!(
    conv2d,
    CONVOLUTIONS: Convolution,
    |c: Convolution| vec![c.map.var(), var(&[c.out_channels, c.map.channels, c.kernel, c.kernel])],
    |c: Convolution| move |x: &[Var]| ops::conv2d(&x[0], &x[1], None, c.config(1)),
    |c: Convolution| move |x: &[Var]| x[0].conv2d(&x[1], c.kernel / 2, c.stride, 1, 1)
);

// Each channel with a kernel of its own: ConvNeXt-T's stages, and layers of EfficientNet-B0.
const DEPTHWISE: [Convolution; 9] = [
    convolution(map(96, 56), 96, 7, 1),
    convolution(map(192, 28), 192, 7, 1),
    convolution(map(384, 14), 384, 7, 1),
    convolution(map(768, 7), 768, 7, 1),
    convolution(map(32, 112), 32, 3, 1),
    convolution(map(96, 112), 96, 3, 2),
    convolution(map(240, 28), 240, 5, 1),
    convolution(map(144, 56), 144, 5, 2),
    convolution(map(1152, 7), 1152, 3, 1),
];

bench!(
    conv2d_depthwise,
    DEPTHWISE: Convolution,
    |c: Convolution| vec![c.map.var(), var(&[c.map.channels, 1, c.kernel, c.kernel]), var(&[c.map.channels])],
    |c: Convolution| move |x: &[Var]| ops::conv2d(&x[0], &x[1], Some(&x[2]), c.config(c.map.channels)),
    |c: Convolution| move |x: &[Var]| {
        let ys = x[0].conv2d(&x[1], c.kernel / 2, c.stride, 1, c.map.channels)?;
        ys.broadcast_add(&x[2].reshape((1, (), 1, 1))?)
    }
);

// ConvNeXt-T's first map and a deep one, in eight groups.
const GROUPED: [Map; 2] = [map(96, 56), map(384, 14)];

bench!(
    group_norm,
    GROUPED: Map,
    |m: Map| vec![m.var(), var(&[m.channels]), var(&[m.channels])],
    |_| |x: &[Var]| ops::group_norm(&x[0], 8, &x[1], &x[2], 1e-5),
    |_| |x: &[Var]| reference::group_norm(&x[0], 8, &x[1], &x[2], 1e-5)
);

bench!(
    avg_pool2d,
    GROUPED: Map,
    |m: Map| vec![m.var()],
    |_| |x: &[Var]| ops::avg_pool2d(&x[0], 2, 2),
    |_| |x: &[Var]| x[0].avg_pool2d(2)
);

bench!(
    upsample_bilinear2d,
    GROUPED: Map,
    |m: Map| vec![m.var()],
    |m: Map| move |x: &[Var]| ops::upsample_bilinear2d(&x[0], 2 * m.side, 2 * m.side, false),
    |m: Map| move |x: &[Var]| reference::upsample_bilinear2d(&x[0], 2 * m.side, 2 * m.side, false)
);

// The first convolutions of Whisper's encoder, of the smallest model.
const SEQUENCES: [Sequence; 2] = [sequence(80, 3000, 1), sequence(384, 3000, 2)];

#[derive(Clone, Copy)]
struct Sequence {
    channels: usize,
    length: usize,
    stride: usize,
}

const fn sequence(channels: usize, length: usize, stride: usize) -> Sequence {
    Sequence {
        channels,
        length,
        stride,
    }
}

impl fmt::Display for Sequence {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "3/{} {} x {} to 384", self.stride, self.channels, self.length)
    }
}

bench!(
    conv1d,
    SEQUENCES: Sequence,
    |s: Sequence| vec![var(&[1, s.channels, s.length]), var(&[384, s.channels, 3]), var(&[384])],
    |s: Sequence| {
        let config = Conv1dConfig {
            padding: 1,
            stride: s.stride,
            ..Default::default()
        };
        move |x: &[Var]| ops::conv1d(&x[0], &x[1], Some(&x[2]), config)
    },
    |s: Sequence| {
        move |x: &[Var]| {
            let ys = x[0].conv1d(&x[1], 1, s.stride, 1, 1)?;
            ys.broadcast_add(&x[2].reshape((1, (), 1))?)
        }
    }
);

// From a segmenter's tokens to a map twice as fine.
bench!(
    conv_transpose2d,
    GROUPED: Map,
    |m: Map| vec![m.var(), var(&[m.channels, 96, 2, 2]), var(&[96])],
    |_| {
        let config = ConvTranspose2dConfig {
            stride: 2,
            ..Default::default()
        };
        move |x: &[Var]| ops::conv_transpose2d(&x[0], &x[1], Some(&x[2]), config)
    },
    |_| |x: &[Var]| {
        let ys = x[0].conv_transpose2d(&x[1], 0, 0, 2, 1)?;
        ys.broadcast_add(&x[2].reshape((1, (), 1, 1))?)
    }
);

bench!(
    max_pool2d,
    STEM: Map,
    |m: Map| vec![m.var()],
    |_| |x: &[Var]| ops::max_pool2d(&x[0], 3, 2, 1),
    |_| |x: &[Var]| reference::max_pool2d(&x[0], 3, 2, 1)
);

/// A convolution that keeps the side of its map, or halves it, and its norm.
fn conv_norm(x: &[Var], stride: usize) -> ConvNorm<'_> {
    ConvNorm {
        weight: &x[0],
        stride,
        padding: x[0].dims()[3] / 2,
        norm: Affine {
            weight: &x[1],
            bias: &x[2],
        },
        eps: 1e-5,
        running: None,
    }
}

/// Weight and norm of a convolution.
fn conv_norm_vars(inputs: usize, outputs: usize, side: usize) -> [Var; 3] {
    [var(&[outputs, inputs, side, side]), var(&[outputs]), var(&[outputs])]
}

/// A map and a bottleneck on it, a quarter as wide in the middle.
fn bottleneck(map: Map) -> Vec<Var> {
    let (outer, inner) = (map.channels, map.channels / 4);
    let convs = [(outer, inner, 1), (inner, inner, 3), (inner, outer, 1)];
    let params = convs.into_iter().flat_map(|(i, o, side)| conv_norm_vars(i, o, side));
    [map.var()].into_iter().chain(params).collect()
}

fn of_bottleneck(x: &[Var]) -> [ResidualBlock<'_>; 1] {
    [ResidualBlock {
        convs: x[1..].chunks_exact(3).map(|x| conv_norm(x, 1)).collect(),
        downsample: None,
        drop_path: None,
    }]
}

const BOTTLENECKS: [Map; 4] = [map(256, 56), map(512, 28), map(1024, 14), map(2048, 7)];

bench!(
    residual_blocks,
    BOTTLENECKS: Map,
    bottleneck,
    |_| |x: &[Var]| Ok(ops::residual_blocks(&x[0], &of_bottleneck(x))?.0),
    |_| |x: &[Var]| Ok(reference::residual_blocks(&x[0], &of_bottleneck(x))?.0)
);

const IMAGES: [Map; 1] = [map(3, 224)];

const POOLING: Pooling = Pooling {
    kernel: 3,
    stride: 2,
    padding: 1,
};

bench!(
    stem,
    IMAGES: Map,
    |images: Map| [images.var()].into_iter().chain(conv_norm_vars(3, 64, 7)).collect(),
    |_| |x: &[Var]| Ok(ops::stem(&x[0], &conv_norm(&x[1..], 2), POOLING)?.0),
    |_| |x: &[Var]| Ok(reference::stem(&x[0], &conv_norm(&x[1..], 2), POOLING)?.0)
);

/// Attention within windows of 7 x 7 tokens in a stage of Swin-T, for 8 samples.
#[derive(Clone, Copy)]
struct Stage {
    count: usize,
    heads: usize,
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "{} of {} heads", self.count, self.heads)
    }
}

const STAGES: [Stage; 4] = [stage(64, 3), stage(16, 6), stage(4, 12), stage(1, 24)];

const fn stage(count: usize, heads: usize) -> Stage {
    Stage { count, heads }
}

impl Stage {
    fn grid(self) -> Grid {
        let side = 7 * self.count.isqrt();
        Grid::new(side, side)
    }

    fn tokens(self) -> Var {
        var(&[BATCH, self.grid().len(), 32 * self.heads])
    }

    fn hidden(self) -> Tensor {
        ops::shift_mask(self.grid(), 7, 3, &Device::Cpu).unwrap()
    }
}

bench!(
    window_attention,
    STAGES: Stage,
    |s: Stage| vec![var(&[BATCH * s.count, 49, 3 * 32 * s.heads]), var(&[s.heads, 49, 49])],
    |s: Stage| {
        let hidden = s.hidden();
        move |x: &[Var]| ops::window_attention(&x[0], s.heads, &x[1], Some(&hidden))
    },
    |s: Stage| {
        let hidden = s.hidden();
        move |x: &[Var]| reference::window_attention(&x[0], s.heads, &x[1], Some(&hidden))
    }
);

/// Tokens, the parameters of an attention branch with γ, and the table of biases.
fn windowed_branch(s: Stage) -> Vec<Var> {
    let d = 32 * s.heads;
    let shapes: [&[usize]; 8] = [&[d], &[d], &[3 * d, d], &[3 * d], &[d, d], &[d], &[d], &[169, s.heads]];
    std::iter::once(s.tokens()).chain(shapes.into_iter().map(var)).collect()
}

fn of_windows<'a>(s: Stage, x: &'a [Var], mask: &'a Tensor) -> Windows<'a> {
    Windows {
        grid: s.grid(),
        window: 7,
        shift: 3,
        table: &x[8],
        mask: Some(mask),
    }
}

bench!(
    window_attention_branch,
    STAGES: Stage,
    windowed_branch,
    |s: Stage| {
        let hidden = s.hidden();
        move |x: &[Var]| {
            let windows = of_windows(s, x, &hidden);
            ops::window_attention_branch(&x[0], &of_attention(x, s.heads), &windows, None)
        }
    },
    |s: Stage| {
        let hidden = s.hidden();
        move |x: &[Var]| {
            let windows = of_windows(s, x, &hidden);
            reference::window_attention_branch(&x[0], &of_attention(x, s.heads), &windows, None)
        }
    }
);

bench!(
    window_partition,
    STAGES: Stage,
    |s: Stage| vec![s.tokens()],
    |s: Stage| move |x: &[Var]| ops::window_partition(&x[0], s.grid(), 7, 3),
    |s: Stage| move |x: &[Var]| reference::window_partition(&x[0], s.grid(), 7, 3)
);

bench!(
    window_reverse,
    STAGES: Stage,
    |s: Stage| vec![var(&[BATCH * s.count, 49, 32 * s.heads])],
    |s: Stage| move |x: &[Var]| ops::window_reverse(&x[0], s.grid(), 7, 3),
    |s: Stage| move |x: &[Var]| reference::window_reverse(&x[0], s.grid(), 7, 3)
);

bench!(
    relative_position_bias,
    STAGES: Stage,
    |s: Stage| vec![var(&[169, s.heads])],
    |_| |x: &[Var]| ops::relative_position_bias(&x[0], 7),
    |_| |x: &[Var]| reference::relative_position_bias(&x[0], 7)
);

/// A constant: it has no training.
mod shift_mask {
    use super::*;

    #[divan::bench(args = STAGES, sample_count = 9, max_time = 1)]
    fn kernel_forward(bencher: Bencher, stage: Stage) {
        bencher.bench_local(|| ops::shift_mask(stage.grid(), 7, 3, &Device::Cpu).unwrap());
    }

    #[divan::bench(args = STAGES, sample_count = 9, max_time = 1)]
    fn composed_forward(bencher: Bencher, stage: Stage) {
        bencher.bench_local(|| reference::shift_mask(stage.grid(), 7, 3, &Device::Cpu).unwrap());
    }
}
