//! A distilled DeiT in training: both heads' logits in one tensor, each of which learns from the labels and, in the
//! sub-branch, from itself.

use anyhow::Result;
use candle_core::{Result as CandleResult, Tensor};
use masksub::models::vit::{Config, Pool, TwoHeads, VisionTransformer};
use masksub::{Forward, Grid, Mask, Pass, TokenModel};

/// The logits of the class token's head and of the distillation token's, [B, 2, classes].
pub struct BothHeads(TwoHeads);

impl BothHeads {
    pub fn new(vit: VisionTransformer) -> Result<Self> {
        Ok(Self(TwoHeads::new(vit)?))
    }

    /// Whether a ViT has two heads.
    pub fn are_of(cfg: &Config) -> bool {
        cfg.pool == Pool::ClassAndDistillation
    }
}

impl TokenModel for BothHeads {
    fn grid(&self, xs: &Tensor) -> CandleResult<Grid> {
        self.0.grid(xs)
    }

    fn num_prefix_tokens(&self) -> usize {
        self.0.num_prefix_tokens()
    }

    fn embed(&self, xs: &Tensor, keep: Option<&Mask>, pass: &mut Pass) -> CandleResult<Tensor> {
        self.0.embed(xs, keep, pass)
    }

    fn classify(&self, tokens: &Tensor, keep: Option<&Mask>, pass: &mut Pass) -> CandleResult<Tensor> {
        let (class, distilled) = self.0.classify(tokens, keep, pass)?;
        Tensor::stack(&[class, distilled], 1)
    }
}

impl Forward for BothHeads {
    fn forward_pass(&self, xs: &Tensor, pass: &mut Pass) -> CandleResult<Tensor> {
        let (class, distilled) = self.0.forward_pass(xs, pass)?;
        Tensor::stack(&[class, distilled], 1)
    }
}

/// A loss of logits [B, classes]; of those of two heads, [B, 2, classes], its mean over them, as DeiT weighs its two
/// (arXiv 2012.12877, hard distillation).
pub fn mean_loss(logits: &Tensor, loss: impl Fn(&Tensor) -> CandleResult<Tensor>) -> CandleResult<Tensor> {
    match logits.rank() {
        3 => (loss(&logits.get_on_dim(1, 0)?)? + loss(&logits.get_on_dim(1, 1)?)?)? * 0.5,
        _ => loss(logits),
    }
}

/// What is predicted, [B, classes]: of two heads the mean, as in evaluation.
pub fn prediction(logits: Tensor) -> CandleResult<Tensor> {
    match logits.rank() {
        3 => logits.mean(1),
        _ => Ok(logits),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{DType, Device};
    use candle_nn::loss::cross_entropy;
    use masksub::{DropToken, MaskSub, Params, RandomMasking, Seed, Weights};

    /// As the library's model of two outputs trains, whose losses are sums over the heads.
    #[test]
    fn both_learn_as_two_outputs_do() {
        let small = Config {
            embed_dim: 16,
            depth: 2,
            num_heads: 2,
            mlp_dim: 32,
            head_init_std: 0.5,
            ..Config::deit_tiny_distilled(5)
        };
        let cfg = small.with_input(8, 2, 1);
        let device = Device::Cpu;
        let pixels = Tensor::arange(0f32, 6.0 * 64.0, &device).unwrap();
        let images = pixels.sin().unwrap().reshape((6, 1, 8, 8)).unwrap();
        let labels = Tensor::new(&[0u32, 3, 1, 4, 2, 2], &device).unwrap();
        let weights = Weights::seeded(Seed::new(0));
        let vit = || VisionTransformer::new(&cfg, weights.var_builder(DType::F32, &device)).unwrap();
        let (both, two) = (BothHeads::new(vit()).unwrap(), TwoHeads::new(vit()).unwrap());
        let (params, key) = (Params::from_varmap(weights.varmap()), Seed::new(4).at(7));
        let masked = || DropToken::new(RandomMasking::new(0.5).unwrap());

        let ours = MaskSub::new(both, masked(), &params)
            .backward(&images, key, |logits| {
                mean_loss(logits, |logits| cross_entropy(logits, &labels))
            })
            .unwrap();
        let theirs = MaskSub::new(two, masked(), &params)
            .backward(&images, key, |(class, distilled)| {
                cross_entropy(class, &labels)? + cross_entropy(distilled, &labels)?
            })
            .unwrap();
        let close = |ours: f64, theirs: f64| (ours - theirs / 2.0).abs() < 1e-6;
        assert!(close(ours.main_loss, theirs.main_loss));
        assert!(close(ours.sub_loss.unwrap(), theirs.sub_loss.unwrap()));
        let norm = |tensor: &Tensor| {
            tensor
                .sqr()
                .unwrap()
                .sum_all()
                .unwrap()
                .to_scalar::<f32>()
                .unwrap()
                .sqrt()
        };
        for (name, var) in params.iter() {
            let half = (theirs.grads.get(var).unwrap() * 0.5).unwrap();
            let off = norm(&(ours.grads.get(var).unwrap() - &half).unwrap()) / norm(&half).max(1e-3);
            assert!(off < 1e-5, "{name}: {off:e}");
        }
        let mean = ((&theirs.main_logits.0 + &theirs.main_logits.1).unwrap() * 0.5).unwrap();
        let off = norm(&(prediction(ours.main_logits).unwrap() - &mean).unwrap());
        assert!(off < 1e-5, "{off:e}");
    }
}
