//! What the program leaves for others: features, weights under their names.

use std::fs;

use masksub::models::vit::{Config, VisionTransformer};
use masksub::pretrained::{Format, Pretrained};
use masksub::{Seed, Weights};

use super::{metrics, path_str, short, tree, values, vit_imagenet, weights};
use crate::flags::Flags;

/// In the order of their paths, and the same whatever the batch.
#[test]
fn features_of_a_directory_are_those_of_its_images() {
    use candle_core::{DType, Device};
    let root = tempfile::tempdir().unwrap();
    let (file, images) = (root.path().join("w.safetensors"), root.path().join("images"));
    tree(&images, 3);
    let cfg = Config {
        image_size: (32, 32),
        ..Config::deit3_tiny(7)
    };
    let weights = Weights::seeded(Seed::new(5));
    let vit = VisionTransformer::new(&cfg, weights.var_builder(DType::F32, &Device::Cpu)).unwrap();
    let mut state = weights.state();
    // A trunk alone has features, too.
    state.retain(|name, _| !name.starts_with("head."));
    candle_core::safetensors::save(&state.into_iter().collect(), &file).unwrap();
    let features = |name: &str, batch: &str| {
        let out = root.path().join(name);
        let arguments = [
            "--features-of",
            path_str(&images),
            "--init-from",
            path_str(&file),
            "--model",
            "deit3-tiny",
        ];
        let more = ["--image-size", "32", "--batch-size", batch, "--out", path_str(&out)];
        let output = vit_imagenet(&[arguments, more].concat(), 1);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let file = out.join("features.safetensors");
        let bytes = fs::read(&file).unwrap();
        let (_, header) = safetensors::SafeTensors::read_metadata(&bytes).unwrap();
        let paths = header.metadata().as_ref().unwrap()["paths"].clone();
        (
            candle_core::safetensors::load(&file, &Device::Cpu).unwrap()["features"].clone(),
            paths,
        )
    };
    let ((all, paths), (parts, _)) = (features("all", "32"), features("parts", "5"));
    assert_eq!(all.dims(), [12, 192]);
    let close = |a: &candle_core::Tensor, b: &candle_core::Tensor| {
        let off = (a - b)
            .unwrap()
            .abs()
            .unwrap()
            .max_all()
            .unwrap()
            .to_scalar::<f32>()
            .unwrap();
        assert!(off < 1e-4, "{off}");
    };
    close(&all, &parts);
    let paths: Vec<_> = paths.lines().collect();
    assert_eq!(
        (paths.len(), paths[0], paths[11]),
        (12, "train/class-0/0.jpg", "val/class-2/0.jpg")
    );
    // As evaluation sees it.
    let arguments = [
        "--data",
        path_str(&images),
        "--model",
        "deit3-tiny",
        "--image-size",
        "32",
    ];
    let flags = Flags::from_arguments(arguments.map(Into::into).to_vec()).unwrap();
    let settings = flags.input.settings(&flags.network(3).unwrap());
    let mut image = vec![0f32; 3 * 32 * 32];
    let transform = crate::data::transform::Transform::new(settings).unwrap();
    let draw = crate::data::transform::Draw::Test;
    transform.load(&images.join(paths[4]), draw, &mut image).unwrap();
    let image = candle_core::Tensor::from_vec(image, (1, 3, 32, 32), &Device::Cpu).unwrap();
    close(&all.narrow(0, 4, 1).unwrap(), &vit.features(&image).unwrap().pooled);

    let refused = [
        "--features-of",
        "nowhere",
        "--init-from",
        path_str(&file),
        "--model",
        "deit3-tiny",
        "--image-size",
        "32",
    ];
    let error = String::from_utf8_lossy(&vit_imagenet(&refused, 1).stderr).into_owned();
    assert!(
        error.contains("nowhere") && error.contains("not a directory"),
        "{error}"
    );
}

/// What the network is called elsewhere is known when the run begins, and so is what nobody has.
#[test]
fn weights_are_saved_under_the_names_that_are_asked_for() {
    let root = tempfile::tempdir().unwrap();
    let out = |name: &str| root.path().join(name);
    let run = |name: &str, more: &[&str]| {
        let out = out(name);
        vit_imagenet(&short(&[more, &["--out", path_str(&out)]].concat()), 1)
    };
    assert!(run("plain", &[]).status.success());
    let first = out("plain").join("model.safetensors");
    assert_eq!(Pretrained::open(&first).unwrap().format(), Format::TimmDeit3);

    let refused = run("refused", &["--save-layout", "huggingface"]);
    let error = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(
        !refused.status.success() && error.contains("layout is huggingface"),
        "{error}"
    );
    assert!(!out("refused").join("metrics.csv").exists());
    assert!(!run("no-file", &["--save-layout", "init-from"]).status.success());

    // Into another file: what is in it beside the weights stays there.
    let mut beside = candle_core::safetensors::load(&first, &candle_core::Device::Cpu).unwrap();
    beside.insert(
        "mask_token".into(),
        candle_core::Tensor::new(&[3f32], &candle_core::Device::Cpu).unwrap(),
    );
    let file = out("beside.safetensors");
    candle_core::safetensors::save(&beside, &file).unwrap();
    let init = [
        "--init-from",
        path_str(&file),
        "--allow-differences",
        "--save-layout",
        "init-from",
    ];
    let again = run("again", &init);
    assert!(again.status.success(), "{}", String::from_utf8_lossy(&again.stderr));
    let saved = weights(&out("again"));
    assert_eq!(values(&saved["mask_token"]), [3.0]);
    assert_eq!(saved.len(), beside.len());
    assert_ne!(values(&saved["norm.weight"]), values(&beside["norm.weight"]));
}

/// The last epoch has scores whatever the others have, and training is what it is without.
#[test]
fn epochs_between_evaluations_have_no_scores() {
    let root = tempfile::tempdir().unwrap();
    let run = |name: &str, more: &[&str]| {
        let out = root.path().join(name);
        let args = [
            "--train-size",
            "64",
            "--epochs",
            "3",
            "--warmup-steps",
            "2",
            "--ema",
            "0.5",
        ];
        let output = vit_imagenet(&[&args[..], more, &["--out", path_str(&out)]].concat(), 2);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        (metrics(&out), fs::read(out.join("model.safetensors")).unwrap())
    };
    let (every, weights) = run("every", &[]);
    let (some, same) = run("some", &["--evaluate-every", "2"]);
    assert!(weights == same);
    assert_eq!((&some[1], &some[2]), (&every[1], &every[2]));
    // From test_loss to ema_top1.
    let without = [&every[0][..6], &vec![String::new(); 5], &every[0][11..]].concat();
    assert_eq!(some[0], without);
    let (never, _) = run("never", &["--evaluate-every", "9"]);
    assert!(never[1][7].is_empty() && never[2] == every[2], "{never:?}");
}
