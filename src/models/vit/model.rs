//! The Vision Transformer: images to tokens, tokens through the blocks, and a head on what is pooled of them.

use candle_core::{Module, Result, Tensor};
use candle_nn::{Init, ModuleT, VarBuilder};

use super::block::Block;
use super::config::{Config, Pool};
use super::embedding::Embedding;
use crate::error::Error;
use crate::grid::Grid;
use crate::mask::Mask;
use crate::model::{Forward, TokenModel};
use crate::models::init::{normal, ZERO};
use crate::models::linear::Linear;
use crate::models::pool;
use crate::nn::{layer_norm, LayerNorm};
use crate::ops::Tokens;
use crate::pass::Pass;

/// A Vision Transformer that can be trained: gradients reach every parameter, dropout and drop path are active in
/// training.
///
/// It is a [`ModuleT`] like any candle model, a [`TokenModel`] for [`DropToken`](crate::DropToken), and a [`Forward`]
/// model for the other branches.
///
/// Images [B, C, H, W] become logits [B, classes]. `forward_t` refuses, as [`Error::Shape`], images that are not of the
/// configured size and channels, and an empty batch; and as [`Error::DrawsWithoutKey`] to train with a dropout or drop
/// path above 0, which need a [`Pass`] with a key.
///
/// ```
/// use candle_core::{DType, Device, Tensor};
/// use candle_nn::ModuleT;
/// use masksub::models::vit::{Config, VisionTransformer};
/// use masksub::{Seed, Weights};
/// let cfg = Config { embed_dim: 24, depth: 2, num_heads: 3, mlp_dim: 96, ..Config::deit3_tiny(10) };
/// let cfg = cfg.with_input(32, 8, 3);
/// let weights = Weights::seeded(Seed::new(0));
/// let vit = VisionTransformer::new(&cfg, weights.var_builder(DType::F32, &Device::Cpu))?;
/// let images = Tensor::zeros((2, 3, 32, 32), DType::F32, &Device::Cpu)?;
/// assert_eq!(vit.forward_t(&images, false)?.dims(), [2, 10]);
/// # Ok::<(), candle_core::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct VisionTransformer {
    cfg: Config,
    embedding: Embedding,
    blocks: Vec<Block>,
    /// The final norm, or `fc_norm` where tokens are averaged; none where the head reads their bare mean.
    norm: Option<LayerNorm>,
    head: Linear,
}

impl VisionTransformer {
    /// The model of `cfg`, its weights from `vb` under the names of `cfg.weight_names`.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] when the configuration does not hold together; those of `vb` for weights that are
    /// missing or of another shape.
    pub fn new(cfg: &Config, vb: VarBuilder) -> Result<Self> {
        cfg.check()?;
        let (d, names) = (cfg.embed_dim, cfg.names());
        let blocks = vb.pp(names.blocks);
        let blocks = (0..cfg.depth).map(|index| Block::new(cfg, index, blocks.pp(index)));
        let norm = match cfg.pool {
            Pool::ClassToken => Some(names.norm),
            Pool::Mean | Pool::NormThenMean => Some(names.fc_norm),
            Pool::MeanOnly => None,
        };
        let norm = norm.map(|name| layer_norm(d, cfg.norm_eps, vb.pp(name)));
        let bias = match cfg.head_bias_bound {
            0.0 => ZERO,
            bound => Init::Uniform { lo: -bound, up: bound },
        };
        Ok(Self {
            cfg: cfg.clone(),
            embedding: Embedding::new(cfg, vb.clone())?,
            blocks: blocks.collect::<Result<_>>()?,
            // Before the head: a checkpoint's head is for what its norm is read by.
            norm: norm.transpose()?,
            head: Linear::new(d, cfg.num_classes, normal(cfg.head_init_std), bias, vb.pp(names.head))?,
        })
    }

    /// The configuration the model was made from.
    pub fn config(&self) -> &Config {
        &self.cfg
    }

    /// What the head reads of tokens [B, 1 + K, D]: [B, D]. Those behind the first are none where it is the only one read.
    fn pool(&self, tokens: &Tensor) -> Result<Tensor> {
        let norm = |xs: Tensor| match &self.norm {
            Some(norm) => norm.forward(&xs.contiguous()?),
            None => Ok(xs),
        };
        let patches = || tokens.narrow(1, 1, tokens.dim(1)? - 1);
        match self.cfg.pool {
            Pool::ClassToken => norm(tokens.narrow(1, 0, 1)?.squeeze(1)?),
            Pool::Mean | Pool::MeanOnly => norm(pool::mean(&patches()?, 1)?),
            Pool::NormThenMean => pool::mean(&norm(patches()?)?, 1),
        }
    }
}

impl TokenModel for VisionTransformer {
    fn grid(&self, xs: &Tensor) -> Result<Grid> {
        Ok(self.cfg.check_images(xs.dims())?)
    }

    fn num_prefix_tokens(&self) -> usize {
        1
    }

    fn embed(&self, xs: &Tensor, keep: Option<&Mask>, _: &mut Pass) -> Result<Tensor> {
        let grid = self.grid(xs)?;
        let keep = keep.map(|mask| mask.indices_on(grid, xs.dim(0)?)).transpose()?;
        self.embedding.forward(xs, keep)
    }

    fn classify(&self, tokens: &Tensor, pass: &mut Pass) -> Result<Tensor> {
        match *tokens.dims() {
            [b, n, d] if b > 0 && n > 1 && d == self.cfg.embed_dim => {}
            _ => {
                let expected = format!("[B, 1 + K, {}] with B, K > 0", self.cfg.embed_dim);
                return Err(Error::shape("tokens", tokens.dims(), expected).into());
            }
        }
        let mut tokens = tokens.clone();
        for (i, block) in self.blocks.iter().enumerate() {
            // The last block's other tokens are read by nothing.
            let read = match self.cfg.pool {
                Pool::ClassToken if i + 1 == self.blocks.len() => Tokens::First,
                _ => Tokens::All,
            };
            tokens = block.forward(&tokens, read, pass)?;
        }
        self.head.forward(&self.pool(&tokens)?)
    }
}

impl Forward for VisionTransformer {
    fn forward_pass(&self, xs: &Tensor, pass: &mut Pass) -> Result<Tensor> {
        let tokens = self.embed(xs, None, pass)?;
        self.classify(&tokens, pass)
    }
}

impl ModuleT for VisionTransformer {
    fn forward_t(&self, xs: &Tensor, train: bool) -> Result<Tensor> {
        self.forward_pass(xs, &mut Pass::without_key(train))
    }
}
