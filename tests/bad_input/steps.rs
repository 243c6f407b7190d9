//! Steps on batches, losses and models that are none.

use candle_core::{DType, Tensor, Var};
use candle_nn::loss::cross_entropy;
use masksub::models::vit::{Config, VisionTransformer};
use masksub::{BlockMasking, Criterion, DropToken, Error, MaskRatio, MaskSub, Params, PatchDrop, Plain, RandomMasking};

use super::{assert_invalid, assert_misshapen, error_of, half, key};
use crate::common::{images, labels, randn, tiny, vit, CPU};

fn model() -> MaskSub<VisionTransformer, DropToken<RandomMasking>> {
    let (vit, params) = vit(&tiny(Config::deit3_tiny(3)), 0);
    MaskSub::new(vit, DropToken::new(half()), params)
}

#[test]
fn on_empty_batches() {
    for shape in [vec![0, 3, 16, 16], vec![0], vec![]] {
        let xs = randn(shape.clone(), "empty");
        let result = model().backward(&xs, key(), |logits| logits.mean_all());
        assert_misshapen(result, "xs", &shape, "at least one sample");
        assert_misshapen(model().forward_pair(&xs, key()), "xs", &shape, "at least one sample");
    }
}

#[test]
fn with_losses_that_are_none() {
    let xs = images(2, "losses");
    let error = error_of(model().backward(&xs, key(), |logits| Ok(logits.clone())));
    assert!(
        matches!(&error, Error::LossNotScalar { branch: "main", got } if *got == [2, 3]),
        "{error}"
    );
    assert!(
        error.to_string().contains("[2, 3]") && error.to_string().contains("scalar"),
        "{error}"
    );
    let error = error_of(model().backward(&xs, key(), |logits| logits.sum(1)));
    assert!(
        matches!(&error, Error::LossNotScalar { got, .. } if *got == [2]),
        "{error}"
    );
    let empty = |_: &Tensor| Tensor::zeros(0, DType::F32, &CPU);
    assert!(matches!(
        error_of(model().backward(&xs, key(), empty)),
        Error::LossNotScalar { .. }
    ));

    for weight in [0.0, 0.5, 1.0] {
        let model = model().with_weight(weight).unwrap();
        let error = error_of(model.backward(&xs, key(), |logits| logits.detach().sum_all()));
        assert!(matches!(error, Error::LossDetached { branch: "main" }), "{error}");
        assert!(error.to_string().contains("main"), "{error}");
    }
    for value in [f64::NAN, f64::INFINITY] {
        let error = error_of(model().backward(&xs, key(), |logits| logits.sum_all()? * value));
        assert!(matches!(error, Error::NonFiniteLoss { branch: "main", .. }), "{error}");
        assert!(
            error.to_string().contains("finite") && error.to_string().contains("main"),
            "{error}"
        );
    }
}

#[test]
fn with_no_variable_to_train() {
    let expected = "after the model is made";
    for params in [Params::default(), Params::from_varmap(&candle_nn::VarMap::new())] {
        let (vit, _) = vit(&tiny(Config::deit3_tiny(3)), 0);
        let empty = MaskSub::new(vit, DropToken::new(half()), &params);
        let step = empty.backward(&images(2, "empty"), key(), |logits| {
            cross_entropy(logits, &labels(2, 3))
        });
        assert_invalid(step, "params", "without a variable", expected);
        let loss = Var::zeros((), DType::F32, &CPU).unwrap();
        assert_invalid(
            masksub::grad::backward(&loss, &params),
            "params",
            "without a variable",
            expected,
        );
    }
}

#[test]
fn of_models_without_variables() {
    let fixed = randn((768, 3), "fixed");
    let net = candle_nn::func(move |xs| xs.flatten_from(1)?.matmul(&fixed));
    let model = MaskSub::unchecked(Plain(net), PatchDrop::new(half(), 4).unwrap());
    let loss = |logits: &Tensor| cross_entropy(logits, &labels(2, 3));
    let error = error_of(model.backward(&images(2, "fixed"), key(), loss));
    assert!(matches!(error, Error::LossDetached { branch: "main" }), "{error}");
}

#[test]
fn of_models_whose_branches_disagree() {
    // Logits for one sample too many, as a model that reshapes wrongly gives.
    let weight = Var::from_tensor(&randn((64, 3), "w")).unwrap();
    let net = candle_nn::func(move |xs| xs.reshape(((), 64))?.matmul(&weight));
    let model = MaskSub::unchecked(Plain(net), PatchDrop::new(half(), 4).unwrap());
    let strict = |logits: &Tensor| Criterion::cross_entropy().forward(logits, &labels(2, 3));
    assert_misshapen(model.backward(&images(2, "w"), key(), strict), "targets", &[2], "[24]");
}

#[test]
fn on_images_that_blocks_do_not_tile() {
    let (vit, _) = vit(&tiny(Config::deit3_tiny(3)), 0);
    for block in [3, 5, 32] {
        let model = MaskSub::unchecked(&vit, PatchDrop::new(half(), block).unwrap());
        let result = model.forward_pair(&images(2, "tiles"), key());
        assert_misshapen(
            result,
            "images",
            &[2, 3, 16, 16],
            &format!("multiples of the block, {block} pixels"),
        );
    }
    // A model that takes anything.
    let net = candle_nn::func(|xs| Ok(xs.clone()));
    let model = MaskSub::unchecked(Plain(net), PatchDrop::new(half(), 4).unwrap());
    for shape in [
        vec![2, 3, 16, 18],
        vec![2, 3, 18, 16],
        vec![2, 16, 16],
        vec![2],
        vec![2, 3, 0, 16],
        vec![2, 1, 3, 16, 16],
    ] {
        let xs = randn(shape.clone(), "tiles");
        assert_misshapen(
            model.forward_pair(&xs, key()),
            "images",
            &shape,
            "multiples of the block, 4 pixels",
        );
    }
    // 4 x 4 tokens in blocks of 3.
    let model = MaskSub::unchecked(&vit, DropToken::new(BlockMasking::new(0.5, 3).unwrap()));
    assert_invalid(
        model.forward_pair(&images(2, "tiles"), key()),
        "block",
        "3 on a grid of 4 x 4",
        "divisor",
    );
}

#[test]
fn on_a_drawn_ratio_out_of_range() {
    let (vit, _) = vit(&tiny(Config::deit3_tiny(3)), 0);
    let ratio = MaskRatio::drawn(rand_distr::Uniform::new(1.0, 2.0).unwrap());
    let model = MaskSub::unchecked(&vit, DropToken::new(RandomMasking::with_ratio(ratio)));
    assert_invalid(
        model.forward_pair(&images(2, "drawn"), key()),
        "mask_ratio",
        "1.",
        "below 1",
    );
}
