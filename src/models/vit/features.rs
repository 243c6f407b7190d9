//! Images as a ViT sees them before its head: for probes, retrieval and dense tasks.

use candle_core::{Result, Tensor};

use super::model::VisionTransformer;
use crate::model::TokenModel;
use crate::ops::Tokens;
use crate::pass::Pass;

/// Images as a ViT sees them before its head.
#[derive(Clone, Debug)]
pub struct Features {
    /// The head's input, behind the final norm where there is one: [B, D]; [B, 2 D] of class token and mean, [B, 2, D]
    /// of two heads.
    pub pooled: Tensor,
    /// All tokens behind each block, before the final norm, [B, P + L, D] each: P prefix tokens, then the patches row
    /// by row.
    pub blocks: Vec<Tensor>,
}

impl VisionTransformer {
    /// The features of images [B, C, H, W], as in evaluation; through them gradients flow.
    ///
    /// ```
    /// # use candle_core::{DType, Device, Tensor};
    /// # use masksub::models::vit::{Config, VisionTransformer};
    /// # let small = Config { embed_dim: 24, depth: 2, num_heads: 3, mlp_dim: 96, ..Config::dinov2_reg4_small(10) };
    /// # let (cfg, weights) = (small.with_input(32, 8, 3), masksub::Weights::seeded(masksub::Seed::new(0)));
    /// # let vit = VisionTransformer::new(&cfg, weights.var_builder(DType::F32, &Device::Cpu))?;
    /// let images = Tensor::zeros((2, 3, 32, 32), DType::F32, &Device::Cpu)?;
    /// let features = vit.features(&images)?;
    /// let patches = features.blocks[1].narrow(1, vit.config().num_prefix_tokens(), 16)?;
    /// assert_eq!((features.pooled.dims(), patches.dims()), (&[2, 48][..], &[2, 16, 24][..]));
    /// # Ok::<(), candle_core::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::Shape`](crate::Error::Shape) for images that are not as configured.
    pub fn features(&self, xs: &Tensor) -> Result<Features> {
        let mut pass = Pass::eval();
        let (tokens, mut blocks) = (self.embed(xs, None, &mut pass)?, vec![]);
        let last = self.through_blocks(&tokens, None, Tokens::All, &mut pass, |stream| {
            blocks.push(stream.tokens()?);
            Ok(())
        })?;
        let pooled = self.head().pool(&last)?;
        Ok(Features { pooled, blocks })
    }
}
