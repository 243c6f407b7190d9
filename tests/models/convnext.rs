//! The ConvNeXt of both versions: peers' checkpoints, gradients, sizes, patches that are hidden.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use candle_core::{DType, Tensor, Var};
use candle_nn::loss::cross_entropy;
use candle_nn::ModuleT;
use masksub::models::convnext::{Config, ConvNeXt};
use masksub::pretrained::{Format, Pretrained};
use masksub::{grad, Forward, Params, Pass, PatchDrop, Seed, Weights};

use crate::common::{count_params, distance, labels, numbers, randn, random_values, CPU};
use crate::{check_joint_loss, from_values, message, random, rounded};

/// A recorded model's name, size, and the format of its file.
type Peer = (&'static str, fn(usize) -> Config, Format);

/// The recorded models: one block a stage.
const PEERS: [Peer; 3] = [
    ("timm_convnext", Config::tiny, Format::TimmConvNeXt),
    ("timm_convnextv2", Config::v2_tiny, Format::TimmConvNeXt),
    ("hf_convnext", Config::tiny, Format::HfConvNeXt),
];

fn small(cfg: Config) -> Config {
    Config {
        depths: [1; 4],
        dims: [8, 16, 24, 32],
        layer_scale: cfg.layer_scale.map(|_| 0.5),
        ..cfg
    }
}

fn both() -> [(&'static str, Config); 2] {
    [("v1", small(Config::tiny(5))), ("v2", small(Config::v2_tiny(5)))]
}

fn fixture(name: &str) -> PathBuf {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/models");
    directory.join(format!("{name}.safetensors"))
}

fn pretrained(cfg: &Config, path: &Path) -> (ConvNeXt, Weights) {
    let weights = Pretrained::open(path).unwrap().weights(Seed::new(0));
    let model = ConvNeXt::new(cfg, weights.var_builder(DType::F32, &CPU)).unwrap();
    weights.check_exact(|_| false).unwrap();
    (model, weights)
}

#[test]
fn gives_its_peers_logits_and_gradients() {
    for (name, cfg, format) in PEERS {
        let recorded: HashMap<String, Tensor> =
            candle_core::safetensors::load(fixture(&format!("{name}.expect")), &CPU).unwrap();
        let cfg = small(cfg(9));
        assert_eq!(Pretrained::open(fixture(name)).unwrap().format(), format);
        let (model, weights) = pretrained(&cfg, &fixture(name));
        let logits = model.forward_t(&recorded["input"], false).unwrap();
        let error = distance(&logits, &recorded["logits_eval"]);
        assert!(error < 1e-5, "{name}: {error:.1e}");
        // Gradients have the names and shapes of weights: they are read as a checkpoint.
        let gradients: HashMap<_, _> = recorded
            .iter()
            .filter_map(|(name, tensor)| Some((name.strip_prefix("grad/")?.to_string(), tensor.clone())))
            .collect();
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("gradients.safetensors");
        candle_core::safetensors::save(&gradients, &path).unwrap();
        let (_, theirs) = pretrained(&cfg, &path);
        let (params, theirs) = (
            Params::from_varmap(weights.varmap()),
            Params::from_varmap(theirs.varmap()),
        );
        let loss = cross_entropy(&logits, &recorded["target_classes"]).unwrap();
        let ours = grad::backward(&loss, &params).unwrap();
        let mut largest: (f64, &str) = (0.0, "");
        for (name, var) in params.iter() {
            let error = distance(ours.get(var).unwrap(), theirs.get(name).unwrap());
            largest = if error > largest.0 { (error, name) } else { largest };
        }
        println!("{name}: logits {error:.1e}, gradients {largest:?}");
        assert!(largest.0 < 1e-4, "{name}: {largest:?}");
    }
}

/// facebookresearch's names, made of timm's: what its conversion in timm does, the other way round.
#[test]
fn is_read_in_facebooks_names() {
    for (name, cfg, _) in &PEERS[..2] {
        let cfg = small(cfg(9));
        let tensors = candle_core::safetensors::load(fixture(name), &CPU).unwrap();
        let facebook = |name: &str| {
            let name = name
                .replace("stem.", "downsample_layers.0.")
                .replace("head.fc.", "head.");
            let name = name.replace("head.norm.", "norm.").replace(".conv_dw.", ".dwconv.");
            let name = name.replace(".mlp.fc1.", ".pwconv1.").replace(".mlp.fc2.", ".pwconv2.");
            let name = name
                .replace(".mlp.grn.weight", ".grn.gamma")
                .replace(".mlp.grn.bias", ".grn.beta");
            let name = name.replace(".blocks.", ".");
            match name.split_once(".downsample.") {
                Some((stage, layer)) => format!("downsample_layers.{}.{layer}", &stage["stages.".len()..]),
                None => name,
            }
        };
        let renamed: HashMap<_, _> = tensors
            .into_iter()
            .map(|(name, tensor)| (facebook(&name), tensor))
            .collect();
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("model.safetensors");
        candle_core::safetensors::save(&renamed, &path).unwrap();
        assert_eq!(Pretrained::open(&path).unwrap().format(), Format::FacebookConvNeXt);
        let xs = randn((1, 3, 64, 32), "facebook");
        let logits = |path: &Path| pretrained(&cfg, path).0.forward_t(&xs, false).unwrap();
        assert_eq!(numbers(&logits(&path)), numbers(&logits(&fixture(name))));
    }
}

/// As timm counts them.
#[test]
fn has_the_published_sizes() {
    let counts = [
        28_589_128,
        50_223_688,
        88_591_464,
        197_767_336,
        3_708_400,
        15_623_800,
        28_635_496,
        88_717_800,
    ];
    assert_eq!(Config::SIZES.len(), counts.len());
    for ((name, size), count) in Config::SIZES.iter().zip(counts) {
        assert_eq!(count_params(|vb| ConvNeXt::new(&size(1000), vb)), count, "{name}");
    }
}

/// In f64, for two elements of every parameter.
#[test]
fn gradients_are_the_finite_differences_of_the_loss() {
    for (name, cfg) in both() {
        let weights = Weights::from_tensors(random_values(|vb| ConvNeXt::new(&cfg, vb)));
        let model = ConvNeXt::new(&cfg, weights.var_builder(DType::F64, &CPU)).unwrap();
        let params = Params::from_varmap(weights.varmap());
        let xs = randn((2, 3, 64, 32), "differences").to_dtype(DType::F64).unwrap();
        let loss = || cross_entropy(&model.forward_pass(&xs, &mut Pass::eval()).unwrap(), &labels(2, 5)).unwrap();
        let grads = grad::backward(&loss(), &params).unwrap();
        for (parameter, var) in params.iter() {
            let (grad, original) = (numbers(grads.get(var).unwrap()), numbers(var));
            for at in [0, original.len() / 2] {
                let moved = |by: f64| {
                    let mut values = original.clone();
                    values[at] += by;
                    var.set(&Tensor::from_vec(values, var.shape(), &CPU).unwrap()).unwrap();
                    numbers(&loss())[0]
                };
                let difference = (moved(1e-5) - moved(-1e-5)) / 2e-5;
                moved(0.0);
                let error = (grad[at] - difference).abs();
                assert!(
                    error < 1e-8 + 1e-6 * difference.abs(),
                    "{name}, {parameter}[{at}]: {error:.1e}"
                );
            }
        }
    }
}

#[test]
fn takes_part_in_a_step() {
    for (_, cfg) in both() {
        let cfg = Config {
            num_classes: 4,
            drop_path: 0.2,
            ..cfg
        };
        let weights = Weights::seeded(Seed::new(1));
        let model = ConvNeXt::new(&cfg, weights.var_builder(DType::F32, &CPU)).unwrap();
        check_joint_loss(&weights, model, PatchDrop::new(random(0.5), 32).unwrap());
    }
}

/// Where a channel never answers, the response norm has no root to divide by.
#[test]
fn gradients_of_silent_channels_are_finite() {
    let cfg = small(Config::v2_tiny(5));
    let mut values = random_values(|vb| ConvNeXt::new(&cfg, vb));
    for (_, value) in values.iter_mut().filter(|(name, _)| name.contains("mlp.fc1")) {
        *value = value.zeros_like().unwrap();
    }
    let weights = Weights::from_tensors(values);
    let model = ConvNeXt::new(&cfg, weights.var_builder(DType::F32, &CPU)).unwrap();
    let params = Params::from_varmap(weights.varmap());
    let logits = model.forward_t(&randn((2, 3, 32, 32), "silent"), false).unwrap();
    let grads = grad::backward(&cross_entropy(&logits, &labels(2, 5)).unwrap(), &params).unwrap();
    let finite = |(_, var): (&str, &Var)| numbers(grads.get(var).unwrap()).iter().all(|g| g.is_finite());
    assert!(params.iter().all(finite));
}

/// A few times what one rounding of each dtype makes: seven layers round one after the other.
#[test]
fn agrees_with_itself_in_half_precision() {
    for (name, cfg) in both() {
        let values: BTreeMap<_, _> = random_values(|vb| ConvNeXt::new(&cfg, vb));
        let images = randn((2, 3, 64, 64), "half");
        for (dtype, tolerance) in [(DType::BF16, 2e-2), (DType::F16, 2.5e-3)] {
            let run = |to: DType| {
                let model = from_values(&rounded(&values, dtype), to, |vb| ConvNeXt::new(&cfg, vb));
                let images = images.to_dtype(dtype).unwrap().to_dtype(to).unwrap();
                model.forward_t(&images, false).unwrap()
            };
            let (ours, exact) = (run(dtype), run(DType::F64));
            assert_eq!(ours.dtype(), dtype);
            let error = distance(&ours, &exact);
            assert!(error < tolerance, "{name}, {dtype:?}: {error:e}");
        }
    }
}

#[test]
fn refuses_what_does_not_fit() {
    let cfg = small(Config::tiny(5));
    let values = random_values(|vb| ConvNeXt::new(&cfg, vb));
    let model = from_values(&values, DType::F32, |vb| ConvNeXt::new(&cfg, vb));
    for shape in [[1, 3, 31, 64], [1, 1, 32, 32], [0, 3, 32, 32]] {
        let message = message(model.forward_t(&Tensor::zeros(&shape, DType::F32, &CPU).unwrap(), false));
        let expected = "must be [B, 3, H, W] with B > 0 and sides of at least 32 pixels";
        assert!(
            message.starts_with("images has shape") && message.ends_with(expected),
            "{message}"
        );
    }
    let none = Config {
        depths: [1, 0, 1, 1],
        ..cfg
    };
    assert!(message(ConvNeXt::new(
        &none,
        Weights::seeded(Seed::new(0)).var_builder(DType::F32, &CPU)
    ))
    .contains("depths"));
}
