//! Runs as processes, with a script in the place of the program that trains.

#![cfg(unix)]

use crate::interrupt;
use crate::program::Program;
use crate::runs::{Interrupted, Pool};
use crate::study::{Across, Method, Point, Study};
use crate::{pictures, sweep, table, train, Compared};
use nix::sys::signal::{kill, Signal};
use nix::unistd::Pid;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// Writes what `vit_imagenet` would, each branch at an accuracy of its own, and a line for each start: of a resumed run
/// `--resume`, else its first argument.
const SCRIPT: &str = r#"#!/bin/sh
first=$1
top1=70 loss=1 seconds=0.25 branch=none
while [ $# -gt 0 ]; do
    case $1 in
        --out) out=$2; shift ;;
        --seed) seed=$2; shift ;;
        --branch) branch=$2; [ "$2" = none ] || { top1=90; loss=0.5; seconds=0.5; }; shift ;;
        --lr) lr=$2; shift ;;
        --weight-decay) decay=$2; shift ;;
        --fail) echo "first line" >&2; echo "error: the disk is full" >&2; exit 1 ;;
        --wait) waits=yes ;;
    esac
    shift
done
mkdir -p "$out"
echo "$first" >> "$out/starts"
if [ -n "$waits" ]; then
    # Late enough that who does not wait for it does not find it.
    trap 'sleep 0.5; echo checkpoint > "$out/checkpoint.safetensors"; exit 143' TERM
    touch "$out/waits"
    for _ in $(seq 1500); do sleep 0.02; done
    exit 1
fi
case $branch:$lr in
    none:8e-3) echo "error: the main loss is NaN" >&2; exit 3 ;;
    masksub:8e-3) top1=99; loss= ;;
    none:1e-3|masksub:4e-3) top1=$((top1 + 3)) ;;
esac
case $branch:$decay in none:0.2|masksub:0.02) top1=$((top1 + 2)) ;; esac
[ -n "$seed" ] || seed=0
echo checkpoint > "$out/checkpoint.safetensors"
cat > "$out/metrics.csv" <<CSV
epoch,step,train_loss_main,train_loss_sub,test_loss,test_top1,test_top5,train_cpu_seconds,train_seconds,seconds
1,5,2.5,,2,50,90,$seconds,7,8
2,10,1.5,,$loss,$((top1 + seed)),99,$seconds,7,8
CSV
"#;

fn pool(root: &Path) -> Pool {
    let script = root.join("script");
    fs::write(&script, SCRIPT).unwrap();
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
    Pool::new(Program(script), root.join("runs"), 2)
}

fn methods(texts: &[&str]) -> Vec<Method> {
    texts.iter().map(|text| Method::parse(text).unwrap()).collect()
}

fn compared(root: &Path, texts: &[&str], seeds: u64) -> anyhow::Result<Vec<Compared>> {
    train(&methods(texts), &["--epochs".into(), "2".into()], seeds, &pool(root))
}

const TWO: [&str; 2] = ["plain=--branch none", "MaskSub 0.5=--branch masksub"];

#[test]
fn what_is_done_is_not_run_again_and_what_is_torn_goes_on() {
    let root = tempfile::tempdir().unwrap();
    let starts = |run: &str| fs::read_to_string(root.path().join("runs").join(run).join("starts")).unwrap();
    let run = |seeds| compared(root.path(), &TWO, seeds).unwrap();
    run(2);
    run(3);
    for name in ["plain/seed-0", "masksub-0.5/seed-1", "plain/seed-2"] {
        assert_eq!(starts(name), "--epochs\n", "{name}");
    }
    let dir = root.path().join("runs/masksub-0.5");
    assert!(!dir.join("seed-1/checkpoint.safetensors").exists());

    // As a kill leaves it: begun, with a checkpoint; and begun without one.
    fs::rename(dir.join("seed-1.done"), dir.join("seed-1.started")).unwrap();
    fs::write(dir.join("seed-1/checkpoint.safetensors"), "").unwrap();
    fs::rename(dir.join("seed-2.done"), dir.join("seed-2.started")).unwrap();
    run(3);
    assert_eq!(starts("masksub-0.5/seed-1"), "--epochs\n--resume\n");
    assert_eq!(starts("masksub-0.5/seed-2"), "--epochs\n--epochs\n");
    assert_eq!(starts("masksub-0.5/seed-0"), "--epochs\n");

    // Under the same name other flags are another run, whether the first is done or was left off.
    fs::rename(dir.join("seed-2.done"), dir.join("seed-2.started")).unwrap();
    for seeds in [1, 3] {
        let other = compared(root.path(), &["MaskSub 0.5=--branch masksub --lr 1"], seeds);
        let error = other.err().unwrap().to_string();
        assert!(error.contains("other flags") && error.contains("--lr 1"), "{error}");
    }
}

#[test]
fn a_run_that_fails_is_named_with_what_it_said() {
    let root = tempfile::tempdir().unwrap();
    let error = compared(root.path(), &["plain=--branch none", "odd=--fail"], 2)
        .err()
        .unwrap();
    let error = error.to_string();
    assert!(
        error.starts_with("odd, seed ") && error.contains("error: the disk is full"),
        "{error}"
    );
}

/// Where a process that a test has started makes its runs.
const ROOT: &str = "COMPARE_TEST_ROOT";
const WAITING: [&str; 2] = ["plain=--wait --branch none", "MaskSub=--wait --branch masksub"];

/// The program in the place of its tests, where one of those has started this executable.
#[test]
fn started_by_another_test_this_makes_runs_until_it_is_interrupted() {
    if let Some(root) = std::env::var_os(ROOT) {
        interrupt::watch().unwrap();
        let error = compared(Path::new(&root), &WAITING, 3).err().unwrap();
        assert!(error.is::<Interrupted>(), "{error:#}");
        std::process::exit(interrupt::exit_code().into());
    }
}

/// What a cluster sends reaches the runs, which end before this program does, and go on afterwards.
#[test]
fn a_signal_is_passed_on_and_nothing_is_left_running() {
    let root = tempfile::tempdir().unwrap();
    let this = "tests::started_by_another_test_this_makes_runs_until_it_is_interrupted";
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", this, "--test-threads=1", "--nocapture"]);
    command
        .env(ROOT, root.path())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    let mut started = command.spawn().unwrap();
    let of = |run: &str, name: &str| root.path().join("runs").join(run).join(name);
    let runs = ["plain/seed-0", "masksub/seed-0"];
    let since = Instant::now();
    while !runs.iter().all(|run| of(run, "waits").exists()) {
        assert!(since.elapsed() < Duration::from_secs(60), "the runs do not begin");
        std::thread::sleep(Duration::from_millis(10));
    }
    kill(Pid::from_raw(started.id() as i32), Signal::SIGTERM).unwrap();
    assert_eq!(started.wait().unwrap().code(), Some(128 + Signal::SIGTERM as i32));
    for run in runs {
        assert!(of(run, "checkpoint.safetensors").exists(), "{run}");
    }
    assert!(!of("plain/seed-1", "starts").exists());

    compared(root.path(), &WAITING, 1).unwrap();
    for run in runs {
        assert_eq!(fs::read_to_string(of(run, "starts")).unwrap(), "--epochs\n--resume\n");
    }
}

/// A full disk is no property of the settings that are tried.
#[test]
fn a_sweep_ends_with_what_is_no_divergence() {
    let root = tempfile::tempdir().unwrap();
    let study = Study {
        name: "one".into(),
        methods: methods(&["odd=--branch masksub --fail"]),
        flags: vec!["--epochs".into(), "2".into()],
        choosing: vec!["--validation".into(), "9".into()],
        reporting: vec![],
        seeds: 1,
        images: None,
    };
    let error = sweep::best(&study, 1, &pool(root.path()).letting_diverge()).unwrap_err();
    assert!(error.to_string().contains("error: the disk is full"), "{error}");
}

/// One that diverges, and one that ends without a loss whatever its accuracy, are not chosen, and end nothing. Neither is
/// tried again.
#[test]
fn a_sweep_finds_each_methods_own_best() {
    let root = tempfile::tempdir().unwrap();
    let study = Study {
        name: "two".into(),
        methods: methods(&TWO),
        flags: vec!["--epochs".into(), "2".into()],
        choosing: vec!["--validation".into(), "9".into()],
        reporting: vec![],
        seeds: 1,
        images: None,
    };
    let best = || sweep::best(&study, 2, &pool(root.path()).letting_diverge()).unwrap();
    let first = best();
    let best = best();
    assert_eq!(first, best);
    let diverged = root
        .path()
        .join("runs/plain-lr-8e-3-weight-decay-0.05-drop-path-0/seed-0");
    assert_eq!(fs::read_to_string(diverged.join("starts")).unwrap(), "--epochs\n");
    let flags: Vec<String> = best.iter().map(|method| method.flags.join(" ")).collect();
    assert_eq!(
        flags,
        [
            "--branch none --lr 1e-3 --weight-decay 0.2 --drop-path 0",
            "--branch none --epochs 4 --lr 1e-3 --weight-decay 0.2 --drop-path 0",
            "--branch masksub --lr 4e-3 --weight-decay 0.02 --drop-path 0",
        ]
    );
}

#[test]
fn tables_and_pictures_show_what_was_measured() {
    let root = tempfile::tempdir().unwrap();
    let two = compared(root.path(), &TWO, 2).unwrap();
    let table = table::markdown(&two).unwrap();
    let lines: Vec<&str> = table.lines().collect();
    assert_eq!(lines.len(), 4);
    assert_eq!(lines[2], "| plain | `--branch none` | 70.5 ± 0.7 |  | 1.000 | 1.00 |");
    // 20 more with either seed.
    assert_eq!(
        lines[3],
        "| MaskSub 0.5 | `--branch masksub` | 90.5 ± 0.7 | +20.0 [+20.0, +20.0] | 0.500 | 2.00 |"
    );
    let csv = table::csv(&two).unwrap();
    assert_eq!(csv.lines().count(), 5);
    // A quarter of a second for five steps.
    assert!(
        csv.contains("plain,1,71.000,99.000,1.00000,10,50.000,0.5,--epochs 2 --branch none --seed 1"),
        "{csv}"
    );

    let pictures = |compared: &[Compared]| pictures::all(compared).unwrap();
    let names = |compared: &[Compared]| pictures(compared).iter().map(|picture| picture.0).collect::<Vec<_>>();
    assert_eq!(names(&two), ["loss"]);
    let mut grid = two;
    grid.extend(compared(root.path(), &["MaskSub 0.7=--branch masksub --mask-ratio 0.7"], 2).unwrap());
    for (one, ratio) in grid[1..].iter_mut().zip([0.5, 0.7]) {
        one.method.point = Some(point("MaskSub", Across::Ratio, ratio));
    }
    assert_eq!(names(&grid), ["accuracy", "loss"]);
    let accuracy = &pictures(&grid)[0].1;
    for text in ["plain", "MaskSub", "mask ratio"] {
        assert!(accuracy.contains(text), "{text}");
    }
    assert!(!accuracy.contains("NaN"));
}

fn point(line: &str, across: Across, at: f64) -> Point {
    Point {
        line: line.into(),
        across,
        at,
    }
}

#[test]
fn each_group_is_compared_with_its_own_first() {
    let root = tempfile::tempdir().unwrap();
    let texts = [
        "plain=--branch none",
        "MaskSub=--branch masksub",
        "plain=--branch none --lr 1e-3",
        "MaskSub=--branch masksub --lr 4e-3",
    ];
    let mut methods = methods(&texts);
    for (i, method) in methods.iter_mut().enumerate() {
        let images = [10, 1000][i / 2];
        method.group = Some(format!("{images} images"));
        method.point = Some(point(["plain", "MaskSub"][i % 2], Across::Images, f64::from(images)));
    }
    let mut all = train(&methods, &["--epochs".into(), "2".into()], 2, &pool(root.path())).unwrap();
    let table = table::markdown(&all).unwrap();
    let lines: Vec<&str> = table.lines().collect();
    assert!(lines[0].contains("| difference to plain [95 %] |"), "{table}");
    assert!(lines[4].starts_with("| plain, 1000 images |"), "{table}");
    assert!(lines[4].contains("| 73.5 ± 0.7 |  |"), "{table}");
    assert!(lines[5].contains("| 93.5 ± 0.7 | +20.0 [+20.0, +20.0] |"), "{table}");
    let pictures = pictures::all(&all).unwrap();
    assert_eq!(pictures[0].0, "accuracy");
    for text in ["plain", "MaskSub", "training images", "10", "1000"] {
        assert!(pictures[0].1.lines().any(|line| line.trim() == text), "{text}");
    }
    // One that is added is no plain training to draw behind all of them.
    all.extend(compared(root.path(), &["added=--branch masksub --lr 1"], 2).unwrap());
    let accuracy = &pictures::all(&all).unwrap()[0].1;
    assert!(!accuracy.lines().any(|line| line.trim() == "added"));

    // As a sweep leaves them.
    for (one, lr) in all.iter_mut().zip(["1e-3", "2e-3", "4e-3", "8e-3"]) {
        one.method = one.method.with("--lr", lr);
    }
    let table = table::markdown(&all).unwrap();
    assert!(
        table.contains("| difference to the first of each group [95 %] |"),
        "{table}"
    );
    assert!(table.contains("| MaskSub, lr 8e-3, 1000 images |"), "{table}");
}
