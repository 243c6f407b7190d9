//! Models of peers, from the checkpoints that they wrote, beside their own logits and gradients.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use candle_core::{DType, Tensor, Var};
use candle_nn::loss::cross_entropy;
use candle_nn::ModuleT;
use masksub::models::vit::{Activation, Config, Pool, QkvBias, Rotary, VisionTransformer};
use masksub::pretrained::Pretrained;
use masksub::{grad, num_keep, Grid, Mask, Params, Pass, Seed, TokenModel, Weights};

use crate::common::{distance, CPU};

type Tensors = HashMap<String, Tensor>;

/// A recorded model's name, and what it is here.
type Peer = (&'static str, fn() -> Config);

const PEERS: [Peer; 14] = [
    ("timm_reg4", || Config {
        pool: Pool::ClassToken,
        ..Config::dinov2_reg4_small(CLASSES)
    }),
    ("timm_deit_distilled", || Config::deit_tiny_distilled(CLASSES)),
    ("hf_deit_teacher", || Config {
        norm_eps: 1e-12,
        ..Config::deit_tiny_distilled(CLASSES)
    }),
    ("hf_deit", || Config {
        norm_eps: 1e-12,
        pool: Pool::ClassToken,
        ..Config::deit_tiny_distilled(CLASSES)
    }),
    ("hf_dinov2", || Config::dinov2_small(CLASSES)),
    ("hf_dinov2_reg", || Config {
        num_registers: 4,
        ..Config::dinov2_small(CLASSES)
    }),
    ("timm_siglip", || Config {
        activation: Activation::Gelu,
        ..Config::siglip_base(CLASSES)
    }),
    ("timm_siglip_gap", || Config {
        activation: Activation::Gelu,
        pool: Pool::FinalNormThenMean,
        ..Config::siglip_base(CLASSES)
    }),
    ("hf_siglip", || Config {
        pool: Pool::FinalNormThenMean,
        ..Config::siglip_base(CLASSES)
    }),
    ("timm_beit", || Config::beitv2_base(CLASSES)),
    ("timm_beitv2", || Config::beitv2_base(CLASSES)),
    ("timm_eva02", || Config {
        rotary: Some(Rotary::Eva { grid: 4 }),
        ..Config::eva02_tiny(CLASSES)
    }),
    ("timm_dinov3", || Config {
        pool: Pool::FinalNormThenMean,
        ..Config::dinov3_small(CLASSES)
    }),
    ("hf_dinov3", || Config {
        qkv_bias: QkvBias::QueryAndValue,
        ..Config::dinov3_small(CLASSES)
    }),
];
const CLASSES: usize = 9;
const RATIO: f64 = 0.5;

fn fixture(name: &str) -> PathBuf {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/models");
    directory.join(format!("{name}.safetensors"))
}

fn load(path: &Path) -> Tensors {
    candle_core::safetensors::load(path, &CPU).unwrap()
}

/// As they were recorded: two blocks of width 24 on 32 x 32 pixels in patches of 8, or a larger image.
fn small(cfg: Config, xs: &Tensor) -> Config {
    let (_, _, height, width) = xs.dims4().unwrap();
    Config {
        embed_dim: 24,
        depth: 2,
        num_heads: 3,
        mlp_dim: 24 * cfg.mlp_dim / cfg.embed_dim,
        patch_size: 8,
        image_size: (height, width),
        ..cfg
    }
}

fn model(cfg: &Config, checkpoint: &Path) -> (VisionTransformer, Weights) {
    let grid = Grid::new(cfg.image_size.0 / cfg.patch_size, cfg.image_size.1 / cfg.patch_size);
    let weights = Pretrained::open(checkpoint)
        .unwrap()
        .with_grid(grid)
        .weights(Seed::new(0));
    let vit = VisionTransformer::new(cfg, weights.var_builder(DType::F32, &CPU)).unwrap();
    (vit, weights)
}

/// Gives what a tower lacks, its head, the recorded values.
fn set_fresh(weights: &Weights, recorded: &Tensors) {
    let fresh: BTreeMap<_, _> = recorded
        .iter()
        .filter_map(|(name, value)| Some((name.strip_prefix("fresh/")?, value)))
        .collect();
    assert_eq!(weights.drawn(), fresh.keys().copied().collect::<Vec<_>>());
    let vars = weights.varmap().data().lock().unwrap();
    fresh.iter().for_each(|(name, value)| vars[*name].set(value).unwrap());
}

/// The gradients by our names. They are what a checkpoint has in the place of weights, so that they are read as one:
/// the names, and whether query, key and value are packed, are then ours.
fn recorded_gradients(cfg: &Config, recorded: &Tensors) -> BTreeMap<String, Var> {
    let gradients = recorded.iter().filter_map(|(name, tensor)| {
        let name = name.strip_prefix("grad/")?;
        Some((name.to_string(), tensor.clone()))
    });
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("gradients.safetensors");
    candle_core::safetensors::save(&gradients.collect::<HashMap<_, _>>(), &path).unwrap();
    let (_, weights) = model(cfg, &path);
    assert_eq!(weights.drawn(), Vec::<String>::new());
    let params = Params::from_varmap(weights.varmap());
    params
        .iter()
        .map(|(name, var)| (name.to_string(), var.clone()))
        .collect()
}

/// The largest error of a gradient, and whose it is.
fn gradient_error(vit: &VisionTransformer, params: &Params, cfg: &Config, recorded: &Tensors) -> (f64, String) {
    let logits = vit.forward_t(&recorded["input"], false).unwrap();
    let loss = cross_entropy(&logits, &recorded["target_classes"]).unwrap();
    let ours = grad::backward(&loss, params).unwrap();
    let theirs = recorded_gradients(cfg, recorded);
    assert_eq!(
        params.iter().map(|(name, _)| name).collect::<Vec<_>>(),
        theirs.keys().map(String::as_str).collect::<Vec<_>>()
    );
    let error = |(name, var): (&str, &Var)| {
        let (ours, theirs) = (ours.get(var).unwrap(), theirs[name].as_tensor());
        // A key's bias moves no logits: its gradient is 0 but for rounding.
        let size = theirs
            .sqr()
            .unwrap()
            .sum_all()
            .unwrap()
            .to_scalar::<f32>()
            .unwrap()
            .sqrt();
        let off = distance(ours, theirs) * f64::from(size.max(1e-6)) / f64::from(size.max(1e-3));
        (off, name.to_string())
    };
    params
        .iter()
        .map(error)
        .fold((0.0, String::new()), |a, b| if b.0 > a.0 { b } else { a })
}

fn dropped(vit: &VisionTransformer, recorded: &Tensors) -> Tensor {
    let (xs, mut pass) = (&recorded["input"], Pass::eval());
    let grid = vit.grid(xs).unwrap();
    let mask = Mask::from_noise(grid, &recorded["noise"], num_keep(grid.len(), RATIO).unwrap()).unwrap();
    let tokens = vit.embed(xs, Some(&mask), &mut pass).unwrap();
    assert_eq!(tokens.dim(1).unwrap(), vit.num_prefix_tokens() + mask.num_keep());
    vit.classify(&tokens, Some(&mask), &mut pass).unwrap()
}

#[test]
fn give_their_logits_and_gradients() {
    let (mut with_gradients, mut with_dropped) = (0, 0);
    for (name, cfg) in PEERS {
        let recorded = load(&fixture(&format!("{name}.expect")));
        let xs = &recorded["input"];
        let cfg = small(cfg(), xs);
        let (vit, weights) = model(&cfg, &fixture(name));
        weights.check_exact(|_| false).unwrap();
        set_fresh(&weights, &recorded);
        let error = distance(&vit.forward_t(xs, false).unwrap(), &recorded["logits_eval"]);
        assert!(error < 1e-5, "{name}: {error:.1e}");
        if !recorded.contains_key("loss") {
            continue;
        }
        let params = Params::from_varmap(weights.varmap());
        let (gradient, of) = gradient_error(&vit, &params, &cfg, &recorded);
        println!("{name}: logits {error:.1e}, gradients {gradient:.1e} ({of})");
        assert!(gradient < 1e-4, "{name}: {gradient:.1e} of {of}");
        with_gradients += 1;
        if recorded.contains_key("noise") {
            let error = distance(&dropped(&vit, &recorded), &recorded["logits_sub"]);
            println!("{name}: dropped {error:.1e}");
            assert!(error < 1e-5, "{name}: {error:.1e} with dropped tokens");
            with_dropped += 1;
        }
    }
    assert_eq!((with_gradients, with_dropped), (13, 6));
}

/// Positions are resized as each peer does it.
#[test]
fn give_their_logits_at_other_sizes() {
    let mut sizes = 0;
    for (name, cfg) in PEERS {
        let recorded = load(&fixture(&format!("{name}.expect")));
        for size in ["resized", "rectangular"] {
            let Some(xs) = recorded.get(&format!("input_{size}")) else {
                continue;
            };
            let (vit, weights) = model(&small(cfg(), xs), &fixture(name));
            weights.check_exact(|_| false).unwrap();
            let error = distance(&vit.forward_t(xs, false).unwrap(), &recorded[&format!("logits_{size}")]);
            assert!(error < 1e-5, "{name}, {size}: {error:.1e}");
            sizes += 1;
        }
    }
    assert_eq!(sizes, 12);
}

/// Each part of a model that is another than the ViT's counts for something in what was recorded.
#[test]
fn are_told_from_their_relatives() {
    let pooled_otherwise = |name: &str, pool: Pool| {
        let (_, cfg) = PEERS.into_iter().find(|(peer, _)| *peer == name).unwrap();
        let recorded = load(&fixture(&format!("{name}.expect")));
        let cfg = Config {
            pool,
            ..small(cfg(), &recorded["input"])
        };
        let (vit, _) = model(&cfg, &fixture(name));
        let logits = vit.forward_t(&recorded["input"], false).unwrap();
        distance(&logits, &recorded["logits_eval"])
    };
    assert!(pooled_otherwise("timm_reg4", Pool::FinalNormThenMean) > 1e-2);
    assert!(pooled_otherwise("timm_deit_distilled", Pool::ClassToken) > 1e-2);
    assert!(pooled_otherwise("timm_siglip", Pool::FinalNormThenMean) > 1e-2);
    assert!(pooled_otherwise("timm_siglip_gap", Pool::MeanOnly) > 1e-2);
}
