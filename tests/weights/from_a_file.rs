//! Weights read from a safetensors file, and files that are none.

use std::path::Path;

use candle_core::{DType, Tensor};
use candle_nn::{Module, ModuleT, Optimizer, SGD};
use masksub::models::vit::{Config, VisionTransformer};
use masksub::{Error, Params, Seed, Weights};

use super::{builder, seeded, Stored};
use crate::common::{bits, images, numbers, randn, tiny, CPU};

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
    let exact = Tensor::new(&[0.5f32, -2.0, 8.0], &CPU).unwrap();
    let all = [DType::F32, DType::F64, DType::BF16, DType::F16];
    for stored_as in all {
        let stored = Stored::new(&[("w", exact.to_dtype(stored_as).unwrap())]);
        for wanted in all {
            let weights = Weights::from_safetensors(&stored.path).unwrap();
            let w = weights.var_builder(wanted, &CPU).get(3, "w").unwrap();
            assert_eq!(
                (w.dtype(), numbers(&w)),
                (wanted, vec![0.5, -2.0, 8.0]),
                "{stored_as:?}"
            );
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

fn refusal(path: &Path) -> String {
    let plain = Weights::from_safetensors(path).unwrap_err();
    let or_seed = Weights::from_safetensors_or_seed(path, Seed::new(0)).unwrap_err();
    assert_eq!(plain.to_string(), or_seed.to_string());
    let Error::File {
        path: named, source, ..
    } = &plain
    else {
        panic!("{plain}");
    };
    assert_eq!(*named, path.display().to_string());
    let whole = format!("{plain:?}");
    // The cause is told too, where it is not the file alone.
    assert!(whole.starts_with(&plain.to_string()));
    assert_eq!(source.is_some(), whole.len() > plain.to_string().len());
    assert_eq!(whole.lines().count(), 1, "no sentence: {whole}");
    whole
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
