//! ResNet and Swin: sizes, what their sub-branches hide, gradients, running statistics, other people's weights.

use std::collections::BTreeMap;

use crate::common::{count_params, distance, images, labels, randn, random_values, small_resnet, small_swin, CPU};
use candle_core::{DType, Tensor};
use candle_nn::loss::cross_entropy;
use candle_nn::{ModuleT, VarBuilder};
use masksub::models::resnet::{self, BlockKind, ResNet};
use masksub::models::swin::{self, SwinTransformer};
use masksub::{
    grad, nn, DropSub, Error, Forward, Grid, Mask, MaskSub, MaskToken, MaskTokenModel, Params, Pass, PatchDrop,
    PathSub, RandomMasking, Seed, SubBranch, SubModelLoss, Weights,
};

fn random(ratio: f64) -> RandomMasking {
    RandomMasking::new(ratio).unwrap()
}

fn millions(count: usize) -> f64 {
    (count as f64 / 1e5).round() / 10.
}

// The papers' tables.
#[test]
fn parameter_counts_are_the_papers() {
    for (name, size) in resnet::Config::SIZES {
        let count = millions(count_params(|vb| ResNet::new(&size(1000), vb)));
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
        let count = millions(count_params(|vb| SwinTransformer::new(&size(1000), vb)));
        let expected = match name {
            "swin-tiny" => 28.3,
            "swin-small" => 49.6,
            "swin-base" => 87.8,
            other => panic!("{other}"),
        };
        assert_eq!(count, expected, "{name}");
    }
}

/// Which of the blocks each sample keeps: 1, or 0.
fn kept(mask: &Mask) -> Vec<Vec<f32>> {
    mask.to_dense(DType::F32, &CPU).unwrap().to_vec2().unwrap()
}

/// The two halves, of which the second is added to the first as it comes, are one backward through both branches.
#[test]
fn two_halves_give_the_gradients_of_the_joint_loss() {
    fn check<M: Forward, S: SubBranch<M>>(name: &str, weights: &Weights, model: M, branch: S) {
        let (xs, ys) = (randn((3, 3, 64, 64), "joint"), labels(3, 4));
        let key = Seed::new(2).at(0);
        let params = Params::from_varmap(weights.varmap());
        let model = MaskSub::new(model, branch).with_params(params.clone());
        let step = model.backward(&xs, key, |logits| cross_entropy(logits, &ys)).unwrap();
        let pair = model.forward_pair(&xs, key).unwrap();
        let main = cross_entropy(&pair.main, &ys).unwrap();
        let sub = SubModelLoss::default().forward(&pair.sub, &pair.main).unwrap();
        let joint = grad::backward(&((main + sub).unwrap() / 2.).unwrap(), &params).unwrap();
        for (param, var) in params.iter() {
            let [got, expected] = [&step.grads, &joint].map(|grads| grads.get(var).unwrap());
            let error = distance(got, expected);
            assert!(error < 1e-5, "{name}: {param} is off by {error:.1e}");
        }
    }
    for block in [BlockKind::Basic, BlockKind::Bottleneck] {
        let values = random_values(|vb| ResNet::new(&small_resnet(block), vb));
        let weights = Weights::from_tensors(values);
        let resnet = ResNet::new(&small_resnet(block), weights.var_builder(DType::F32, &CPU)).unwrap();
        check("ResNet", &weights, resnet, PatchDrop::new(random(0.5), 16).unwrap());
    }
    let cfg = swin::Config {
        image_size: (64, 64),
        ..small_swin()
    };
    let weights = Weights::from_tensors(random_values(|vb| SwinTransformer::new(&cfg, vb)));
    let swin = SwinTransformer::new(&cfg, weights.var_builder(DType::F32, &CPU)).unwrap();
    check("Swin", &weights, swin, MaskToken::new(random(0.5), 16).unwrap());
}

/// [B, 4 * side, 4 * side], the number of each of 4 x 4 blocks wherever that block is.
fn enlarged(blocks: &[Vec<f32>], side: usize) -> Tensor {
    let of_sample = |blocks: &Vec<f32>| -> Vec<f32> {
        let width = 4 * side;
        (0..width * width)
            .map(|at| blocks[at / width / side * 4 + at % width / side])
            .collect()
    };
    let values: Vec<f32> = blocks.iter().flat_map(of_sample).collect();
    Tensor::from_vec(values, (blocks.len(), 4 * side, 4 * side), &CPU).unwrap()
}

/// Of 16 blocks of 32 pixels: what the mask says is hidden is what a model that is shown the rest does not see.
#[test]
fn the_hidden_share_is_that_of_the_ratio() {
    let xs = randn((3, 3, 128, 128), "hidden");
    let key = Seed::new(3).at(0);
    let weights = Weights::seeded(Seed::new(0));
    let resnet = ResNet::new(&small_resnet(BlockKind::Basic), weights.var_builder(DType::F32, &CPU)).unwrap();
    let cfg = swin::Config {
        image_size: (128, 128),
        ..small_swin()
    };
    let values = random_values(|vb| SwinTransformer::new(&cfg, vb));
    let swin = SwinTransformer::new(&cfg, Weights::from_tensors(values).var_builder(DType::F32, &CPU)).unwrap();
    for (ratio, hidden) in [(0.25, 4.), (0.5, 8.), (0.75, 12.)] {
        let branch = PatchDrop::new(random(ratio), 32).unwrap();
        let (logits, mask) = branch.sub(&resnet, &xs, &mut Pass::train(key)).unwrap();
        let blocks = kept(&mask.unwrap());
        assert!(blocks
            .iter()
            .all(|row| row.iter().filter(|&&kept| kept == 0.).count() as f64 == hidden));
        let rest = xs.broadcast_mul(&enlarged(&blocks, 32).unsqueeze(1).unwrap()).unwrap();
        let expected = resnet.forward_pass(&rest, &mut Pass::train(key)).unwrap();
        assert!(distance(&logits, &expected) < 1e-6, "{ratio}");
        assert!(distance(&logits, &resnet.forward_pass(&xs, &mut Pass::train(key)).unwrap()) > 1e-2);

        let branch = MaskToken::new(random(ratio), 32).unwrap();
        let (logits, mask) = branch.sub(&swin, &xs, &mut Pass::train(key)).unwrap();
        let blocks = kept(&mask.unwrap());
        assert!(blocks
            .iter()
            .all(|row| row.iter().filter(|&&kept| kept == 0.).count() as f64 == hidden));
        let (tokens, grid) = MaskTokenModel::embed(&swin, &xs, &mut Pass::eval()).unwrap();
        assert_eq!(grid, Grid::new(64, 64));
        let visible = enlarged(&blocks, 16).flatten_from(1).unwrap().unsqueeze(2).unwrap();
        let shown = tokens.broadcast_mul(&visible).unwrap();
        let learned = visible
            .affine(-1., 1.)
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
    for weight_names in [swin::WeightNames::Microsoft, swin::WeightNames::Timm] {
        let weights = Weights::seeded(Seed::new(0));
        let cfg = swin::Config {
            weight_names,
            ..small_swin()
        };
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
    for (after, before) in after_main.iter().zip(&before) {
        assert_ne!(after, before, "of every norm");
    }

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
        // Statistics that are not those of a fresh norm, which does nothing.
        let values = random_values(|vb| ResNet::new(&cfg, vb));
        let weights = || Weights::from_tensors(values.clone());
        let (theirs, ours) = (weights(), weights());
        let net = build(7, theirs.var_builder(DType::F32, &CPU)).unwrap();
        let resnet = ResNet::new(&cfg, ours.var_builder(DType::F32, &CPU)).unwrap();
        assert!(theirs.left_over().is_empty() && ours.left_over().is_empty());
        let error = distance(
            &resnet.forward_t(&xs, false).unwrap(),
            &net.forward_t(&xs, false).unwrap(),
        );
        assert!(error <= 1e-5, "{error:e}");
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
    let text = message(build(swin::Config {
        num_heads: vec![3, 6],
        ..small_swin()
    }));
    assert!(text.contains("num_heads is 3") && text.contains("8"), "{text}");

    let weights = Weights::seeded(Seed::new(0));
    let swin = SwinTransformer::new(&small_swin(), weights.var_builder(DType::F32, &CPU)).unwrap();
    let xs = Tensor::zeros((1, 3, 32, 64), DType::F32, &CPU).unwrap();
    let mut pass = Pass::train(Seed::new(0).at(0));
    let mut refusal = |block| message(MaskToken::new(random(0.5), block).unwrap().sub(&swin, &xs, &mut pass));
    assert!(refusal(24).contains("24 pixels"));
    assert_eq!(
        refusal(1),
        "block is 1 pixels, 32 x 64 of them over a grid of 16 x 32 positions, but must be a multiple of 2 pixels"
    );
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

/// The argument that an error names.
fn named(result: candle_core::Result<impl Sized>) -> &'static str {
    match result.map(drop).map_err(Error::from) {
        Err(Error::InvalidArgument { argument, .. }) => argument,
        Err(other) => panic!("{other}"),
        Ok(()) => panic!("accepted"),
    }
}

#[test]
fn configurations_that_do_not_hold_together_name_the_field() {
    let resnet = |change: fn(&mut resnet::Config)| {
        let mut cfg = small_resnet(BlockKind::Bottleneck);
        change(&mut cfg);
        named(ResNet::new(
            &cfg,
            Weights::seeded(Seed::new(0)).var_builder(DType::F32, &CPU),
        ))
    };
    assert_eq!(resnet(|cfg| cfg.stem_channels = 0), "stem_channels");
    assert_eq!(resnet(|cfg| cfg.in_channels = usize::MAX), "in_channels");
    assert_eq!(resnet(|cfg| cfg.num_classes = 0), "num_classes");
    assert_eq!(resnet(|cfg| cfg.depths[2] = 0), "depths");
    assert_eq!(resnet(|cfg| cfg.channels[3] = 0), "channels");
    assert_eq!(resnet(|cfg| cfg.drop_path = 1.), "drop_path");
    assert_eq!(resnet(|cfg| cfg.norm_eps = f64::NAN), "norm_eps");
    assert_eq!(resnet(|cfg| cfg.norm_eps = -1e-5), "norm_eps");
    assert_eq!(resnet(|cfg| cfg.norm_momentum = 1.5), "norm_momentum");

    let swin = |change: fn(&mut swin::Config)| {
        let mut cfg = small_swin();
        change(&mut cfg);
        named(SwinTransformer::new(
            &cfg,
            Weights::seeded(Seed::new(0)).var_builder(DType::F32, &CPU),
        ))
    };
    assert_eq!(swin(|cfg| cfg.patch_size = 0), "patch_size");
    assert_eq!(swin(|cfg| cfg.patch_size = 1 << 12), "patch_size");
    assert_eq!(swin(|cfg| cfg.in_channels = 0), "in_channels");
    assert_eq!(swin(|cfg| cfg.num_classes = usize::MAX), "num_classes");
    assert_eq!(swin(|cfg| cfg.embed_dim = 0), "embed_dim");
    assert_eq!(swin(|cfg| cfg.window_size = 0), "window_size");
    assert_eq!(swin(|cfg| cfg.window_size = usize::MAX / 2), "window_size");
    assert_eq!(swin(|cfg| cfg.mlp_ratio = usize::MAX), "mlp_ratio");
    assert_eq!(swin(|cfg| cfg.depths[1] = 0), "depths");
    assert_eq!(swin(|cfg| (cfg.depths, cfg.num_heads) = (vec![], vec![])), "depths");
    assert_eq!(
        swin(|cfg| (cfg.depths, cfg.num_heads) = (vec![1; 70], vec![1; 70])),
        "depths"
    );
    assert_eq!(swin(|cfg| cfg.num_heads = vec![2]), "num_heads");
    assert_eq!(swin(|cfg| cfg.num_heads[1] = 0), "num_heads");
    assert_eq!(swin(|cfg| cfg.image_size = (0, 64)), "image_size");
    assert_eq!(swin(|cfg| cfg.image_size = (usize::MAX - 1, 64)), "image_size");
    assert_eq!(swin(|cfg| cfg.dropout = -0.1), "dropout");
    assert_eq!(swin(|cfg| cfg.drop_path = f64::NAN), "drop_path");
    assert_eq!(swin(|cfg| cfg.norm_eps = f64::INFINITY), "norm_eps");
}

#[test]
fn a_batch_norm_names_what_it_does_not_offer() {
    let refused = |config: nn::BatchNormConfig| {
        let weights = Weights::seeded(Seed::new(0));
        named(nn::batch_norm(4, config, weights.var_builder(DType::F32, &CPU)))
    };
    let config = nn::BatchNormConfig::default;
    assert_eq!(refused(nn::BatchNormConfig { eps: -1., ..config() }), "eps");
    assert_eq!(
        refused(nn::BatchNormConfig {
            eps: f64::NAN,
            ..config()
        }),
        "eps"
    );
    assert_eq!(
        refused(nn::BatchNormConfig {
            momentum: 1.1,
            ..config()
        }),
        "momentum"
    );
    assert_eq!(
        refused(nn::BatchNormConfig {
            momentum: f64::NAN,
            ..config()
        }),
        "momentum"
    );
    assert_eq!(
        refused(nn::BatchNormConfig {
            affine: false,
            ..config()
        }),
        "config"
    );
    assert_eq!(
        refused(nn::BatchNormConfig {
            remove_mean: false,
            ..config()
        }),
        "config"
    );
    let weights = Weights::seeded(Seed::new(0));
    let norm = nn::batch_norm(4, 1e-3, weights.var_builder(DType::F32, &CPU)).unwrap();
    assert_eq!((norm.eps(), norm.momentum()), (1e-3, 0.1));
    // One value per channel has no variance, and the wrong channels have no statistics.
    for shape in [[1, 4, 1, 1], [2, 3, 5, 5]] {
        let xs = Tensor::zeros(&shape, DType::F32, &CPU).unwrap();
        assert!(matches!(
            norm.forward_t(&xs, true).map_err(Error::from),
            Err(Error::Shape { .. })
        ));
    }
}

/// A model of these values.
fn from_values<M>(
    values: &BTreeMap<String, Tensor>,
    dtype: DType,
    build: impl FnOnce(VarBuilder) -> candle_core::Result<M>,
) -> M {
    let weights = Weights::from_tensors(values.clone());
    build(weights.var_builder(dtype, &CPU)).unwrap()
}

/// The values with those named set to 0.
fn silenced(values: &BTreeMap<String, Tensor>, silent: impl Fn(&str) -> bool) -> BTreeMap<String, Tensor> {
    let value = |(name, value): (&String, &Tensor)| match silent(name) {
        true => (name.clone(), value.zeros_like().unwrap()),
        false => (name.clone(), value.clone()),
    };
    values.iter().map(value).collect()
}

/// A rate at which nothing is kept.
const ALL: f64 = 1. - 1e-9;

#[test]
fn a_resnet_drops_its_residual_branches_and_nothing_else() {
    let xs = images(4, "paths").upsample_nearest2d(64, 64).unwrap();
    let key = Seed::new(0).at(0);
    for block in [BlockKind::Basic, BlockKind::Bottleneck] {
        let cfg = small_resnet(block);
        let values = random_values(|vb| ResNet::new(&cfg, vb));
        let net = from_values(&values, DType::F32, |vb| ResNet::new(&cfg, vb));
        let mut pass = Pass::train(key);
        pass.impose_drop_path(ALL).unwrap();
        let dropped = net.forward_pass(&xs, &mut pass).unwrap();
        assert_eq!((pass.drop_path_sites(), pass.dropout_sites()), (5, 0));
        let last = match block {
            BlockKind::Basic => ".bn2.",
            BlockKind::Bottleneck => ".bn3.",
        };
        let without = silenced(&values, |name| name.contains(last) && !name.contains("running_"));
        let without = from_values(&without, DType::F32, |vb| ResNet::new(&cfg, vb));
        let expected = without.forward_pass(&xs, &mut Pass::train(key)).unwrap();
        assert!(distance(&dropped, &expected) < 1e-6);

        // A ResNet has no dropout that DropSub could raise; PathSub's paths it has.
        let refused = MaskSub::new(&net, DropSub::new(0.5).unwrap()).forward_pair(&xs, key);
        assert!(matches!(
            refused.map(drop),
            Err(Error::BranchWithoutEffect { branch: "DropSub", .. })
        ));
        let pair = MaskSub::new(&net, PathSub::new(0.5).unwrap())
            .forward_pair(&xs, key)
            .unwrap();
        assert!(distance(&pair.sub, &pair.main) > 1e-3);
    }
    // Asked to train without a key, a recipe with drop path says what it lacks.
    let cfg = resnet::Config {
        drop_path: 0.1,
        ..small_resnet(BlockKind::Basic)
    };
    let net = from_values(&random_values(|vb| ResNet::new(&cfg, vb)), DType::F32, |vb| {
        ResNet::new(&cfg, vb)
    });
    let error = net.forward_t(&xs, true).map_err(Error::from);
    assert!(matches!(error, Err(Error::DrawsWithoutKey { what: "drop path" })));
}

#[test]
fn a_swin_drops_its_residual_branches_or_their_activations() {
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

    let pair = MaskSub::new(&net, PathSub::new(0.5).unwrap())
        .forward_pair(&xs, key)
        .unwrap();
    assert!(distance(&pair.sub, &pair.main) > 1e-3);
    let pair = MaskSub::new(&net, DropSub::new(0.5).unwrap())
        .forward_pair(&xs, key)
        .unwrap();
    assert!(distance(&pair.sub, &pair.main) > 1e-3);
}

/// The heads read the mean of 196 positions, which half precision cannot add up.
#[test]
fn half_precision_agrees_with_f64() {
    let resnet_cfg = small_resnet(BlockKind::Basic);
    let swin_cfg = swin::Config {
        image_size: (56, 56),
        window_size: 7,
        ..small_swin()
    };
    let resnet_values = random_values(|vb| ResNet::new(&resnet_cfg, vb));
    let swin_values = random_values(|vb| SwinTransformer::new(&swin_cfg, vb));
    let (large, small) = (randn((1, 3, 448, 448), "half"), randn((2, 3, 56, 56), "half"));
    for (dtype, tolerance) in [(DType::BF16, 4e-3), (DType::F16, 6e-4)] {
        let rounded = |values: &BTreeMap<String, Tensor>| -> BTreeMap<String, Tensor> {
            let round = |value: &Tensor| value.to_dtype(dtype).unwrap();
            values
                .iter()
                .map(|(name, value)| (name.clone(), round(value)))
                .collect()
        };
        let images = |images: &Tensor, to: DType| images.to_dtype(dtype).unwrap().to_dtype(to).unwrap();
        let run = |to: DType| {
            let resnet = from_values(&rounded(&resnet_values), to, |vb| ResNet::new(&resnet_cfg, vb));
            let swin = from_values(&rounded(&swin_values), to, |vb| SwinTransformer::new(&swin_cfg, vb));
            [
                resnet.forward_t(&images(&large, to), false).unwrap(),
                swin.forward_t(&images(&small, to), false).unwrap(),
            ]
        };
        let (ours, exact) = (run(dtype), run(DType::F64));
        assert!(ours.iter().all(|logits| logits.dtype() == dtype));
        let errors = [distance(&ours[0], &exact[0]), distance(&ours[1], &exact[1])];
        assert!(errors.iter().all(|&error| error < tolerance), "{dtype:?}: {errors:?}");
    }
}
