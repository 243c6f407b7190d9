//! Runs as processes, with a script in the place of the program that trains.

#![cfg(unix)]

use crate::program::Program;
use crate::runs::Pool;
use crate::study::{Method, Study};
use crate::{pictures, sweep, table, train, Compared};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

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
    esac
    shift
done
case $branch:$lr in
    none:8e-3) echo "error: the loss is NaN" >&2; exit 1 ;;
    masksub:8e-3) top1=99; loss= ;;
    none:1e-3|masksub:4e-3) top1=$((top1 + 3)) ;;
esac
case $branch:$decay in none:0.2|masksub:0.02) top1=$((top1 + 2)) ;; esac
mkdir -p "$out"
echo "$first" >> "$out/starts"
[ -n "$seed" ] || seed=0
echo checkpoint > "$out/checkpoint.safetensors"
cat > "$out/metrics.csv" <<CSV
epoch,step,train_loss_main,train_loss_sub,test_loss,test_top1,test_top5,train_seconds,seconds
1,5,2.5,,2,50,90,$seconds,1
2,10,1.5,,$loss,$((top1 + seed)),99,$seconds,1
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

/// One that diverges, and one that ends without a loss whatever its accuracy, are not chosen, and end nothing.
#[test]
fn a_sweep_finds_each_methods_own_best() {
    let root = tempfile::tempdir().unwrap();
    let study = Study {
        name: "two".into(),
        methods: methods(&TWO),
        flags: vec!["--epochs".into(), "2".into()],
        seeds: 1,
    };
    let best = sweep::best(&study, 2, &pool(root.path()).going_on()).unwrap();
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
        one.method.point = Some(("MaskSub".into(), ratio));
    }
    assert_eq!(names(&grid), ["accuracy", "loss"]);
    let accuracy = &pictures(&grid)[0].1;
    for text in ["plain", "MaskSub", "mask ratio"] {
        assert!(accuracy.contains(text), "{text}");
    }
    assert!(!accuracy.contains("NaN"));
}
