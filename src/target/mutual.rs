//! Mutual targets: both branches learn from the labels and from each other.

use candle_core::{Result, Tensor};

use super::SubTarget;
use crate::check;
use crate::mask::Mask;

/// Both branches learn from the labels and from each other. With s the share, D the sub loss and each target detached,
/// the step is that of
///
/// ```text
/// (1 - w) [(1 - s) loss(main) + s D(main, sub)]  +  w [(1 - s) loss(sub) + s D(sub, main)]
/// ```
///
/// so the loss that [`MaskSub::backward`](crate::MaskSub::backward) takes is called on the logits of both, and D both ways
/// round: where a sub-branch predicts kept tokens only, D compares `[B, L, C]` with `[B, K, C]` in one call, and `[B, K, C]`
/// with `[B, L, C]` in the other.
///
/// **CoSub** (Touvron et al., arXiv 2212.04884) is that at s = 1/2, w = 1/2, with [`SubModelLoss::bce`]: a quarter for each
/// of four terms, the targets sigmoids of detached logits (facebookresearch/deit, `engine.py`, `--cosub`). Its sub-branch
/// is [`PathSub`](crate::PathSub) at the drop path of the model's own configuration.
///
/// **R-Drop** (Wu et al., arXiv 2106.14448) is that at w = 1/2 with [`SubModelLoss::symmetric_kl`] and
/// [`DropSub`](crate::DropSub) at the dropout of the model's own. Its divergence is not detached (dropreg/R-Drop,
/// `README.md`): the gradient through either argument arrives in that argument's branch. With its weight α = s / (1 - s)
/// the gradient is (1 - s) / 2 times that of the paper's `CE(main) + CE(sub) + α/2 [KL(main || sub) + KL(sub || main)]`.
///
/// The sub-branch runs once more than by default, first of all, for the logits that the main branch learns from: both
/// branches never hold their activations at once, and running statistics are those of two passes. A model whose draws
/// have no key (candle's dropout in [`Plain`](crate::Plain)) draws others the second time, and candle's batch norm sees
/// three passes: for these take [`MaskSub::forward_pair`](crate::MaskSub::forward_pair) and a loss of your own, in the
/// memory of both branches.
///
/// [`SubModelLoss::bce`]: crate::SubModelLoss::bce
/// [`SubModelLoss::symmetric_kl`]: crate::SubModelLoss::symmetric_kl
///
/// ```
/// use candle_core::{DType, Device, Tensor};
/// use masksub::{Criterion, MaskSub, Mutual, Params, PathSub, Seed, SubModelLoss, Weights};
/// # #[cfg(feature = "models")]
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use masksub::models::vit::{Config, VisionTransformer};
/// # let (device, seed) = (Device::Cpu, Seed::new(0));
/// # let weights = Weights::seeded(seed);
/// # let cfg = Config { embed_dim: 16, depth: 2, num_heads: 2, mlp_dim: 32, ..Config::deit3_tiny(10) }.with_input(8, 2, 1);
/// let cfg = Config { drop_path: 0.3, ..cfg };
/// let vit = VisionTransformer::new(&cfg, weights.var_builder(DType::F32, &device))?;
/// let cosub = MaskSub::new(vit, PathSub::new(0.3)?, Params::from_varmap(weights.varmap()))
///     .with_target(Mutual::new(0.5)?)
///     .with_sub_loss(SubModelLoss::bce());
/// # let (images, labels) = (Tensor::ones((2, 1, 8, 8), DType::F32, &device)?, Tensor::new(&[3u32, 7], &device)?);
/// let step = cosub.backward(&images, seed.at(0), |logits| Criterion::bce_with_logits().forward(logits, &labels))?;
/// # Ok(()) }
/// # #[cfg(not(feature = "models"))]
/// # fn main() {}
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Mutual {
    share: f64,
}

impl Mutual {
    /// Gives the distance from the other branch `share` of each branch's loss.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`](crate::Error::InvalidArgument) when `share` is NaN or outside (0, 1].
    pub fn new(share: f64) -> crate::error::Result<Self> {
        check::positive_share("share", share).map(|share| Self { share })
    }
}

impl<O: Clone> SubTarget<O> for Mutual {
    fn target(&self, _: &Tensor, main: &O, _: Option<&Mask>) -> Result<O> {
        Ok(main.clone())
    }

    fn mutual_share(&self) -> f64 {
        self.share
    }
}
