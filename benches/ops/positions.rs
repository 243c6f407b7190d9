//! Attention in which positions have a part.

use masksub::ops::{Pairs, Positions, RelativeBias, Rotation, Tokens};

use super::fused::{branch, of_attention};
use super::tokens::tokens;
use super::*;

/// Of tokens in a row, which in each sample are others.
struct Places {
    cos: Tensor,
    sin: Tensor,
    index: Tensor,
}

impl Places {
    fn new(s: Size) -> Self {
        // Of all tokens but the first.
        let angles = var(&[BATCH, s.tokens - 1, s.width / s.heads / 2]);
        let n = s.tokens;
        let row = |i: usize| {
            let (sample, query, key) = (i / (n * n), i / n % n, i % n);
            ((sample + query + n - 1 - key) % distances(s)) as u32
        };
        let index: Vec<u32> = (0..BATCH * n * n).map(row).collect();
        Self {
            cos: angles.cos().unwrap().detach(),
            sin: angles.sin().unwrap().detach(),
            index: Tensor::from_vec(index, (BATCH, n, n), &Device::Cpu).unwrap(),
        }
    }

    fn rotation(&self) -> Rotation<'_> {
        Rotation {
            cos: &self.cos,
            sin: &self.sin,
            pairs: Pairs::Halves,
        }
    }

    fn bias<'a>(&'a self, table: &'a Tensor) -> RelativeBias<'a> {
        RelativeBias {
            table,
            index: &self.index,
        }
    }

    fn both<'a>(&'a self, table: &'a Tensor) -> Positions<'a> {
        Positions {
            rotation: Some(self.rotation()),
            bias: Some(self.bias(table)),
        }
    }
}

/// How far two tokens of a row can be from each other, either way.
fn distances(s: Size) -> usize {
    2 * s.tokens - 1
}

fn table(s: Size) -> Var {
    var(&[distances(s), s.heads])
}

bench!(
    rotary_qkv,
    |s: Size| vec![tokens(s, 3 * s.width)],
    |s: Size| {
        let places = Places::new(s);
        move |x: &[Var]| ops::rotary_qkv(&x[0], s.heads, &places.rotation())
    },
    |s: Size| {
        let places = Places::new(s);
        move |x: &[Var]| reference::rotary_qkv(&x[0], s.heads, &places.rotation())
    }
);

bench!(
    biased_attention,
    |s: Size| vec![tokens(s, 3 * s.width), table(s)],
    |s: Size| {
        let places = Places::new(s);
        move |x: &[Var]| ops::biased_attention(&x[0], s.heads, &places.bias(&x[1]))
    },
    |s: Size| {
        let places = Places::new(s);
        move |x: &[Var]| reference::biased_attention(&x[0], s.heads, &places.bias(&x[1]))
    }
);

bench!(
    attention_branch_with_positions,
    |s: Size| {
        let mut inputs = branch(s, 3 * s.width, s.width);
        inputs.push(table(s));
        inputs
    },
    |s: Size| {
        let places = Places::new(s);
        move |x: &[Var]| {
            let branch = of_attention(x, s.heads);
            ops::attention_branch(&x[0], &branch, Tokens::All, &places.both(&x[8]), None)
        }
    },
    |s: Size| {
        let places = Places::new(s);
        move |x: &[Var]| {
            let branch = of_attention(x, s.heads);
            reference::attention_branch(&x[0], &branch, Tokens::All, &places.both(&x[8]), None)
        }
    }
);
