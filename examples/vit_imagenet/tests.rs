//! The program as its users run it: a process for each run.

mod misuse;

use std::fs;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use crate::flags::Flags;
use masksub::models::vit::{Config, VisionTransformer};
use masksub::pretrained::{Format, Pretrained};
use masksub::{Seed, Weights};

/// Where a process that a test has started finds its arguments, as JSON.
const ARGUMENTS: &str = "VIT_IMAGENET_TEST_ARGUMENTS";

/// The program in the place of its tests, where one of those has started this executable: cargo builds an example that has
/// tests with its tests alone.
#[test]
fn started_by_another_test_this_is_the_program() {
    if let Ok(arguments) = std::env::var(ARGUMENTS) {
        let arguments: Vec<String> = serde_json::from_str(&arguments).unwrap();
        let code = crate::program(arguments.into_iter().map(Into::into).collect());
        std::process::exit(code.into());
    }
}

fn command(args: &[&str]) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    // On the main thread, as the program runs, and without a word of the tests' own but the number of tests.
    let this = "tests::started_by_another_test_this_is_the_program";
    command.args(["--exact", this, "--test-threads=1", "--nocapture", "--quiet"]);
    command.env(ARGUMENTS, serde_json::to_string(args).unwrap());
    command
}

fn vit_imagenet(args: &[&str], threads: usize) -> Output {
    let mut command = command(args);
    command.env("RAYON_NUM_THREADS", threads.to_string());
    command.output().unwrap()
}

fn path_str(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Arguments of a run of one epoch and two steps.
fn short<'a>(more: &[&'a str]) -> Vec<&'a str> {
    let mut args = vec!["--train-size", "96", "--epochs", "1", "--warmup-steps", "2"];
    args.extend(more);
    args
}

/// `metrics.csv` without the columns of seconds.
fn metrics(out: &Path) -> Vec<Vec<String>> {
    let mut reader = csv::Reader::from_path(out.join("metrics.csv")).unwrap();
    let headers = reader.headers().unwrap();
    assert_eq!(
        headers.iter().rev().take(2).collect::<Vec<_>>(),
        ["seconds", "train_seconds"]
    );
    let row = |row: csv::StringRecord| row.iter().take(row.len() - 2).map(str::to_string).collect();
    reader.records().map(|record| row(record.unwrap())).collect()
}

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

/// As Debian's dataset-fashion-mnist has them, but few and small.
#[test]
fn a_set_like_mnist_trains_and_goes_on() {
    let root = tempfile::tempdir().unwrap();
    let data = root.path().join("data");
    fs::create_dir_all(&data).unwrap();
    for (name, n) in [("train", 24u32), ("t10k", 6)] {
        let pixels: Vec<u8> = (0..n * 144)
            .map(|at| if at / 144 % 3 == at % 3 { 200 } else { 9 })
            .collect();
        let labels: Vec<u8> = (0..n).map(|i| (i % 3) as u8).collect();
        let header = |shape: &[u32]| {
            [
                &[0, 0, 8, shape.len() as u8],
                &shape.iter().flat_map(|n| n.to_be_bytes()).collect::<Vec<_>>()[..],
            ]
            .concat()
        };
        fs::write(
            data.join(format!("{name}-images-idx3-ubyte")),
            [header(&[n, 12, 12]), pixels].concat(),
        )
        .unwrap();
        fs::write(
            data.join(format!("{name}-labels-idx1-ubyte")),
            [header(&[n]), labels].concat(),
        )
        .unwrap();
    }
    let out = root.path().join("out");
    let args = "--model digits --image-size 12 --patch-size 3 --batch-size 8 --epochs 6 --warmup-steps 2 --augment simple-crop \
                --random-erasing 0.25 --checkpoint-every 1 --validation 3";
    let args: Vec<&str> = args.split_whitespace().chain(["--data", path_str(&data)]).collect();
    killed_and_resumed(&args, &out);
    let whole = root.path().join("whole");
    let output = vit_imagenet(&[&args[..], &["--out", path_str(&whole)]].concat(), 2);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(metrics(&out), metrics(&whole));
    // Other files are other images.
    fs::copy(
        data.join("t10k-labels-idx1-ubyte"),
        data.join("t10k-labels-idx1-ubyte.gz"),
    )
    .unwrap();
    fs::remove_file(data.join("t10k-labels-idx1-ubyte")).unwrap();
    let error = refused(&["--resume", "--out", path_str(&whole)]);
    assert!(error.contains("t10k-labels-idx1-ubyte.gz"), "{error}");
    assert!(refused(&[&args[..], &["--workers", "2"]].concat()).contains("--workers is for a tree"));
    assert!(refused(&[&args[..], &["--val-split", "test"]].concat()).contains("--val-split is for"));
    assert!(refused(&[&args[..], &["--unreadable", "skip"]].concat()).contains("--unreadable is for a tree"));
    let config = vit_imagenet(&[&args[..], &["--print-config"]].concat(), 1);
    assert!(String::from_utf8(config.stdout).unwrap().contains("[0.5, 0.5, 0.5]"));
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

/// A sentence on one line and exit code 1, not a panic (101) and no backtrace.
fn refused(args: &[&str]) -> String {
    let output = vit_imagenet(args, 1);
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert_eq!(stderr.lines().count(), 1, "{stderr}");
    stderr
}

#[test]
fn what_cannot_work_ends_with_a_sentence() {
    let root = tempfile::tempdir().unwrap();
    let file = root.path().join("file");
    fs::write(&file, "no weights").unwrap();
    let (dir, file) = (path_str(root.path()), path_str(&file));
    assert!(refused(&["--out", dir]).contains("is not empty"));
    assert!(refused(&["--out", file]).contains(file));
    assert!(refused(&["--data", dir]).contains("train is not a directory"));
    assert!(refused(&["--train-size", "1201"]).contains("at most 1200"));
    assert!(refused(&["--patch-size", "3"]).contains("must be a multiple of 3"));
    assert!(refused(&["--init-from", file]).contains(file));
    assert!(refused(&["--init-from", "nowhere.safetensors"]).contains("nowhere.safetensors"));

    let out = root.path().join("out");
    assert!(vit_imagenet(&short(&["--out", path_str(&out)]), 1).status.success());
    let weights = out.join("model.safetensors");
    let error = refused(&["--init-from", path_str(&weights), "--init-key", "state_dict_ema"]);
    assert!(error.contains("key is \"state_dict_ema\""), "{error}");
    let error = refused(&["--init-from", path_str(&weights), "--patch-size", "4"]);
    assert!(error.contains("patch_embed.proj.weight"), "{error}");
    let error = refused(&[
        "--init-from",
        path_str(&weights),
        "--model",
        "mae-base",
        "--patch-size",
        "2",
    ]);
    assert!(error.contains(path_str(&weights)), "{error}");
}

/// Grey JPEGs of three classes, `n` of each in train and one in val.
fn tree(root: &Path, n: u8) {
    for class in 0..3u8 {
        for (split, n) in [("train", n), ("val", 1)] {
            let directory = root.join(format!("{split}/class-{class}"));
            fs::create_dir_all(&directory).unwrap();
            for i in 0..n {
                let grey = |x: u32, y: u32| image::Luma([(x * 3 * u32::from(class + 1) + y * 5) as u8 ^ (i * 16)]);
                let picture = image::GrayImage::from_fn(40, 36, grey);
                picture.save(directory.join(format!("{i}.jpg"))).unwrap();
            }
        }
    }
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

/// Weights of a run by name.
fn weights(out: &Path) -> std::collections::HashMap<String, candle_core::Tensor> {
    candle_core::safetensors::load(out.join("model.safetensors"), &candle_core::Device::Cpu).unwrap()
}

/// Its numbers; the counts of batch norms are whole ones.
fn values(tensor: &candle_core::Tensor) -> Vec<f64> {
    let tensor = tensor.to_dtype(candle_core::DType::F64).unwrap();
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

#[test]
fn replicas_are_another_run_that_parts_and_interruptions_leave_as_it_is() {
    let root = tempfile::tempdir().unwrap();
    let arguments = |more: &[&'static str]| {
        let recipe = "--batch-size 16 --drop-last true --mixup 0.8 --cutmix 1";
        let recipe: Vec<&str> = recipe.split(' ').chain(more.iter().copied()).collect();
        short(&recipe)
    };
    let run = |name: &str, more: &[&'static str]| {
        let out = root.path().join(name);
        let output = vit_imagenet(&[&arguments(more)[..], &["--out", path_str(&out)]].concat(), 2);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        out
    };
    let loss = |out: &Path| metrics(out)[0][3].parse::<f64>().unwrap();
    let bytes = |out: &Path| fs::read(out.join("model.safetensors")).unwrap();
    let (one, same) = (
        run("1", &[]),
        run("1 again", &["--replicas", "1", "--dist-bn", "reduce"]),
    );
    assert!(bytes(&one) == bytes(&same));
    let four = run("4", &["--replicas", "4"]);
    assert_ne!(loss(&one), loss(&four));
    // Each replica's four images in two parts, not the batch's sixteen in eight.
    let parts = run("parts", &["--replicas", "4", "--accumulate", "8"]);
    assert!(
        (loss(&four) - loss(&parts)).abs() < 1e-4,
        "{} {}",
        loss(&four),
        loss(&parts)
    );

    // Batch norms that the replicas see apart, averaged at the end of each epoch, taken up where a kill left them.
    let resnet = [
        "--model",
        "digits-resnet",
        "--epochs",
        "3",
        "--checkpoint-every",
        "1",
        "--replicas",
        "4",
    ];
    let reduce = [&resnet[..], &["--dist-bn", "reduce"]].concat();
    let (first, reduced) = (run("first", &resnet), run("reduced", &reduce));
    let others = weights(&first);
    for (name, tensor) in weights(&reduced) {
        assert_eq!(
            values(&tensor) != values(&others[&name]),
            name.contains("running_"),
            "{name}"
        );
    }
    let killed = root.path().join("killed");
    killed_and_resumed(&arguments(&reduce), &killed);
    assert!(bytes(&killed) == bytes(&reduced));
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

#[test]
fn batches_that_cannot_be_shared_or_filled_are_refused() {
    let error = |args: &[&'static str]| refused(&short(args));
    let drop = ["--drop-last", "true", "--batch-size"];
    assert!(error(&[&drop[..], &["12", "--replicas", "5"]].concat()).contains("--replicas is 5, but must divide 12"));
    assert!(error(&["--replicas", "2"]).contains("must be 1 without --drop-last true"));
    let alone = ["4", "--replicas", "4", "--mixup", "0.8"];
    assert!(error(&[&drop[..], &alone].concat()).contains("must leave two of 4 images"));
    assert!(error(&[&drop[..], &["97"]].concat()).contains("--batch-size is 97, but must be at most 96"));
}

#[test]
fn a_finished_run_can_be_evaluated_and_gone_on_with() {
    let root = tempfile::tempdir().unwrap();
    let out = root.path().join("run");
    let out = path_str(&out);
    let first = vit_imagenet(&short(&["--ema", "0.5", "--out", out]), 1);
    assert!(first.status.success());
    let last = |output: &Output| {
        String::from_utf8_lossy(&output.stdout)
            .lines()
            .last()
            .unwrap()
            .to_string()
    };
    let value = |line: &str, name: &str| {
        let (_, rest) = line.split_once(&format!("{name}=")).unwrap();
        rest.split(' ').next().unwrap().to_string()
    };
    // Nothing is left to do: the result is told again.
    let again = vit_imagenet(&["--resume", "--out", out], 1);
    assert!(again.status.success(), "{}", String::from_utf8_lossy(&again.stderr));
    assert_eq!(value(&last(&again), "loss"), value(&last(&first), "loss"));

    let weights = format!("{out}/model.safetensors");
    for args in [
        &["--eval-only", "--init-from", weights.as_str()][..],
        &["--eval-only", "--resume", "--out", out],
    ] {
        let evaluated = vit_imagenet(args, 1);
        let stdout = String::from_utf8_lossy(&evaluated.stdout).into_owned();
        let line = stdout.lines().find(|line| line.starts_with("result ")).unwrap();
        assert_eq!(value(line, "loss"), value(&last(&first), " loss"), "{stdout}");
        let averaged = stdout.lines().find(|line| line.starts_with("averaged "));
        let averaged = averaged.map(|line| value(line, "top1"));
        let expected = args.contains(&"--resume").then(|| value(&last(&first), "ema_top1"));
        assert_eq!(averaged, expected, "{stdout}");
    }
    assert!(refused(&["--eval-only"]).contains("--init-from FILE, or --resume"));
    assert!(refused(&["--resume", "--out", path_str(root.path())]).contains("no checkpoint to resume"));
    assert!(refused(&["--resume", "--out", "nowhere"]).contains("nowhere"));
    let error = refused(&["--resume", "--out", out, "--train-size", "97"]);
    assert!(error.contains("train-size is now 97, in the run 96"), "{error}");
}

#[test]
fn data_that_is_not_the_runs_is_refused() {
    let root = tempfile::tempdir().unwrap();
    let (few, more, out) = (
        root.path().join("few"),
        root.path().join("more"),
        root.path().join("out"),
    );
    tree(&few, 2);
    tree(&more, 3);
    let network = [
        "--model",
        "digits",
        "--image-size",
        "8",
        "--epochs",
        "1",
        "--out",
        path_str(&out),
    ];
    let run = vit_imagenet(&[&["--data", path_str(&few)], &network[..]].concat(), 1);
    assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stderr));
    let error = refused(&["--resume", "--out", path_str(&out), "--data", path_str(&more)]);
    assert!(
        error.contains("started with 6 training images, but --data has 9"),
        "{error}"
    );
    // The same images elsewhere are the same.
    let moved = root.path().join("moved");
    fs::rename(&few, &moved).unwrap();
    let run = vit_imagenet(&["--resume", "--out", path_str(&out), "--data", path_str(&moved)], 1);
    assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stderr));
}

/// Starts the program, kills it (with SIGKILL) when its checkpoint has been there for a moment, and takes it up again.
fn killed_and_resumed(args: &[&str], out: &Path) {
    let mut command = command(&[args, &["--out", path_str(out)]].concat());
    command.stdout(Stdio::null()).stderr(Stdio::null());
    let mut child = command.spawn().unwrap();
    let checkpoint = out.join("checkpoint.previous.safetensors");
    for _ in 0..6000 {
        if checkpoint.exists() || child.try_wait().unwrap().is_some() {
            break;
        }
        std::thread::sleep(std::time::Duration::from_millis(2));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    let resumed = vit_imagenet(&["--resume", "--out", path_str(out)], 3);
    assert!(resumed.status.success(), "{}", String::from_utf8_lossy(&resumed.stderr));
}

/// Running statistics, prefetched and repeated images, averages, images that cannot be read, a published start: all go on
/// where they were.
#[test]
fn runs_of_every_family_survive_a_kill() {
    let root = tempfile::tempdir().unwrap();
    let data = root.path().join("data");
    tree(&data, 6);
    fs::write(data.join("train/class-1/3.jpg"), "no image").unwrap();
    let start = root.path().join("start");
    let vit = ["--model", "digits", "--image-size", "16", "--patch-size", "4"];
    let first = [
        &[
            "--train-size",
            "64",
            "--epochs",
            "1",
            "--patch-size",
            "4",
            "--image-size",
            "16",
        ][..],
        &["--out", path_str(&start)],
    ];
    assert!(vit_imagenet(&first.concat(), 1).status.success());
    let weights = start.join("model.safetensors");
    for (name, more) in [
        (
            "vit",
            [
                &[
                    "--recipe",
                    "mae-finetune",
                    "--ema",
                    "0.9",
                    "--init-from",
                    path_str(&weights),
                ][..],
                &vit,
            ]
            .concat(),
        ),
        (
            "resnet",
            vec![
                "--recipe",
                "resnet-rsb",
                "--model",
                "digits-resnet",
                "--accumulate",
                "2",
            ],
        ),
        ("swin", vec!["--recipe", "swin", "--model", "digits-swin"]),
    ] {
        // A ResNet takes none of one.
        let batch = if name == "resnet" { "4" } else { "1" };
        let common = [
            "--data",
            path_str(&data),
            "--unreadable",
            "skip",
            "--epochs",
            "2",
            "--checkpoint-every",
            "1",
        ];
        let args = [&more[..], &common[..], &["--batch-size", batch]].concat();
        let whole = root.path().join(format!("{name}-whole"));
        let output = vit_imagenet(&[&args[..], &["--out", path_str(&whole)]].concat(), 2);
        assert!(
            output.status.success(),
            "{name}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        let killed = root.path().join(format!("{name}-killed"));
        killed_and_resumed(&args, &killed);
        let left = |out: &Path| (metrics(out), fs::read(out.join("model.safetensors")).unwrap());
        assert!(
            left(&whole) == left(&killed),
            "{name}: {:?} {:?}",
            metrics(&whole),
            metrics(&killed)
        );
    }
}
