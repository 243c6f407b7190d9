//! Weights wrapped in other things: keys, prefixes, averages beside them, gzip. `parity` has the logits of each.

use std::fs;
use std::path::Path;

use candle_core::{DType, Tensor};
use masksub::models::vit::Config;
use masksub::pretrained::Pretrained;
use masksub::{Error, Seed, Weights};

use super::{model_file, saved, tensors, timm_vit, var, vit, Tensors};
use crate::common::{bits, numbers, CPU};

/// The ViT of the recorded wrappings.
fn cfg() -> Config {
    Config {
        embed_dim: 24,
        mlp_dim: 96,
        ..timm_vit(9)
    }
}

fn loaded(pretrained: Result<Pretrained, Error>) -> Weights {
    let weights = pretrained.unwrap().weights(Seed::new(0));
    vit(&cfg(), &weights);
    weights.check_exact(|_| false).unwrap();
    weights
}

#[test]
fn are_taken_off_and_a_line_says_what_was_there() {
    let format = |below: &str| format!("format timm-vit, 32 tensors{below}");
    let net = loaded(Pretrained::open(model_file("wrapped_net.pth")));
    for (name, below, beside) in [
        ("wrapped_net.pth", ", below `net`", "acc"),
        ("wrapped_gzip.pth.gz", ", below `net`", "acc"),
        (
            "wrapped_lightning.pth",
            ", below `state_dict` and `model`",
            "epoch, pytorch-lightning_version",
        ),
        ("wrapped_backbone.pth", ", below `state_dict` and `backbone`", "meta"),
        (
            "wrapped_model_state_dict.pth",
            ", below `model_state_dict`",
            "optimizer_state_dict, epoch",
        ),
        ("wrapped_deepspeed.pth", ", below `module`", "args, global_steps"),
        ("wrapped_only_ema.pth", ", below `model_ema`", "args"),
        ("wrapped_prefix.safetensors", ", below `model`", ""),
    ] {
        let weights = loaded(Pretrained::open(model_file(name)));
        let mut expected = vec![format(below)];
        if !beside.is_empty() {
            expected.push(format!("left out: {beside}, beside the weights"));
        }
        assert_eq!(weights.notes(), expected, "{name}");
        assert_eq!(
            bits(&var(&weights, "head.weight")),
            bits(&var(&net, "head.weight")),
            "{name}"
        );
    }
    let weights = loaded(Pretrained::open(model_file("wrapped_averaged.pth")));
    let count = "left out: the count of averaged weights, 1 tensor".to_string();
    assert_eq!(weights.notes(), [format(", below `module`"), count]);
}

#[test]
fn hold_averages_for_those_who_ask() {
    for (name, plain, other) in [
        ("wrapped_both.pth", "state_dict", "state_dict_ema"),
        ("wrapped_teacher.pth", "teacher", "student"),
    ] {
        let path = model_file(name);
        let [default, chosen] = [Pretrained::open(&path), Pretrained::open_key(&path, plain)].map(loaded);
        let averaged = loaded(Pretrained::open_key(&path, other));
        let head = |weights: &Weights| var(weights, "head.weight");
        assert_eq!(bits(&head(&default)), bits(&head(&chosen)), "{name}");
        // They were recorded a hundredth larger.
        for (raw, averaged) in numbers(&head(&default)).iter().zip(numbers(&head(&averaged))) {
            assert!((raw * 1.01 - averaged).abs() < 1e-6, "{name}");
        }
        let line = format!("weights that were not taken lie below: {other} (Pretrained::open_key)");
        assert!(default.notes().contains(&line), "{:?}", default.notes());
        assert_eq!(
            averaged.notes()[0],
            format!("format timm-vit, 32 tensors, below `{other}`")
        );
    }
    let error = Pretrained::open_key(model_file("wrapped_both.pth"), "ema").unwrap_err();
    assert!(
        matches!(&error, Error::InvalidArgument { argument: "key", .. }),
        "{error}"
    );
    for part in ["\"ema\"", "wrapped_both.pth", "[state_dict, state_dict_ema, args]"] {
        assert!(error.to_string().contains(part), "{error}");
    }
}

/// A checkpoint with the tensors behind each of these prefixes.
fn behind(directory: &Path, prefixes: &[&str]) -> std::path::PathBuf {
    let mut all = Tensors::new();
    for (factor, prefix) in prefixes.iter().enumerate() {
        for (name, tensor) in tensors("timm_vit") {
            all.insert(format!("{prefix}{name}"), (tensor * (1 + factor) as f64).unwrap());
        }
    }
    saved(directory, &all)
}

/// How many times the recorded head the one of a checkpoint is, from where it was found.
fn factor(pretrained: Pretrained) -> (f64, String) {
    let weights = pretrained.weights(Seed::new(0));
    vit(&timm_vit(9), &weights);
    let recorded = numbers(&tensors("timm_vit")["head.weight"]);
    let ratio = numbers(&var(&weights, "head.weight"))[0] / recorded[0];
    (ratio.round(), weights.notes()[0].clone())
}

#[test]
fn are_the_shortest_prefix_and_the_likeliest() {
    let directory = tempfile::tempdir().unwrap();
    for (prefixes, below) in [
        (&["model."][..], "model"),
        (&["_forward_module.model.net."], "_forward_module.model.net"),
        (&["model.", "model_ema.module."], "model"),
        (&["encoder.", "ema."], "encoder"),
        (&["teacher.backbone.", "student.backbone."], "teacher.backbone"),
        (&["head.net.", "z.encoder.net."], "head.net"),
        (&["semantic.", "zero.encoder.net."], "semantic"),
    ] {
        let (ratio, note) = factor(Pretrained::open(behind(directory.path(), prefixes)).unwrap());
        assert_eq!(
            (ratio, note),
            (1.0, format!("format timm-vit, 32 tensors, below `{below}`"))
        );
    }
    let path = behind(directory.path(), &["", "model."]);
    assert_eq!(factor(Pretrained::open(&path).unwrap()).0, 1.0);
    assert_eq!(factor(Pretrained::open_key(&path, "model").unwrap()).0, 2.0);
    // Further in than any wrapper is no model.
    let path = behind(directory.path(), &["a.b.c.d.e.f.g."]);
    assert!(matches!(
        Pretrained::open(path).unwrap_err(),
        Error::UnknownFormat { .. }
    ));
}

#[test]
fn that_hold_two_models_alike_need_it_said() {
    let directory = tempfile::tempdir().unwrap();
    let path = behind(directory.path(), &["encoder_q.", "encoder_k."]);
    let error = Pretrained::open(&path).unwrap_err().to_string();
    assert!(
        error.contains("one of [encoder_k, encoder_q], for Pretrained::open_key"),
        "{error}"
    );
    assert_eq!(factor(Pretrained::open_key(&path, "encoder_q").unwrap()).0, 1.0);
    assert_eq!(factor(Pretrained::open_key(&path, "encoder_k").unwrap()).0, 2.0);
    assert!(Pretrained::open_key(&path, "encoder").is_err());
}

#[test]
fn leave_nothing_behind_in_silence() {
    let directory = tempfile::tempdir().unwrap();
    let mut tensors = tensors("timm_vit");
    let mut wrapped: Tensors = std::mem::take(&mut tensors)
        .into_iter()
        .map(|(name, tensor)| (format!("model.{name}"), tensor))
        .collect();
    let weight = Tensor::zeros(9, DType::F32, &CPU).unwrap();
    wrapped.insert("criterion.weight".into(), weight);
    let weights = Pretrained::open(saved(directory.path(), &wrapped))
        .unwrap()
        .weights(Seed::new(0));
    vit(&timm_vit(9), &weights);
    assert!(weights.notes().contains(&"left over: criterion.weight".to_string()));
    let error = weights.check_exact(|_| false).unwrap_err();
    assert!(
        matches!(&error, Error::WeightsDiffer { left_over, .. } if left_over[..] == ["criterion.weight"]),
        "{error}"
    );
    weights.check_exact(|name| name == "criterion.weight").unwrap();
}

#[test]
fn of_gzip_are_whole_or_refused() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("w.gz");
    let bytes = fs::read(model_file("wrapped_gzip.pth.gz")).unwrap();
    for (content, reason) in [
        (&bytes[..bytes.len() / 2], "it is no whole gzip file"),
        (&bytes[..2], "it is no whole gzip file"),
    ] {
        fs::write(&path, content).unwrap();
        let error = Pretrained::open(&path).unwrap_err().to_string();
        assert!(error.contains(reason), "{error}");
    }
}

#[test]
fn of_other_kinds_of_files_say_which_they_are() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("w");
    for (content, reason) in [
        (&b"\x89HDF\r\n\x1a\n and more"[..], "it is an HDF5 file"),
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:1",
            "run git lfs pull",
        ),
        (b"GGUF\x03\0\0\0", "quantised weights"),
        (
            b"no weights",
            "neither a safetensors nor a PyTorch file, nor an .npz archive",
        ),
    ] {
        fs::write(&path, content).unwrap();
        let error = Pretrained::open(&path).unwrap_err().to_string();
        assert!(error.contains(reason), "{error}");
    }
}

// Each was looked through as if a model began there: of half a million, for ten seconds.
#[test]
fn of_thousands_of_models_are_not_looked_through() {
    let directory = tempfile::tempdir().unwrap();
    let scalar = Tensor::new(1f32, &CPU).unwrap();
    let names = (0..20_000).map(|i| (format!("p{i}.conv1.weight"), scalar.clone()));
    let path = saved(directory.path(), &names.collect());
    let error = Pretrained::open(&path).unwrap_err().to_string();
    assert!(error.contains("begin in more ways than those of weights"), "{error}");
}
