//! The program as its users run it: a process for each run.

mod misuse;
mod outputs;
mod refusals;
mod resuming;
mod training;

use std::fs;
use std::path::Path;
use std::process::{Command, Output, Stdio};

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
        headers.iter().rev().take(3).collect::<Vec<_>>(),
        ["seconds", "train_seconds", "train_cpu_seconds"]
    );
    let row = |row: csv::StringRecord| row.iter().take(row.len() - 3).map(str::to_string).collect();
    reader.records().map(|record| row(record.unwrap())).collect()
}

/// A sentence on one line and exit code 1, not a panic (101) and no backtrace.
fn refused(args: &[&str]) -> String {
    let output = vit_imagenet(args, 1);
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert_eq!(stderr.lines().count(), 1, "{stderr}");
    stderr
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

/// Weights of a run by name.
fn weights(out: &Path) -> std::collections::HashMap<String, candle_core::Tensor> {
    candle_core::safetensors::load(out.join("model.safetensors"), &candle_core::Device::Cpu).unwrap()
}

/// Its numbers; the counts of batch norms are whole ones.
fn values(tensor: &candle_core::Tensor) -> Vec<f64> {
    let tensor = tensor.to_dtype(candle_core::DType::F64).unwrap();
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}
