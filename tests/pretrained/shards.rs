//! Checkpoints cut into shards, as `save_pretrained` leaves them.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use masksub::models::vit::Config;
use masksub::pretrained::Pretrained;
use masksub::{Error, Seed};

use super::{model_file, small, vit};
use crate::common::bits;

const INDEX: &str = "model.safetensors.index.json";
const SHARDS: [&str; 3] = [
    "model-00001-of-00003.safetensors",
    "model-00002-of-00003.safetensors",
    "model-00003-of-00003.safetensors",
];

/// A copy of the recorded directory, to break.
fn copy() -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    for name in SHARDS.iter().chain([&INDEX, &"config.json"]) {
        fs::copy(model_file("hf_vit_sharded").join(name), directory.path().join(name)).unwrap();
    }
    directory
}

/// The weights of the whole model, or the reason why there are none.
fn load(path: &Path) -> Result<BTreeMap<String, Vec<u32>>, Error> {
    let cfg = Config {
        embed_dim: 24,
        mlp_dim: 96,
        ..small(Config::hf_base(9))
    };
    let weights = Pretrained::open(path)?.weights(Seed::new(0));
    vit(&cfg, &weights);
    weights.check_exact(|_| false)?;
    assert_eq!(weights.notes(), ["format hf-vit, 40 tensors"]);
    Ok(weights
        .state()
        .into_iter()
        .map(|(name, tensor)| (name, bits(&tensor)))
        .collect())
}

/// The file that an error names, and its reason.
fn refusal(path: &Path) -> (PathBuf, String) {
    match load(path).map(drop).unwrap_err() {
        Error::File { path, message, .. } => (path.into(), message),
        error => panic!("{error:?}"),
    }
}

#[test]
fn are_read_from_the_directory_the_index_and_any_of_them() {
    let directory = copy();
    let path = |name: &str| directory.path().join(name);
    let whole = load(directory.path()).unwrap();
    assert_eq!(whole.len(), 40);
    for name in SHARDS.iter().chain([&INDEX]) {
        assert_eq!(load(&path(name)).unwrap(), whole, "{name}");
    }
    // Their names tell as much as the index.
    fs::remove_file(path(INDEX)).unwrap();
    for name in SHARDS {
        assert_eq!(load(&path(name)).unwrap(), whole, "{name}");
    }
}

#[test]
fn that_are_whole_go_before_an_index() {
    let directory = copy();
    let whole = model_file("hf_clip_classification.safetensors");
    fs::copy(whole, directory.path().join("model.safetensors")).unwrap();
    let pretrained = Pretrained::open(directory.path()).unwrap();
    assert_eq!(pretrained.format().name(), "hf-clip-classifier");
}

#[test]
fn of_a_directory_are_its_files() {
    let directory = copy();
    let whole = load(directory.path()).unwrap();
    // A directory of that name is none of them.
    let inside = directory.path().join("model.safetensors");
    fs::create_dir(&inside).unwrap();
    let other = model_file("hf_clip_classification.safetensors");
    fs::copy(other, inside.join("model.safetensors")).unwrap();
    assert_eq!(load(directory.path()).unwrap(), whole);
}

#[test]
fn that_are_missing_are_named() {
    let directory = copy();
    let path = |name: &str| directory.path().join(name);
    fs::remove_file(path(SHARDS[1])).unwrap();
    for from in ["", INDEX, SHARDS[0]] {
        let (file, reason) = refusal(&path(from));
        assert_eq!(file, path(INDEX));
        assert_eq!(reason, format!("it lists [{}], which is not beside it", SHARDS[1]));
    }
    fs::remove_file(path(INDEX)).unwrap();
    let (file, reason) = refusal(&path(SHARDS[0]));
    assert_eq!(file, path(SHARDS[0]));
    assert_eq!(
        reason,
        format!("it is shard 1 of 3, and [{}] is not beside it", SHARDS[1])
    );
    let (_, reason) = refusal(directory.path());
    assert!(
        reason.contains("it is a directory, and no file of [model.safetensors, "),
        "{reason}"
    );
    // A shard of very many is not looked for, and the only one of one is whole.
    fs::copy(path(SHARDS[0]), path("model-00001-of-99999.safetensors")).unwrap();
    let (_, reason) = refusal(&path("model-00001-of-99999.safetensors"));
    assert!(reason.contains("99999 shards, of which at most 256"), "{reason}");
    fs::copy(path(SHARDS[0]), path("model-00001-of-00001.safetensors")).unwrap();
    let alone = load(&path("model-00001-of-00001.safetensors")).map(drop).unwrap_err();
    assert!(
        matches!(&alone, Error::WeightsDiffer { missing, .. } if missing.len() == 19),
        "{alone}"
    );
}

#[test]
fn that_are_torn_are_named() {
    let directory = copy();
    let path = |name: &str| directory.path().join(name);
    let bytes = fs::read(path(SHARDS[2])).unwrap();
    fs::write(path(SHARDS[2]), &bytes[..bytes.len() - 5]).unwrap();
    let (file, reason) = refusal(directory.path());
    assert_eq!(file, path(SHARDS[2]));
    assert!(reason.contains("it is cut off or damaged"), "{reason}");
    // Or from another download: what the index promises is not there.
    fs::copy(path(SHARDS[0]), path(SHARDS[2])).unwrap();
    let (file, reason) = refusal(directory.path());
    assert_eq!(file, path(INDEX));
    assert!(
        reason.ends_with(&format!(
            "is not in {}, where it says that it is",
            path(SHARDS[2]).display()
        )),
        "{reason}"
    );
    fs::remove_file(path(INDEX)).unwrap();
    let (file, reason) = refusal(&path(SHARDS[0]));
    assert_eq!(
        (file, &*reason),
        (path(SHARDS[2]), "tensor classifier.bias is in it and in another shard")
    );
}

#[test]
fn are_never_looked_for_elsewhere() {
    let directory = copy();
    let index = directory.path().join(INDEX);
    for (name, reason) in [
        (
            "../secret.safetensors",
            "it lists ../secret.safetensors, which is no name of a file beside it",
        ),
        ("/etc/passwd", "it lists /etc/passwd, which is no name"),
        ("..", "it lists .., which is no name"),
        ("", "it lists , which is no name"),
        ("a\\\\b", "which is no name"),
        ("absent", "it lists [absent], which is not beside it"),
    ] {
        fs::write(&index, format!(r#"{{"weight_map": {{"classifier.bias": "{name}"}}}}"#)).unwrap();
        let (file, message) = refusal(&index);
        assert_eq!(file, index);
        assert!(message.contains(reason), "{name}: {message}");
    }
    for (text, reason) in [
        (r#"{"weight_map": {}}"#, "it lists no weights"),
        (r#"{"weight_map": 3}"#, "it is no index of weights"),
        ("{}", "it is no index of weights"),
        ("", "it is no index of weights"),
    ] {
        fs::write(&index, text).unwrap();
        let (_, message) = refusal(&index);
        assert!(message.contains(reason), "{text}: {message}");
    }
    let many: Vec<_> = (0..257).map(|i| format!(r#""{i}": "{i}""#)).collect();
    fs::write(&index, format!(r#"{{"weight_map": {{{}}}}}"#, many.join(", "))).unwrap();
    assert!(refusal(&index).1.contains("cut into 257 shards"));
}
