//! Runs that are taken up again: where they were, whatever they are of.

use std::fs;
use std::path::Path;
use std::process::{Output, Stdio};

use super::{command, metrics, path_str, refused, short, tree, values, vit_imagenet, weights};

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
        (
            "distilled",
            vec![
                "--model",
                "deit-tiny-distilled",
                "--image-size",
                "16",
                "--patch-size",
                "8",
            ],
        ),
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
