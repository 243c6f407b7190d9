//! What users and clusters do to a run: nothing is lost, nothing hangs, nothing happens in silence.

use super::*;

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Flags of a small run on `data`, to `out`.
fn small<'a>(data: &'a Path, out: &'a Path, more: &[&'a str]) -> Vec<&'a str> {
    let network = "--model digits --image-size 8 --epochs 2 --batch-size 6 --warmup-steps 2";
    let mut args: Vec<&str> = network.split(' ').collect();
    args.extend(["--data", path_str(data), "--out", path_str(out)]);
    args.extend(more);
    args
}

fn left(out: &Path) -> (Vec<Vec<String>>, Vec<u8>) {
    (metrics(out), fs::read(out.join("model.safetensors")).unwrap())
}

/// The stdout and stderr of a run that ends well.
fn succeeds(args: &[&str]) -> (String, String) {
    let output = vit_imagenet(args, 2);
    let (stdout, stderr) = (text(&output.stdout), text(&output.stderr));
    assert!(output.status.success(), "{stderr}");
    (stdout, stderr)
}

/// The epoch is in the checkpoint before anything that may end its report.
#[test]
fn an_epoch_outlives_what_ends_its_evaluation_or_report() {
    let root = tempfile::tempdir().unwrap();
    let [data, whole, out] = ["data", "whole", "run"].map(|name| root.path().join(name));
    tree(&data, 4);
    succeeds(&small(&data, &whole, &[]));

    let image = data.join("val/class-1/0.jpg");
    let bytes = fs::read(&image).unwrap();
    fs::write(&image, "x").unwrap();
    assert!(refused(&small(&data, &out, &[])).contains(path_str(&image)));
    fs::write(&image, bytes).unwrap();

    // A directory in the picture's place stands in for a disk that is full.
    fs::create_dir(out.join("curves.svg")).unwrap();
    let resume = ["--resume", "--out", path_str(&out)];
    let ended = vit_imagenet(&resume, 2);
    assert_eq!(ended.status.code(), Some(1));
    assert!(
        text(&ended.stdout).contains("after step 2\n"),
        "{}",
        text(&ended.stdout)
    );
    assert!(text(&ended.stderr).contains("curves.svg"), "{}", text(&ended.stderr));
    fs::remove_dir(out.join("curves.svg")).unwrap();

    let (stdout, _) = succeeds(&resume);
    assert!(stdout.contains("after step 2\n"), "{stdout}");
    assert!(left(&out) == left(&whole));
}

/// Six images of which one is none: an epoch in which it falls into the last batch would leave a batch of one.
#[test]
fn a_resnet_goes_on_where_an_image_of_its_last_batch_is_skipped() {
    let root = tempfile::tempdir().unwrap();
    let [data, out] = ["data", "run"].map(|name| root.path().join(name));
    tree(&data, 2);
    fs::write(data.join("train/class-1/0.jpg"), "").unwrap();
    let flags = "--unreadable skip --model digits-resnet --image-size 16 --epochs 10 --batch-size 4";
    let (_, stderr) = succeeds(&small(&data, &out, &flags.split(' ').collect::<Vec<_>>()));
    assert!(stderr.contains("cannot be read: 1\n"), "{stderr}");
}

#[test]
fn nothing_to_train_on_is_an_error() {
    let root = tempfile::tempdir().unwrap();
    let [data, out] = ["data", "run"].map(|name| root.path().join(name));
    tree(&data, 1);
    for class in 0..3 {
        fs::write(data.join(format!("train/class-{class}/0.jpg")), "x").unwrap();
    }
    let error = refused(&small(&data, &out, &["--unreadable", "skip"]));
    assert!(error.contains("none of the 3 training images can be read"), "{error}");
}

/// Images that are no longer the run's: the first that differs is named.
#[test]
fn a_run_goes_on_with_the_images_it_was_started_with() {
    let root = tempfile::tempdir().unwrap();
    let [data, out] = ["data", "run"].map(|name| root.path().join(name));
    tree(&data, 3);
    succeeds(&small(&data, &out, &[]));
    let at = |path: &str| data.join(path);
    let resume = ["--resume", "--out", path_str(&out)];
    let first = refused_after(
        &resume,
        || fs::rename(at("train/class-1/1.jpg"), at("train/class-2/4.jpg")).unwrap(),
        || fs::rename(at("train/class-2/4.jpg"), at("train/class-1/1.jpg")).unwrap(),
    );
    assert!(first.contains("train/class-1/1.jpg is gone"), "{first}");

    let bytes = fs::read(at("train/class-1/1.jpg")).unwrap();
    let other = [&bytes[..], b"and more"].concat();
    let second = refused_after(
        &resume,
        || fs::write(at("train/class-1/1.jpg"), &other).unwrap(),
        || fs::write(at("train/class-1/1.jpg"), &bytes).unwrap(),
    );
    let sizes = format!(
        "train/class-1/1.jpg has {} bytes, in the run {}",
        other.len(),
        bytes.len()
    );
    assert!(second.contains(&sizes), "{second}");

    let third = refused_after(
        &resume,
        || fs::rename(at("train/class-1/1.jpg"), at("train/class-1/0a.jpg")).unwrap(),
        || fs::rename(at("train/class-1/0a.jpg"), at("train/class-1/1.jpg")).unwrap(),
    );
    assert!(third.contains("train/class-1/0a.jpg is new"), "{third}");

    let (stdout, _) = succeeds(&resume);
    assert!(stdout.contains("after step 4\n"), "{stdout}");
}

/// What the program says between `change` and `back`.
fn refused_after(args: &[&str], change: impl Fn(), back: impl Fn()) -> String {
    change();
    let error = refused(args);
    back();
    error
}

/// The image that ended a run is another one when it has been mended.
#[test]
fn a_run_goes_on_when_the_image_that_ended_it_is_mended() {
    let root = tempfile::tempdir().unwrap();
    let [data, whole, out] = ["data", "whole", "run"].map(|name| root.path().join(name));
    tree(&data, 4);
    succeeds(&small(&data, &whole, &[]));
    let image = data.join("train/class-1/2.jpg");
    let bytes = fs::read(&image).unwrap();
    fs::write(&image, "x").unwrap();
    assert!(refused(&small(&data, &out, &[])).contains(path_str(&image)));
    fs::write(&image, bytes).unwrap();
    let (_, stderr) = succeeds(&["--resume", "--out", path_str(&out)]);
    assert!(stderr.contains("train/class-1/2.jpg has "), "{stderr}");
    assert!(left(&out) == left(&whole));
    // And ever after.
    succeeds(&["--resume", "--out", path_str(&out)]);
}

/// Starts a long run on the digits, by way of `by` where there is one, and gives it time for its first checkpoint.
fn long_run(out: &Path, by: Option<&str>) -> std::process::Child {
    let args = ["--epochs", "1000", "--checkpoint-every", "1", "--out", path_str(out)];
    let program = command(&args);
    let mut command = match by {
        None => program,
        Some(by) => {
            let mut command = Command::new(by);
            command.arg(program.get_program()).args(program.get_args());
            command.envs(program.get_envs().filter_map(|(name, value)| Some((name, value?))));
            command
        }
    };
    if by.is_none() {
        heed_hangups(&mut command);
    }
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    for _ in 0..6000 {
        if out.join("checkpoint.previous.safetensors").exists() {
            return child;
        }
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    child.kill().and_then(|()| child.wait()).unwrap();
    panic!("no checkpoint in {}", out.display());
}

/// Also where these tests themselves run under `nohup`, whose children ignore SIGHUP, too.
fn heed_hangups(command: &mut Command) {
    #[cfg(unix)]
    {
        use nix::sys::signal::{signal, SigHandler, Signal};
        use std::os::unix::process::CommandExt;
        let default = || {
            // SAFETY: no handler of ours is replaced in the child, which has none yet.
            unsafe { signal(Signal::SIGHUP, SigHandler::SigDfl) }?;
            Ok(())
        };
        // SAFETY: between fork and exec, only `signal` is called, which is safe there.
        unsafe { command.pre_exec(default) };
    }
    #[cfg(not(unix))]
    let _ = command;
}

#[cfg(unix)]
fn send(signal: &str, child: &std::process::Child) {
    let pid = child.id().to_string();
    assert!(Command::new("kill")
        .args(["-s", signal, &pid])
        .status()
        .unwrap()
        .success());
}

#[cfg(unix)]
#[test]
fn what_a_cluster_sends_ends_a_run_with_a_checkpoint() {
    let root = tempfile::tempdir().unwrap();
    for (signal, code) in [("INT", 130), ("TERM", 143), ("HUP", 129)] {
        let mut child = long_run(&root.path().join(signal), None);
        send(signal, &child);
        assert_eq!(child.wait().unwrap().code(), Some(code), "{signal}");
    }
}

#[cfg(unix)]
#[test]
fn a_run_under_nohup_outlives_its_terminal() {
    let root = tempfile::tempdir().unwrap();
    let mut child = long_run(&root.path().join("run"), Some("nohup"));
    send("HUP", &child);
    std::thread::sleep(std::time::Duration::from_millis(500));
    let alive = child.try_wait().unwrap().is_none();
    send("TERM", &child);
    assert!(alive && child.wait().unwrap().code() == Some(143));
}

#[test]
fn two_runs_in_one_directory_are_one_too_many() {
    let root = tempfile::tempdir().unwrap();
    let out = root.path().join("run");
    let mut child = long_run(&out, None);
    let resume = ["--resume", "--out", path_str(&out)];
    let second = vit_imagenet(&resume, 1);
    let evaluated = vit_imagenet(&["--eval-only", "--resume", "--out", path_str(&out)], 1);
    let alive = child.try_wait().unwrap().is_none();
    child.kill().unwrap();
    child.wait().unwrap();
    let error = text(&second.stderr);
    assert_eq!(second.status.code(), Some(1), "{error}");
    assert!(
        error.contains("another run writes to") && error.contains(path_str(&out)),
        "{error}"
    );
    // Who only reads is welcome.
    assert!(alive && evaluated.status.success(), "{}", text(&evaluated.stderr));
    // What a killed run leaves keeps nobody out: it is of the settings that this is refused.
    let error = refused(&[&resume[..], &["--epochs", "1"]].concat());
    assert!(error.contains("epochs is now 1, in the run 1000"), "{error}");
}

/// Killed at any moment of its beginning, a run leaves a directory for another beginning or for `--resume`.
#[test]
fn a_run_that_is_killed_as_it_begins_leaves_nothing_that_is_refused() {
    let root = tempfile::tempdir().unwrap();
    for i in 0..12 {
        let out = root.path().join(format!("run-{i}"));
        let mut command = command(&short(&["--out", path_str(&out)]));
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        while !out.exists() {
            std::thread::yield_now();
        }
        std::thread::sleep(std::time::Duration::from_millis(i));
        child.kill().unwrap();
        child.wait().unwrap();
        if out.join("checkpoint.safetensors").exists() {
            succeeds(&["--resume", "--out", path_str(&out)]);
        } else {
            succeeds(&short(&["--out", path_str(&out)]));
        }
    }
}

/// A pipe, opened, would wait for ever for who writes to it.
#[cfg(unix)]
#[test]
fn what_is_no_image_is_left_out_and_counted() {
    let root = tempfile::tempdir().unwrap();
    let [data, out] = ["data", "run"].map(|name| root.path().join(name));
    tree(&data, 4);
    let fifo = |path: &str| {
        let path = data.join(path);
        assert!(Command::new("mkfifo").arg(&path).status().unwrap().success());
    };
    fifo("train/class-0/a.png");
    std::os::unix::fs::symlink(data.join("train/class-0/a.png"), data.join("train/class-1/b.png")).unwrap();
    for name in ["a.bmp", "b.BMP", "c.tif", "notes", ".hidden.bmp"] {
        fs::write(data.join("train/class-2").join(name), "something").unwrap();
    }
    let (stdout, stderr) = succeeds(&small(&data, &out, &[]));
    assert!(stdout.contains(", 12 images"), "{stdout}");
    let line = "left out of train: .bmp 2, pipes or devices 2, .tif 1, without an extension 1";
    assert!(stderr.lines().any(|said| said.starts_with(line)), "{stderr}");

    fs::remove_file(data.join("val/class-0/0.jpg")).unwrap();
    fifo("val/class-0/0.jpg");
    let error = vit_imagenet(&small(&data, &root.path().join("other"), &[]), 1);
    assert_eq!(error.status.code(), Some(1));
    assert!(
        text(&error.stderr).contains("class-0 holds no image"),
        "{}",
        text(&error.stderr)
    );
}

/// For a hint of its format a file is not read whole, nor a pipe waited for.
#[cfg(unix)]
#[test]
fn what_is_no_file_of_weights_is_not_read() {
    let root = tempfile::tempdir().unwrap();
    let pipe = root.path().join("w.pth");
    assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    for file in [&pipe, Path::new("/dev/zero")] {
        let out = root.path().join("run");
        let error = refused(&short(&["--init-from", path_str(file), "--out", path_str(&out)]));
        assert!(
            error.contains("it is a pipe, a socket or a device: give a file"),
            "{error}"
        );
    }
}

#[test]
fn a_run_that_ends_in_its_warm_up_says_so() {
    let root = tempfile::tempdir().unwrap();
    let said = |name: &str, flags: &str| {
        let out = root.path().join(name);
        let flags = format!("--train-size 96 --epochs 1 {flags}");
        let args: Vec<&str> = flags.split_whitespace().chain(["--out", path_str(&out)]).collect();
        succeeds(&args).1
    };
    let warning = "the run ends in its warm-up and learns next to nothing: it has 2 steps, the warm-up";
    assert_eq!(said("a", ""), format!("{warning} 100 (--warmup-steps)\n"));
    let epochs = "--warmup-epochs 1 --cosine per-step";
    assert_eq!(said("b", epochs), format!("{warning} 2 (--warmup-epochs)\n"));
    assert_eq!(said("c", "--warmup-steps 2"), "");
}

/// The sub-branch learns from whom it is told.
#[test]
fn every_target_trains() {
    let root = tempfile::tempdir().unwrap();
    let out = |name: &str| root.path().join(name);
    let run = |name: &str, flags: &str| {
        let out = out(name);
        let flags = format!("--train-size 64 --batch-size 16 --ema 0.9 {flags} --out");
        let args: Vec<&str> = flags.split(' ').chain([path_str(&out)]).collect();
        succeeds(&args);
        left(&out)
    };
    let main = run("main", "--epochs 2");
    assert!(run("spelt", "--epochs 2 --target main") == main);
    let teacher = out("main").join("model.safetensors");
    let teacher = format!("--epochs 2 --target teacher --teacher {}", path_str(&teacher));
    let others = [
        run("ema", "--epochs 2 --target ema"),
        run("mutual", "--epochs 2 --target mutual"),
        run("teacher", &teacher),
        run("unmasked", "--epochs 2 --mask-ratio-end 0"),
    ];
    for (i, other) in others.iter().enumerate() {
        assert!(*other != main && !others[..i].contains(other), "{i}");
    }
    let text = refused(&["--target", "ema", "--out", path_str(&out("none"))]);
    assert!(text.contains("--ema DECAY"), "{text}");
    let text = refused(&["--target", "teacher", "--out", path_str(&out("none"))]);
    assert!(text.contains("--teacher FILE"), "{text}");
    let text = refused(&["--teacher", "file", "--out", path_str(&out("none"))]);
    assert!(text.contains("--target teacher"), "{text}");
}
