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
