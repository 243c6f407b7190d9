//! Plain operations on tokens.

use super::*;

pub fn tokens(size: Size, width: usize) -> Var {
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

bench!(
    sdpa,
    |s: Size| [(); 3]
        .map(|()| var(&[BATCH, s.heads, s.tokens, s.width / s.heads]))
        .to_vec(),
    |_| |x: &[Var]| masksub::nn::ops::sdpa(&x[0], &x[1], &x[2], None, false, 0.125, 1.0),
    |_| |x: &[Var]| {
        let scores = (x[0].matmul(&x[1].t()?)? * 0.125)?;
        reference::softmax(&scores, candle_core::D::Minus1)?.matmul(&x[2])
    }
);
