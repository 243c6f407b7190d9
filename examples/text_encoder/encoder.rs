//! A transformer encoder of words, on the operations of masksub: pre-norm blocks, attention that never sees padding, and
//! the mean of the tokens in front of the head.

use candle_core::{Result, Tensor};
use candle_nn::{embedding, Embedding, Init, Module, VarBuilder};
use masksub::nn::{layer_norm, LayerNorm};
use masksub::{ops, Mask, Pass, SequenceModel, Sequences};

use crate::messages::{MOST_TOKENS, PAD, STOP, VOCABULARY};

const WIDTH: usize = 32;
const DEPTH: usize = 2;
const HEADS: usize = 4;

pub struct Encoder {
    words: Embedding,
    positions: Tensor,
    blocks: Vec<Block>,
    norm: LayerNorm,
    head: candle_nn::Linear,
}

impl Encoder {
    pub fn new(classes: usize, vb: VarBuilder) -> Result<Self> {
        let normal = Init::Randn { mean: 0.0, stdev: 0.1 };
        Ok(Self {
            words: embedding(VOCABULARY, WIDTH, vb.pp("words"))?,
            positions: vb.get_with_hints((1, MOST_TOKENS, WIDTH), "positions", normal)?,
            blocks: (0..DEPTH)
                .map(|i| Block::new(vb.pp("blocks").pp(i)))
                .collect::<Result<_>>()?,
            norm: layer_norm(WIDTH, 1e-6, vb.pp("norm"))?,
            head: candle_nn::linear(WIDTH, classes, vb.pp("head"))?,
        })
    }
}

impl SequenceModel for Encoder {
    fn sequences(&self, ids: &Tensor) -> Result<Sequences> {
        // Full stops stay: they tell where sentences end.
        Ok(Sequences::new(&ids.ne(PAD)?)?.keeping(&ids.eq(STOP)?)?)
    }

    fn forward_kept(&self, ids: &Tensor, keep: &Mask, _: &mut Pass) -> Result<Tensor> {
        let positions = self.positions.narrow(1, 0, ids.dim(1)?)?;
        let tokens = self.words.forward(ids)?.broadcast_add(&positions)?;
        let mut tokens = keep.gather(&tokens, 0)?;
        let bias = keep.attention_bias(tokens.dtype(), tokens.device())?;
        for block in &self.blocks {
            tokens = block.forward(&tokens, &bias)?;
        }
        let is_token = keep.attention_mask(tokens.dtype(), tokens.device())?.unsqueeze(2)?;
        let sum = self.norm.forward(&tokens)?.broadcast_mul(&is_token)?.sum(1)?;
        self.head.forward(&sum.broadcast_div(&is_token.sum(1)?)?)
    }
}

struct Block {
    norm1: LayerNorm,
    qkv: candle_nn::Linear,
    proj: candle_nn::Linear,
    norm2: LayerNorm,
    fc1: candle_nn::Linear,
    fc2: candle_nn::Linear,
}

impl Block {
    fn new(vb: VarBuilder) -> Result<Self> {
        Ok(Self {
            norm1: layer_norm(WIDTH, 1e-6, vb.pp("norm1"))?,
            qkv: candle_nn::linear(WIDTH, 3 * WIDTH, vb.pp("qkv"))?,
            proj: candle_nn::linear(WIDTH, WIDTH, vb.pp("proj"))?,
            norm2: layer_norm(WIDTH, 1e-6, vb.pp("norm2"))?,
            fc1: candle_nn::linear(WIDTH, 4 * WIDTH, vb.pp("fc1"))?,
            fc2: candle_nn::linear(4 * WIDTH, WIDTH, vb.pp("fc2"))?,
        })
    }

    /// [B, K, D] to [B, K, D], with `bias` [B, K, K] on the scores.
    fn forward(&self, xs: &Tensor, bias: &Tensor) -> Result<Tensor> {
        let qkv = self.qkv.forward(&self.norm1.forward(xs)?)?;
        // Each sample is a window of its own; positions have no bias among themselves.
        let length = xs.dim(1)?;
        let none = Tensor::zeros((HEADS, length, length), xs.dtype(), xs.device())?;
        let xs = (xs
            + self
                .proj
                .forward(&ops::window_attention(&qkv, HEADS, &none, Some(bias))?)?)?;
        let hidden = ops::gelu(&self.fc1.forward(&self.norm2.forward(&xs)?)?)?;
        &xs + self.fc2.forward(&hidden)?
    }
}
