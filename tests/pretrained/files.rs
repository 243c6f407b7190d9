//! Files of checkpoints: what PyTorch writes in every form, and what is cut off, damaged, or holds code.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device};
use masksub::models::vit::{Config, Pool, VisionTransformer};
use masksub::pretrained::{Format, Pretrained};
use masksub::{Error, KeyedRng, Seed, Weights};
use rand::Rng;

/// A file that `tests/fixtures/pth/write.py` wrote.
fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/fixtures/pth")
        .join(name)
}

/// The ViT of these files.
fn cfg() -> Config {
    Config {
        embed_dim: 4,
        depth: 1,
        num_heads: 2,
        mlp_dim: 8,
        pool: Pool::ClassToken,
        ..Config::mae_base(3).with_input(4, 2, 1)
    }
}

/// Reads all weights into a model.
fn load(path: &Path) -> Result<Weights, Error> {
    let weights = Pretrained::open(path)?.weights(Seed::new(0));
    VisionTransformer::new(&cfg(), weights.var_builder(DType::F32, &Device::Cpu))?;
    weights.check_exact(|_| false)?;
    Ok(weights)
}

fn values(weights: &Weights) -> BTreeMap<String, Vec<f32>> {
    let data = weights.varmap().data().lock().unwrap();
    let value = |var: &candle_core::Var| var.flatten_all().unwrap().to_vec1().unwrap();
    data.iter().map(|(name, var)| (name.clone(), value(var))).collect()
}

#[test]
fn every_form_that_pytorch_writes_has_the_same_weights() {
    let expected = values(&load(&fixture("weights.safetensors")).unwrap());
    assert_eq!(expected.len(), 20);
    assert!(expected["blocks.0.attn.qkv.weight"].iter().any(|value| *value != 0.0));
    // Strided, sharing a storage, halves and doubles, parameters, below `module.`, beside an optimizer and a namespace.
    for name in ["training_run.pth", "protocol4.pth", "legacy.pth"] {
        let weights = load(&fixture(name)).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(values(&weights), expected, "{name}");
        assert_eq!(
            weights.notes(),
            [
                "format timm-vit, 20 tensors, below `model` and `module`",
                "left out: optimizer, epoch, best_acc1, args, scaler, beside the weights"
            ],
            "{name}"
        );
    }
    for name in ["state_dict.pth", "vit_large_patch16_224.pth"] {
        let weights = load(&fixture(name)).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(values(&weights), expected);
        assert_eq!(weights.notes(), ["format timm-vit, 20 tensors, below `state_dict`"]);
    }
}

#[test]
fn an_encoder_below_model_is_of_maes_pre_training() {
    let path = fixture("mae_encoder.pth");
    assert_eq!(Pretrained::open(&path).unwrap().format(), Format::MaePretrained);
    let weights = load(&path).unwrap();
    assert_eq!(weights.notes()[1], "not in the file, so drawn: head.bias, head.weight");
    let deit3 = Pretrained::open(fixture("deit3_encoder.pth")).unwrap();
    assert_eq!(deit3.format(), Format::FacebookDeit3);
}

// A dictionary that is read, below another key, is not what was meant.
#[test]
fn a_fault_of_the_weights_is_told_whatever_lies_beside_them() {
    let error = Pretrained::open(fixture("unread_beside.pth")).unwrap_err().to_string();
    assert!(
        error.ends_with("tensor head.bias has elements of a kind that is not read here"),
        "{error}"
    );
}

// Of the same names below the same key: its class token has a position.
#[test]
fn a_trunk_below_model_is_timms_and_has_lost_its_head() {
    let path = fixture("trunk.pth");
    assert_eq!(Pretrained::open(&path).unwrap().format(), Format::TimmVit);
    let error = load(&path).unwrap_err();
    assert!(
        matches!(&error, Error::WeightsDiffer { missing, .. } if *missing == ["head.bias", "head.weight"]),
        "{error}"
    );
}

// Which format it is, the content tells.
#[test]
fn names_of_files_do_not_matter() {
    let directory = tempfile::tempdir().unwrap();
    for name in ["weights.safetensors", "state_dict.pth", "legacy.pth"] {
        let path = directory.path().join("pytorch_model.bin");
        fs::copy(fixture(name), &path).unwrap();
        assert_eq!(Pretrained::open(&path).unwrap().format(), Format::TimmVit, "{name}");
    }
}

#[test]
fn code_is_refused_and_never_executed() {
    for (name, what) in [
        ("code.pth", "posix.system"),
        ("code.pkl", "posix.system"),
        (
            "code_as_a_weight.pth",
            "head.weight is an object that posix.system would make",
        ),
        ("whole_model.pth", "torch.nn.modules.linear.Linear"),
        ("scripted.pt", "TorchScript"),
    ] {
        let error = load(&fixture(name)).unwrap_err();
        assert!(matches!(&error, Error::CodeInCheckpoint { .. }), "{name}: {error}");
        for part in [name, what, "state_dict()"] {
            assert!(error.to_string().contains(part), "{part}: {error}");
        }
    }
    // Beside the weights, it is left out.
    let weights = load(&fixture("code_beside.pth")).unwrap();
    assert_eq!(weights.notes()[1], "left out: args, beside the weights");
    // What it would have done, wherever a test may run.
    assert!(!Path::new("executed").exists());
}

fn refusal(path: &Path) -> String {
    let error = load(path).map(drop).unwrap_err();
    let Error::File { path: named, .. } = &error else {
        panic!("{error}")
    };
    assert_eq!(*named, path.display().to_string());
    let whole = format!("{error:?}");
    assert_eq!(whole.lines().count(), 1, "no sentence: {whole}");
    whole
}

/// The cause of a file's error.
fn cause(path: &Path) -> Box<dyn std::error::Error + Send + Sync> {
    match load(path).map(drop).unwrap_err() {
        Error::File {
            source: Some(cause), ..
        } => cause,
        error => panic!("without a cause: {error}"),
    }
}

#[test]
fn files_without_weights_are_refused_by_path() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name);
    assert!(refusal(&path("absent.pth")).contains("cannot be read: "));
    let absent = cause(&path("absent.pth")).downcast::<std::io::Error>().unwrap();
    assert_eq!(absent.kind(), std::io::ErrorKind::NotFound);
    assert!(refusal(directory.path()).contains("directory"));
    let unread = br#"{"w":{"dtype":"U16","shape":[1],"data_offsets":[0,2]}}  "#;
    let unread = [&(unread.len() as u64).to_le_bytes()[..], unread, &[0; 2]].concat();
    let cases: [(&str, &[u8], &str); 8] = [
        ("unread.safetensors", &unread, "tensor w has elements of U16"),
        ("empty.pth", b"", "it is empty"),
        ("byte.pth", b"P", "neither"),
        (
            "garbage.pth",
            b"neither this nor that, and long enough for any header",
            "neither",
        ),
        ("zip.pth", b"PK\x03\x04 and no more", "cut off"),
        ("pickle.pth", b"\x80\x02]q\x00.", "no dictionary"),
        ("header.safetensors", b"\x40\0\0\0\0\0\0\0{\"w\":", "cut off"),
        ("json.safetensors", b"\x02\0\0\0\0\0\0\0{]", "damaged"),
    ];
    for (name, content, reason) in cases {
        fs::write(path(name), content).unwrap();
        let message = refusal(&path(name));
        assert!(message.contains(reason), "{message}");
    }
    assert!(cause(&path("zip.pth")).is::<zip::result::ZipError>());
    assert!(cause(&path("json.safetensors")).is::<serde_json::Error>());
    assert!(refusal(&fixture("a_list.pth")).contains("no dictionary"));
    assert!(refusal(&fixture("unread_elements.pth")).contains("tensor head.bias has elements of a kind"));
    let message = refusal(&fixture("no_weights.pth"));
    assert!(message.contains("its keys are [epoch, model]"), "{message}");
}

/// A pipe would be waited for, and a device has no end.
#[cfg(unix)]
#[test]
fn what_is_no_file_is_not_opened() {
    let directory = tempfile::tempdir().unwrap();
    let pipe = directory.path().join("w.pth");
    let made = std::process::Command::new("mkfifo").arg(&pipe).status().unwrap();
    assert!(made.success());
    let link = directory.path().join("link.pth");
    std::os::unix::fs::symlink(&pipe, &link).unwrap();
    for path in [&pipe, &link, Path::new("/dev/zero")] {
        assert!(refusal(path).contains("it is a pipe, a socket or a device"));
        for error in [
            Weights::from_safetensors(path).map(drop).unwrap_err(),
            masksub::train::checkpoint::Checkpoint::load(path)
                .map(drop)
                .unwrap_err(),
        ] {
            assert!(
                error.to_string().contains("it is a pipe, a socket or a device"),
                "{error}"
            );
        }
    }
    // Large, and none: nothing of it is read but where a header would say how long it is.
    let zeros = directory.path().join("zeros.safetensors");
    fs::File::create(&zeros).unwrap().set_len(12 << 30).unwrap();
    let error = Weights::from_safetensors(&zeros).map(drop).unwrap_err();
    assert!(error.to_string().contains("its header is damaged"), "{error}");
    assert!(refusal(&zeros).contains("neither"));
}

/// Names of a file are in messages, and end no line of them.
#[test]
fn names_may_be_anything_and_messages_are_one_line() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("w.safetensors");
    let header = br#"{"a\nb\u001b[2J":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}"#;
    fs::write(
        &path,
        [&(header.len() as u64).to_le_bytes()[..], header, &[0; 4]].concat(),
    )
    .unwrap();
    let weights = Weights::from_safetensors(&path).unwrap();
    for error in [
        Pretrained::open(&path).map(drop).unwrap_err(),
        weights.check_exact(|_| false).unwrap_err(),
        Error::from(
            weights
                .var_builder(DType::F32, &Device::Cpu)
                .get(2, "a\nb\u{1b}[2J")
                .unwrap_err(),
        ),
    ] {
        let text = error.to_string();
        assert!(
            text.contains(r"a\nb\u{1b}[2J") && !text.contains(['\n', '\u{1b}']),
            "{text}"
        );
    }
}

#[test]
fn files_that_are_cut_off_are_refused() {
    let directory = tempfile::tempdir().unwrap();
    for name in ["weights.safetensors", "training_run.pth", "protocol4.pth", "legacy.pth"] {
        let whole = fs::read(fixture(name)).unwrap();
        let path = directory.path().join(name);
        // Every length near the ends, and every so many between.
        let lengths = (0..whole.len()).filter(|len| len % 61 == 0 || *len < 64 || whole.len() - len < 64);
        for len in lengths {
            fs::write(&path, &whole[..len]).unwrap();
            match Pretrained::open(&path).map(drop) {
                Err(Error::File { path: named, .. }) => assert_eq!(named, path.display().to_string()),
                Err(error) => panic!("{name} cut to {len} of {}: {error}", whole.len()),
                Ok(()) => panic!("{name} cut to {len} of {} was opened", whole.len()),
            }
        }
    }
}

#[test]
fn files_that_announce_something_else_are_refused() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("model");
    let mut longer = fs::read(fixture("weights.safetensors")).unwrap();
    longer.push(0);
    fs::write(&path, longer).unwrap();
    assert!(refusal(&path).contains("its header announces"));
    // The entry `byteorder` of an archive; then a class of numbers, a key of numbers, and what a storage is a view of.
    for (name, from, to, reason) in [
        ("training_run.pth", &b"little"[..], &b"big   "[..], "big-endian"),
        (
            "training_run.pth",
            b"FloatStorage",
            b"QInt8Storage",
            "cls_token has elements of a kind",
        ),
        (
            "training_run.pth",
            b"X\x01\0\0\x000q",
            b"X\x01\0\0\0?q",
            "cls_token are missing: storage ?",
        ),
        ("legacy.pth", b"Ntq", b"]tq", "is a view of another one"),
    ] {
        let mut changed = fs::read(fixture(name)).unwrap();
        let at = changed.windows(from.len()).position(|bytes| bytes == from).unwrap();
        changed[at..at + to.len()].copy_from_slice(to);
        fs::write(&path, changed).unwrap();
        let message = refusal(&path);
        assert!(message.contains(reason), "{reason}: {message}");
    }
}

// Nothing but an error, or other numbers: no panic, and no memory beyond the file's size.
#[test]
fn damaged_files_do_no_harm() {
    let directory = tempfile::tempdir().unwrap();
    let mut refused = 0;
    for name in [
        "weights.safetensors",
        "training_run.pth",
        "protocol4.pth",
        "legacy.pth",
        "code_as_a_weight.pth",
    ] {
        let whole = fs::read(fixture(name)).unwrap();
        let mut rng: KeyedRng = Seed::new(1).rng_for(name);
        for _ in 0..300 {
            let mut damaged = whole.clone();
            // Of a pickle or a header rather than of the numbers.
            for _ in 0..rng.random_range(1..4) {
                let at = rng.random_range(0..damaged.len().min(4000));
                damaged[at] = rng.random();
            }
            let path = directory.path().join(name);
            fs::write(&path, &damaged).unwrap();
            refused += usize::from(load(&path).is_err());
        }
    }
    assert!(refused > 250, "{refused}");
}
