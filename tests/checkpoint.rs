//! Checkpoints of a run: what is saved is what is loaded, and nothing that happens while one is written loses the last.

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use candle_core::{DType, Tensor};
use common::{numbers, randn, CPU};
use masksub::train::checkpoint::Checkpoint;
use masksub::{Error, Seed};

fn tensors() -> BTreeMap<String, Tensor> {
    let strided = randn((4, 6), "strided").t().unwrap();
    BTreeMap::from([
        ("fc.weight".to_string(), randn((3, 5), "fc")),
        ("half".to_string(), randn(7, "half").to_dtype(DType::BF16).unwrap()),
        ("wide".to_string(), randn((2, 2), "wide").to_dtype(DType::F64).unwrap()),
        ("strided".to_string(), strided),
        ("steps".to_string(), Tensor::new(12i64, &CPU).unwrap()),
        ("empty".to_string(), Tensor::zeros((0, 3), DType::F32, &CPU).unwrap()),
        ("a/b".to_string(), randn(2, "slash")),
    ])
}

fn checkpoint(step: usize) -> Checkpoint {
    Checkpoint::new(step, Seed::new(u64::MAX))
        .with_setting("lr", 1e-3)
        .with_setting("note", "naïve \"quotes\"\nand lines")
        .with_section("model", tensors())
        .with_section("optim", [("x".to_string(), randn(step + 1, "x"))])
        .with_section("none", [])
}

fn same(a: &BTreeMap<String, Tensor>, b: &BTreeMap<String, Tensor>) {
    assert_eq!(a.keys().collect::<Vec<_>>(), b.keys().collect::<Vec<_>>());
    for (name, a) in a {
        let b = &b[name];
        assert_eq!((a.dims(), a.dtype()), (b.dims(), b.dtype()), "{name}");
        assert_eq!(numbers(a), numbers(b), "{name}");
    }
}

#[test]
fn what_is_saved_is_loaded() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("run.safetensors");
    checkpoint(3).save(&path).unwrap();
    let loaded = Checkpoint::load(&path).unwrap();
    assert_eq!((loaded.step(), loaded.seed()), (3, Seed::new(u64::MAX)));
    assert_eq!(loaded.settings(), checkpoint(3).settings());
    same(loaded.section("model").unwrap(), &tensors());
    assert_eq!(loaded.section("optim").unwrap()["x"].dims(), [4]);
    assert!(loaded.has_section("none") && loaded.section("none").unwrap().is_empty());
    let error = loaded.section("ema").unwrap_err().to_string();
    assert!(error.contains("ema") && error.contains("model, none, optim"), "{error}");
    // Other programs can read it, too.
    let plain = candle_core::safetensors::load(&path, &CPU).unwrap();
    assert_eq!(numbers(&plain["model/fc.weight"]), numbers(&tensors()["fc.weight"]));
}

fn names(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).unwrap();
    let mut names: Vec<String> = entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn the_one_before_is_kept_and_nothing_else() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("run.safetensors");
    assert!(Checkpoint::load_last(&path).unwrap().is_none());
    for step in 1..4 {
        checkpoint(step).save(&path).unwrap();
    }
    assert_eq!(names(directory.path()), ["run.previous.safetensors", "run.safetensors"]);
    let step = |name: &str| Checkpoint::load(directory.path().join(name)).unwrap().step();
    assert_eq!((step("run.safetensors"), step("run.previous.safetensors")), (3, 2));
    // A name without a directory or an extension is one, too.
    let bare = directory.path().join("run");
    checkpoint(1).save(&bare).unwrap();
    checkpoint(2).save(&bare).unwrap();
    assert_eq!(step("run.previous"), 1);
}

#[test]
fn a_torn_or_foreign_file_is_refused_by_name_and_the_one_before_is_used() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("run.safetensors");
    checkpoint(1).save(&path).unwrap();
    checkpoint(2).save(&path).unwrap();
    let whole = fs::read(&path).unwrap();
    let mut damaged: Vec<(&str, Vec<u8>)> = vec![("empty", vec![]), ("garbage", b"no safetensors at all".to_vec())];
    for end in [4, 9, whole.len() / 3, whole.len() / 2, whole.len() - 1] {
        damaged.push(("cut", whole[..end].to_vec()));
    }
    // As a file system may leave it when the power goes: of full length, with zeros for what never arrived.
    let mut zeros = whole.clone();
    let length = zeros.len();
    zeros[length - 40..].fill(0);
    damaged.push(("zeros", zeros));
    for at in [length - 1, length - 100, length / 2, 300] {
        let mut flipped = whole.clone();
        flipped[at] ^= 1;
        damaged.push(("flipped", flipped));
    }
    let foreign = directory.path().join("foreign");
    safetensors::serialize_to_file([("fc.weight", randn(3, "fc"))], None, &foreign).unwrap();
    damaged.push(("foreign", fs::read(&foreign).unwrap()));
    for (what, bytes) in damaged {
        fs::write(&path, bytes).unwrap();
        let error = Checkpoint::load(&path).unwrap_err();
        assert!(matches!(error, Error::File { .. }), "{what}: {error}");
        assert!(
            error.to_string().starts_with(&path.display().to_string()),
            "{what}: {error}"
        );
        let why = match what {
            "empty" | "cut" => "it is cut off",
            "garbage" => "its header of",
            "foreign" => "this is no checkpoint of masksub",
            // Wherever it is.
            _ => "",
        };
        assert!(error.to_string().contains(why), "{what}: {error}");
        let found = Checkpoint::load_last(&path).unwrap().unwrap();
        assert_eq!(found.checkpoint.step(), 1, "{what}");
        assert_eq!(format!("{:?}", found.refused.unwrap()), format!("{error:?}"), "{what}");
        assert!(found.path.ends_with("run.previous.safetensors"));
    }
    // Killed between the two renames: the new one is not there yet.
    fs::remove_file(&path).unwrap();
    assert_eq!(Checkpoint::load_last(&path).unwrap().unwrap().checkpoint.step(), 1);
    // Neither can be used: that is no new run.
    fs::write(&path, b"torn").unwrap();
    fs::write(directory.path().join("run.previous.safetensors"), b"torn, too").unwrap();
    let error = Checkpoint::load_last(&path).unwrap_err().to_string();
    assert!(error.starts_with(&path.display().to_string()), "{error}");
}

#[cfg(unix)]
#[test]
fn it_is_readable_as_any_file_is() {
    use std::os::unix::fs::PermissionsExt;
    let directory = tempfile::tempdir().unwrap();
    let (path, other) = (directory.path().join("run"), directory.path().join("other"));
    checkpoint(1).save(&path).unwrap();
    fs::write(&other, b"").unwrap();
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode();
    assert_eq!(mode(&path), mode(&other));
}

#[test]
fn another_version_says_so() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("run.safetensors");
    let metadata = [("format", "masksub-checkpoint"), ("version", "7")];
    let metadata = metadata.map(|(key, value)| (key.to_string(), value.to_string())).into();
    safetensors::serialize_to_file([("model/w", randn(3, "w"))], Some(metadata), &path).unwrap();
    let error = Checkpoint::load(&path).unwrap_err().to_string();
    assert!(error.contains("version is 7"), "{error}");
}

#[test]
fn what_was_half_written_is_cleared_and_never_read() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("run.safetensors");
    checkpoint(1).save(&path).unwrap();
    // As a kill in the midst of writing leaves it.
    let partial = directory.path().join(".run.safetensors.partial");
    fs::create_dir(&partial).unwrap();
    fs::write(partial.join(".tmpXYZ"), vec![0; 1000]).unwrap();
    fs::write(partial.join("new"), b"half").unwrap();
    assert_eq!(Checkpoint::load_last(&path).unwrap().unwrap().checkpoint.step(), 1);
    checkpoint(2).save(&path).unwrap();
    assert_eq!(names(directory.path()), ["run.previous.safetensors", "run.safetensors"]);
    assert_eq!(Checkpoint::load(&path).unwrap().step(), 2);
}

#[test]
fn a_checkpoint_that_cannot_be_written_leaves_the_last() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("run.safetensors");
    checkpoint(1).save(&path).unwrap();
    // A file stands where the directory for the new one would.
    fs::write(directory.path().join(".run.safetensors.partial"), b"").unwrap();
    let error = checkpoint(2).save(&path).unwrap_err();
    assert!(
        matches!(error, Error::File { .. }) && error.to_string().ends_with("cannot write the checkpoint"),
        "{error}"
    );
    let cause = std::error::Error::source(&error).and_then(|cause| cause.downcast_ref::<std::io::Error>());
    assert!(cause.is_some(), "{error:?}");
    assert_eq!(Checkpoint::load(&path).unwrap().step(), 1);

    let nowhere = directory.path().join("absent").join("deep");
    fs::write(directory.path().join("absent"), b"").unwrap();
    assert!(matches!(
        checkpoint(2).save(nowhere.join("run")),
        Err(Error::File { .. })
    ));
    let slash = Checkpoint::new(0, Seed::new(0)).with_section("a/b", []);
    assert!(matches!(
        slash.save(&path),
        Err(Error::InvalidArgument {
            argument: "section",
            ..
        })
    ));
    assert_eq!(Checkpoint::load(&path).unwrap().step(), 1);
}

/// Whatever stands in the way of the last checkpoint, and at whichever moment the process goes.
#[test]
fn there_is_a_whole_one_at_every_moment() {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    let path = at("run.safetensors");
    checkpoint(1).save(&path).unwrap();
    checkpoint(2).save(&path).unwrap();
    let next = at("next.safetensors");
    checkpoint(3).save(&next).unwrap();
    let last = || Checkpoint::load_last(&path).unwrap().unwrap();
    // The last is torn, and becomes the one before; the new one is whole, but not in its place yet.
    fs::write(&path, b"torn").unwrap();
    assert_eq!(last().checkpoint.step(), 1);
    fs::create_dir(at(".run.safetensors.partial")).unwrap();
    fs::rename(&next, at(".run.safetensors.partial/new")).unwrap();
    assert_eq!(last().checkpoint.step(), 3);
    fs::rename(&path, at("run.previous.safetensors")).unwrap();
    assert_eq!(last().checkpoint.step(), 3);
    assert!(last().path.ends_with(".run.safetensors.partial/new"));
    checkpoint(4).save(&path).unwrap();
    assert_eq!(last().checkpoint.step(), 4);
    // Nothing at its place, and the one before is torn: that is what is told.
    fs::remove_file(&path).unwrap();
    let error = Checkpoint::load_last(&path).unwrap_err().to_string();
    assert!(error.contains("run.previous.safetensors"), "{error}");
}

/// Who reads while a run writes, or after its kill, is not sent to the one before.
#[test]
fn the_last_is_in_its_place_while_the_next_is_put_there() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("run.safetensors");
    checkpoint(0).save(&path).unwrap();
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| (1..200).for_each(|step| checkpoint(step).save(&path).unwrap()));
        while !writer.is_finished() {
            assert!(path.exists());
        }
    });
}

#[test]
fn a_directory_is_left_where_it_is() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("run");
    fs::create_dir(&path).unwrap();
    fs::write(path.join("precious"), b"data").unwrap();
    assert!(matches!(checkpoint(1).save(&path), Err(Error::File { .. })));
    assert_eq!(fs::read(path.join("precious")).unwrap(), b"data");
    assert!(
        Checkpoint::load_last(&path).is_err(),
        "something is there: this is no new run"
    );
}

#[test]
fn a_path_that_cannot_be_looked_at_is_no_new_run() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("file");
    fs::write(&file, b"").unwrap();
    assert!(Checkpoint::load_last(file.join("run.safetensors")).is_err());
}

#[test]
fn there_may_be_no_section() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("run.safetensors");
    Checkpoint::new(1, Seed::new(2)).save(&path).unwrap();
    assert!(!Checkpoint::load(&path).unwrap().has_section(""));
}
