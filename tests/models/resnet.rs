//! ResNet: sizes, gradients, running statistics, what its sub-branches hide and what it drops.

use candle_core::DType;
use candle_nn::loss::cross_entropy;
use candle_nn::{ModuleT, VarBuilder};
use masksub::models::resnet::{self, BlockKind, ResNet};
use masksub::{grad, DropSub, Error, Forward, MaskSub, Params, Pass, PatchDrop, PathSub, Seed, SubBranch, Weights};

use crate::common::{count_params, distance, images, labels, randn, random_values, small_resnet, CPU};
use crate::{
    check_half_precision, check_joint_loss, enlarged, from_values, kept_of, message, millions, named, random, silenced,
    ALL,
};

// The paper's table.
#[test]
fn parameter_counts_are_the_papers() {
    for &(name, size) in resnet::Config::SIZES {
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
}

#[test]
fn two_halves_give_the_gradients_of_the_joint_loss() {
    for block in [BlockKind::Basic, BlockKind::Bottleneck] {
        let values = random_values(|vb| ResNet::new(&small_resnet(block), vb));
        let weights = Weights::from_tensors(values);
        let resnet = ResNet::new(&small_resnet(block), weights.var_builder(DType::F32, &CPU)).unwrap();
        check_joint_loss(&weights, resnet, PatchDrop::new(random(0.5), 16).unwrap());
    }
}

/// Of 16 blocks of 32 pixels: what the mask says is hidden is what a model that is shown the rest does not see.
#[test]
fn the_hidden_share_is_that_of_the_ratio() {
    let (xs, key) = (randn((3, 3, 128, 128), "hidden"), Seed::new(3).at(0));
    let weights = Weights::seeded(Seed::new(0));
    let resnet = ResNet::new(&small_resnet(BlockKind::Basic), weights.var_builder(DType::F32, &CPU)).unwrap();
    for (ratio, hidden) in [(0.25, 4), (0.5, 8), (0.75, 12)] {
        let branch = PatchDrop::new(random(ratio), 32).unwrap();
        let (logits, mask) = branch.sub(&resnet, &xs, &mut Pass::train(key)).unwrap();
        let blocks = kept_of(mask, hidden);
        let rest = xs.broadcast_mul(&enlarged(&blocks, 32).unsqueeze(1).unwrap()).unwrap();
        let expected = resnet.forward_pass(&rest, &mut Pass::train(key)).unwrap();
        assert!(distance(&logits, &expected) < 1e-6, "{ratio}");
        assert!(distance(&logits, &resnet.forward_pass(&xs, &mut Pass::train(key)).unwrap()) > 1e-2);
    }
}

#[test]
fn gradients_reach_every_parameter() {
    let (xs, ys) = (images(4, "families").upsample_nearest2d(32, 32).unwrap(), labels(4, 5));
    for block in [BlockKind::Basic, BlockKind::Bottleneck] {
        let weights = Weights::seeded(Seed::new(0));
        let net = ResNet::new(&small_resnet(block), weights.var_builder(DType::F32, &CPU)).unwrap();
        let params = Params::from_varmap(weights.varmap());
        let model = MaskSub::new(net, PatchDrop::new(random(0.5), 8).unwrap(), &params);
        let step = model
            .backward(&xs, Seed::new(0).at(0), |logits| cross_entropy(logits, &ys))
            .unwrap();
        let audit = grad::audit(&step.grads, &params).unwrap();
        assert!(audit.is_ok() && audit.all_zero.is_empty(), "{audit}");
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
    assert_eq!(first("layer2.1.bn3.weight"), 0.0);
    assert_eq!(
        (first("layer2.1.bn2.weight"), first("layer2.0.downsample.1.weight")),
        (1.0, 1.0)
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
    let model = MaskSub::unchecked(&net, PatchDrop::new(random(0.5), 8).unwrap());
    let error = model
        .backward(&xs, key, |logits| logits.sum_all()? * f64::NAN)
        .unwrap_err();
    assert!(matches!(error, Error::NonFiniteLoss { branch: "main", .. }));
    drop(model.forward_pair(&xs, key).unwrap());
    assert_eq!(statistics(&weights), before);

    // Accepted, both passes count; without the sub pass's, only the main one's.
    let main_only = MaskSub::unchecked(
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
    assert_eq!(resnet(|cfg| cfg.drop_path = 1.0), "drop_path");
    assert_eq!(resnet(|cfg| cfg.norm_eps = f64::NAN), "norm_eps");
    assert_eq!(resnet(|cfg| cfg.norm_eps = -1e-5), "norm_eps");
    assert_eq!(resnet(|cfg| cfg.norm_momentum = 1.5), "norm_momentum");
}

#[test]
fn it_drops_its_residual_branches_and_nothing_else() {
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
        let refused = MaskSub::unchecked(&net, DropSub::new(0.5).unwrap()).forward_pair(&xs, key);
        assert!(matches!(
            refused.map(drop),
            Err(Error::BranchWithoutEffect { branch: "DropSub", .. })
        ));
        let pair = MaskSub::unchecked(&net, PathSub::new(0.5).unwrap())
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
fn half_precision_agrees_with_f64() {
    let cfg = small_resnet(BlockKind::Basic);
    let values = random_values(|vb| ResNet::new(&cfg, vb));
    check_half_precision(&values, &randn((1, 3, 448, 448), "half"), |vb| ResNet::new(&cfg, vb));
}
