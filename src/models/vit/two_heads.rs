//! A distilled ViT whose heads are trained apart.

use candle_core::{Result, Tensor};

use super::config::Pool;
use super::head::two_heads;
use super::model::VisionTransformer;
use crate::grid::Grid;
use crate::mask::Mask;
use crate::model::{Forward, TokenModel};
use crate::pass::Pass;

/// A distilled DeiT (arXiv 2012.12877) that returns the logits of both heads, of the class token and of the
/// distillation token, [B, classes] each, instead of their mean: for training, in which the sub-branch then matches
/// each.
///
/// The main loss gets both, here as in the paper's hard distillation: the sum of the heads' losses, as
/// [`SubModelLoss`](crate::SubModelLoss) takes the sum of theirs.
///
/// ```
/// use candle_core::{DType, Device, Tensor};
/// use candle_nn::loss::cross_entropy;
/// use masksub::models::vit::{Config, TwoHeads, VisionTransformer};
/// use masksub::{DropToken, MaskSub, Params, RandomMasking, Seed, Weights};
/// # let small = |cfg: Config| Config { embed_dim: 24, depth: 1, mlp_dim: 48, ..cfg.with_input(32, 8, 3) };
/// let weights = Weights::seeded(Seed::new(0));
/// let cfg = small(Config::deit_tiny_distilled(10));
/// let vit = VisionTransformer::new(&cfg, weights.var_builder(DType::F32, &Device::Cpu))?;
/// let params = Params::from_varmap(weights.varmap());
/// let model = MaskSub::new(TwoHeads::new(vit)?, DropToken::new(RandomMasking::new(0.5)?), params);
///
/// let images = Tensor::zeros((2, 3, 32, 32), DType::F32, &Device::Cpu)?;
/// let (labels, of_teacher) = (Tensor::new(&[3u32, 7], &Device::Cpu)?, Tensor::new(&[3u32, 1], &Device::Cpu)?);
/// let step = model.backward(&images, Seed::new(0).at(0), |(class, distilled)| {
///     cross_entropy(class, &labels)? + cross_entropy(distilled, &of_teacher)?
/// })?;
/// assert_eq!(step.main_logits.1.dims(), [2, 10]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug)]
pub struct TwoHeads(VisionTransformer);

impl TwoHeads {
    /// Both heads of `vit`.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`](crate::Error::InvalidArgument) for a model that does not pool by
    /// [`Pool::ClassAndDistillation`].
    pub fn new(vit: VisionTransformer) -> crate::error::Result<Self> {
        match vit.config().pool {
            Pool::ClassAndDistillation => Ok(Self(vit)),
            other => Err(two_heads(&other)),
        }
    }

    /// The model whose logits are the mean of both heads', for evaluation.
    pub fn vit(&self) -> &VisionTransformer {
        &self.0
    }
}

impl TokenModel<(Tensor, Tensor)> for TwoHeads {
    fn grid(&self, xs: &Tensor) -> Result<Grid> {
        self.0.grid(xs)
    }

    fn num_prefix_tokens(&self) -> usize {
        self.0.num_prefix_tokens()
    }

    fn embed(&self, xs: &Tensor, keep: Option<&Mask>, pass: &mut Pass) -> Result<Tensor> {
        self.0.embed(xs, keep, pass)
    }

    fn classify(&self, tokens: &Tensor, keep: Option<&Mask>, pass: &mut Pass) -> Result<(Tensor, Tensor)> {
        self.0.head().both(&self.0.pooled(tokens, keep, pass)?)
    }
}

impl Forward<(Tensor, Tensor)> for TwoHeads {
    fn forward_pass(&self, xs: &Tensor, pass: &mut Pass) -> Result<(Tensor, Tensor)> {
        let tokens = self.embed(xs, None, pass)?;
        self.classify(&tokens, None, pass)
    }
}
