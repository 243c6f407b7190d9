//! What cannot work, and is refused before anything is trained.

use std::fs;

use super::{path_str, refused, short, tree, vit_imagenet};

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
