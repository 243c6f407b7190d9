//! Plain operations on images, on the maps of a ResNet or a ConvNeXt, and on sequences.

use std::fmt;

use candle_nn::{Conv1dConfig, Conv2dConfig, ConvTranspose1dConfig, ConvTranspose2dConfig};

use super::*;

/// ConvNeXt-T's first map and a deep one.
const MAPS: [Map; 2] = [map(96, 56), map(384, 14)];

const IMAGE: [Map; 1] = [map(3, 224)];
const STEM: [Map; 1] = [map(64, 112)];

bench!(
    batch_norm,
    RESNET_MAPS: Map,
    |m: Map| vec![m.var(), var(&[m.channels]), var(&[m.channels])],
    |_| |x: &[Var]| Ok(ops::batch_norm(&x[0], &x[1], &x[2], 1e-5)?.0),
    |_| |x: &[Var]| Ok(reference::batch_norm(&x[0], &x[1], &x[2], 1e-5)?.0)
);

bench!(
    add_relu,
    RESNET_MAPS: Map,
    |m: Map| vec![m.var(), m.var()],
    |_| |x: &[Var]| ops::add_relu(&x[0], &x[1]),
    |_| |x: &[Var]| reference::add_relu(&x[0], &x[1])
);

// Layer scale.
bench!(
    broadcast_mul,
    MAPS: Map,
    |m: Map| vec![m.var(), var(&[m.channels, 1, 1])],
    |_| |x: &[Var]| ops::broadcast_mul(&x[0], &x[1]),
    |_| |x: &[Var]| reference::broadcast_mul(&x[0], &x[1])
);

// Squeeze and excitation.
bench!(
    broadcast_mul_by_samples,
    MAPS: Map,
    |m: Map| vec![m.var(), var(&[BATCH, m.channels, 1, 1])],
    |_| |x: &[Var]| ops::broadcast_mul(&x[0], &x[1]),
    |_| |x: &[Var]| reference::broadcast_mul(&x[0], &x[1])
);

bench!(
    batch_norm_eval,
    RESNET_MAPS: Map,
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

// In eight groups.
bench!(
    group_norm,
    MAPS: Map,
    |m: Map| vec![m.var(), var(&[m.channels]), var(&[m.channels])],
    |_| |x: &[Var]| ops::group_norm(&x[0], 8, &x[1], &x[2], 1e-5),
    |_| |x: &[Var]| reference::group_norm(&x[0], 8, &x[1], &x[2], 1e-5)
);

bench!(
    avg_pool2d,
    MAPS: Map,
    |m: Map| vec![m.var()],
    |_| |x: &[Var]| ops::avg_pool2d(&x[0], 2, 2),
    |_| |x: &[Var]| x[0].avg_pool2d(2)
);

bench!(
    upsample_bilinear2d,
    MAPS: Map,
    |m: Map| vec![m.var()],
    |m: Map| move |x: &[Var]| ops::upsample_bilinear2d(&x[0], 2 * m.side, 2 * m.side, false),
    |m: Map| move |x: &[Var]| reference::upsample_bilinear2d(&x[0], 2 * m.side, 2 * m.side, false)
);

bench!(
    upsample_nearest2d,
    MAPS: Map,
    |m: Map| vec![m.var()],
    |m: Map| move |x: &[Var]| ops::upsample_nearest2d(&x[0], 2 * m.side, 2 * m.side),
    |m: Map| move |x: &[Var]| x[0].upsample_nearest2d(2 * m.side, 2 * m.side)
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

impl Sequence {
    /// Of a convolution in the other direction.
    fn transposed(self) -> ConvTranspose1dConfig {
        ConvTranspose1dConfig {
            stride: self.stride,
            padding: 1,
            ..Default::default()
        }
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

// Beside the composition: candle's own has no backward.
bench!(
    conv_transpose1d,
    SEQUENCES: Sequence,
    |s: Sequence| vec![var(&[1, s.channels, s.length]), var(&[s.channels, 384, 4]), var(&[384])],
    |s: Sequence| move |x: &[Var]| ops::conv_transpose1d(&x[0], &x[1], Some(&x[2]), s.transposed()),
    |s: Sequence| move |x: &[Var]| reference::conv_transpose1d(&x[0], &x[1], Some(&x[2]), s.transposed())
);

// From a segmenter's tokens to a map twice as fine.
bench!(
    conv_transpose2d,
    MAPS: Map,
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
