//! What the compiler says where a model, a branch or a mask is not what it is taken for: the remedy, not only the trait.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::SystemTime;

/// The library that this test was built with, or a newer build of it.
fn library(deps: &Path) -> PathBuf {
    let entries = fs::read_dir(deps).unwrap().map(|entry| entry.unwrap().path());
    let is_library = |path: &PathBuf| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        name.starts_with("libmasksub-") && name.ends_with(".rlib")
    };
    let modified = |path: &PathBuf| path.metadata().and_then(|metadata| metadata.modified());
    let newest = entries
        .filter(is_library)
        .max_by_key(|path| modified(path).unwrap_or(SystemTime::UNIX_EPOCH));
    newest.unwrap_or_else(|| panic!("no library in {}", deps.display()))
}

/// What the compiler says of a function with this body, given a candle module, its parameters and a ResNet; none where it
/// compiles.
fn said_of(body: &str) -> Option<String> {
    let program = std::env::current_exe().unwrap();
    let deps = program.parent().unwrap();
    let directory = tempfile::tempdir().unwrap();
    let source = directory.path().join("user.rs");
    let given = "net: masksub::nn::Linear, resnet: masksub::models::resnet::ResNet, params: &Params";
    let text = format!("use masksub::*;\npub fn user({given}) -> Result<()> {{\n    {body}\n    Ok(())\n}}\n");
    fs::write(&source, text).unwrap();
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let output = Command::new(rustc)
        .args([
            "--edition",
            "2021",
            "--crate-type",
            "lib",
            "--emit",
            "metadata",
            "--out-dir",
        ])
        .arg(directory.path())
        .arg("-L")
        .arg(format!("dependency={}", deps.display()))
        .arg("--extern")
        .arg(format!("masksub={}", library(deps).display()))
        .arg(source)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    (!output.status.success()).then_some(said)
}

/// The message in one line, without the frame that the compiler draws around it.
#[track_caller]
fn assert_says(body: &str, words: [&str; 2]) {
    let said = said_of(body).unwrap_or_else(|| panic!("it compiles: {body}"));
    let parts = said.split_whitespace().filter(|part| !["|", "="].contains(part));
    let line = parts.collect::<Vec<_>>().join(" ");
    for words in words {
        assert!(line.contains(words), "no `{words}` in: {said}");
    }
}

#[test]
fn of_a_module_that_is_no_model() {
    assert!(said_of("MaskSub::new(Plain(net), DropSub::new(0.1)?, params);").is_none());
    let words = [
        "is no model that a sub-branch can run as a whole",
        "call `MaskSub::wrap(module, ..)`",
    ];
    assert_says("MaskSub::new(net, DropSub::new(0.1)?, params);", words);
    let branch = "PatchDrop::new(RandomMasking::new(0.5)?, 16)?";
    assert!(said_of(&format!("MaskSub::wrap(net, {branch}, params);")).is_none());
    assert_says(&format!("MaskSub::new(net, {branch}, params);"), words);
}

#[test]
fn of_a_model_without_tokens() {
    let words = [
        "is no model whose tokens can be dropped",
        "for a ResNet or any other module take `PatchDrop`",
    ];
    assert_says(
        "MaskSub::new(resnet, DropToken::new(RandomMasking::new(0.5)?), params);",
        words,
    );
}

#[test]
fn of_a_ratio_that_is_no_generator() {
    let words = [
        "does not say which positions are kept",
        "write `RandomMasking::new(0.5)?`",
    ];
    assert_says("DropToken::new(0.5);", words);
}

#[test]
fn of_what_is_no_sub_branch() {
    let words = [
        "cannot make a sub-model of",
        "`PatchDrop`, `DropSub` and `PathSub` for any `Forward`",
    ];
    assert_says("MaskSub::new(resnet, RandomMasking::new(0.5)?, params);", words);
}
