//! The check that model and file have the same weights.

use candle_core::DType;
use masksub::{Error, Seed, Weights};

use super::{seeded, Stored, NORMAL};
use crate::common::{randn, CPU};

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
