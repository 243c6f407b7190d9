//! ResNet and Swin: sizes, what their sub-branches hide, gradients, running statistics, other people's weights.

mod common;

use std::sync::Mutex;

use candle_core::{DType, Tensor};
use candle_nn::loss::cross_entropy;
use candle_nn::{ModuleT, VarBuilder};
use common::{count_params, images, labels, CPU};
use masksub::models::resnet::{self, BlockKind, ResNet};
use masksub::models::swin::{self, SwinTransformer};
use masksub::{
    grad, num_keep, Error, Forward, Grid, MaskSub, MaskToken, MaskTokenModel, Params, Pass, PatchDrop, RandomMasking,
    Seed, SubBranch, Weights,
};

fn small_resnet(block: BlockKind) -> resnet::Config {
    resnet::Config {
        block,
        depths: [1, 2, 1, 1],
        channels: [4, 6, 8, 10],
        stem_channels: 4,
        zero_init_last: false,
        ..resnet::Config::resnet18(5)
    }
}

fn small_swin() -> swin::Config {
    swin::Config {
        image_size: (32, 64),
        patch_size: 2,
        embed_dim: 8,
        depths: vec![2, 2],
        num_heads: vec![2, 4],
        window_size: 4,
        ..swin::Config::tiny(5)
    }
}

fn random(ratio: f64) -> RandomMasking {
    RandomMasking::new(ratio).unwrap()
}

fn millions(build: impl FnOnce(VarBuilder)) -> f64 {
    (count_params(build) as f64 / 1e5).round() / 10.
}

// The papers' tables.
#[test]
fn parameter_counts_are_the_papers() {
    for (name, size) in resnet::Config::SIZES {
        let count = millions(|vb| drop(ResNet::new(&size(1000), vb).unwrap()));
        let expected = match name {
            "resnet18" => 11.7,
            "resnet34" => 21.8,
            "resnet50" => 25.6,
            "resnet101" => 44.5,
            "resnet152" => 60.2,
            other => panic!("{other}"),
        };
        assert_eq!(count, expected, "{name}");
    }
    for (name, size) in swin::Config::SIZES {
        let count = millions(|vb| drop(SwinTransformer::new(&size(1000), vb).unwrap()));
        let expected = match name {
            "swin-tiny" => 28.3,
            "swin-small" => 49.6,
            "swin-base" => 87.8,
            other => panic!("{other}"),
        };
        assert_eq!(count, expected, "{name}");
    }
}

/// Remembers what it was shown.
#[derive(Default)]
struct Witness(Mutex<Vec<Tensor>>);

impl Forward for Witness {
    fn forward_pass(&self, xs: &Tensor, _: &mut Pass) -> candle_core::Result<Tensor> {
        self.0.lock().unwrap().push(xs.clone());
        xs.flatten_from(1)
    }
}

/// Tokens of ones, and a mask token of zeros.
struct TokenWitness(Tensor, Witness);

impl MaskTokenModel for TokenWitness {
    fn mask_token(&self) -> &Tensor {
        &self.0
    }
    fn embed(&self, xs: &Tensor, _: &mut Pass) -> candle_core::Result<(Tensor, Grid)> {
        let (batch, _, height, width) = xs.dims4()?;
        let grid = Grid::new(height / 4, width / 4);
        Ok((Tensor::ones((batch, grid.len(), 3), DType::F32, &CPU)?, grid))
    }
    fn encode(&self, tokens: &Tensor, _: Grid, pass: &mut Pass) -> candle_core::Result<Tensor> {
        self.1.forward_pass(tokens, pass)
    }
}

/// The share of zeros in each sample.
fn zeros(seen: &Tensor) -> Vec<f64> {
    let zero = seen.eq(0f32).unwrap().to_dtype(DType::F64).unwrap();
    zero.flatten_from(1).unwrap().mean(1).unwrap().to_vec1().unwrap()
}

#[test]
fn the_hidden_share_is_that_of_the_ratio() {
    let xs = Tensor::ones((6, 3, 64, 96), DType::F32, &CPU).unwrap();
    for ratio in [0.25, 0.5, 0.75] {
        // 2 x 3 blocks of 32 pixels.
        let hidden = 1. - num_keep(6, ratio) as f64 / 6.;
        let mut pass = Pass::train(Seed::new(3).at(0));
        let resnet_like = Witness::default();
        PatchDrop::new(random(ratio), 32)
            .unwrap()
            .sub(&resnet_like, &xs, &mut pass)
            .unwrap();
        let swin_like = TokenWitness(Tensor::zeros(3, DType::F32, &CPU).unwrap(), Witness::default());
        MaskToken::new(random(ratio), 32)
            .unwrap()
            .sub(&swin_like, &xs, &mut pass)
            .unwrap();
        for seen in [&resnet_like.0, &swin_like.1 .0] {
            let seen = seen.lock().unwrap();
            assert_eq!(seen.len(), 1);
            assert!(
                zeros(&seen[0]).iter().all(|share| (share - hidden).abs() < 1e-12),
                "{ratio}"
            );
        }
    }
}

#[test]
fn gradients_reach_every_parameter() {
    let (xs, ys) = (images(4, "families").upsample_nearest2d(32, 32).unwrap(), labels(4, 5));
    for block in [BlockKind::Basic, BlockKind::Bottleneck] {
        let weights = Weights::seeded(Seed::new(0));
        let net = ResNet::new(&small_resnet(block), weights.var_builder(DType::F32, &CPU)).unwrap();
        let params = Params::from_varmap(weights.varmap());
        let model = MaskSub::new(net, PatchDrop::new(random(0.5), 8).unwrap()).with_params(params.clone());
        let step = model
            .backward(&xs, Seed::new(0).at(0), |logits| cross_entropy(logits, &ys))
            .unwrap();
        let audit = grad::audit(&step.grads, &params).unwrap();
        assert!(audit.is_ok() && audit.all_zero.is_empty(), "{audit}");
    }
    let wide = xs.upsample_nearest2d(32, 64).unwrap();
    for layout in [swin::Layout::Microsoft, swin::Layout::Timm] {
        let weights = Weights::seeded(Seed::new(0));
        let cfg = swin::Config { layout, ..small_swin() };
        let net = SwinTransformer::new(&cfg, weights.var_builder(DType::F32, &CPU)).unwrap();
        let params = Params::from_varmap(weights.varmap());
        let model = MaskSub::new(net, MaskToken::new(random(0.5), 8).unwrap()).with_params(params.clone());
        let step = model
            .backward(&wide, Seed::new(0).at(0), |logits| cross_entropy(logits, &ys))
            .unwrap();
        let audit = grad::audit(&step.grads, &params).unwrap();
        assert!(audit.is_ok() && audit.all_zero.is_empty(), "{audit}");
        // Without its branch the mask token is unused, and that is said.
        let plain = model.with_weight(0.).unwrap();
        let error = plain
            .backward(&wide, Seed::new(0).at(0), |logits| cross_entropy(logits, &ys))
            .unwrap_err();
        assert!(matches!(error, Error::MissingGradients { names, .. } if names == ["mask_token"]));
    }
}

#[test]
fn blocks_start_as_the_identity_where_the_last_norm_is_zero() {
    let weights = Weights::seeded(Seed::new(0));
    let cfg = resnet::Config {
        zero_init_last: true,
        ..small_resnet(BlockKind::Bottleneck)
    };
    ResNet::new(&cfg, weights.var_builder(DType::F32, &CPU)).unwrap();
    let params = Params::from_varmap(weights.varmap());
    let first = |name: &str| params.get(name).unwrap().to_vec1::<f32>().unwrap()[0];
    assert_eq!(first("layer2.1.bn3.weight"), 0.);
    assert_eq!(
        (first("layer2.1.bn2.weight"), first("layer2.0.downsample.1.weight")),
        (1., 1.)
    );
}

/// All running statistics, by name.
fn statistics(weights: &Weights) -> Vec<(String, Vec<f32>)> {
    let data = weights.varmap().data().lock().unwrap();
    let running = data.iter().filter(|(name, _)| name.contains("running_"));
    let mut running: Vec<_> = running
        .map(|(name, var)| (name.clone(), var.to_vec1().unwrap()))
        .collect();
    running.sort_by(|a, b| a.0.cmp(&b.0));
    running
}

#[test]
fn a_rejected_step_leaves_running_statistics_alone() {
    let (xs, key) = (images(4, "bn").upsample_nearest2d(32, 32).unwrap(), Seed::new(0).at(0));
    let weights = Weights::seeded(Seed::new(0));
    let net = ResNet::new(&small_resnet(BlockKind::Basic), weights.var_builder(DType::F32, &CPU)).unwrap();
    let before = statistics(&weights);
    let model = MaskSub::new(&net, PatchDrop::new(random(0.5), 8).unwrap());
    let error = model
        .backward(&xs, key, |logits| logits.sum_all()? * f64::NAN)
        .unwrap_err();
    assert!(matches!(error, Error::NonFiniteLoss { branch: "main", .. }));
    drop(model.forward_pair(&xs, key).unwrap());
    assert_eq!(statistics(&weights), before);

    // Accepted, both passes count; without the sub pass's, only the main one's.
    let main_only = MaskSub::new(
        &net,
        PatchDrop::new(random(0.5), 8).unwrap().without_running_statistics(),
    );
    main_only.forward_pair(&xs, key).unwrap().accept().unwrap();
    let after_main = statistics(&weights);
    assert_ne!(after_main, before);

    let again = Weights::seeded(Seed::new(0));
    let net = ResNet::new(&small_resnet(BlockKind::Basic), again.var_builder(DType::F32, &CPU)).unwrap();
    net.forward_t(&xs, true).unwrap();
    assert_eq!(statistics(&again), after_main);
    model.forward_pair(&xs, key).unwrap().accept().unwrap();
    assert_ne!(statistics(&weights), after_main);
}

#[test]
fn candle_transformers_resnet_is_the_same_in_evaluation() {
    let xs = images(2, "candle").upsample_nearest2d(64, 64).unwrap();
    type Build = fn(usize, VarBuilder<'static>) -> candle_core::Result<candle_nn::Func<'static>>;
    let pairs: [(Build, resnet::Config); 2] = [
        (
            candle_transformers::models::resnet::resnet18,
            resnet::Config::resnet18(7),
        ),
        (
            candle_transformers::models::resnet::resnet50,
            resnet::Config::resnet50(7),
        ),
    ];
    for (build, cfg) in pairs {
        let theirs = Weights::seeded(Seed::new(4));
        let net = build(7, theirs.var_builder(DType::F32, &CPU)).unwrap();
        let data = theirs.varmap().data().lock().unwrap();
        let tensors = data.iter().map(|(name, var)| (name.clone(), var.as_tensor().clone()));
        let weights = Weights::from_tensors(tensors.collect::<Vec<_>>());
        let ours = ResNet::new(&cfg, weights.var_builder(DType::F32, &CPU)).unwrap();
        assert!(weights.left_over().is_empty(), "{:?}", weights.left_over());
        let (a, b) = (ours.forward_t(&xs, false).unwrap(), net.forward_t(&xs, false).unwrap());
        let difference = (a - &b)
            .unwrap()
            .sqr()
            .unwrap()
            .sum_all()
            .unwrap()
            .to_scalar::<f32>()
            .unwrap()
            .sqrt();
        let size = b.sqr().unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap().sqrt();
        assert!(difference <= 1e-5 * size, "{difference} of {size}");
    }
}

fn message(result: candle_core::Result<impl Sized>) -> String {
    match result {
        Ok(_) => panic!("accepted"),
        Err(error) => Error::from(error).to_string(),
    }
}

#[test]
fn sizes_that_do_not_fit_say_which_would() {
    let build = |cfg: swin::Config| {
        let weights = Weights::seeded(Seed::new(0));
        SwinTransformer::new(&cfg, weights.var_builder(DType::F32, &CPU))
    };
    let with = |image_size| swin::Config {
        image_size,
        ..swin::Config::tiny(10)
    };
    for (size, multiple) in [
        ((200, 224), "28"),
        ((226, 224), "4"),
        ((224, 252), "multiples of 8 pixels"),
        ((56, 84), "multiples of 224 fit every stage"),
    ] {
        let text = message(build(with(size)));
        assert!(
            text.contains(&format!("{} x {}", size.0, size.1)) && text.contains(multiple),
            "{text}"
        );
    }
    // Smaller than its windows, as in the original, and not square.
    assert!(build(swin::Config {
        image_size: (64, 128),
        ..small_swin()
    })
    .is_ok());
    let text = message(build(swin::Config {
        num_heads: vec![3, 6],
        ..small_swin()
    }));
    assert!(text.contains("num_heads is 3") && text.contains("8"), "{text}");

    let weights = Weights::seeded(Seed::new(0));
    let swin = SwinTransformer::new(&small_swin(), weights.var_builder(DType::F32, &CPU)).unwrap();
    let xs = Tensor::zeros((1, 3, 32, 64), DType::F32, &CPU).unwrap();
    let mut pass = Pass::train(Seed::new(0).at(0));
    for (block, part) in [
        (24, "24 pixels"),
        (1, "1 pixels, 32 x 64 of them over a grid of 16 x 32"),
    ] {
        let text = message(MaskToken::new(random(0.5), block).unwrap().sub(&swin, &xs, &mut pass));
        assert!(text.contains(part), "{text}");
    }
    let text = message(swin.forward_t(&Tensor::zeros((1, 3, 32, 32), DType::F32, &CPU).unwrap(), false));
    assert!(
        text.contains("[1, 3, 32, 32]") && text.contains("[B, 3, 32, 64]"),
        "{text}"
    );
}

#[test]
fn another_variants_weights_are_named() {
    let weights = Weights::seeded(Seed::new(0));
    ResNet::new(&small_resnet(BlockKind::Basic), weights.var_builder(DType::F32, &CPU)).unwrap();
    let data = weights.varmap().data().lock().unwrap();
    let tensors: Vec<_> = data
        .iter()
        .map(|(name, var)| (name.clone(), var.as_tensor().clone()))
        .collect();
    let other = Weights::from_tensors(tensors);
    let text = message(ResNet::new(
        &small_resnet(BlockKind::Bottleneck),
        other.var_builder(DType::F32, &CPU),
    ));
    assert!(
        text.contains("layer1.0.conv1.weight") && text.contains("[4, 4, 3, 3]"),
        "{text}"
    );
}
