//! The Vision Transformer: images to tokens, tokens through the blocks, and a head on what is pooled of them.

use candle_core::{Result, Tensor};
use candle_nn::{ModuleT, VarBuilder};

use super::block::Block;
use super::config::Config;
use super::embedding::Embedding;
use super::head::Head;
use super::positions::Positions;
use crate::error::Error;
use crate::grid::Grid;
use crate::mask::Mask;
use crate::model::{Forward, TokenModel};
use crate::models::rules;
use crate::ops::{Stream, Tokens};
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
    head: Head,
}

impl VisionTransformer {
    /// The model of `cfg`, its weights from `vb` under the names of `cfg.weight_names`.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] when the configuration does not hold together; those of `vb` for weights that are
    /// missing or of another shape.
    pub fn new(cfg: &Config, vb: VarBuilder) -> Result<Self> {
        cfg.check()?;
        rules::check_compute_dtype(cfg.compute_dtype, vb.dtype())?;
        let blocks = vb.pp(cfg.names().blocks);
        let blocks = (0..cfg.depth).map(|index| Block::new(cfg, index, blocks.pp(index)));
        Ok(Self {
            cfg: cfg.clone(),
            embedding: Embedding::new(cfg, vb.clone())?,
            blocks: blocks.collect::<Result<_>>()?,
            head: Head::new(cfg, vb)?,
        })
    }

    /// The configuration the model was made from.
    pub fn config(&self) -> &Config {
        &self.cfg
    }

    /// What the heads read of a token sequence, once it went through the blocks.
    pub(super) fn pooled(&self, tokens: &Tensor, keep: Option<&Mask>, pass: &mut Pass) -> Result<Tensor> {
        // The last block's other tokens are read by nothing.
        let tokens = self.through_blocks(tokens, keep, self.head.reads(), pass, |_| Ok(()))?;
        self.head.pool(&tokens)
    }

    /// A token sequence behind the last block, of which it computes the tokens that are `read`. `each` sees it behind
    /// every block.
    pub(super) fn through_blocks(
        &self,
        tokens: &Tensor,
        keep: Option<&Mask>,
        read: Tokens,
        pass: &mut Pass,
        mut each: impl FnMut(&mut Stream) -> Result<()>,
    ) -> Result<Tensor> {
        let grid = self.grid_of(keep, pass)?;
        let (batch, positions) = self.check_tokens(tokens, grid, keep)?;
        let positions = match grid {
            Some(grid) => Positions::of(&self.cfg, grid, positions, batch, tokens.device())?,
            None => None,
        };
        let mut stream = Stream::new(tokens);
        for (i, block) in self.blocks.iter().enumerate() {
            let last = i + 1 == self.blocks.len();
            let read = if last { read } else { Tokens::All };
            block.forward(&mut stream, read, positions.as_ref(), pass)?;
            each(&mut stream)?;
        }
        stream.tokens()
    }

    /// The grid that tokens come from: the configured one, or that of their images, as a mask or the pass of `embed` tells
    /// it; `None` where neither does and no block asks.
    fn grid_of(&self, keep: Option<&Mask>, pass: &Pass) -> crate::error::Result<Option<Grid>> {
        if !self.cfg.dynamic_image_size {
            return Ok(Some(self.cfg.grid()));
        }
        let grid = keep.map(Mask::grid).or(pass.grid());
        if grid.is_none() && self.cfg.has_positions_in_blocks() {
            let allowed =
                "the one that `embed` got, or any with the mask as `keep`: with dynamic_image_size they tell the \
                           grid of the images' patches, on which this model's blocks take positions";
            return Err(Error::invalid("pass", "one that has seen no images", allowed));
        }
        Ok(grid)
    }

    /// B and the positions that are kept, once the tokens are those.
    fn check_tokens<'a>(
        &self,
        tokens: &Tensor,
        grid: Option<Grid>,
        keep: Option<&'a Mask>,
    ) -> Result<(usize, Option<&'a [u32]>)> {
        let prefix = self.cfg.num_prefix_tokens();
        let expected = match *tokens.dims() {
            [b, n, d] if b > 0 && n > prefix && d == self.cfg.embed_dim => {
                // Whoever has no grid has no mask, and as many patches as there are tokens.
                let Some(grid) = grid else { return Ok((b, None)) };
                let keep = keep.map(|mask| mask.indices_on(grid, b)).transpose()?;
                let kept = keep.map_or(grid.len(), |keep| keep.len() / b);
                // Without a mask, whoever cut tokens need not say which: unless the blocks take their positions.
                let any = keep.is_none() && !self.cfg.has_positions_in_blocks() && n - prefix <= kept;
                if any || n == prefix + kept {
                    return Ok((b, keep));
                }
                let which = match keep {
                    Some(_) => "the tokens that `keep` keeps",
                    None if n - prefix > kept => "no more tokens than there are patches",
                    None => "or fewer with the mask that `embed` got as `keep`: this model's blocks take positions",
                };
                format!("[{b}, {prefix} + {kept}, {d}], {which}")
            }
            _ => format!("[B, {prefix} + K, {}] with B, K > 0", self.cfg.embed_dim),
        };
        Err(Error::shape("tokens", tokens.dims(), expected).into())
    }

    pub(super) fn head(&self) -> &Head {
        &self.head
    }
}

impl TokenModel for VisionTransformer {
    fn grid(&self, xs: &Tensor) -> Result<Grid> {
        Ok(self.cfg.check_images(xs.dims())?)
    }

    fn num_prefix_tokens(&self) -> usize {
        self.cfg.num_prefix_tokens()
    }

    fn embed(&self, xs: &Tensor, keep: Option<&Mask>, pass: &mut Pass) -> Result<Tensor> {
        let grid = self.grid(xs)?;
        pass.set_grid(grid);
        let keep = keep.map(|mask| mask.indices_on(grid, xs.dim(0)?)).transpose()?;
        self.embedding.forward(xs, grid, keep)
    }

    fn classify(&self, tokens: &Tensor, keep: Option<&Mask>, pass: &mut Pass) -> Result<Tensor> {
        self.head.logits(&self.pooled(tokens, keep, pass)?)
    }
}

impl Forward for VisionTransformer {
    fn forward_pass(&self, xs: &Tensor, pass: &mut Pass) -> Result<Tensor> {
        let tokens = self.embed(xs, None, pass)?;
        self.classify(&tokens, None, pass)
    }
}

impl ModuleT for VisionTransformer {
    fn forward_t(&self, xs: &Tensor, train: bool) -> Result<Tensor> {
        self.forward_pass(xs, &mut Pass::without_key(train))
    }
}
