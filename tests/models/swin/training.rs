//! Gradients, what the sub-branches hide, and what is dropped.

use candle_core::DType;
use candle_nn::loss::cross_entropy;
use candle_nn::ModuleT;
use masksub::models::swin::{Config, SwinTransformer, WeightNames};
use masksub::{
    grad, DropSub, Error, Forward, Grid, MaskSub, MaskToken, MaskTokenModel, Params, Pass, PathSub, Seed, SubBranch,
    Weights,
};

use crate::common::{distance, images, labels, randn, random_values, small_swin, CPU};
use crate::{check_half_precision, check_joint_loss, enlarged, from_values, kept_of, random, silenced, ALL};

#[test]
fn two_halves_give_the_gradients_of_the_joint_loss() {
    let cfg = Config {
        image_size: (64, 64),
        ..small_swin()
    };
    let weights = Weights::from_tensors(random_values(|vb| SwinTransformer::new(&cfg, vb)));
    let swin = SwinTransformer::new(&cfg, weights.var_builder(DType::F32, &CPU)).unwrap();
    check_joint_loss(&weights, swin, MaskToken::new(random(0.5), 16).unwrap());
}

/// Of 16 blocks of 32 pixels: what the mask says is hidden is what a model that is shown the rest does not see.
#[test]
fn the_hidden_share_is_that_of_the_ratio() {
    let (xs, key) = (randn((3, 3, 128, 128), "hidden"), Seed::new(3).at(0));
    let cfg = Config {
        image_size: (128, 128),
        ..small_swin()
    };
    let values = random_values(|vb| SwinTransformer::new(&cfg, vb));
    let swin = SwinTransformer::new(&cfg, Weights::from_tensors(values).var_builder(DType::F32, &CPU)).unwrap();
    for (ratio, hidden) in [(0.25, 4), (0.5, 8), (0.75, 12)] {
        let branch = MaskToken::new(random(ratio), 32).unwrap();
        let (logits, mask) = branch.sub(&swin, &xs, &mut Pass::train(key)).unwrap();
        let blocks = kept_of(mask, hidden);
        let (tokens, grid) = MaskTokenModel::embed(&swin, &xs, &mut Pass::eval()).unwrap();
        assert_eq!(grid, Grid::new(64, 64));
        let visible = enlarged(&blocks, 16).flatten_from(1).unwrap().unsqueeze(2).unwrap();
        let shown = tokens.broadcast_mul(&visible).unwrap();
        let learned = visible
            .affine(-1.0, 1.0)
            .unwrap()
            .broadcast_mul(swin.mask_token())
            .unwrap();
        let expected = swin
            .classify(&(shown + learned).unwrap(), grid, &mut Pass::eval())
            .unwrap();
        assert!(distance(&logits, &expected) < 1e-6, "{ratio}");
        assert!(distance(&logits, &swin.forward_t(&xs, false).unwrap()) > 1e-2);
    }
}

#[test]
fn gradients_reach_every_parameter() {
    let (xs, ys) = (images(4, "families").upsample_nearest2d(32, 32).unwrap(), labels(4, 5));
    let wide = xs.upsample_nearest2d(32, 64).unwrap();
    for weight_names in [WeightNames::Microsoft, WeightNames::Timm] {
        let weights = Weights::seeded(Seed::new(0));
        let cfg = Config {
            weight_names,
            ..small_swin()
        };
        let net = SwinTransformer::new(&cfg, weights.var_builder(DType::F32, &CPU)).unwrap();
        let params = Params::from_varmap(weights.varmap());
        let model = MaskSub::new(net, MaskToken::new(random(0.5), 8).unwrap(), &params);
        let step = model
            .backward(&wide, Seed::new(0).at(0), |logits| cross_entropy(logits, &ys))
            .unwrap();
        let audit = grad::audit(&step.grads, &params).unwrap();
        assert!(audit.is_ok() && audit.all_zero.is_empty(), "{audit}");
        // Without its branch the mask token is unused, and that is said.
        let plain = model.with_weight(0.0).unwrap();
        let error = plain
            .backward(&wide, Seed::new(0).at(0), |logits| cross_entropy(logits, &ys))
            .unwrap_err();
        assert!(matches!(error, Error::MissingGradients { names, .. } if names == ["mask_token"]));
    }
}

#[test]
fn it_drops_its_residual_branches_or_their_activations() {
    let (cfg, key) = (small_swin(), Seed::new(0).at(0));
    let xs = randn((2, 3, 32, 64), "paths");
    let values = random_values(|vb| SwinTransformer::new(&cfg, vb));
    let build = |values: &_| from_values(values, DType::F32, |vb| SwinTransformer::new(&cfg, vb));
    let net = build(&values);
    let mut pass = Pass::train(key);
    pass.impose_drop_path(ALL).unwrap();
    let dropped = net.forward_pass(&xs, &mut pass).unwrap();
    // Two residual branches and three places for dropout in each of four blocks.
    assert_eq!((pass.drop_path_sites(), pass.dropout_sites()), (8, 12));
    let ends = |name: &str| name.contains("attn.proj.") || name.contains("mlp.fc2.");
    let expected = build(&silenced(&values, ends)).forward_t(&xs, false).unwrap();
    assert!(distance(&dropped, &expected) < 1e-6);
    let mut pass = Pass::train(key);
    pass.impose_dropout(ALL).unwrap();
    assert!(distance(&net.forward_pass(&xs, &mut pass).unwrap(), &expected) < 1e-6);

    let pair = MaskSub::unchecked(&net, PathSub::new(0.5).unwrap())
        .forward_pair(&xs, key)
        .unwrap();
    assert!(distance(&pair.sub, &pair.main) > 1e-3);
    let pair = MaskSub::unchecked(&net, DropSub::new(0.5).unwrap())
        .forward_pair(&xs, key)
        .unwrap();
    assert!(distance(&pair.sub, &pair.main) > 1e-3);
}

#[test]
fn half_precision_agrees_with_f64() {
    let cfg = Config {
        image_size: (56, 56),
        window_size: 7,
        ..small_swin()
    };
    let values = random_values(|vb| SwinTransformer::new(&cfg, vb));
    check_half_precision(&values, &randn((2, 3, 56, 56), "half"), |vb| {
        SwinTransformer::new(&cfg, vb)
    });
}
