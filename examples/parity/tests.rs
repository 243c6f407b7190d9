//! Every recorded file is reproduced, and what is not the same does not pass for it.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use candle_nn::ModuleT;
use masksub::models::vit::{self, Pool, VisionTransformer};

use crate::recorded::Recorded;
use crate::report::{Group, Report};
use crate::{compare, compare_all, tabulate};

/// Compares a fixture by name: one that is not there fails.
fn check(name: &str) {
    let report = compare(&fixture(&format!("{name}.safetensors")), &Device::Cpu).unwrap();
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
fn ft_clip() {
    check("ft_clip");
}

/// The mean first and then the norm, as MAE does it, is another model.
#[test]
fn ft_clip_averages_after_its_norm() {
    let file = Recorded::open(&fixture("ft_clip.safetensors"), &Device::Cpu).unwrap();
    let error = |pool: Option<Pool>| {
        let cfg = file.vit_config().unwrap();
        let pool = pool.unwrap_or(cfg.pool);
        let cfg = vit::Config { pool, ..cfg };
        let weights = file.weights();
        let model = VisionTransformer::new(&cfg, weights.var_builder(DType::F32, &Device::Cpu)).unwrap();
        let logits = model.forward_t(file.get("input").unwrap(), false).unwrap();
        let mut report = Report::default();
        let theirs = file.get("logits_eval").unwrap();
        report.compare(Group::Main, "logits_eval", &logits, theirs).unwrap();
        (report.is_ok(), report.largest(Group::Main).unwrap())
    };
    assert!(error(None).0);
    let (ok, off) = error(Some(Pool::Mean));
    assert!(!ok && off > 1e-2, "{off:e}");
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
fn optimizers() {
    check("optim");
}

#[test]
fn augment() {
    check("augment");
}

#[test]
fn swin() {
    check("swin");
}

#[test]
fn checkpoints_of_peers() {
    let names = [
        "facebook_deit3",
        "hf_clip",
        "hf_vit",
        "mae_finetuned",
        "mae_pretrained",
        "microsoft_swin",
        "open_clip",
        "openai_clip",
        "resnet",
        "timm_clip",
        "timm_deit3",
        "timm_swin",
        "timm_vit",
    ];
    for name in names {
        check(&format!("checkpoints/{name}.expect"));
    }
}

/// Models and wrappings as their writers save them, with gradients, dropped tokens and other sizes where recorded; and
/// what these and the checkpoints give at sizes of which their own files do not tell.
#[test]
fn models_and_wrappings_of_peers() {
    for (folder, count) in [("models", 37), ("sizes", 39)] {
        let files = expected(folder);
        assert_eq!(files.len(), count, "{files:?}");
        for file in files {
            let (report, code) = run(&file);
            assert_eq!(code, 0, "{report}");
        }
    }
}

/// The recorded files of a folder.
fn expected(folder: &str) -> Vec<PathBuf> {
    let files = std::fs::read_dir(fixture(folder)).unwrap();
    let files = files.map(|entry| entry.unwrap().path());
    let mut files: Vec<_> = files
        .filter(|path| path.to_string_lossy().ends_with(".expect.safetensors"))
        .collect();
    files.sort();
    files
}

/// The table has a line for each file of weights, in which nothing fails and no image size is without a reason.
#[test]
fn the_table_has_every_checkpoint_at_every_size() {
    let files: Vec<_> = ["checkpoints", "models", "sizes"]
        .into_iter()
        .flat_map(expected)
        .collect();
    let (table, code) = tabulate(&files, &Device::Cpu);
    let table = table.to_string();
    assert_eq!(code, 0, "{table}");
    let rows: Vec<Vec<_>> = table.lines().skip(2).map(|line| line.split(" | ").collect()).collect();
    let is_of_weights =
        |path: &PathBuf| !path.to_string_lossy().ends_with(".expect.safetensors") && !path.ends_with("write.py");
    let folders = ["checkpoints", "models", "sizes"].map(|folder| std::fs::read_dir(fixture(folder)).unwrap());
    let weights = folders.into_iter().flatten().map(|entry| entry.unwrap().path());
    assert_eq!(rows.len(), weights.filter(is_of_weights).count(), "{table}");
    for row in rows {
        let no_square = ["torchvision-vit"].contains(&row[1]);
        for cell in &row[2..5] {
            let is_number = cell.parse::<f64>().is_ok_and(|error| error <= 1e-5);
            assert!(
                is_number || no_square && *cell == "torchvision takes squares alone",
                "{row:?}"
            );
        }
    }
}

/// A value that differs fails in its cell, and one that is not recorded says so.
#[test]
fn the_table_tells_which_value_fails() {
    let directory = tempfile::tempdir().unwrap();
    std::fs::create_dir(directory.path().join("models")).unwrap();
    let checkpoint = "models/timm_vit_antialias.safetensors";
    std::fs::copy(fixture(checkpoint), directory.path().join(checkpoint)).unwrap();
    let recorded = "models/timm_vit_antialias.expect.safetensors";
    let path = changed(recorded, directory.path(), |tensors| {
        let logits = tensors["logits_rectangular"].affine(1.0, 1e-3).unwrap();
        tensors.insert("logits_rectangular".into(), logits);
        tensors.remove("input_resized");
    });
    let (table, code) = tabulate(&[path], &Device::Cpu);
    let table = table.to_string();
    let row: Vec<_> = table.lines().nth(2).unwrap().split(" | ").collect();
    assert_eq!(code, 1);
    assert_eq!(row[3], "no reference", "{table}");
    assert!(row[4].ends_with("**FAIL**"), "{table}");
    for column in [2, 5, 6] {
        let cell = row[column].trim_end_matches(" |");
        assert!(cell.parse::<f64>().is_ok_and(|error| error < 1e-4), "{table}");
    }
}

/// Each of what is recorded of a peer's model is compared.
#[test]
fn a_model_that_is_not_what_was_recorded_fails() {
    use Group::{Grad, Loss, Main, Sub};
    let directory = tempfile::tempdir().unwrap();
    for (name, checkpoint, tensor, group) in [
        (
            "timm_vit_antialias",
            "timm_vit_antialias.safetensors",
            "logits_resized",
            Main,
        ),
        (
            "timm_vit_antialias",
            "timm_vit_antialias.safetensors",
            "logits_rectangular",
            Main,
        ),
        (
            "timm_vit_antialias",
            "timm_vit_antialias.safetensors",
            "logits_sub",
            Sub,
        ),
        ("timm_vit_antialias", "timm_vit_antialias.safetensors", "loss", Loss),
        (
            "timm_vit_antialias",
            "timm_vit_antialias.safetensors",
            "grad/blocks.0.attn.qkv.weight",
            Grad,
        ),
        ("torchvision_vit", "torchvision_vit.pth", "grad/heads.head.bias", Grad),
        ("google_vit", "google_vit.npz", "logits_resized", Main),
        ("hf_dinov2", "hf_dinov2.safetensors", "logits_eval", Main),
        ("timm_eva02", "timm_eva02.safetensors", "logits_rectangular", Main),
        ("timm_dinov3", "timm_dinov3.safetensors", "logits_sub", Sub),
        ("timm_siglip", "timm_siglip.safetensors", "grad/attn_pool.latent", Grad),
        (
            "timm_convnextv2",
            "timm_convnextv2.safetensors",
            "grad/stages.0.blocks.0.mlp.grn.weight",
            Grad,
        ),
    ] {
        let beside = directory.path().join("models");
        std::fs::create_dir_all(&beside).unwrap();
        std::fs::copy(fixture(&format!("models/{checkpoint}")), beside.join(checkpoint)).unwrap();
        let path = changed(
            &format!("models/{name}.expect.safetensors"),
            directory.path(),
            |tensors| {
                let value = tensors.get_mut(tensor).unwrap();
                *value = (&*value * (1.0 + 1e-3)).unwrap();
            },
        );
        let (report, code) = run(&path);
        assert!(code == 1 && report.failures.is_empty(), "{tensor}: {report}");
        for (other, _) in Group::ALL {
            assert_eq!(
                report.largest(other).unwrap_or(0.0) > 5e-4,
                other == group,
                "{tensor}: {report}"
            );
        }
    }
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
    match compare(path, &Device::Cpu) {
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
    // Nothing recorded is no agreement.
    for (config, lack) in [
        (r#"{"kind": "augment"}"#, "it has no cases"),
        (r#"{"kind": "augment", "cases": {}}"#, "it has no cases"),
        (r#"{"kind": "augment", "cases": {"a": {"op": "swirl"}}}"#, "input"),
    ] {
        let message = refusal(&recorded(directory.path(), config));
        assert!(message.contains(lack), "{message}");
    }
    refusal(&recorded(directory.path(), r#"{"kind": "losses"}"#));
    let message = refusal(&recorded(directory.path(), r#"{"kind": "optim"}"#));
    assert!(message.contains("adamw"), "{message}");
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

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

/// A copy of a fixture in which something was changed.
fn changed(name: &str, directory: &Path, change: impl FnOnce(&mut HashMap<String, Tensor>)) -> PathBuf {
    let bytes = std::fs::read(fixture(name)).unwrap();
    let (_, metadata) = safetensors::SafeTensors::read_metadata(&bytes).unwrap();
    let mut tensors = candle_core::safetensors::load_buffer(&bytes, &Device::Cpu).unwrap();
    change(&mut tensors);
    let path = directory.join(name);
    safetensors::serialize_to_file(&tensors, metadata.metadata().clone(), &path).unwrap();
    path
}

/// Runs the example on one file: its report and its exit code.
fn run(path: &Path) -> (Report, u8) {
    let report = compare(path, &Device::Cpu).unwrap();
    (report, compare_all(&[path.into()], &Device::Cpu, false))
}

#[test]
fn a_changed_value_fails_in_its_group() {
    use Group::{Grad, Loss, Main, Sub};
    let directory = tempfile::tempdir().unwrap();
    for (file, tensor, group) in [
        ("resnet_basic.safetensors", "logits_eval", Main),
        ("resnet_basic.safetensors", "logits_main", Main),
        ("resnet_basic.safetensors", "after/bn1.running_mean", Main),
        ("resnet_basic.safetensors", "logits_sub", Sub),
        ("resnet_basic.safetensors", "ce/loss_main", Loss),
        ("resnet_basic.safetensors", "bce/loss_sub", Loss),
        ("resnet_basic.safetensors", "ce/grad/conv1.weight", Grad),
        ("swin.safetensors", "bce/grad/mask_token", Grad),
        ("losses.safetensors", "main/bce_soft/value", Main),
        ("losses.safetensors", "sub/kl_T2/grad", Grad),
    ] {
        // Ten times the tolerance of gradients, the larger one.
        let path = changed(file, directory.path(), |tensors| {
            let value = tensors
                .get_mut(tensor)
                .unwrap_or_else(|| panic!("{file} has no {tensor}"));
            *value = (&*value * (1.0 + 1e-3)).unwrap();
        });
        let (report, code) = run(&path);
        assert_eq!(code, 1, "{tensor}: {report}");
        assert!(report.to_string().ends_with(" FAIL"), "{report}");
        for (other, _) in Group::ALL {
            let error = report.largest(other).unwrap_or(0.0);
            assert_eq!(error > 5e-4, other == group, "{tensor}: {report}");
        }
    }
}

#[test]
fn an_image_that_is_off_fails_by_name() {
    let directory = tempfile::tempdir().unwrap();
    // One step where it is exact, three beyond what is allowed where it is not, and another size.
    let off = |tensor: &Tensor, by: u8| {
        let mut values = tensor.flatten_all().unwrap().to_vec1::<u8>().unwrap();
        values[0] = if values[0] < 128 {
            values[0] + by
        } else {
            values[0] - by
        };
        Tensor::from_vec(values, tensor.dims(), &Device::Cpu).unwrap()
    };
    for (name, change) in [
        (
            "greyscale",
            &(|image: &Tensor| off(image, 1)) as &dyn Fn(&Tensor) -> Tensor,
        ),
        ("rotate_0", &|image| off(image, 5)),
        ("gaussian_blur_1", &|image| off(image, 6)),
        ("hflip", &|image| image.narrow(0, 0, 87).unwrap().contiguous().unwrap()),
        ("normalize", &|values| (values + 0.1).unwrap()),
    ] {
        let path = changed("augment.safetensors", directory.path(), |tensors| {
            let image = tensors.get_mut(&format!("{name}/out")).unwrap();
            *image = change(image);
        });
        let (report, code) = run(&path);
        assert_eq!(code, 1, "{name}");
        assert_eq!(report.to_string(), format!("augment images=48 FAIL: {name}"));
        let marked = report.verbose();
        let marked: Vec<&str> = marked.lines().filter(|line| line.ends_with("<-")).collect();
        assert!(marked.len() == 1 && marked[0].contains(name), "{marked:?}");
    }
}

#[test]
fn what_is_not_the_same_thing_fails_with_the_reason() {
    let directory = tempfile::tempdir().unwrap();
    let fails = |change: &dyn Fn(&mut HashMap<String, Tensor>), reason: &str| {
        let (report, code) = run(&changed("resnet_basic.safetensors", directory.path(), change));
        let line = report.to_string();
        assert!(
            code == 1 && line.contains(" FAIL: ") && line.contains(reason),
            "{reason}: {line}"
        );
    };
    let gradient = "ce/grad/fc.bias";
    fails(
        &|tensors| drop(tensors.remove(gradient)),
        "no gradient of fc.bias is recorded below ce/grad/",
    );
    fails(
        &|tensors| drop(tensors.insert("ce/grad/fc.scale".into(), tensors[gradient].clone())),
        "there is no parameter fc.scale",
    );
    fails(
        &|tensors| drop(tensors.insert("w/fc.scale".into(), tensors[gradient].clone())),
        "the model does not know the weights [\"fc.scale\"]",
    );
    fails(
        &|tensors| drop(tensors.remove("w/fc.bias")),
        "weight fc.bias is missing",
    );
    fails(
        &|tensors| drop(tensors.insert("after/fc.running_mean".into(), tensors[gradient].clone())),
        "there is no running statistic fc.running_mean",
    );
    // As many numbers in another order.
    let turn = |tensors: &mut HashMap<String, Tensor>| {
        let logits = tensors.get_mut("logits_sub").unwrap();
        *logits = logits.t().unwrap().contiguous().unwrap();
    };
    fails(&turn, "logits_sub has shape ");
}

/// A copy of a checkpoint's recorded values in which something was changed, beside the checkpoint.
fn changed_checkpoint(name: &str, directory: &Path, change: impl FnOnce(&mut HashMap<String, Tensor>)) -> PathBuf {
    std::fs::create_dir_all(directory.join("checkpoints")).unwrap();
    for ending in ["pth", "safetensors"] {
        let file = format!("checkpoints/{name}.{ending}");
        if fixture(&file).exists() {
            std::fs::copy(fixture(&file), directory.join(&file)).unwrap();
        }
    }
    changed(&format!("checkpoints/{name}.expect.safetensors"), directory, change)
}

#[test]
fn a_checkpoint_that_is_not_what_was_recorded_fails() {
    let directory = tempfile::tempdir().unwrap();
    for (name, tensor) in [
        ("timm_swin", "logits_eval"),
        ("timm_swin", "logits_resized"),
        ("hf_clip", "fresh/head.weight"),
        ("mae_pretrained", "fresh/fc_norm.weight"),
    ] {
        let path = changed_checkpoint(name, directory.path(), |tensors| {
            let value = tensors.get_mut(tensor).unwrap();
            *value = (&*value * (1.0 + 1e-3)).unwrap();
        });
        let (report, code) = run(&path);
        assert!(code == 1 && report.failures.is_empty(), "{tensor}: {report}");
        assert!(report.largest(Group::Main).unwrap() > 1e-4, "{tensor}: {report}");
    }
    // The checkpoint of another format.
    let path = changed_checkpoint("timm_deit3", directory.path(), |_| ());
    let at = |name: &str| directory.path().join(format!("checkpoints/{name}.safetensors"));
    std::fs::copy(fixture("checkpoints/timm_vit.safetensors"), at("timm_deit3")).unwrap();
    let (report, code) = run(&path);
    let line = report.to_string();
    assert!(
        code == 1 && line.contains("recognised as timm-vit, but recorded as timm-deit3"),
        "{line}"
    );
    // A weight that is lacking and was not recorded.
    let path = changed_checkpoint("hf_clip", directory.path(), |tensors| {
        tensors.remove("fresh/head.bias").unwrap();
    });
    assert!(refusal(&path).contains("head.bias"));
    // And no checkpoint at all.
    std::fs::remove_file(at("hf_clip")).unwrap();
    let (report, code) = run(&path);
    assert!(
        code == 1 && report.to_string().contains("hf_clip.safetensors"),
        "{report}"
    );
}

#[test]
fn a_resnet_needs_its_running_statistics() {
    let directory = tempfile::tempdir().unwrap();
    let path = changed("resnet_basic.safetensors", directory.path(), |tensors| {
        tensors.retain(|name, _| !name.starts_with("after/"));
    });
    let message = refusal(&path);
    assert!(message.contains("after/") && message.contains("running_"), "{message}");
    assert_eq!(
        compare_all(&[path, fixture("losses.safetensors")], &Device::Cpu, false),
        2
    );
}

#[test]
fn a_group_without_values_says_so() {
    let (report, code) = run(&fixture("losses.safetensors"));
    assert_eq!(code, 0);
    assert!(report.largest(Group::Loss).is_some());
    let empty = Report {
        name: "empty".into(),
        errors: vec![(Group::Main, "logits".into(), 0.0)],
        ..Default::default()
    };
    assert_eq!(empty.to_string(), "empty main=0.0e0 sub=- loss=- grad=- ok");
}
