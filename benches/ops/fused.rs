//! Whole branches, blocks and stems.

use masksub::ops::{
    Activation, Affine, AttentionBranch, ConvMlpBranch, ConvNorm, Gated, GatedMlpBranch, MlpBranch, PatchEmbed,
    Pooling, Positions, ResidualBlock, Tokens, Windows,
};
use masksub::Grid;

use super::tokens::tokens;
use super::*;

/// Tokens and the parameters of a branch: norm, the layer in the middle, the projection, γ.
pub fn branch(size: Size, middle: usize, inner: usize) -> Vec<Var> {
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

pub fn of_attention(x: &[Var], num_heads: usize) -> AttentionBranch<'_> {
    let [norm, qkv, proj] = affines(x);
    let (eps, gamma) = (1e-6, Some(x[7].as_tensor()));
    AttentionBranch {
        norm,
        eps,
        qkv,
        num_heads,
        proj,
        gamma,
        recompute: false,
    }
}

bench!(
    attention_branch,
    |s: Size| branch(s, 3 * s.width, s.width),
    |s: Size| move |x: &[Var]| ops::attention_branch(
        &x[0],
        &of_attention(x, s.heads),
        Tokens::All,
        &Positions::default(),
        None
    ),
    |s: Size| move |x: &[Var]| reference::attention_branch(
        &x[0],
        &of_attention(x, s.heads),
        Tokens::All,
        &Positions::default(),
        None
    )
);

bench!(
    attention_branch_of_the_first_token,
    |s: Size| branch(s, 3 * s.width, s.width),
    |s: Size| move |x: &[Var]| ops::attention_branch(
        &x[0],
        &of_attention(x, s.heads),
        Tokens::First,
        &Positions::default(),
        None
    ),
    |s: Size| move |x: &[Var]| reference::attention_branch(
        &x[0],
        &of_attention(x, s.heads),
        Tokens::First,
        &Positions::default(),
        None
    )
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
        recompute: false,
    }
}

bench!(
    mlp_branch,
    |s: Size| branch(s, 4 * s.width, 4 * s.width),
    |_| |x: &[Var]| ops::mlp_branch(&x[0], &of_mlp(x), None),
    |_| |x: &[Var]| reference::mlp_branch(&x[0], &of_mlp(x), None)
);

/// EVA-02's: layers of their own for gate and value, and a second norm.
fn of_gated(x: &[Var]) -> GatedMlpBranch<'_> {
    let affine = |i: usize| Affine {
        weight: &x[i],
        bias: &x[i + 1],
    };
    GatedMlpBranch {
        norm: affine(1),
        eps: 1e-6,
        gated: Gated::Apart([affine(3), affine(5)]),
        inner_norm: Some(affine(7)),
        fc2: affine(9),
        gamma: None,
    }
}

bench!(
    gated_mlp_branch,
    |s: Size| {
        let (d, h) = (s.width, 8 * s.width / 3);
        let layers = [var(&[h, d]), var(&[h]), var(&[h, d]), var(&[h]), var(&[h]), var(&[h])];
        let last = [var(&[d, h]), var(&[d])];
        let front = [tokens(s, d), var(&[d]), var(&[d])];
        front.into_iter().chain(layers).chain(last).collect::<Vec<_>>()
    },
    |_| |x: &[Var]| ops::gated_mlp_branch(&x[0], &of_gated(x), None),
    |_| |x: &[Var]| reference::gated_mlp_branch(&x[0], &of_gated(x), None)
);

/// The blocks of ConvNeXt-T's stages.
const CONVNEXT_MAPS: [Map; 4] = [map(96, 56), map(192, 28), map(384, 14), map(768, 7)];

fn conv_mlp_vars(m: Map) -> Vec<Var> {
    let (c, h) = (m.channels, 4 * m.channels);
    let shapes: [&[usize]; 10] = [
        &[BATCH, m.side * m.side, c],
        &[c, 1, 7, 7],
        &[c],
        &[c],
        &[c],
        &[h, c],
        &[h],
        &[c, h],
        &[c],
        &[c],
    ];
    shapes.into_iter().map(var).collect()
}

fn of_conv_mlp(x: &[Var]) -> ConvMlpBranch<'_> {
    let affine = |i: usize| Affine {
        weight: &x[i],
        bias: &x[i + 1],
    };
    ConvMlpBranch {
        conv: affine(1),
        norm: affine(3),
        eps: 1e-6,
        fc1: affine(5),
        response: None,
        fc2: affine(7),
        gamma: Some(&x[9]),
    }
}

bench!(
    conv_mlp_branch,
    CONVNEXT_MAPS: Map,
    conv_mlp_vars,
    |m: Map| move |x: &[Var]| ops::conv_mlp_branch(&x[0], Grid::new(m.side, m.side), &of_conv_mlp(x), None),
    |m: Map| move |x: &[Var]| reference::conv_mlp_branch(&x[0], Grid::new(m.side, m.side), &of_conv_mlp(x), None)
);

fn of_patches(x: &[Var]) -> PatchEmbed<'_> {
    PatchEmbed {
        weight: &x[1],
        positions: &x[2],
        prefix: Some(x[3].as_tensor()),
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
        let params = [var(&[d, 3, 16, 16]), var(&[1, 197, d]), var(&[1, 1, d]), var(&[d])];
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
