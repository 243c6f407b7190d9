//! Weights from a seed and from files: what is drawn, what is read, what is said about the rest.

#[path = "../common/mod.rs"]
mod common;

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use candle_core::{DType, Shape, Tensor};
use candle_nn::init::{FanInOut, NonLinearity, NormalOrUniform};
use candle_nn::{Init, Module, ModuleT, Optimizer, VarBuilder, VarMap, SGD};
use common::{bits, distance, images, numbers, p_value, randn, tiny, tiny_forms, CPU};
use masksub::models::vit::{Config, VisionTransformer};
use masksub::{Error, Params, Seed, Weights};
use statrs::distribution::{ContinuousCDF, Normal};

fn seeded(seed: u64) -> (Weights, VarBuilder<'static>) {
    builder(Weights::seeded(Seed::new(seed)))
}

fn builder(weights: Weights) -> (Weights, VarBuilder<'static>) {
    let vb = weights.var_builder(DType::F32, &CPU);
    (weights, vb)
}

const NORMAL: Init = Init::Randn { mean: 0., stdev: 1. };

mod from_a_seed {
    use super::*;

    fn draw(seed: u64, names: &[&str]) -> BTreeMap<String, Vec<u32>> {
        let (_, vb) = seeded(seed);
        let get = |name: &&str| {
            (
                name.to_string(),
                bits(&vb.get_with_hints((5, 3), name, NORMAL).unwrap()),
            )
        };
        names.iter().map(get).collect()
    }

    #[test]
    fn depend_on_seed_and_name_alone() {
        let names = ["a", "b", "blocks.0.fc.weight", "blocks.1.fc.weight"];
        let drawn = draw(7, &names);
        assert_eq!(draw(7, &names), drawn);
        // In another order, and with others between.
        let reordered = draw(
            7,
            &["other", "blocks.1.fc.weight", "b", "more", "a", "blocks.0.fc.weight"],
        );
        for name in names {
            assert_eq!(reordered[name], drawn[name], "{name}");
            assert_ne!(draw(8, &names)[name], drawn[name], "{name}");
        }
        let distinct: std::collections::BTreeSet<_> = drawn.values().collect();
        assert_eq!(distinct.len(), names.len());
        // However the path is put together.
        let (_, vb) = seeded(7);
        let by_parts = vb
            .pp("blocks")
            .pp(1)
            .get_with_hints((5, 3), "fc.weight", NORMAL)
            .unwrap();
        assert_eq!(bits(&by_parts), drawn["blocks.1.fc.weight"]);
    }

    #[test]
    fn make_models_bit_for_bit() {
        for (name, cfg) in tiny_forms(5) {
            let make = |seed| {
                let (weights, vb) = seeded(seed);
                VisionTransformer::new(&cfg, vb).unwrap();
                let data = weights.varmap().data().lock().unwrap();
                data.iter()
                    .map(|(name, var)| (name.clone(), bits(var)))
                    .collect::<BTreeMap<_, _>>()
            };
            assert_eq!(make(3), make(3), "{name}");
            assert_ne!(make(3), make(4), "{name}");
        }
    }

    #[test]
    fn are_the_same_in_every_dtype_but_for_rounding() {
        let reference = seeded(1).1.get_with_hints(1000, "w", NORMAL).unwrap();
        for dtype in [DType::BF16, DType::F16, DType::F64] {
            let vb = Weights::seeded(Seed::new(1)).var_builder(dtype, &CPU);
            let drawn = vb.get_with_hints(1000, "w", NORMAL).unwrap();
            assert_eq!(drawn.dtype(), dtype);
            assert_eq!(numbers(&drawn), numbers(&reference.to_dtype(dtype).unwrap()));
        }
    }

    const COUNT: usize = 40_000;

    /// Chi-square of the values in 40 bins that are equally likely under `cdf`.
    fn assert_follows(what: &str, values: &[f64], cdf: impl Fn(f64) -> f64) {
        let bins = 40;
        let mut counts = vec![0f64; bins];
        for &value in values {
            counts[((cdf(value) * bins as f64) as usize).min(bins - 1)] += 1.;
        }
        let expected = values.len() as f64 / bins as f64;
        let statistic = counts.iter().map(|count| (count - expected).powi(2) / expected).sum();
        let p = p_value(statistic, bins - 1);
        assert!((1e-4..1. - 1e-4).contains(&p), "{what}: p = {p:.1e}");
    }

    fn values(init: Init, shape: impl Into<Shape>) -> Vec<f64> {
        numbers(&seeded(5).1.get_with_hints(shape, "w", init).unwrap())
    }

    fn assert_normal(what: &str, values: &[f64], mean: f64, std: f64) {
        let normal = Normal::new(mean, std).unwrap();
        assert_follows(what, values, |x| normal.cdf(x));
    }

    fn assert_uniform(what: &str, values: &[f64], low: f64, high: f64) {
        assert!(values.iter().all(|x| (low..=high).contains(x)), "{what}");
        assert_follows(what, values, |x| (x - low) / (high - low));
    }

    #[test]
    fn follow_their_distribution() {
        assert!(values(Init::Const(0.25), 100).iter().all(|&x| x == 0.25));
        let normal = Init::Randn { mean: 0.5, stdev: 0.02 };
        assert_normal("normal", &values(normal, COUNT), 0.5, 0.02);
        let uniform = Init::Uniform { lo: -0.3, up: 0.1 };
        assert_uniform("uniform", &values(uniform, COUNT), -0.3, 0.1);
        // No init said: zero, as candle has it.
        assert!(numbers(&seeded(5).1.get(10, "w").unwrap()).iter().all(|&x| x == 0.));
    }

    #[test]
    fn follow_kaiming_initialisation() {
        let kaiming = |dist, fan, non_linearity| Init::Kaiming {
            dist,
            fan,
            non_linearity,
        };
        // [out, in] and [out, in, k, k]: gain / sqrt(fan).
        let (linear, conv) = ((200, 200), (40, 40, 5, 5));
        let fan_in = kaiming(NormalOrUniform::Normal, FanInOut::FanIn, NonLinearity::ReLU);
        assert_normal("linear", &values(fan_in, linear), 0., (2f64 / 200.).sqrt());
        assert_normal("conv", &values(fan_in, conv), 0., (2f64 / 1000.).sqrt());
        let wide = kaiming(NormalOrUniform::Normal, FanInOut::FanOut, NonLinearity::Linear);
        assert_normal("fan out", &values(wide, (100, 400)), 0., (1f64 / 100.).sqrt());
        let bound = (3f64 * 2. / 200.).sqrt();
        let uniform = kaiming(NormalOrUniform::Uniform, FanInOut::FanIn, NonLinearity::ReLU);
        assert_uniform("uniform", &values(uniform, linear), -bound, bound);
        assert_uniform(
            "candle's default",
            &values(candle_nn::init::DEFAULT_KAIMING_UNIFORM, linear),
            -bound,
            bound,
        );
    }

    #[test]
    fn are_variables_of_the_varmap() {
        let (weights, vb) = seeded(0);
        let layer = candle_nn::linear(4, 2, vb.pp("fc")).unwrap();
        assert_eq!(weights.drawn(), ["fc.bias", "fc.weight"]);
        assert!(weights.left_over().is_empty());
        let params = Params::from_varmap(weights.varmap());
        let xs = randn((3, 4), "xs");
        let loss = |layer: &candle_nn::Linear| layer.forward(&xs).unwrap().sqr().unwrap().sum_all().unwrap();
        let before = numbers(&loss(&layer))[0];
        let grads = loss(&layer).backward().unwrap();
        SGD::new(params.vars(), 0.01).unwrap().step(&grads).unwrap();
        // The layer sees the step.
        assert!(numbers(&loss(&layer))[0] < before);
    }
}

/// A safetensors file of tensors in a directory that lives as long as it.
struct Stored {
    _directory: tempfile::TempDir,
    path: PathBuf,
}

impl Stored {
    fn new(tensors: &[(&str, Tensor)]) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("weights.safetensors");
        let tensors: HashMap<&str, Tensor> = tensors.iter().cloned().collect();
        candle_core::safetensors::save(&tensors, &path).unwrap();
        Self {
            _directory: directory,
            path,
        }
    }

    fn linear() -> Self {
        Self::new(&[
            ("fc.weight", randn((2, 4), "weight")),
            ("fc.bias", randn(2, "bias")),
            ("old_head.weight", randn((9, 2), "old head")),
            ("step", Tensor::new(&[7i64], &CPU).unwrap()),
        ])
    }

    fn load(&self) -> (Weights, VarBuilder<'static>) {
        builder(Weights::from_safetensors(&self.path).unwrap())
    }
}

mod from_a_file {
    use super::*;

    #[test]
    fn are_the_files_and_trainable() {
        let stored = Stored::linear();
        let (weights, vb) = stored.load();
        let layer = candle_nn::linear(4, 2, vb.pp("fc")).unwrap();
        assert_eq!(bits(layer.weight()), bits(&randn((2, 4), "weight")));
        assert_eq!(bits(layer.bias().unwrap()), bits(&randn(2, "bias")));
        assert!(weights.drawn().is_empty());
        assert_eq!(weights.left_over(), ["old_head.weight", "step"]);
        let params = Params::from_varmap(weights.varmap());
        assert_eq!(params.names().collect::<Vec<_>>(), ["fc.bias", "fc.weight"]);
        let loss = layer.forward(&randn((3, 4), "xs")).unwrap().sum_all().unwrap();
        let grads = loss.backward().unwrap();
        SGD::new(params.vars(), 0.1).unwrap().step(&grads).unwrap();
        assert_ne!(bits(layer.weight()), bits(&randn((2, 4), "weight")));
        // What the file said is not what is trained: a second model starts from the file.
        let (_, vb) = stored.load();
        let again = candle_nn::linear(4, 2, vb.pp("fc")).unwrap();
        assert_eq!(bits(again.weight()), bits(&randn((2, 4), "weight")));
    }

    #[test]
    fn take_the_dtype_of_the_builder() {
        let exact = Tensor::new(&[0.5f32, -2., 8.], &CPU).unwrap();
        let all = [DType::F32, DType::F64, DType::BF16, DType::F16];
        for stored_as in all {
            let stored = Stored::new(&[("w", exact.to_dtype(stored_as).unwrap())]);
            for wanted in all {
                let weights = Weights::from_safetensors(&stored.path).unwrap();
                let w = weights.var_builder(wanted, &CPU).get(3, "w").unwrap();
                assert_eq!((w.dtype(), numbers(&w)), (wanted, vec![0.5, -2., 8.]), "{stored_as:?}");
                assert!(w.is_variable());
            }
        }
    }

    #[test]
    fn that_are_missing_are_named() {
        let stored = Stored::linear();
        let (_, vb) = stored.load();
        let error = Error::from(candle_nn::linear(4, 2, vb.pp("blocks").pp(3).pp("fc")).unwrap_err());
        let name = stored.path.display().to_string();
        assert!(
            matches!(&error, Error::MissingWeight { path, file } if path == "blocks.3.fc.weight" && *file == name),
            "{error}"
        );
        assert!(
            error.to_string().contains("blocks.3.fc.weight") && error.to_string().contains(&name),
            "{error}"
        );
    }

    #[test]
    fn that_are_misshapen_are_named() {
        let stored = Stored::linear();
        let (_, vb) = stored.load();
        let error = Error::from(candle_nn::linear(5, 2, vb.pp("fc")).unwrap_err());
        let Error::MisshapenWeight {
            path,
            got,
            expected,
            source_name,
        } = &error
        else {
            panic!("{error}");
        };
        assert_eq!(
            (path.as_str(), &got[..], &expected[..]),
            ("fc.weight", &[2, 4][..], &[2, 5][..])
        );
        assert_eq!(*source_name, stored.path.display().to_string());
        for part in ["fc.weight", "[2, 4]", "[2, 5]", source_name] {
            assert!(error.to_string().contains(part), "{error}");
        }
        // The same with a seed: a misshapen weight is not drawn instead.
        let weights = Weights::from_safetensors_or_seed(&stored.path, Seed::new(0)).unwrap();
        let error = candle_nn::linear(5, 2, weights.var_builder(DType::F32, &CPU).pp("fc")).unwrap_err();
        assert!(matches!(Error::from(error), Error::MisshapenWeight { .. }));
    }

    #[test]
    fn or_a_seed_where_it_lacks_them() {
        let stored = Stored::linear();
        let (weights, vb) = builder(Weights::from_safetensors_or_seed(&stored.path, Seed::new(3)).unwrap());
        let body = candle_nn::linear(4, 2, vb.pp("fc")).unwrap();
        let head = candle_nn::linear(2, 7, vb.pp("head")).unwrap();
        assert_eq!(bits(body.weight()), bits(&randn((2, 4), "weight")));
        assert_eq!(weights.drawn(), ["head.bias", "head.weight"]);
        assert_eq!(weights.left_over(), ["old_head.weight", "step"]);
        // What is drawn is what the seed alone gives.
        let alone = candle_nn::linear(2, 7, seeded(3).1.pp("head")).unwrap();
        assert_eq!(bits(head.weight()), bits(alone.weight()));
    }

    #[test]
    fn keep_the_shape_the_file_has_where_none_is_asked_for() {
        let (_, vb) = Stored::linear().load();
        let w = vb.get_unchecked("old_head.weight").unwrap();
        assert_eq!(bits(&w), bits(&randn((9, 2), "old head")));
        assert!(w.is_variable());
        let error = vb.get_unchecked("nothing").unwrap_err();
        assert!(matches!(Error::from(error), Error::MissingWeight { .. }));
    }

    #[test]
    fn come_back_as_a_varmap_saved_them() {
        let cfg = tiny(Config::mae_base(5));
        let (weights, vb) = seeded(5);
        let vit = VisionTransformer::new(&cfg, vb).unwrap();
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("vit.safetensors");
        weights.varmap().save(&path).unwrap();
        let (loaded, vb) = builder(Weights::from_safetensors(&path).unwrap());
        let again = VisionTransformer::new(&cfg, vb).unwrap();
        assert!(loaded.left_over().is_empty());
        let logits = |vit: &VisionTransformer| bits(&vit.forward_t(&images(2, "saved"), false).unwrap());
        assert_eq!(logits(&again), logits(&vit));
    }
}

mod shared {
    use super::*;

    #[test]
    fn weights_are_one_variable() {
        for (_, vb) in [seeded(0), Stored::linear().load()] {
            let first = vb.get_with_hints((2, 4), "fc.weight", NORMAL).unwrap();
            let second = vb.pp("fc").get_with_hints((2, 4), "weight", Init::Const(9.)).unwrap();
            assert_eq!(first.id(), second.id());
            let error = Error::from(vb.get((4, 2), "fc.weight").unwrap_err());
            assert!(
                matches!(&error, Error::MisshapenWeight { path, got, expected, .. }
                    if path == "fc.weight" && *got == [2, 4] && *expected == [4, 2]),
                "{error}"
            );
        }
    }

    // Large enough for the others to arrive while the first is copied.
    #[test]
    fn weights_are_one_variable_for_threads_that_ask_at_once() {
        let tensor = randn(1 << 20, "w");
        for _ in 0..20 {
            let stored = Weights::from_tensors([("w".to_string(), tensor.clone())]);
            for weights in [stored, Weights::seeded(Seed::new(0))] {
                let barrier = std::sync::Barrier::new(4);
                let ask = || {
                    let vb = weights.var_builder(DType::F32, &CPU);
                    barrier.wait();
                    vb.get_with_hints(1 << 20, "w", NORMAL).unwrap().id()
                };
                let ids = std::thread::scope(|scope| {
                    let threads = [(); 4].map(|()| scope.spawn(ask));
                    threads.map(|thread| thread.join().unwrap())
                });
                let kept = weights.varmap().all_vars()[0].as_tensor().id();
                assert_eq!(ids, [kept; 4]);
            }
        }
    }

    #[test]
    fn builders_of_one_source_share() {
        let weights = Weights::seeded(Seed::new(0));
        let [a, b] = [(); 2].map(|()| {
            weights
                .var_builder(DType::F32, &CPU)
                .get_with_hints(3, "w", NORMAL)
                .unwrap()
        });
        assert_eq!(a.id(), b.id());
        assert_eq!(weights.varmap().all_vars().len(), 1);
        let wide = weights.var_builder(DType::F64, &CPU).get_with_hints(3, "w", NORMAL);
        let error = Error::from(wide.unwrap_err()).to_string();
        assert_eq!(
            error,
            "dtype and device is F64 on Cpu for weight w, but must be F32 on Cpu, as in the layer that shares it"
        );
    }
}

mod exactly_those_of_the_file {
    use super::*;

    fn check(names: &[&str], seed: Option<Seed>) -> Result<(), Error> {
        let stored = Stored::new(&[
            ("head.weight", randn(2, "head")),
            ("layer1.weight", randn(2, "1")),
            ("layer2.weight", randn(2, "2")),
            ("layer1.num_batches_tracked", randn(1, "count")),
            ("layer1.attn.relative_position_index", randn(1, "index")),
            ("layer1.attn_mask", randn(1, "mask")),
        ]);
        let weights = match seed {
            Some(seed) => Weights::from_safetensors_or_seed(&stored.path, seed).unwrap(),
            None => Weights::from_safetensors(&stored.path).unwrap(),
        };
        let vb = weights.var_builder(DType::F32, &CPU);
        for name in names {
            vb.get_with_hints(2, name, NORMAL).unwrap();
        }
        weights.check_exact(|name| name.starts_with("mask"))
    }

    #[test]
    fn with_what_pytorch_saves_beside_them() {
        check(&["head.weight", "layer1.weight", "layer2.weight"], None).unwrap();
    }

    #[test]
    fn with_what_may_be_drawn() {
        let names = ["head.weight", "layer1.weight", "layer2.weight", "mask_token"];
        check(&names, Some(Seed::new(0))).unwrap();
    }

    #[test]
    fn a_shallower_model_is_told() {
        let error = check(&["head.weight"], None).unwrap_err();
        assert!(
            matches!(&error, Error::WeightsDiffer { missing, left_over, .. }
                if missing.is_empty() && left_over[..] == ["layer1.weight", "layer2.weight"]),
            "{error}"
        );
        for part in ["weights.safetensors", "layer1.weight, layer2.weight"] {
            assert!(error.to_string().contains(part), "{error}");
        }
    }

    #[test]
    fn a_deeper_model_is_told() {
        let names = [
            "head.weight",
            "layer1.weight",
            "layer2.weight",
            "layer3.weight",
            "layer4.weight",
        ];
        let error = check(&names, Some(Seed::new(0))).unwrap_err();
        assert!(
            matches!(&error, Error::WeightsDiffer { missing, left_over, .. }
                if missing[..] == ["layer3.weight", "layer4.weight"] && left_over.is_empty()),
            "{error}"
        );
    }

    #[test]
    fn but_for_what_may_differ_both_ways() {
        let stored = Stored::new(&[("w", randn(2, "w")), ("old.weight", randn(2, "old"))]);
        let weights = Weights::from_safetensors_or_seed(&stored.path, Seed::new(0)).unwrap();
        let vb = weights.var_builder(DType::F32, &CPU);
        for name in ["w", "new.weight"] {
            vb.get_with_hints(2, name, NORMAL).unwrap();
        }
        assert_eq!(
            weights.notes(),
            ["missing, so drawn: new.weight", "left over: old.weight"]
        );
        weights.check_exact(|name| name.ends_with(".weight")).unwrap();
        let error = weights
            .check_exact(|name| name == "old.weight")
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("the file does not have new.weight") && !error.contains("old"),
            "{error}"
        );
        let error = weights
            .check_exact(|name| name == "new.weight")
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("the model does not have old.weight") && !error.contains("new"),
            "{error}"
        );
    }

    #[test]
    fn without_a_file_there_is_nothing_to_compare() {
        let (weights, vb) = seeded(0);
        vb.get_with_hints(2, "w", NORMAL).unwrap();
        weights.check_exact(|_| false).unwrap();
        assert!(weights.notes().is_empty());
    }
}

mod from_tensors {
    use super::*;

    #[test]
    fn weights_are_copies() {
        let source = candle_core::Var::from_tensor(&randn((2, 2), "source")).unwrap();
        let weights = Weights::from_tensors([
            ("w".to_string(), source.as_tensor().clone()),
            ("strided".to_string(), randn((3, 2), "strided").t().unwrap()),
        ]);
        let vb = weights.var_builder(DType::F32, &CPU);
        let w = vb.get((2, 2), "w").unwrap();
        assert_eq!(bits(&w), bits(&source));
        source.set(&randn((2, 2), "moved")).unwrap();
        assert_eq!(bits(&w), bits(&randn((2, 2), "source")));
        assert_eq!(
            bits(&vb.get((2, 3), "strided").unwrap()),
            bits(&randn((3, 2), "strided").t().unwrap())
        );
        let error = Error::from(vb.get(1, "absent").unwrap_err());
        assert!(
            matches!(&error, Error::MissingWeight { path, .. } if path == "absent"),
            "{error}"
        );
    }
}

mod candles_constructors {
    use super::*;

    #[test]
    fn work_on_a_seed() {
        let (weights, vb) = seeded(0);
        // Both look for old names first, by `contains_tensor`.
        let norm = candle_nn::layer_norm(4, 1e-5, vb.pp("ln")).unwrap();
        candle_nn::rms_norm(4, 1e-5, vb.pp("rms")).unwrap();
        let batch_norm = candle_nn::batch_norm(4, 1e-5, vb.pp("bn")).unwrap();
        candle_nn::conv2d(3, 4, 3, Default::default(), vb.pp("conv")).unwrap();
        candle_nn::embedding(5, 4, vb.pp("embedding")).unwrap();
        assert_eq!(
            weights.drawn(),
            [
                "bn.bias",
                "bn.running_mean",
                "bn.running_var",
                "bn.weight",
                "conv.bias",
                "conv.weight",
                "embedding.weight",
                "ln.bias",
                "ln.weight",
                "rms.weight"
            ]
        );
        assert_eq!(numbers(norm.weight()), [1.; 4]);
        assert_eq!(numbers(norm.bias().unwrap()), [0.; 4]);
        // The statistics that it updates are those of the map, so they are saved with it.
        batch_norm.forward_t(&randn((2, 4, 3, 3), "xs"), true).unwrap();
        let data = weights.varmap().data().lock().unwrap();
        assert_eq!(bits(&data["bn.running_mean"]), bits(batch_norm.running_mean()));
        assert!(numbers(&data["bn.running_mean"]).iter().all(|&mean| mean != 0.));
    }

    #[test]
    fn find_old_names_in_a_file() {
        let stored = Stored::new(&[("ln.gamma", randn(4, "gamma")), ("ln.beta", randn(4, "beta"))]);
        let (weights, vb) = stored.load();
        assert!(vb.contains_tensor("ln.gamma") && !vb.contains_tensor("ln.weight"));
        let norm = candle_nn::layer_norm(4, 1e-5, vb.pp("ln")).unwrap();
        assert_eq!(bits(norm.weight()), bits(&randn(4, "gamma")));
        assert_eq!(bits(norm.bias().unwrap()), bits(&randn(4, "beta")));
        assert!(weights.left_over().is_empty());
    }
}

mod files {
    use super::*;

    fn refusal(path: &Path) -> String {
        let plain = Weights::from_safetensors(path).unwrap_err();
        let or_seed = Weights::from_safetensors_or_seed(path, Seed::new(0)).unwrap_err();
        assert_eq!(plain.to_string(), or_seed.to_string());
        let Error::File { path: named, message } = &plain else {
            panic!("{plain}");
        };
        assert_eq!(*named, path.display().to_string());
        assert!(!message.is_empty());
        assert_eq!(plain.to_string().lines().count(), 1, "no sentence: {plain}");
        plain.to_string()
    }

    #[test]
    fn that_are_no_safetensors_are_refused_by_path() {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        refusal(&path("absent.safetensors"));
        refusal(directory.path());
        let whole = std::fs::read(&Stored::linear().path).unwrap();
        let cases: [(&str, &[u8]); 5] = [
            ("empty", b""),
            (
                "garbage",
                b"garbage, and quite a lot of it, so that there is a header to be read",
            ),
            ("cut-header", &whole[..20]),
            ("cut-data", &whole[..whole.len() - 5]),
            ("long-header", &[0xff; 64]),
        ];
        for (name, content) in cases {
            std::fs::write(path(name), content).unwrap();
            let message = refusal(&path(name));
            assert!(message.contains(name), "{message}");
        }
    }
}

/// One file of Hugging Face's names, read by candle-transformers and by us.
#[test]
fn hugging_face_weights_give_the_logits_of_candle_transformers() {
    use candle_transformers::models::vit as candle_vit;
    let cfg = tiny(Config::hf_base(5));
    let theirs = candle_vit::Config {
        hidden_size: cfg.embed_dim,
        num_hidden_layers: cfg.depth,
        num_attention_heads: cfg.num_heads,
        intermediate_size: cfg.mlp_dim,
        image_size: 16,
        patch_size: 4,
        ..candle_vit::Config::vit_base_patch16_224()
    };
    // Every weight random, biases and norms too, so that none is without effect.
    let shapes = {
        let varmap = VarMap::new();
        candle_vit::Model::new(&theirs, 5, VarBuilder::from_varmap(&varmap, DType::F32, &CPU)).unwrap();
        let data = varmap.data().lock().unwrap();
        data.iter()
            .map(|(name, var)| (name.clone(), var.shape().clone()))
            .collect::<BTreeMap<_, _>>()
    };
    let tensors: HashMap<String, Tensor> = shapes
        .iter()
        .map(|(name, shape)| (name.clone(), (randn(shape.clone(), name) * 0.3).unwrap()))
        .collect();
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("model.safetensors");
    candle_core::safetensors::save(&tensors, &path).unwrap();

    let bytes = std::fs::read(&path).unwrap();
    let vb = VarBuilder::from_buffered_safetensors(bytes, DType::F32, &CPU).unwrap();
    let theirs = candle_vit::Model::new(&theirs, 5, vb).unwrap();
    let (weights, vb) = builder(Weights::from_safetensors(&path).unwrap());
    let ours = VisionTransformer::new(&cfg, vb).unwrap();
    assert!(weights.left_over().is_empty());
    assert_eq!(weights.varmap().all_vars().len(), shapes.len());
    for batch in [1, 3] {
        let xs = images(batch, "hugging face");
        let (theirs, ours) = (theirs.forward(&xs).unwrap(), ours.forward_t(&xs, false).unwrap());
        assert!(numbers(&theirs).iter().any(|logit| logit.abs() > 0.1));
        assert!(
            distance(&ours, &theirs) < 1e-5,
            "batch {batch}: {:.1e}",
            distance(&ours, &theirs)
        );
    }
}

/// Models for evaluation, on the weights of one that is trained.
mod without_gradients {
    use super::*;
    use candle_core::Result;
    use masksub::models::resnet::{BlockKind, ResNet};
    use masksub::models::swin::SwinTransformer;
    use masksub::train::ema::Ema;
    use masksub::train::optim::{AdamW, AdamWConfig, ParamGroups};
    use std::collections::BTreeSet;

    /// What a model of `build` predicts follows the training of another one, to the bit, and has no graph.
    fn check<M: ModuleT>(name: &str, xs: &Tensor, build: impl Fn(VarBuilder) -> Result<M>) {
        let weights = Weights::seeded(Seed::new(0));
        // In this order, as a teacher is made, or the other.
        let evaluated = build(weights.no_grad_builder(DType::F32, &CPU)).unwrap();
        let trained = build(weights.var_builder(DType::F32, &CPU)).unwrap();
        let params = Params::from_varmap(weights.varmap());
        // Which write to the variables in ways of their own.
        let mut candle = SGD::new(params.vars(), 0.1).unwrap();
        let cfg = AdamWConfig {
            lr: 0.1,
            ..Default::default()
        };
        let mut ours = AdamW::with_groups(ParamGroups::new(&params), cfg).unwrap();
        let mut ema = Ema::of(weights.varmap(), 0.5).unwrap();
        let predictions = || {
            let [graph, none] = [&trained, &evaluated].map(|model: &M| model.forward_t(xs, false).unwrap());
            assert!(graph.track_op() && !none.track_op(), "{name}");
            assert_eq!(bits(&none), bits(&graph), "{name}");
            bits(&none)
        };
        let loss = || trained.forward_t(xs, true).unwrap().sqr().unwrap().mean_all().unwrap();
        let mut seen = BTreeSet::from([predictions()]);
        candle.backward_step(&loss()).unwrap();
        seen.insert(predictions());
        ours.backward_step(&loss()).unwrap();
        seen.insert(predictions());
        ema.update().unwrap();
        seen.insert(ema.averaged(predictions).unwrap());
        assert_eq!(seen.len(), 4, "{name}");
    }

    #[test]
    fn predict_what_the_trained_model_does() {
        for (name, cfg) in tiny_forms(5) {
            check(name, &images(2, "evaluated"), |vb| VisionTransformer::new(&cfg, vb));
        }
        let xs = randn((2, 3, 64, 64), "evaluated");
        for block in [BlockKind::Basic, BlockKind::Bottleneck] {
            check("ResNet", &xs, |vb| ResNet::new(&common::small_resnet(block), vb));
        }
        check("Swin", &randn((2, 3, 32, 64), "evaluated"), |vb| {
            SwinTransformer::new(&common::small_swin(), vb)
        });
        check("candle's convolution and batch norm", &xs, |vb| {
            let conv = candle_nn::conv2d(3, 4, 3, Default::default(), vb.pp("conv"))?;
            let norm = candle_nn::batch_norm(4, 1e-5, vb.pp("norm"))?;
            Ok(candle_nn::func_t(move |xs, train| {
                norm.forward_t(&conv.forward(xs)?, train)
            }))
        });
    }
}
