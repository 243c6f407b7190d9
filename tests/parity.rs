//! The crate against values recorded from the authors' PyTorch code: what `examples/parity.rs` prints, as tests.

#[path = "../examples/support/parity.rs"]
mod parity;

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use candle_core::{Device, Tensor};

/// Compares a fixture by name: one that is not there fails.
fn check(name: &str) {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    let report = parity::compare(&fixtures.join(name).with_extension("safetensors"), &Device::Cpu).unwrap();
    println!("{report}");
    assert!(report.is_ok(), "{report}\n{}", report.verbose());
}

#[test]
fn losses() {
    check("losses");
}

#[test]
fn deit3() {
    check("deit3");
}

#[test]
fn mae_with_global_pool() {
    check("mae_gap");
}

#[test]
fn mae_with_class_token() {
    check("mae_cls");
}

#[test]
fn hugging_face_vit() {
    check("hf_vit");
}

#[test]
fn clip_vision_tower() {
    check("clip_vision");
}

#[test]
fn five_steps_of_sgd() {
    check("trajectory_sgd");
}

#[test]
fn resnet_of_basic_blocks() {
    check("resnet_basic");
}

#[test]
fn resnet_of_bottlenecks() {
    check("resnet_bottleneck");
}

#[test]
fn swin() {
    check("swin");
}

/// A file of recorded values with this configuration and nothing recorded.
fn recorded(directory: &Path, config: &str) -> PathBuf {
    let path = directory.join("recorded.safetensors");
    let tensor = Tensor::zeros(1, candle_core::DType::F32, &Device::Cpu).unwrap();
    let metadata = HashMap::from([("config".to_string(), config.to_string())]);
    safetensors::serialize_to_file([("input", &tensor)], Some(metadata), &path).unwrap();
    path
}

fn refusal(path: &Path) -> String {
    match parity::compare(path, &Device::Cpu) {
        Ok(report) => panic!("compared what it cannot know: {report}"),
        Err(error) => format!("{error:#}"),
    }
}

#[test]
fn unknown_kinds_are_refused_by_name() {
    let directory = tempfile::tempdir().unwrap();
    for (config, name) in [
        (r#"{"kind": "model", "model": "beit"}"#, "beit"),
        (r#"{"kind": "trajectory", "model": "swin"}"#, "swin"),
        (r#"{"kind": "optim"}"#, "optim"),
        (r#"{"kind": "checkpoint", "layout": "timm"}"#, "checkpoint"),
        (r#"{"kind": "augment"}"#, "augment"),
    ] {
        let message = refusal(&recorded(directory.path(), config));
        assert!(message.contains(name), "{config}: {message}");
    }
}

#[test]
fn an_incomplete_file_is_refused_by_what_it_lacks() {
    let directory = tempfile::tempdir().unwrap();
    let message = refusal(&recorded(directory.path(), r#"{"kind": "model", "model": "deit3"}"#));
    assert!(message.contains("num_classes"), "{message}");
    let message = refusal(&recorded(directory.path(), "{}"));
    assert!(message.contains("kind"), "{message}");
    // No losses recorded is no agreement.
    refusal(&recorded(directory.path(), r#"{"kind": "losses"}"#));
}

#[test]
fn an_unreadable_file_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    refusal(&directory.path().join("absent.safetensors"));
    let garbage = directory.path().join("garbage.safetensors");
    std::fs::write(&garbage, b"no safetensors").unwrap();
    refusal(&garbage);
    let plain = directory.path().join("plain.safetensors");
    let tensor = Tensor::zeros(1, candle_core::DType::F32, &Device::Cpu).unwrap();
    safetensors::serialize_to_file([("input", &tensor)], None, &plain).unwrap();
    let message = refusal(&plain);
    assert!(message.contains("config"), "{message}");
}
