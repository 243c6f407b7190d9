//! Token models of the user's own, borrowed, boxed and shared.

use std::sync::Arc;

use candle_core::{DType, Result, Tensor};
use candle_nn::loss::cross_entropy;
use candle_nn::{Module, Optimizer};
use masksub::models::vit::Config;
use masksub::{Error, Forward, Grid, Mask, MaskSub, Params, Pass, PatchDrop, Seed, TokenModel, Weights};

use super::{adam, drop_token, half, key, separable};
use crate::common::{bits, images, tiny, vit, CPU};

/// A token model of the test's own: tokens are rows of the image, two prefix tokens, mean of all.
struct Rows {
    embed: candle_nn::Linear,
    prefix: Tensor,
    positions: Tensor,
    head: candle_nn::Linear,
}

impl Rows {
    fn new(vb: candle_nn::VarBuilder) -> Self {
        let normal = candle_nn::Init::Randn { mean: 0.0, stdev: 1.0 };
        Self {
            embed: candle_nn::linear(8, 6, vb.pp("embed")).unwrap(),
            prefix: vb.get_with_hints((1, 2, 6), "prefix", normal).unwrap(),
            positions: vb.get_with_hints((1, 8, 6), "positions", normal).unwrap(),
            head: candle_nn::linear(6, 3, vb.pp("head")).unwrap(),
        }
    }
}

impl TokenModel for Rows {
    fn grid(&self, xs: &Tensor) -> Result<Grid> {
        Ok(Grid::new(xs.dim(2)?, 1))
    }
    fn num_prefix_tokens(&self) -> usize {
        2
    }
    fn embed(&self, xs: &Tensor, keep: Option<&Mask>, _pass: &mut Pass) -> Result<Tensor> {
        let tokens = self.embed.forward(&xs.squeeze(1)?)?.broadcast_add(&self.positions)?;
        let prefix = self.prefix.broadcast_as((xs.dim(0)?, 2, 6))?;
        let tokens = Tensor::cat(&[&prefix, &tokens], 1)?;
        match keep {
            Some(mask) => Ok(mask.gather(&tokens, 2)?),
            None => Ok(tokens),
        }
    }
    fn classify(&self, tokens: &Tensor, _: Option<&Mask>, _pass: &mut Pass) -> Result<Tensor> {
        self.head.forward(&tokens.tanh()?.mean(1)?)
    }
}

#[test]
fn of_the_users_own_train() {
    let weights = Weights::seeded(Seed::new(1));
    let model = Rows::new(weights.var_builder(DType::F32, &CPU));
    let params = Params::from_varmap(weights.varmap());
    let model = MaskSub::new(model, drop_token(), &params);
    let mut optimizer = adam(&params, 3e-2);
    let mut losses = vec![];
    for t in 0..80 {
        let (xs, ys) = separable(24, &format!("rows {t}"));
        let step = model
            .backward(&xs, Seed::new(9).at(t), |logits| cross_entropy(logits, &ys))
            .unwrap();
        assert_eq!(step.mask.unwrap().num_keep(), 4);
        optimizer.step(&step.grads).unwrap();
        losses.push(step.main_loss);
    }
    assert!(losses[79] < 0.5 * losses[0], "from {} to {}", losses[0], losses[79]);
}

#[test]
fn may_be_borrowed_boxed_and_shared() {
    let xs = images(2, "pointers");
    let (vit, _) = vit(&tiny(Config::deit3_tiny(5)), 8);
    let expected = bits(
        &MaskSub::unchecked(vit.clone(), drop_token())
            .forward_pair(&xs, key())
            .unwrap()
            .sub,
    );
    fn sub<M: TokenModel>(model: M, xs: &Tensor) -> Vec<u32> {
        bits(
            &MaskSub::unchecked(model, drop_token())
                .forward_pair(xs, key())
                .unwrap()
                .sub,
        )
    }
    fn whole<M: Forward>(model: M, xs: &Tensor) -> Vec<u32> {
        let branch = PatchDrop::new(half(), 8).unwrap();
        bits(&MaskSub::unchecked(model, branch).forward_pair(xs, key()).unwrap().sub)
    }
    assert_eq!(sub(&vit, &xs), expected);
    assert_eq!(sub(Box::new(vit.clone()), &xs), expected);
    assert_eq!(sub(Arc::new(vit.clone()), &xs), expected);
    let object: Box<dyn TokenModel> = Box::new(vit.clone());
    assert_eq!(sub(object, &xs), expected);

    let expected = whole(vit.clone(), &xs);
    assert_eq!(whole(&vit, &xs), expected);
    assert_eq!(whole(Arc::new(vit.clone()), &xs), expected);
    let object: Box<dyn Forward> = Box::new(vit.clone());
    assert_eq!(whole(object, &xs), expected);
}

/// Forgets to drop tokens.
struct Forgetful(Rows);

impl TokenModel for Forgetful {
    fn grid(&self, xs: &Tensor) -> Result<Grid> {
        self.0.grid(xs)
    }
    fn num_prefix_tokens(&self) -> usize {
        self.0.num_prefix_tokens()
    }
    fn embed(&self, xs: &Tensor, _keep: Option<&Mask>, pass: &mut Pass) -> Result<Tensor> {
        self.0.embed(xs, None, pass)
    }
    fn classify(&self, tokens: &Tensor, keep: Option<&Mask>, pass: &mut Pass) -> Result<Tensor> {
        self.0.classify(tokens, keep, pass)
    }
}

#[test]
fn that_forget_to_drop_tokens_are_found_out() {
    let weights = Weights::seeded(Seed::new(1));
    let model = Forgetful(Rows::new(weights.var_builder(DType::F32, &CPU)));
    let error = MaskSub::unchecked(model, drop_token())
        .forward_pair(&separable(3, "forgetful").0, key())
        .unwrap_err();
    assert!(
        matches!(&error, Error::Shape { got, .. } if *got == [3, 10, 6]),
        "{error}"
    );
    assert!(error.to_string().contains("embed"), "{error}");
}
