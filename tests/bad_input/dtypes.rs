//! Images of another dtype than the model's weights, and dtypes in which candle has not everything.

use candle_core::{DType, Module as _, Tensor};
use candle_nn::ModuleT;
use masksub::models::resnet::{BlockKind, ResNet};
use masksub::models::swin::SwinTransformer;
use masksub::models::vit::{Config, VisionTransformer};
use masksub::{Error, Mask, MaskSub, Params, PatchDrop, Seed, Weights};

use super::{error_of, half, key};
use crate::common::{images, randn, small_resnet, small_swin, tiny, CPU};

/// The text names what is to be changed, and to what.
#[track_caller]
fn assert_dtype<T, E: Into<Error>>(result: Result<T, E>, argument: &str, expected: &str) {
    let error = error_of(result);
    assert!(
        matches!(&error, Error::DType { argument: a, .. } if *a == argument),
        "{error}"
    );
    assert!(error.to_string().contains(expected), "{error}");
}

#[test]
fn of_images_are_those_of_the_weights() {
    let weights = Weights::seeded(Seed::new(0));
    let vb = weights.var_builder(DType::BF16, &CPU);
    let vit = VisionTransformer::new(&tiny(Config::deit3_tiny(3)), vb.pp("vit")).unwrap();
    let swin = SwinTransformer::new(&small_swin(), vb.pp("swin")).unwrap();
    let resnet = ResNet::new(&small_resnet(BlockKind::Basic), vb.pp("resnet")).unwrap();
    let models: [(&dyn ModuleT, Tensor); 3] = [
        (&vit, images(2, "dtype")),
        (&swin, randn((2, 3, 32, 64), "dtype")),
        (&resnet, images(2, "dtype")),
    ];
    for (model, xs) in models {
        let expected = "images has dtype F32, but must be BF16 like the model's weights";
        assert_dtype(model.forward_t(&xs, false), "images", expected);
        model.forward_t(&xs.to_dtype(DType::BF16).unwrap(), false).unwrap();
    }
}

/// candle says "unsupported dtype BF16 for op matmul" of a convolution.
#[test]
fn that_candle_does_not_multiply_are_told_by_the_input() {
    let weights = Weights::seeded(Seed::new(0));
    let vb = weights.var_builder(DType::BF16, &CPU);
    let conv = candle_nn::conv2d(3, 4, 3, Default::default(), vb.pp("conv")).unwrap();
    let net = candle_nn::func(move |xs| conv.forward(xs)?.mean((2, 3)));
    let model = MaskSub::wrap(
        net,
        PatchDrop::new(half(), 4).unwrap(),
        Params::from_varmap(weights.varmap()),
    );
    let xs = images(2, "bf16").to_dtype(DType::BF16).unwrap();
    let step = model.backward(&xs, key(), |logits| logits.mean_all());
    assert_dtype(step, "xs", "f32 on the CPU, where candle has no matmul of bf16");
}

#[test]
fn of_a_mask_token_are_those_of_the_tokens() {
    let mask = Mask::from_keep_indices(masksub::Grid::new(1, 2), &[[0]]).unwrap();
    let token = randn(3, "token").to_dtype(DType::F64).unwrap();
    let replaced = mask.replace(&randn((1, 2, 3), "tokens"), &token);
    assert_dtype(replaced, "mask_token", "F32 like tokens");
}
