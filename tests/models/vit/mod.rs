//! The Vision Transformer: gradients, sizes, image shapes, dropout and drop path, dtypes, dropped tokens.

use std::collections::BTreeMap;

use crate::common::{
    bits, by_name, count_params, distance, gradient_distance, images, labels, numbers, randn, tiny, tiny_forms, vit,
    CPU,
};
use candle_core::{DType, IndexOp, Tensor, Var};
use candle_nn::loss::cross_entropy;
use candle_nn::{AdamW, ModuleT, Optimizer, ParamsAdamW};
use masksub::models::vit::{Config, DropPathSchedule, Pool, VisionTransformer};
use masksub::{
    grad, DropToken, Error, Forward, Grid, Mask, MaskSub, Params, Pass, PatchDrop, RandomMasking, Seed, StepKey,
    TokenModel, Weights,
};

fn key(step: usize) -> StepKey {
    Seed::new(3).at(step)
}

fn half() -> RandomMasking {
    RandomMasking::new(0.5).unwrap()
}

/// A model from given values, in some dtype.
fn from_values(cfg: &Config, values: &BTreeMap<String, Tensor>, dtype: DType) -> (VisionTransformer, Params) {
    let weights = Weights::from_tensors(values.clone());
    let vit = VisionTransformer::new(cfg, weights.var_builder(dtype, &CPU)).unwrap();
    assert!(weights.left_over().is_empty());
    (vit, Params::from_varmap(weights.varmap()))
}

/// The shapes of a configuration's weights by name.
fn shapes(cfg: &Config) -> BTreeMap<String, Vec<usize>> {
    let (_, params) = vit(cfg, 0);
    params
        .iter()
        .map(|(name, var)| (name.to_string(), var.dims().to_vec()))
        .collect()
}

/// Random values for every weight, norms and biases too, so that none is without effect.
fn random_values(cfg: &Config) -> BTreeMap<String, Tensor> {
    let value = |(name, shape): (String, Vec<usize>)| {
        let value = (randn(shape, &name) * 0.3).unwrap();
        (name, value)
    };
    shapes(cfg).into_iter().map(value).collect()
}

mod training {
    use super::*;

    #[test]
    fn reaches_every_parameter_and_lowers_the_loss_in_every_form() {
        for (name, form) in tiny_forms(5) {
            let cfg = Config {
                dropout: 0.05,
                drop_path: 0.05,
                ..form
            };
            let (vit, params) = vit(&cfg, 1);
            let model = MaskSub::new(vit, DropToken::new(half())).with_params(params.clone());
            let adam = ParamsAdamW {
                lr: 3e-3,
                ..Default::default()
            };
            let mut optimizer = AdamW::new(params.vars(), adam).unwrap();
            let (xs, ys) = (images(10, "training"), labels(10, 5));
            let evaluated = |model: &MaskSub<VisionTransformer, DropToken<RandomMasking>>| {
                numbers(&cross_entropy(&model.forward_t(&xs, false).unwrap(), &ys).unwrap())[0]
            };
            let before = evaluated(&model);
            for t in 0..30 {
                let step = model
                    .backward(&xs, key(t), |logits| cross_entropy(logits, &ys))
                    .unwrap();
                let audit = grad::audit(&step.grads, &params).unwrap();
                assert!(audit.is_ok() && audit.all_zero.is_empty(), "{name}, step {t}: {audit}");
                optimizer.step(&step.grads).unwrap();
            }
            let after = evaluated(&model);
            assert!(after < 0.2 * before, "{name}: from {before} to {after}");
        }
    }
}

mod gradients {
    use super::*;

    /// The loss of both branches, the sub-branch on a given mask.
    fn loss(vit: &VisionTransformer, xs: &Tensor) -> Tensor {
        let mask = Mask::from_keep_indices(Grid::new(4, 4), &[[1, 2, 7, 12], [15, 0, 3, 9]]).unwrap();
        let mut pass = Pass::eval();
        let main = vit.forward_pass(xs, &mut pass).unwrap();
        let sub = vit
            .classify(&vit.embed(xs, Some(&mask), &mut pass).unwrap(), &mut pass)
            .unwrap();
        let ys = labels(2, 5);
        (cross_entropy(&main, &ys).unwrap() + cross_entropy(&sub, &ys).unwrap()).unwrap()
    }

    /// In f64, for two elements of every parameter.
    #[test]
    fn are_the_finite_differences_of_the_loss() {
        for (name, cfg) in tiny_forms(5) {
            let values = random_values(&cfg);
            let (vit, params) = from_values(&cfg, &values, DType::F64);
            let xs = images(2, "differences").to_dtype(DType::F64).unwrap();
            let grads = grad::backward(&loss(&vit, &xs), &params).unwrap();
            for (parameter, var) in params.iter() {
                let grad = numbers(grads.get(var).unwrap());
                let original = numbers(var);
                for at in [0, original.len() / 2] {
                    let moved = |by: f64| {
                        let mut values = original.clone();
                        values[at] += by;
                        var.set(&Tensor::from_vec(values, var.shape(), &CPU).unwrap()).unwrap();
                        numbers(&loss(&vit, &xs))[0]
                    };
                    let step = 1e-5;
                    let difference = (moved(step) - moved(-step)) / (2. * step);
                    moved(0.);
                    let tolerance = 1e-8 + 1e-7 * difference.abs();
                    let error = (grad[at] - difference).abs();
                    assert!(
                        error < tolerance,
                        "{name}, {parameter}[{at}]: {} instead of {difference}",
                        grad[at]
                    );
                }
            }
        }
    }

    /// The fast kernels against the compositions.
    #[test]
    fn are_the_same_in_f32_and_f64() {
        for (name, cfg) in tiny_forms(5) {
            let values = random_values(&cfg);
            let grads = |dtype| {
                let (vit, params) = from_values(&cfg, &values, dtype);
                let xs = images(2, "differences").to_dtype(dtype).unwrap();
                let loss = loss(&vit, &xs);
                let grads = by_name(&grad::backward(&loss, &params).unwrap(), &params);
                let wide = |(name, grad): (String, Tensor)| (name, grad.to_dtype(DType::F64).unwrap());
                (numbers(&loss)[0], grads.into_iter().map(wide).collect())
            };
            let ((narrow, narrow_grads), (wide, wide_grads)) = (grads(DType::F32), grads(DType::F64));
            assert!((narrow - wide).abs() < 1e-5, "{name}: {narrow} and {wide}");
            let error = gradient_distance(&narrow_grads, &wide_grads);
            assert!(error < 1e-4, "{name}: {error:.1e}");
        }
    }
}

mod sizes {
    use super::*;

    fn count(cfg: &Config) -> usize {
        count_params(|vb| VisionTransformer::new(cfg, vb))
    }

    /// As published (timm, MAE, CLIP's vision tower without its projection, `google/vit-base-patch16-224`), each with
    /// a head of 1000 classes at 224 pixels, in millions.
    #[test]
    fn are_the_published_ones() {
        let published: BTreeMap<&str, f64> = [
            ("deit3-tiny", 5.7),
            ("deit3-small", 22.1),
            ("deit3-base", 86.6),
            ("deit3-large", 304.4),
            ("deit3-huge", 632.1),
            ("mae-base", 86.6),
            ("mae-large", 304.3),
            ("mae-huge", 632.0),
            ("clip-base", 86.6),
            ("clip-large", 304.2),
            ("hf-base", 86.6),
        ]
        .into();
        assert_eq!(Config::SIZES.len(), published.len());
        for (name, constructor) in Config::SIZES {
            let millions = count(&constructor(1000)) as f64 / 1e6;
            assert!((millions - published[name]).abs() <= 0.05, "{name}: {millions:.2}");
        }
        // Exactly, where the number itself is published.
        assert_eq!(count(&Config::hf_base(1000)), 86_567_656);
    }

    #[test]
    fn have_the_names_of_their_checkpoints() {
        let has = |cfg: Config, expected: &[(&str, &[usize])]| {
            let shapes = shapes(&cfg);
            for (name, shape) in expected {
                assert_eq!(shapes.get(*name).map(Vec::as_slice), Some(*shape), "{name}");
            }
        };
        has(
            tiny(Config::deit3_tiny(5)),
            &[
                ("cls_token", &[1, 1, 24]),
                ("pos_embed", &[1, 16, 24]),
                ("patch_embed.proj.weight", &[24, 3, 4, 4]),
                ("blocks.1.attn.qkv.weight", &[72, 24]),
                ("blocks.1.gamma_1", &[24]),
                ("head.weight", &[5, 24]),
            ],
        );
        has(
            tiny(Config::mae_base(5)),
            &[("pos_embed", &[1, 17, 24]), ("fc_norm.weight", &[24])],
        );
        has(
            tiny(Config::clip_base(5)),
            &[
                ("clip.vision_model.embeddings.class_embedding", &[24]),
                ("clip.vision_model.embeddings.position_embedding.weight", &[17, 24]),
                ("clip.vision_model.pre_layrnorm.bias", &[24]),
                (
                    "clip.vision_model.encoder.layers.0.self_attn.out_proj.weight",
                    &[24, 24],
                ),
            ],
        );
        let mean = shapes(&tiny(Config::mae_base(5)));
        assert!(!mean.contains_key("norm.weight") && !mean.contains_key("blocks.0.gamma_1"));
        assert!(!shapes(&tiny(Config::clip_base(5)))
            .keys()
            .any(|name| name.ends_with("patch_embedding.bias")));
    }
}

mod image_shapes {
    use super::*;

    #[test]
    fn with_a_remainder_are_cropped_where_asked() {
        // DeiT-III's ViT-H/14 at 160 pixels: 11 x 11 patches and 6 pixels.
        let cfg = Config {
            embed_dim: 8,
            depth: 1,
            num_heads: 2,
            mlp_dim: 16,
            crop_remainder: true,
            ..Config::deit3_huge(5).with_input(160, 14, 3)
        };
        let (cropping, params) = vit(&cfg, 1);
        assert_eq!(params.get("pos_embed").unwrap().dims(), [1, 121, 8]);
        let xs = randn((2, 3, 160, 160), "remainder");
        assert_eq!(cropping.grid(&xs).unwrap(), Grid::new(11, 11));
        assert_eq!(
            cropping.embed(&xs, None, &mut Pass::eval()).unwrap().dims(),
            [2, 122, 8]
        );
        // The same as a model for the whole patches alone, on those.
        let whole = Config {
            crop_remainder: false,
            image_size: (154, 154),
            ..cfg.clone()
        };
        let (whole, _) = vit(&whole, 1);
        let inside = xs.i((.., .., ..154, ..154)).unwrap();
        let logits = bits(&whole.forward_t(&inside.contiguous().unwrap(), false).unwrap());
        assert_eq!(bits(&cropping.forward_t(&xs, false).unwrap()), logits);
        // It trains.
        let model = MaskSub::new(cropping, DropToken::new(half())).with_params(params);
        let step = model
            .backward(&xs, key(0), |logits| cross_entropy(logits, &labels(2, 5)))
            .unwrap();
        assert_eq!(step.mask.unwrap().num_keep(), 60);
        // Not asked, it is an error.
        let refused = Config {
            crop_remainder: false,
            ..cfg
        };
        let error = VisionTransformer::new(&refused, Weights::seeded(Seed::new(0)).var_builder(DType::F32, &CPU));
        assert!(matches!(
            Error::from(error.unwrap_err()),
            Error::InvalidArgument {
                argument: "image_size",
                ..
            }
        ));
    }

    #[test]
    fn need_not_be_square() {
        let cfg = Config {
            image_size: (8, 20),
            ..tiny(Config::deit3_tiny(5))
        };
        let (wide, _) = vit(&cfg, 1);
        let xs = randn((2, 3, 8, 20), "wide");
        assert_eq!(wide.grid(&xs).unwrap(), Grid::new(2, 5));
        // Position 7 is row 1, column 2: its pixels move its token and no other.
        let tokens = |xs: &Tensor| wide.embed(xs, None, &mut Pass::eval()).unwrap();
        let patch = (Tensor::ones((2, 3, 4, 4), DType::F32, &CPU).unwrap() * 5.).unwrap();
        let changed = xs.slice_assign(&[0..2, 0..3, 4..8, 8..12], &patch).unwrap();
        let moved = (tokens(&changed) - tokens(&xs)).unwrap().abs().unwrap().sum(2).unwrap();
        for row in moved.to_vec2::<f32>().unwrap() {
            let which: Vec<usize> = (0..row.len()).filter(|&at| row[at] > 0.).collect();
            assert_eq!(which, [1 + 7]);
        }
        // The transposed image does not fit.
        assert!(wide.forward_t(&randn((2, 3, 20, 8), "tall"), false).is_err());
        for branch in [PatchDrop::new(half(), 4).unwrap(), PatchDrop::new(half(), 2).unwrap()] {
            MaskSub::new(&wide, branch).forward_pair(&xs, key(0)).unwrap();
        }
    }

    #[test]
    fn may_come_alone_or_strided() {
        for (name, cfg) in tiny_forms(5) {
            let (vit, _) = vit(&cfg, 1);
            let xs = images(3, "alone");
            let together = vit.forward_t(&xs, false).unwrap();
            for sample in 0..3 {
                let alone = vit.forward_t(&xs.narrow(0, sample, 1).unwrap(), false).unwrap();
                let error = distance(&alone, &together.narrow(0, sample, 1).unwrap());
                assert!(error < 1e-5, "{name}: {error:.1e}");
            }
            let channels_last = xs.permute((0, 2, 3, 1)).unwrap().contiguous().unwrap();
            let strided = channels_last.permute((0, 3, 1, 2)).unwrap();
            assert_eq!(
                bits(&vit.forward_t(&strided, false).unwrap()),
                bits(&together),
                "{name}"
            );
        }
    }

    /// The patch projection is a convolution with stride = kernel, as the weights' shape says.
    #[test]
    fn are_cut_as_a_convolution_cuts() {
        let cfg = tiny(Config::deit3_tiny(5));
        let values = random_values(&cfg);
        let (vit, _) = from_values(&cfg, &values, DType::F32);
        let xs = images(2, "convolution");
        let tokens = vit.embed(&xs, None, &mut Pass::eval()).unwrap();
        let convolved = xs.conv2d(&values["patch_embed.proj.weight"], 0, 4, 1, 1).unwrap();
        let convolved = convolved.flatten_from(2).unwrap().transpose(1, 2).unwrap();
        let expected = convolved
            .broadcast_add(&values["patch_embed.proj.bias"])
            .and_then(|patches| patches.broadcast_add(&values["pos_embed"]))
            .unwrap();
        let patches = tokens.narrow(1, 1, 16).unwrap();
        assert!(distance(&patches, &expected) < 1e-5);
    }
}

/// A model in which every residual branch, where it is kept, adds a unit vector of its own to the class token, and the
/// head shows them: what is dropped can be read off the logits.
mod dropping {
    use super::*;

    const DEPTH: usize = 4;
    const WIDTH: usize = 16;
    /// A direction that nothing is added to.
    const UNUSED: usize = WIDTH - 1;

    fn config() -> Config {
        Config {
            embed_dim: WIDTH,
            depth: DEPTH,
            num_heads: 2,
            mlp_dim: 3,
            layer_scale: None,
            pool: Pool::ClassToken,
            ..Config::mae_base(WIDTH).with_input(4, 4, 1)
        }
    }

    fn unit(at: usize) -> Tensor {
        let values = (0..WIDTH).map(|i| if i == at { 1f32 } else { 0. });
        Tensor::from_iter(values, &CPU).unwrap()
    }

    fn visible(cfg: &Config) -> VisionTransformer {
        let mut values: BTreeMap<String, Tensor> = shapes(cfg)
            .into_iter()
            .map(|(name, shape)| (name, Tensor::zeros(shape, DType::F32, &CPU).unwrap()))
            .collect();
        values.insert("cls_token".into(), unit(0).reshape((1, 1, WIDTH)).unwrap());
        values.insert("norm.weight".into(), Tensor::ones(WIDTH, DType::F32, &CPU).unwrap());
        values.insert("head.weight".into(), Tensor::eye(WIDTH, DType::F32, &CPU).unwrap());
        for block in 0..DEPTH {
            values.insert(format!("blocks.{block}.attn.proj.bias"), unit(1 + 2 * block));
            values.insert(format!("blocks.{block}.mlp.fc2.bias"), unit(2 + 2 * block));
        }
        from_values(cfg, &values, DType::F32).0
    }

    /// What each branch added in each sample, in units of the class token: 0 where it was dropped.
    fn added(vit: &VisionTransformer, pass: &mut Pass, samples: usize) -> Vec<Vec<f64>> {
        let xs = Tensor::zeros((samples, 1, 4, 4), DType::F32, &CPU).unwrap();
        let logits = vit.forward_pass(&xs, pass).unwrap().to_vec2::<f32>().unwrap();
        let of_sample = |row: &Vec<f32>| {
            // The final norm shifts and scales all directions alike.
            let (zero, one) = (row[UNUSED], row[0]);
            row[1..=2 * DEPTH]
                .iter()
                .map(|x| ((x - zero) / (one - zero)) as f64)
                .collect()
        };
        logits.iter().map(of_sample).collect()
    }

    const SAMPLES: usize = 4000;

    /// Each branch is dropped at its rate and scaled to keep its mean otherwise.
    fn assert_rates(cfg: &Config, rates: [f64; 2 * DEPTH]) {
        let added = added(&visible(cfg), &mut Pass::train(key(0)), SAMPLES);
        for (branch, rate) in rates.into_iter().enumerate() {
            let kept: Vec<f64> = added
                .iter()
                .map(|sample| sample[branch])
                .filter(|x| x.abs() > 0.5)
                .collect();
            let deviation = (SAMPLES as f64 * rate * (1. - rate)).sqrt();
            let error = kept.len() as f64 - SAMPLES as f64 * (1. - rate);
            assert!(
                error.abs() <= 4.5 * deviation,
                "branch {branch}: {} of {SAMPLES} at {rate}",
                kept.len()
            );
            assert!(
                kept.iter().all(|x| (x - 1. / (1. - rate)).abs() < 1e-3),
                "branch {branch}: {:?}",
                &kept[..3]
            );
        }
    }

    #[test]
    fn paths_at_a_linear_or_constant_rate() {
        let cfg = |drop_path_schedule| Config {
            drop_path: 0.6,
            drop_path_schedule,
            ..config()
        };
        assert_rates(&cfg(DropPathSchedule::Linear), [0., 0., 0.2, 0.2, 0.4, 0.4, 0.6, 0.6]);
        assert_rates(&cfg(DropPathSchedule::Constant), [0.6; 8]);
        // The published forms' own.
        assert_eq!(Config::deit3_small(5).drop_path_schedule, DropPathSchedule::Constant);
        for cfg in [Config::mae_base(5), Config::clip_base(5), Config::hf_base(5)] {
            assert_eq!(cfg.drop_path_schedule, DropPathSchedule::Linear);
        }
    }

    #[test]
    fn activations_on_attention_and_mlp_outputs() {
        let cfg = Config {
            dropout: 0.3,
            ..config()
        };
        assert_rates(&cfg, [0.3; 8]);
    }

    #[test]
    fn activations_after_gelu_too() {
        // The MLP's output is fc2 of one hidden unit, so it is dropped at either place.
        let cfg = Config {
            dropout: 0.3,
            depth: 1,
            mlp_dim: 1,
            ..config()
        };
        let mut values: BTreeMap<String, Tensor> = shapes(&cfg)
            .into_iter()
            .map(|(name, shape)| (name, Tensor::zeros(shape, DType::F32, &CPU).unwrap()))
            .collect();
        values.insert("cls_token".into(), unit(0).reshape((1, 1, WIDTH)).unwrap());
        values.insert("norm.weight".into(), Tensor::ones(WIDTH, DType::F32, &CPU).unwrap());
        values.insert("head.weight".into(), Tensor::eye(WIDTH, DType::F32, &CPU).unwrap());
        values.insert("blocks.0.mlp.fc1.bias".into(), Tensor::new(&[10f32], &CPU).unwrap());
        values.insert(
            "blocks.0.mlp.fc2.weight".into(),
            (unit(2) * 0.1).unwrap().reshape((WIDTH, 1)).unwrap(),
        );
        let (vit, _) = from_values(&cfg, &values, DType::F32);
        let added = added(&vit, &mut Pass::train(key(0)), SAMPLES);
        let kept: Vec<f64> = added.iter().map(|sample| sample[1]).filter(|x| x.abs() > 0.5).collect();
        let share = 0.7 * 0.7;
        let deviation = (SAMPLES as f64 * share * (1. - share)).sqrt();
        assert!(
            (kept.len() as f64 - SAMPLES as f64 * share).abs() < 4.5 * deviation,
            "{}",
            kept.len()
        );
        assert!(kept.iter().all(|x| (x - 1. / share).abs() < 1e-2), "{:?}", &kept[..3]);
    }

    #[test]
    fn nothing_outside_training() {
        let cfg = Config {
            dropout: 0.3,
            drop_path: 0.6,
            ..config()
        };
        let vit = visible(&cfg);
        for sample in added(&vit, &mut Pass::eval(), 50) {
            assert!(sample.iter().all(|x| (x - 1.).abs() < 1e-4), "{sample:?}");
        }
        let xs = Tensor::zeros((2, 1, 4, 4), DType::F32, &CPU).unwrap();
        let quiet = visible(&config()).forward_t(&xs, true).unwrap();
        assert_eq!(bits(&vit.forward_t(&xs, false).unwrap()), bits(&quiet));
    }

    #[test]
    fn at_every_place_it_says() {
        let mut pass = Pass::train(key(0));
        added(&visible(&config()), &mut pass, 2);
        assert_eq!((pass.dropout_sites(), pass.drop_path_sites()), (3 * DEPTH, 2 * DEPTH));
        // A sub-branch's rates hold in every block, whatever the recipe has.
        let mut pass = Pass::train(key(0));
        pass.impose_drop_path(0.5).unwrap();
        let added = added(&visible(&config()), &mut pass, SAMPLES);
        for branch in 0..2 * DEPTH {
            let dropped = added.iter().filter(|sample| sample[branch].abs() < 0.5).count();
            assert!(
                (dropped as f64 - 2000.).abs() < 4.5 * 1000f64.sqrt(),
                "branch {branch}: {dropped}"
            );
        }
    }
}

mod dtypes {
    use super::*;

    #[test]
    fn f64_and_half_precision_agree_with_f32() {
        for (name, cfg) in tiny_forms(5) {
            let values = random_values(&cfg);
            let run = |dtype: DType| {
                let (vit, params) = from_values(&cfg, &values, dtype);
                let xs = images(4, "dtypes").to_dtype(dtype).unwrap();
                let model = MaskSub::new(vit, DropToken::new(half())).with_params(params.clone());
                let loss = |logits: &Tensor| masksub::Criterion::cross_entropy().forward(logits, &labels(4, 5));
                let step = model.backward(&xs, key(0), loss).unwrap();
                let audit = grad::audit(&step.grads, &params).unwrap();
                assert!(audit.is_ok(), "{name}, {dtype:?}: {audit}");
                assert_eq!(step.main_logits.dtype(), dtype);
                (
                    step.main_logits.to_dtype(DType::F64).unwrap(),
                    step.main_loss,
                    step.sub_loss.unwrap(),
                )
            };
            let (logits, main, sub) = run(DType::F64);
            for (dtype, tolerance) in [(DType::F32, 1e-5), (DType::F16, 2e-2), (DType::BF16, 1e-1)] {
                let (ours, our_main, our_sub) = run(dtype);
                let error = distance(&ours, &logits);
                assert!(error < tolerance, "{name}, {dtype:?}: {error:.1e}");
                assert!((our_main - main).abs() < tolerance * (1. + main), "{name}, {dtype:?}");
                assert!((our_sub - sub).abs() < tolerance * (1. + sub), "{name}, {dtype:?}");
            }
        }
    }
}

mod dropped_tokens {
    use super::*;

    fn positions_name(values: &BTreeMap<String, Tensor>) -> String {
        values.keys().find(|name| name.contains("pos")).unwrap().clone()
    }

    /// Keeping a rectangle of patches is running a model made for that part of the image on it.
    #[test]
    fn leave_a_model_of_the_kept_ones() {
        let xs = images(2, "kept");
        // Rows 1 and 2, columns 0, 1 and 2 of 4 x 4 patches.
        let kept: Vec<u32> = vec![4, 5, 6, 8, 9, 10];
        let part = xs.i((.., .., 4..12, 0..12)).unwrap().contiguous().unwrap();
        for (name, cfg) in tiny_forms(5) {
            let values = random_values(&cfg);
            let (whole, _) = from_values(&cfg, &values, DType::F32);
            let mask = Mask::from_keep_indices(Grid::new(4, 4), &[&kept, &kept]).unwrap();
            let mut pass = Pass::eval();
            let dropped = whole
                .classify(&whole.embed(&xs, Some(&mask), &mut pass).unwrap(), &mut pass)
                .unwrap();

            let prefix = usize::from(cfg.class_token_position);
            let mut rows: Vec<u32> = kept.iter().map(|at| at + prefix as u32).collect();
            if prefix == 1 {
                rows.insert(0, 0);
            }
            let name_of_positions = positions_name(&values);
            let positions = &values[&name_of_positions];
            let axis = positions.rank() - 2;
            let picked = positions.index_select(&Tensor::new(rows, &CPU).unwrap(), axis).unwrap();
            let mut values = values.clone();
            values.insert(name_of_positions, picked);
            let smaller = Config {
                image_size: (8, 12),
                ..cfg
            };
            let (smaller, _) = from_values(&smaller, &values, DType::F32);
            let alone = smaller.forward_t(&part, false).unwrap();
            assert!(
                distance(&dropped, &alone) < 1e-5,
                "{name}: {:.1e}",
                distance(&dropped, &alone)
            );
            let everything = whole.forward_t(&xs, false).unwrap();
            assert!(distance(&dropped, &everything) > 1e-2, "{name}");
        }
    }

    #[test]
    fn are_gone_whatever_they_were() {
        for (name, cfg) in tiny_forms(5) {
            let (vit, _) = vit(&cfg, 1);
            let rows = [[0u32, 1, 2, 3], [4, 5, 6, 7]];
            let mask = Mask::from_keep_indices(Grid::new(4, 4), &rows).unwrap();
            let logits = |xs: &Tensor| {
                let mut pass = Pass::eval();
                bits(
                    &vit.classify(&vit.embed(xs, Some(&mask), &mut pass).unwrap(), &mut pass)
                        .unwrap(),
                )
            };
            let xs = images(2, "gone");
            // The lower half of the image is dropped in both samples.
            let nan = Tensor::full(f32::NAN, (2, 3, 8, 16), &CPU).unwrap();
            let broken = xs.slice_assign(&[0..2, 0..3, 8..16, 0..16], &nan).unwrap();
            assert_eq!(logits(&broken), logits(&xs), "{name}");
        }
    }

    /// Tokens have no order but their positions.
    #[test]
    fn may_be_kept_in_any_order() {
        for (name, cfg) in tiny_forms(5) {
            let (vit, _) = vit(&cfg, 1);
            let logits = |row: [u32; 5]| {
                let mask = Mask::from_keep_indices(Grid::new(4, 4), &[row]).unwrap();
                let mut pass = Pass::eval();
                vit.classify(
                    &vit.embed(&images(1, "order"), Some(&mask), &mut pass).unwrap(),
                    &mut pass,
                )
                .unwrap()
            };
            let (sorted, shuffled) = (logits([1, 4, 7, 9, 15]), logits([15, 7, 1, 9, 4]));
            assert!(distance(&shuffled, &sorted) < 1e-5, "{name}");
        }
    }

    #[test]
    fn never_are_the_class_token() {
        // Its gradient arrives even where a single patch is kept.
        for (name, cfg) in tiny_forms(5) {
            let (vit, params) = vit(&cfg, 1);
            let branch = DropToken::new(RandomMasking::new(0.99).unwrap());
            let model = MaskSub::new(vit, branch)
                .with_params(params.clone())
                .with_weight(1.)
                .unwrap();
            let step = model
                .backward(&images(2, "class"), key(0), |logits| {
                    cross_entropy(logits, &labels(2, 5))
                })
                .unwrap();
            assert_eq!(step.mask.unwrap().num_keep(), 1);
            let is_class_token = |name: &str| name.ends_with("cls_token") || name.ends_with("class_embedding");
            let class: Vec<&Var> = params
                .iter()
                .filter(|(name, _)| is_class_token(name))
                .map(|(_, var)| var)
                .collect();
            let [class] = class[..] else {
                panic!("{name}: {} class tokens", class.len());
            };
            assert!(
                numbers(step.grads.get(class).unwrap()).iter().any(|&g| g != 0.),
                "{name}"
            );
        }
    }
}

#[test]
fn evaluation_does_not_need_a_key_and_training_repeats_itself() {
    let cfg = Config {
        dropout: 0.2,
        drop_path: 0.2,
        ..tiny(Config::deit3_tiny(5))
    };
    let (vit, _) = vit(&cfg, 1);
    let xs = images(2, "repeat");
    let train = |step| bits(&vit.forward_pass(&xs, &mut Pass::train(key(step))).unwrap());
    assert_eq!(train(1), train(1));
    assert_ne!(train(1), train(2));
    assert_eq!(
        bits(&vit.forward_t(&xs, false).unwrap()),
        bits(&vit.forward_t(&xs, false).unwrap())
    );
}
