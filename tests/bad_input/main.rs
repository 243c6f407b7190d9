//! Bad input: each a typed error that names the argument, what it was and what it may be. Nothing panics.

#[path = "../common/mod.rs"]
mod common;

use candle_core::{DType, Tensor, Var};
use candle_nn::loss::cross_entropy;
use candle_nn::ModuleT;
use common::{images, labels, randn, tiny, vit, CPU};
use masksub::models::vit::{Config, VisionTransformer};
use masksub::{
    num_keep, BlockMasking, Criterion, DropSub, DropToken, Error, Fill, Forward, Grid, Mask, MaskGenerator, MaskRatio,
    MaskSub, Params, Pass, PatchDrop, PathSub, RandomMasking, Seed, StepKey, SubModelLoss, TokenModel, Weights,
};

fn key() -> StepKey {
    Seed::new(0).at(0)
}

fn half() -> RandomMasking {
    RandomMasking::new(0.5).unwrap()
}

fn error_of<T, E: Into<Error>>(result: Result<T, E>) -> Error {
    match result {
        Ok(_) => panic!("bad input was accepted"),
        Err(error) => error.into(),
    }
}

/// The text names the argument, its value and what it may be.
#[track_caller]
fn assert_invalid<T, E: Into<Error>>(result: Result<T, E>, argument: &str, value: &str, allowed: &str) {
    let error = error_of(result);
    assert!(
        matches!(&error, Error::InvalidArgument { argument: a, .. } if *a == argument),
        "{error}"
    );
    let text = error.to_string();
    for part in [argument, value, allowed] {
        assert!(text.contains(part), "no `{part}` in: {text}");
    }
}

/// The text names the argument, its shape and what is expected.
#[track_caller]
fn assert_misshapen<T, E: Into<Error>>(result: Result<T, E>, argument: &str, dims: &[usize], expected: &str) {
    let error = error_of(result);
    assert!(
        matches!(&error, Error::Shape { argument: a, got, .. } if *a == argument && got == dims),
        "{error}"
    );
    let text = error.to_string();
    for part in [argument, &format!("{dims:?}"), expected] {
        assert!(text.contains(part), "no `{part}` in: {text}");
    }
}

mod settings {
    use super::*;

    #[test]
    fn ratios() {
        for (ratio, value) in [
            (1., "1"),
            (1.5, "1.5"),
            (-0.1, "-0.1"),
            (f64::NAN, "NaN"),
            (f64::INFINITY, "inf"),
        ] {
            let allowed = "at least 0 and below 1";
            assert_invalid(RandomMasking::new(ratio), "mask_ratio", value, allowed);
            assert_invalid(MaskRatio::fixed(ratio), "mask_ratio", value, allowed);
            assert_invalid(BlockMasking::new(ratio, 2), "mask_ratio", value, allowed);
            assert_invalid(DropSub::new(ratio), "rate", value, allowed);
            assert_invalid(PathSub::new(ratio), "rate", value, allowed);
            let mut pass = Pass::train(key());
            assert_invalid(pass.impose_dropout(ratio), "rate", value, allowed);
            assert_invalid(pass.impose_drop_path(ratio), "rate", value, allowed);
            assert_invalid(num_keep(4, ratio), "mask_ratio", value, allowed);
            assert_invalid(pass.dropout(&randn((2, 2), "xs"), ratio), "dropout", value, allowed);
            assert_invalid(pass.drop_path(&randn((2, 2), "xs"), ratio), "drop_path", value, allowed);
            // Also where nothing would be dropped.
            assert_invalid(
                Pass::eval().dropout(&randn((2, 2), "xs"), ratio),
                "dropout",
                value,
                allowed,
            );
        }
        assert_invalid(num_keep(0, 0.5), "len", "0", "at least 1");
        RandomMasking::new(0.).unwrap();
        RandomMasking::new(1. - f64::EPSILON).unwrap();
    }

    #[test]
    fn temperatures_weights_smoothing() {
        for (t, value) in [(0., "0"), (-1., "-1"), (f64::NAN, "NaN"), (f64::INFINITY, "inf")] {
            assert_invalid(SubModelLoss::kl().with_temperature(t), "temperature", value, "positive");
        }
        for (w, value) in [(-0.01, "-0.01"), (1.01, "1.01"), (f64::NAN, "NaN")] {
            let (vit, _) = vit(&tiny(Config::deit3_tiny(3)), 0);
            let model = MaskSub::new(vit, DropToken::new(half()));
            assert_invalid(model.with_weight(w), "weight", value, "[0, 1]");
            let ce = Criterion::cross_entropy();
            assert_invalid(ce.with_label_smoothing(w), "label_smoothing", value, "[0, 1]");
        }
        for (threshold, value) in [(-0.1, "-0.1"), (1., "1"), (f64::NAN, "NaN")] {
            let bce = Criterion::bce_with_logits().with_target_threshold(threshold);
            assert_invalid(bce, "target_threshold", value, "at least 0 and below 1");
        }
        let ce = Criterion::cross_entropy().with_target_threshold(0.2);
        assert_invalid(ce, "target_threshold", "0.2", "for binary cross-entropy only");
    }

    #[test]
    fn blocks_of_nothing() {
        assert_invalid(PatchDrop::new(half(), 0), "block", "0", "at least 1");
        assert_invalid(BlockMasking::new(0.5, 0), "block", "0", "at least 1");
        assert_invalid(
            BlockMasking::with_ratio(MaskRatio::fixed(0.5).unwrap(), 0),
            "block",
            "0",
            "at least 1",
        );
        assert_invalid(Grid::new(4, 4).divided_by(0), "block", "0", "divisor");
    }
}

mod masks {
    use super::*;

    #[test]
    fn of_nothing() {
        assert_invalid(half().generate(0, Grid::new(2, 2), key()), "batch", "0", "at least 1");
        for grid in [Grid::new(0, 4), Grid::new(4, 0), Grid::new(0, 0)] {
            assert_invalid(half().generate(2, grid, key()), "grid", &grid.to_string(), "1 to");
        }
        assert_invalid(
            BlockMasking::new(0.5, 2).unwrap().generate(0, Grid::new(2, 2), key()),
            "batch",
            "0",
            "at least 1",
        );
    }

    #[test]
    fn of_too_much() {
        // More positions than an index can name, and than a usize can count.
        for grid in [
            Grid::new(1 << 20, 1 << 20),
            Grid::new(usize::MAX, 2),
            Grid::new(1 << 33, 1 << 33),
        ] {
            assert_invalid(half().generate(1, grid, key()), "grid", &grid.to_string(), "1 to");
        }
        for grid in [Grid::new(usize::MAX, 1), Grid::new(1 << 20, 1 << 20)] {
            let mask = Mask::from_keep_indices(grid, &[[0]]);
            assert_invalid(mask, "grid", &grid.to_string(), "1 to");
        }
        for batch in [usize::MAX, 1 << 31] {
            let masks = half().generate(batch, Grid::new(2, 2), key());
            assert_invalid(masks, "batch", &batch.to_string(), "at most 1073741823 samples");
        }
        let mask = half().generate(1, Grid::new(2, 2), key()).unwrap();
        let tokens = randn((1, 4, 3), "tokens");
        assert_misshapen(mask.gather(&tokens, usize::MAX), "tokens", &[1, 4, 3], "D]");
        for factor in [usize::MAX, 1 << 31, 1 << 17] {
            assert_invalid(mask.upsample(factor), "factor", &factor.to_string(), "at least 1");
        }
    }

    #[test]
    fn from_indices() {
        let grid = Grid::new(2, 2);
        let from = |rows: &[&[u32]]| Mask::from_keep_indices(grid, rows);
        assert_invalid(from(&[&[0, 1], &[2, 4]]), "keep_indices", "4 in sample 1", "below 4");
        assert_invalid(
            from(&[&[0, u32::MAX]]),
            "keep_indices",
            &u32::MAX.to_string(),
            "below 4",
        );
        assert_invalid(
            from(&[&[0, 1], &[3, 3]]),
            "keep_indices",
            "3 twice in sample 1",
            "distinct",
        );
        assert_invalid(from(&[&[0, 1], &[3]]), "keep_indices", "sample 1", "as many");
        assert_invalid(from(&[&[], &[3]]), "keep_indices", "sample 1", "as many");
        assert_invalid(from(&[]), "keep_indices", "empty", "at least one");
        assert_invalid(from(&[&[], &[]]), "keep_indices", "empty", "at least one");
        assert_invalid(
            Mask::from_keep_indices(Grid::new(0, 2), &[[0]]),
            "grid",
            "0 x 2",
            "1 to",
        );
    }

    #[test]
    fn from_noise() {
        let grid = Grid::new(2, 2);
        for shape in [vec![], vec![4], vec![2, 3], vec![0, 4], vec![1, 2, 2], vec![4, 2]] {
            let noise = randn(shape.clone(), "noise");
            assert_misshapen(Mask::from_noise(grid, &noise, 2), "noise", &shape, "[B, 4]");
        }
        let noise = randn((2, 4), "noise");
        for num_keep in [0, 5, usize::MAX] {
            assert_invalid(
                Mask::from_noise(grid, &noise, num_keep),
                "num_keep",
                &num_keep.to_string(),
                "1..=4",
            );
        }
        let nan = Tensor::new(&[[0f32, 1., f32::NAN, 2.]], &CPU).unwrap();
        assert_invalid(Mask::from_noise(grid, &nan, 2), "noise", "NaN", "ordered");
    }

    #[test]
    fn on_images_that_do_not_fit() {
        let mask = half().generate(2, Grid::new(2, 3), key()).unwrap();
        for shape in [
            vec![2, 3, 5, 6],
            vec![2, 3, 4, 7],
            vec![1, 3, 4, 6],
            vec![2, 3, 0, 6],
            vec![2, 4, 6],
            vec![],
            vec![2, 3, 4, 6, 1],
        ] {
            let images = randn(shape.clone(), "images");
            assert_misshapen(
                mask.fill(&images, &Fill::Zero, key()),
                "images",
                &shape,
                "multiple of 2",
            );
        }
        let fill = Fill::Value(vec![0.5, 0.5]);
        assert_invalid(
            mask.fill(&randn((2, 3, 4, 6), "images"), &fill, key()),
            "fill",
            "2 values",
            "3 in all",
        );
    }

    #[test]
    fn on_images_without_channels() {
        let mask = half().generate(2, Grid::new(2, 3), key()).unwrap();
        let none = randn((2, 0, 4, 6), "none");
        for fill in [Fill::Zero, Fill::Mean, Fill::Noise, Fill::Value(vec![])] {
            let filled = mask.fill(&none, &fill, key());
            assert_eq!(filled.unwrap().dims(), none.dims(), "{fill:?}");
        }
    }

    #[test]
    fn on_integer_images() {
        let mask = half().generate(2, Grid::new(2, 3), key()).unwrap();
        let bytes = Tensor::full(200u8, (2, 3, 4, 6), &CPU).unwrap();
        // A mean of bytes overflows and noise is no byte; a value that was given is what was asked for.
        for fill in [Fill::Mean, Fill::Noise] {
            let error = error_of(mask.fill(&bytes, &fill, key()));
            assert!(
                matches!(
                    error,
                    Error::DType {
                        argument: "images",
                        got: DType::U8,
                        ..
                    }
                ),
                "{error}"
            );
            assert!(error.to_string().contains("float"), "{error}");
        }
        for (fill, value) in [(Fill::Zero, 0), (Fill::Value(vec![7.; 3]), 7)] {
            let filled = mask.fill(&bytes, &fill, key()).unwrap();
            let pixels = filled.flatten_all().unwrap().to_vec1::<u8>().unwrap();
            assert!(pixels.iter().all(|&pixel| pixel == 200 || pixel == value) && pixels.contains(&value));
        }
    }
}

mod losses {
    use super::*;

    fn criteria() -> [Criterion; 2] {
        [Criterion::cross_entropy(), Criterion::bce_with_logits()]
    }

    #[test]
    fn on_class_indices_out_of_range() {
        let logits = randn((2, 3), "logits");
        for criterion in criteria() {
            for (class, value) in [
                (3i64, "class 3"),
                (-1, "class -1"),
                (i64::MAX, "class 9223372036854775807"),
            ] {
                let targets = Tensor::new(&[0, class], &CPU).unwrap();
                assert_invalid(criterion.forward(&logits, &targets), "targets", value, "0..3");
            }
            let targets = Tensor::new(&[u32::MAX, 0], &CPU).unwrap();
            assert_invalid(
                criterion.forward(&logits, &targets),
                "targets",
                "class 4294967295",
                "0..3",
            );
            let targets = Tensor::new(&[255u8, 0], &CPU).unwrap();
            assert_invalid(criterion.forward(&logits, &targets), "targets", "class 255", "0..3");
        }
    }

    #[test]
    fn on_targets_that_disagree() {
        let logits = randn((2, 3), "logits");
        for criterion in criteria() {
            for shape in [
                vec![2, 4],
                vec![3, 3],
                vec![2],
                vec![3],
                vec![2, 3, 1],
                vec![],
                vec![0, 3],
            ] {
                let soft = randn(shape.clone(), "targets");
                assert_misshapen(criterion.forward(&logits, &soft), "targets", &shape, "[2, 3]");
                if shape != [2] {
                    let classes = Tensor::zeros(shape.clone(), DType::U32, &CPU).unwrap();
                    assert_misshapen(criterion.forward(&logits, &classes), "targets", &shape, "[2]");
                }
            }
            // Multi-hot labels as integers are neither indices nor probabilities.
            let multi_hot = Tensor::ones((2, 3), DType::U8, &CPU).unwrap();
            assert_misshapen(
                criterion.forward(&logits, &multi_hot),
                "targets",
                &[2, 3],
                "class indices",
            );
        }
    }

    #[test]
    fn on_logits_that_are_none() {
        for shape in [
            vec![],
            vec![3],
            vec![0, 3],
            vec![2, 0],
            vec![2, 3, 1],
            vec![1, 2, 3, 4, 5],
        ] {
            let logits = randn(shape.clone(), "logits");
            for criterion in criteria() {
                let targets = Tensor::zeros(2, DType::U32, &CPU).unwrap();
                assert_misshapen(criterion.forward(&logits, &targets), "logits", &shape, "[B, C]");
            }
            for loss in [
                SubModelLoss::soft_cross_entropy(),
                SubModelLoss::kl(),
                SubModelLoss::bce(),
            ] {
                assert_misshapen(
                    loss.forward(&logits, &randn((2, 3), "main")),
                    "sub_logits",
                    &shape,
                    "[B, C]",
                );
                assert_misshapen(
                    loss.forward(&randn((2, 3), "sub"), &logits),
                    "main_logits",
                    &shape,
                    "[B, C]",
                );
            }
        }
    }

    #[test]
    fn on_branches_that_disagree() {
        for loss in [
            SubModelLoss::soft_cross_entropy(),
            SubModelLoss::kl(),
            SubModelLoss::bce(),
        ] {
            for shape in [(2, 4), (3, 3), (1, 3)] {
                let result = loss.forward(&randn((2, 3), "sub"), &randn(shape, "main"));
                assert_misshapen(result, "sub_logits", &[2, 3], &format!("[{}, {}]", shape.0, shape.1));
            }
        }
    }

    #[test]
    fn on_integers() {
        for dtype in [DType::U8, DType::U32, DType::I64] {
            let integers = Tensor::zeros((2, 3), dtype, &CPU).unwrap();
            let error = error_of(Criterion::cross_entropy().forward(&integers, &labels(2, 3)));
            assert!(
                matches!(error, Error::DType { argument: "logits", got, .. } if got == dtype),
                "{error}"
            );
            assert!(error.to_string().contains("f32"), "{error}");
            let error = error_of(SubModelLoss::kl().forward(&integers, &randn((2, 3), "main")));
            assert!(
                matches!(
                    error,
                    Error::DType {
                        argument: "sub_logits",
                        ..
                    }
                ),
                "{error}"
            );
            let error = error_of(SubModelLoss::kl().forward(&randn((2, 3), "sub"), &integers));
            assert!(
                matches!(
                    error,
                    Error::DType {
                        argument: "main_logits",
                        ..
                    }
                ),
                "{error}"
            );
        }
    }
}

mod steps {
    use super::*;

    fn model() -> MaskSub<VisionTransformer, DropToken<RandomMasking>> {
        let (vit, params) = vit(&tiny(Config::deit3_tiny(3)), 0);
        MaskSub::new(vit, DropToken::new(half())).with_params(params)
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

        for weight in [0., 0.5, 1.] {
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
            let empty = model().with_params(params.clone());
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
        let model = MaskSub::wrap(net, PatchDrop::new(half(), 4).unwrap());
        let loss = |logits: &Tensor| cross_entropy(logits, &labels(2, 3));
        let error = error_of(model.backward(&images(2, "fixed"), key(), loss));
        assert!(matches!(error, Error::LossDetached { branch: "main" }), "{error}");
    }

    #[test]
    fn of_models_whose_branches_disagree() {
        // Logits for one sample too many, as a model that reshapes wrongly gives.
        let weight = Var::from_tensor(&randn((64, 3), "w")).unwrap();
        let net = candle_nn::func(move |xs| xs.reshape(((), 64))?.matmul(&weight));
        let model = MaskSub::wrap(net, PatchDrop::new(half(), 4).unwrap());
        let strict = |logits: &Tensor| Criterion::cross_entropy().forward(logits, &labels(2, 3));
        assert_misshapen(model.backward(&images(2, "w"), key(), strict), "targets", &[2], "[24]");
    }

    #[test]
    fn on_images_that_blocks_do_not_tile() {
        let (vit, _) = vit(&tiny(Config::deit3_tiny(3)), 0);
        for block in [3, 5, 32] {
            let model = MaskSub::new(&vit, PatchDrop::new(half(), block).unwrap());
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
        let model = MaskSub::wrap(net, PatchDrop::new(half(), 4).unwrap());
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
        let model = MaskSub::new(&vit, DropToken::new(BlockMasking::new(0.5, 3).unwrap()));
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
        let ratio = MaskRatio::drawn(rand_distr::Uniform::new(1., 2.).unwrap());
        let model = MaskSub::new(&vit, DropToken::new(RandomMasking::with_ratio(ratio)));
        assert_invalid(
            model.forward_pair(&images(2, "drawn"), key()),
            "mask_ratio",
            "1.",
            "below 1",
        );
    }
}

mod the_vit {
    use super::*;

    #[test]
    fn on_images_of_another_size() {
        let (vit, _) = vit(&tiny(Config::deit3_tiny(3)), 0);
        for shape in [
            vec![2, 3, 16, 18],
            vec![2, 3, 15, 16],
            vec![2, 3, 32, 32],
            vec![2, 1, 16, 16],
            vec![2, 3, 16],
            vec![3, 16, 16],
            vec![],
            vec![2],
            vec![2, 3, 0, 16],
            vec![2, 0, 16, 16],
            vec![2, 3, 16, 16, 1],
        ] {
            let xs = randn(shape.clone(), "odd");
            let expected = if shape.len() == 4 {
                "multiples of the patch, 4 pixels"
            } else {
                "[B, C, H, W]"
            };
            assert_misshapen(vit.forward_t(&xs, false), "images", &shape, expected);
            assert_misshapen(
                vit.forward_pass(&xs, &mut Pass::train(key())),
                "images",
                &shape,
                expected,
            );
            assert_misshapen(vit.grid(&xs), "images", &shape, expected);
        }
        let empty = randn((0, 3, 16, 16), "odd");
        assert_misshapen(
            vit.forward_t(&empty, false),
            "images",
            &[0, 3, 16, 16],
            "at least one image",
        );
    }

    #[test]
    fn of_configurations_that_do_not_hold_together() {
        let build =
            |cfg: Config| VisionTransformer::new(&cfg, Weights::seeded(Seed::new(0)).var_builder(DType::F32, &CPU));
        let base = || tiny(Config::deit3_tiny(3));
        type Zero = fn(&mut Config) -> &mut usize;
        let zeros: [(&str, Zero); 7] = [
            ("patch_size", |cfg| &mut cfg.patch_size),
            ("in_channels", |cfg| &mut cfg.in_channels),
            ("num_classes", |cfg| &mut cfg.num_classes),
            ("embed_dim", |cfg| &mut cfg.embed_dim),
            ("depth", |cfg| &mut cfg.depth),
            ("num_heads", |cfg| &mut cfg.num_heads),
            ("mlp_dim", |cfg| &mut cfg.mlp_dim),
        ];
        for (argument, field) in zeros {
            let mut cfg = base();
            *field(&mut cfg) = 0;
            assert_invalid(build(cfg), argument, "0", "at least 1");
        }
        assert_invalid(
            build(Config { num_heads: 5, ..base() }),
            "num_heads",
            "5",
            "divisor of embed_dim, 24",
        );
        for (rate, value) in [(1., "1"), (-0.5, "-0.5"), (f64::NAN, "NaN")] {
            let allowed = "at least 0 and below 1";
            assert_invalid(
                build(Config {
                    dropout: rate,
                    ..base()
                }),
                "dropout",
                value,
                allowed,
            );
            assert_invalid(
                build(Config {
                    drop_path: rate,
                    ..base()
                }),
                "drop_path",
                value,
                allowed,
            );
        }
        for (height, width) in [(16, 18), (18, 16), (0, 16), (16, 2)] {
            let cfg = Config {
                image_size: (height, width),
                ..base()
            };
            let allowed = "multiples of the patch, 4 pixels";
            assert_invalid(
                build(cfg.clone()),
                "image_size",
                &format!("{height} x {width}"),
                allowed,
            );
            let cropped = Config {
                crop_remainder: true,
                ..cfg
            };
            match height >= 4 && width >= 4 {
                true => assert!(build(cropped).is_ok()),
                false => assert_invalid(
                    build(cropped),
                    "image_size",
                    &format!("{height} x {width}"),
                    "at least one patch",
                ),
            }
        }
    }

    /// Whatever it is given, it may refuse, but not panic.
    #[test]
    fn on_odd_tokens_and_dtypes() {
        let (vit, _) = vit(&tiny(Config::mae_base(3)), 0);
        for shape in [
            vec![],
            vec![24],
            vec![2, 24],
            vec![2, 0, 24],
            vec![0, 5, 24],
            vec![2, 5, 23],
            vec![2, 1, 24],
            vec![2, 5, 24, 1],
        ] {
            let classified = vit.classify(&randn(shape.clone(), "tokens"), &mut Pass::eval());
            assert_misshapen(classified, "tokens", &shape, "[B, 1 + K, 24]");
        }
        for dtype in [DType::U8, DType::U32, DType::I64, DType::F64, DType::BF16] {
            let xs = images(2, "dtype").to_dtype(dtype).unwrap();
            assert!(vit.forward_t(&xs, false).is_err(), "{dtype:?} images in a f32 model");
            for fill in [Fill::Zero, Fill::Mean, Fill::Noise] {
                let branch = PatchDrop::new(half(), 4).unwrap().with_fill(fill);
                assert!(MaskSub::new(&vit, branch).forward_pair(&xs, key()).is_err());
            }
            assert!(MaskSub::new(&vit, DropToken::new(half()))
                .forward_pair(&xs, key())
                .is_err());
        }
        // A mask for another batch or grid.
        for mask in [
            half().generate(3, Grid::new(4, 4), key()),
            half().generate(2, Grid::new(4, 5), key()),
        ] {
            let result = vit.embed(&images(2, "mask"), Some(&mask.unwrap()), &mut Pass::eval());
            assert!(matches!(
                error_of(result),
                Error::InvalidArgument { argument: "mask", .. }
            ));
        }
    }
}

mod passes {
    use super::*;

    #[test]
    fn on_odd_ranks() {
        for shape in [
            vec![],
            vec![0],
            vec![2, 0],
            vec![0, 3],
            vec![2, 0, 3],
            vec![4],
            vec![1, 2, 3, 4, 5],
        ] {
            let xs = randn(shape.clone(), "odd");
            let mut pass = Pass::train(key());
            for dropped in [pass.dropout(&xs, 0.5), pass.drop_path(&xs, 0.5)] {
                match dropped {
                    Ok(dropped) => assert_eq!(dropped.dims(), shape),
                    // A scalar has no samples.
                    Err(error) => assert!(shape.is_empty(), "{shape:?}: {error}"),
                }
            }
        }
    }

    #[test]
    fn on_a_running_average_of_another_shape() {
        let running = Var::zeros(3, DType::F32, &CPU).unwrap();
        let first = Var::zeros(2, DType::F32, &CPU).unwrap();
        let mut pass = Pass::train(key());
        pass.update_running(&first, &randn(2, "batch"), 0.1);
        pass.update_running(&running, &randn(4, "batch"), 0.1);
        assert!(pass.commit().is_err());
        // All or none.
        assert_eq!(first.to_vec1::<f32>().unwrap(), [0., 0.]);
    }
}
