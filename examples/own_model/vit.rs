// A ViT as one writes it for candle_nn, of its parts and with its signatures. `main.rs` compiles this file twice.

use candle_core::{IndexOp, Module, Result, Tensor, D};
use candle_nn::{layer_norm, linear, Conv2d, Conv2dConfig, Init, LayerNorm, Linear, VarBuilder};

pub struct Config {
    pub image_size: usize,
    pub patch_size: usize,
    pub channels: usize,
    pub width: usize,
    pub depth: usize,
    pub num_heads: usize,
    pub mlp_dim: usize,
    pub num_classes: usize,
}

struct Attention {
    qkv: Linear,
    proj: Linear,
    num_heads: usize,
}

impl Attention {
    fn new(cfg: &Config, vb: VarBuilder) -> Result<Self> {
        Ok(Self {
            qkv: linear(cfg.width, 3 * cfg.width, vb.pp("qkv"))?,
            proj: linear(cfg.width, cfg.width, vb.pp("proj"))?,
            num_heads: cfg.num_heads,
        })
    }
}

impl Module for Attention {
    fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        let (batch, length, width) = xs.dims3()?;
        let head_dim = width / self.num_heads;
        let qkv = self.qkv.forward(xs)?;
        let qkv = qkv.reshape((batch, length, 3, self.num_heads, head_dim))?;
        let qkv = qkv.permute((2, 0, 3, 1, 4))?.contiguous()?;
        let (q, k, v) = (qkv.i(0)?, qkv.i(1)?, qkv.i(2)?);
        let scores = (q.matmul(&k.t()?)? / (head_dim as f64).sqrt())?;
        let attended = candle_nn::ops::softmax_last_dim(&scores)?.matmul(&v)?;
        self.proj.forward(&attended.transpose(1, 2)?.reshape((batch, length, width))?)
    }
}

struct Block {
    norm1: LayerNorm,
    attention: Attention,
    norm2: LayerNorm,
    fc1: Linear,
    fc2: Linear,
}

impl Block {
    fn new(cfg: &Config, vb: VarBuilder) -> Result<Self> {
        Ok(Self {
            norm1: layer_norm(cfg.width, 1e-6, vb.pp("norm1"))?,
            attention: Attention::new(cfg, vb.pp("attn"))?,
            norm2: layer_norm(cfg.width, 1e-6, vb.pp("norm2"))?,
            fc1: linear(cfg.width, cfg.mlp_dim, vb.pp("mlp.fc1"))?,
            fc2: linear(cfg.mlp_dim, cfg.width, vb.pp("mlp.fc2"))?,
        })
    }
}

impl Module for Block {
    fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        let xs = (xs + xs.apply(&self.norm1)?.apply(&self.attention)?)?;
        let hidden = xs.apply(&self.norm2)?.apply(&self.fc1)?;
        &xs + hidden.apply(&candle_nn::Activation::Gelu)?.apply(&self.fc2)?
    }
}

pub struct VisionTransformer {
    pub patch_embed: Conv2d,
    pub cls_token: Tensor,
    pub pos_embed: Tensor,
    blocks: Vec<Block>,
    norm: LayerNorm,
    head: Linear,
}

impl VisionTransformer {
    pub fn new(cfg: &Config, vb: VarBuilder) -> Result<Self> {
        let (side, normal) = (cfg.image_size / cfg.patch_size, Init::Randn { mean: 0.0, stdev: 0.02 });
        let stride = Conv2dConfig { stride: cfg.patch_size, ..Default::default() };
        let blocks = (0..cfg.depth).map(|i| Block::new(cfg, vb.pp("blocks").pp(i)));
        Ok(Self {
            patch_embed: candle_nn::conv2d(cfg.channels, cfg.width, cfg.patch_size, stride, vb.pp("patch_embed"))?,
            cls_token: vb.get_with_hints((1, 1, cfg.width), "cls_token", normal)?,
            pos_embed: vb.get_with_hints((1, side * side, cfg.width), "pos_embed", normal)?,
            blocks: blocks.collect::<Result<_>>()?,
            norm: layer_norm(cfg.width, 1e-6, vb.pp("norm"))?,
            head: linear(cfg.width, cfg.num_classes, vb.pp("head"))?,
        })
    }

    /// The tokens of the patches [B, L, D], in their positions.
    pub fn patches(&self, xs: &Tensor) -> Result<Tensor> {
        let tokens = self.patch_embed.forward(xs)?.flatten_from(2)?.transpose(1, 2)?;
        tokens.broadcast_add(&self.pos_embed)
    }

    /// The logits of patches, all or some of them.
    pub fn logits(&self, patches: &Tensor) -> Result<Tensor> {
        let cls = self.cls_token.broadcast_as((patches.dim(0)?, 1, patches.dim(D::Minus1)?))?;
        let tokens = Tensor::cat(&[&cls, patches], 1)?;
        let tokens = self.blocks.iter().try_fold(tokens, |tokens, block| tokens.apply(block))?;
        tokens.apply(&self.norm)?.i((.., 0))?.apply(&self.head)
    }
}

impl Module for VisionTransformer {
    fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        self.logits(&self.patches(xs)?)
    }
}
