//! Runs that train: every branch, recipe and kind of images.

use std::fs;
use std::path::Path;

use super::{metrics, path_str, refused, short, tree, values, vit_imagenet, weights};

#[test]
fn every_branch_trains_and_threads_change_nothing() {
    let root = tempfile::tempdir().unwrap();
    for branch in ["masksub", "none", "mask-only", "dropsub", "pathsub"] {
        let run = |threads: usize| {
            let out = root.path().join(format!("{branch}-{threads}"));
            let output = vit_imagenet(&short(&["--branch", branch, "--out", path_str(&out)]), threads);
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            assert!(output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
            let stdout = String::from_utf8(output.stdout).unwrap();
            let result = stdout.lines().last().unwrap();
            assert!(result.starts_with(&format!("result branch={branch} top1=")), "{result}");
            assert!(result.contains(" data_wait="), "{result}");
            assert!(out.join("curves.svg").exists());
            (metrics(&out), fs::read(out.join("model.safetensors")).unwrap())
        };
        let (metrics, weights) = run(1);
        assert_eq!(metrics.len(), 1);
        // A loss of the sub-branch where there is one.
        let has_sub_branch = !matches!(branch, "none" | "mask-only");
        assert_eq!(!metrics[0][4].is_empty(), has_sub_branch, "{branch}: {metrics:?}");
        let others: &[usize] = if branch == "masksub" { &[2, 4] } else { &[3] };
        for &threads in others {
            assert!(
                run(threads) == (metrics.clone(), weights.clone()),
                "{branch}, {threads} threads"
            );
        }
    }
}

#[test]
fn a_tree_of_small_grey_images_trains_the_digits_model_and_its_weights_load_again() {
    let root = tempfile::tempdir().unwrap();
    for split in ["train", "val"] {
        for class in 0..3u8 {
            let dir = root.path().join(split).join(format!("class{class}"));
            fs::create_dir_all(&dir).unwrap();
            for i in 0..8u8 {
                let stripe = |x: u32, y: u32| [x, y, x + y][class as usize] % 8 < 4;
                let pixel = |x, y| image::Luma([if stripe(x, y) { 200 + i } else { 10 * i }]);
                image::GrayImage::from_fn(28, 28, pixel)
                    .save(dir.join(format!("{i}.png")))
                    .unwrap();
            }
        }
    }
    let data = path_str(root.path());
    let model = [
        "--data",
        data,
        "--model",
        "digits",
        "--image-size",
        "28",
        "--patch-size",
        "4",
        "--batch-size",
        "8",
    ];
    let run = |name: &str, more: &[&str]| {
        let out = root.path().join(name);
        let mut args = [&model[..], more, &["--out", path_str(&out)]].concat();
        args.extend(["--epochs", "2", "--warmup-steps", "2"]);
        let output = vit_imagenet(&args, 2);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        (metrics(&out), fs::read(out.join("model.safetensors")).unwrap(), out)
    };
    let (first, weights, out) = run("a", &[]);
    let (again, same_weights, _) = run("b", &[]);
    assert!(first == again && weights == same_weights);
    // From the directory, in which model.safetensors is.
    let (resumed, _, _) = run("c", &["--init-from", path_str(&out)]);
    // With everything a recipe can ask of its images, and whoever prepares them.
    let recipe = "--augment resized-crop --auto-augment three-augment --color-jitter 0.3 --random-erasing 0.25 \
                  --repeated-augment 3 --interpolation random --crop-pct 0.9 --workers";
    let recipe: Vec<&str> = recipe.split_whitespace().collect();
    let varied = |name, workers| run(name, &[&recipe[..], &[workers]].concat());
    let (one, weights_of_one, _) = varied("d", "1");
    let (three, weights_of_three, _) = varied("e", "3");
    assert!(one == three && weights_of_one == weights_of_three);
    assert_ne!(one, first);
    let loss = |metrics: &[Vec<String>]| metrics[0][3].parse::<f64>().unwrap();
    assert!(loss(&resumed) < loss(&first), "{resumed:?} {first:?}");
}

/// Both heads move, also from a checkpoint and where the run was left off, and with a target of their own.
#[test]
fn a_distilled_deit_trains_both_heads() {
    let root = tempfile::tempdir().unwrap();
    let out = |name: &str| root.path().join(name);
    let model = "--model deit-tiny-distilled --patch-size 4 --train-size 12 --batch-size 6 --warmup-steps 1";
    let run = |name: &str, more: &[&str]| {
        let args: Vec<&str> = model.split(' ').chain(more.iter().copied()).collect();
        let output = vit_imagenet(&[&args[..], &["--out", path_str(&out(name))]].concat(), 2);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    let moved = |before: &str, after: &str| {
        let (before, after) = (weights(&out(before)), weights(&out(after)));
        let names = [
            "head.weight",
            "head.bias",
            "head_dist.weight",
            "head_dist.bias",
            "cls_token",
            "dist_token",
        ];
        names.iter().all(|name| values(&before[*name]) != values(&after[*name]))
    };
    run("one", &["--epochs", "1"]);
    let row = &metrics(&out("one"))[0];
    assert!(!row[4].is_empty(), "a loss of the sub-branch: {row:?}");

    // Two epochs from there, in parts of a batch, and the same left off between them.
    let first = out("one");
    let more = [
        "--init-from",
        path_str(&first),
        "--accumulate",
        "2",
        "--target",
        "ema",
        "--ema",
        "0.5",
    ];
    run("two", &[&more[..], &["--epochs", "2"]].concat());
    assert!(moved("one", "two"));

    // Evaluation is the mean of both heads, as timm's.
    let second = out("two");
    let evaluated = run("evaluated", &["--init-from", path_str(&second), "--eval-only"]);
    let last = metrics(&second).pop().unwrap();
    let loss = format!("loss={:.4}", last[6].parse::<f64>().unwrap());
    assert!(evaluated.contains(&loss), "{evaluated} {last:?}");
}

/// Batch norm would see the 65th digit alone, as a single pixel.
#[test]
fn a_resnet_trains_on_one_image_more_than_its_batches_hold() {
    let out = tempfile::tempdir().unwrap();
    let out = path_str(out.path());
    let args = [
        "--model",
        "digits-resnet",
        "--train-size",
        "65",
        "--epochs",
        "1",
        "--out",
    ];
    let output = vit_imagenet(&[&args[..], &[&format!("{out}/run")]].concat(), 2);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// Small networks of each family stand in for the paper's.
#[test]
fn every_recipe_trains() {
    let root = tempfile::tempdir().unwrap();
    tree(&root.path().join("data"), 4);
    let data = root.path().join("data");
    let vit = ["--model", "digits", "--image-size", "16", "--patch-size", "4"];
    for (recipe, network) in [
        ("deit3", &vit[..]),
        ("deit3-finetune", &vit),
        ("mae-finetune", &vit),
        ("clip-finetune", &vit),
        ("resnet-rsb", &["--model", "digits-resnet"]),
        ("swin", &["--model", "digits-swin"]),
    ] {
        let run = |name: &str, more: &[&str]| {
            let out = root.path().join(format!("{recipe}-{name}"));
            let mut args = vec![
                "--recipe",
                recipe,
                "--data",
                path_str(&data),
                "--epochs",
                "1",
                "--batch-size",
                "6",
            ];
            args.extend(network);
            args.extend(more);
            args.extend(["--out", path_str(&out)]);
            let output = vit_imagenet(&args, 2);
            assert!(
                output.status.success(),
                "{recipe}: {}",
                String::from_utf8_lossy(&output.stderr)
            );
            let stdout = String::from_utf8(output.stdout).unwrap();
            (stdout.lines().last().unwrap().to_string(), out)
        };
        let (result, out) = run("whole", &[]);
        assert!(result.starts_with("result branch=masksub"), "{result}");
        let rows = metrics(&out);
        assert_eq!(rows.len(), 1);
        assert!(
            rows[0][3].parse::<f64>().unwrap() > 0.0 && rows[0][4].parse::<f64>().unwrap() > 0.0,
            "{rows:?}"
        );
        // Averaged weights where the recipe has them.
        let averages = matches!(recipe, "deit3" | "deit3-finetune" | "clip-finetune");
        assert_eq!(result.contains("ema_top1="), averages, "{result}");
        assert_eq!(out.join("model_ema.safetensors").exists(), averages);
        // In parts the batch gives the same, but for batch norm.
        let (_, parts) = run("parts", &["--accumulate", "2"]);
        let loss = |out: &Path| metrics(out)[0][3].parse::<f64>().unwrap();
        if recipe != "resnet-rsb" {
            assert!((loss(&out) - loss(&parts)).abs() < 1e-4, "{recipe}");
        }
    }
}

#[test]
fn frozen_parameters_stay_as_they_were_and_the_others_do_not() {
    let root = tempfile::tempdir().unwrap();
    let (start, out) = (root.path().join("start"), root.path().join("out"));
    assert!(vit_imagenet(&short(&["--out", path_str(&start)]), 1).status.success());
    let file = start.join("model.safetensors");
    let freeze = ["--freeze", "patch_embed", "blocks.0.mlp.fc1.bias"];
    let from = ["--init-from", path_str(&file), "--ema", "0.5", "--out", path_str(&out)];
    let run = vit_imagenet(&short(&[&from[..], &freeze].concat()), 1);
    assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stderr));
    let after = weights(&out);
    for (name, before) in weights(&start) {
        let frozen = name.starts_with("patch_embed.") || name == freeze[2];
        assert_eq!(values(&before) == values(&after[&name]), frozen, "{name}");
    }
    let again = vit_imagenet(&["--resume", "--out", path_str(&out)], 1);
    assert!(again.status.success(), "{}", String::from_utf8_lossy(&again.stderr));
    let error = refused(&["--resume", "--out", path_str(&out), "--freeze", "head"]);
    let expected = "freeze is now head, in the run patch_embed blocks.0.mlp.fc1.bias";
    assert!(error.contains(expected), "{error}");
    let error = refused(&short(&["--freeze", "patch_embd"]));
    let expected = "freeze is patch_embd, but must be a parameter or a module: patch_embed, ";
    assert!(error.contains(expected), "{error}");
}
