//! Mask-only: the paper's failing baseline, in which nothing but what masking leaves is seen and the labels are taught.

use candle_core::{Result, Tensor};
use masksub::{Mask, Pass, SubBranch};

/// In training the main branch is what `S` makes the sub-branch; in evaluation it is the untouched model. For a
/// `MaskSub` with weight 0.
pub struct MaskOnly<S>(pub S);

impl<M, S: SubBranch<M>> SubBranch<M> for MaskOnly<S> {
    fn main(&self, model: &M, xs: &Tensor, pass: &mut Pass) -> Result<Tensor> {
        if pass.is_train() {
            self.0.sub(model, xs, pass).map(|(logits, _)| logits)
        } else {
            self.0.main(model, xs, pass)
        }
    }

    fn sub(&self, model: &M, xs: &Tensor, pass: &mut Pass) -> Result<(Tensor, Option<Mask>)> {
        self.0.sub(model, xs, pass)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{DType, Device};
    use masksub::models::vit::{Config, VisionTransformer};
    use masksub::{DropToken, RandomMasking, Seed, Weights};

    #[test]
    fn trains_on_what_is_kept_and_evaluates_the_whole() {
        let cfg = Config {
            embed_dim: 8,
            depth: 1,
            num_heads: 2,
            mlp_dim: 16,
            ..Config::deit3_tiny(3).with_input(8, 2, 1)
        };
        let weights = Weights::seeded(Seed::new(0));
        let vit = VisionTransformer::new(&cfg, weights.var_builder(DType::F32, &Device::Cpu)).unwrap();
        let images = Tensor::arange(0f32, 128.0, &Device::Cpu).unwrap();
        let images = images.sin().unwrap().reshape((2, 1, 8, 8)).unwrap();
        let branch = || DropToken::new(RandomMasking::new(0.5).unwrap());
        let values = |logits: Result<Tensor>| logits.unwrap().to_vec2::<f32>().unwrap();

        let key = Seed::new(1).at(2);
        let train = values(MaskOnly(branch()).main(&vit, &images, &mut Pass::train(key)));
        let masked = branch().sub(&vit, &images, &mut Pass::train(key));
        assert_eq!(train, values(masked.map(|(logits, _)| logits)));

        let eval = values(MaskOnly(branch()).main(&vit, &images, &mut Pass::eval()));
        let whole = values(branch().main(&vit, &images, &mut Pass::eval()));
        assert_eq!(eval, whole);
        assert_ne!(eval, train);
    }
}
