//! Directories: classes, files, links, and what is left out.

use std::fs;

use super::*;

#[test]
fn a_missing_directory_is_named() {
    let root = tempfile::tempdir().unwrap();
    let error = |path: &Path| open(path, Unreadable::Error, 0).err().unwrap();
    let nowhere = root.path().join("nowhere");
    let message = error(&nowhere).to_string();
    assert!(message.starts_with(&format!("{} is not a directory", nowhere.display())));
    let message = error(root.path()).to_string();
    assert!(message.starts_with(&format!("{} is not a directory", root.path().join("train").display())));
}

#[test]
fn a_directory_without_classes_is_named() {
    let root = tree();
    fs::remove_dir_all(root.path().join("val")).unwrap();
    fs::create_dir(root.path().join("val")).unwrap();
    save(grey(16, 0), root.path().join("val/loose.png"));
    let error = open(root.path(), Unreadable::Error, 0).err().unwrap();
    assert!(matches!(error.downcast_ref(), Some(TreeError::NoClasses(path)) if path.ends_with("val")));
}

#[test]
fn a_class_without_images_is_named() {
    let root = tree();
    fs::remove_file(root.path().join("val/dog/d.png")).unwrap();
    fs::write(root.path().join("val/dog/d.gif"), "GIF89a").unwrap();
    let error = open(root.path(), Unreadable::Error, 0).err().unwrap();
    assert!(matches!(error.downcast_ref(), Some(TreeError::EmptyClass(path)) if path.ends_with("val/dog")));
}

#[test]
fn classes_that_differ_are_named() {
    let root = tree();
    fs::rename(root.path().join("val/dog"), root.path().join("val/wolf")).unwrap();
    let error = open(root.path(), Unreadable::Error, 0).err().unwrap().to_string();
    assert_eq!(
        error,
        "the classes of train and val must be the same, but val lacks dog; train lacks wolf"
    );
    let many: Vec<String> = (0..8).map(|i| i.to_string()).collect();
    assert_eq!(missing("val", &many).unwrap(), "val lacks 0, 1, 2, 3, 4 and 3 more");
}

#[cfg(unix)]
#[test]
fn linked_classes_and_files_are_followed_and_loops_are_not() {
    let root = tree();
    let at = |path: &str| root.path().join(path);
    std::os::unix::fs::symlink(at("train/cat"), at("train/bird")).unwrap();
    std::os::unix::fs::symlink(at("val/cat"), at("val/bird")).unwrap();
    std::os::unix::fs::symlink(at("train/dog"), at("train/dog/loop")).unwrap();
    std::os::unix::fs::symlink(at("train/dog/a.jpg"), at("train/dog/linked.jpg")).unwrap();
    let tree = open(root.path(), Unreadable::Error, 0).unwrap();
    assert_eq!(tree.classes, ["bird", "cat", "dog"]);
    assert_eq!(tree.train_len(), 3 + 3 + 4);
    let dog = below(&at("train/dog")).unwrap();
    assert_eq!((dog.files.len(), dog.links), (4, vec![at("train/dog/loop")]));
}

#[cfg(unix)]
#[test]
fn a_class_that_is_a_link_in_a_circle_or_to_nowhere_is_named() {
    let (inner, outer) = ("it is a link to", "which it lies in");
    for (target, reason) in [
        ("train", outer),
        ("", inner),
        ("train/loop", "leads nowhere"),
        ("gone", "leads nowhere"),
    ] {
        let root = tree();
        let link = root.path().join("train/loop");
        std::os::unix::fs::symlink(root.path().join(target), &link).unwrap();
        let error = open(root.path(), Unreadable::Error, 0).err().unwrap().to_string();
        assert!(error.starts_with(&format!("cannot list {}", link.display())), "{error}");
        assert!(error.contains(reason), "{error}");
    }
}

// As the walk that sorted by name went, which decides the draws.
#[test]
fn files_are_in_the_order_of_their_paths() {
    let root = tree();
    for name in ["c.png", "c/x.png", "c.d/x.png", "b/z.png", "B.png"] {
        save(grey(4, 0), root.path().join("train/cat").join(name));
    }
    let class = root.path().join("train/cat");
    let files = below(&class).unwrap().files;
    let walk = WalkDir::new(&class).sort_by_file_name().into_iter().map(Result::unwrap);
    let expected: Vec<PathBuf> = walk
        .filter(|e| !e.file_type().is_dir())
        .map(|e| e.into_path())
        .collect();
    assert_eq!(
        (0..files.len()).map(|i| class.join(files.get(i))).collect::<Vec<_>>(),
        expected
    );
}

#[test]
fn what_is_left_out_is_counted_by_kind() {
    let root = tree();
    let dog = root.path().join("train/dog");
    for name in [
        "a.BMP",
        "b.bmp",
        "c.tif",
        "none",
        ".hidden.bmp",
        "d.1",
        "d.2",
        "d.3",
        "d.4",
    ] {
        fs::write(dog.join(name), "something").unwrap();
    }
    let counts = below(&dog).unwrap().left_out.counts();
    assert_eq!(counts.unwrap(), ".bmp 2, .1 1, .2 1, .3 1, .4 1, .tif 1, others 2");
    assert_eq!(below(&root.path().join("train/cat")).unwrap().left_out.counts(), None);
}

/// As a tree has them that was split in three.
#[test]
fn another_directory_is_evaluated_on_by_its_name() {
    let root = tree();
    let rename = |from: &str, to: &str| fs::rename(root.path().join(from), root.path().join(to)).unwrap();
    let open = |val: &str| {
        let (portion, device) = (Portion::default(), Device::Cpu);
        ImageTree::open(
            root.path(),
            val,
            transform(16, 3),
            Unreadable::Error,
            portion,
            0,
            &device,
        )
    };
    let of = |tree: ImageTree| (tree.files().unwrap(), contents(tree.test_batches(2, Part::ALL)));
    let (files, images) = of(open("val").unwrap());
    rename("val", "test");
    assert_eq!(of(open("test").unwrap()), (files.replace(" val/", " test/"), images));
    assert!(open("val")
        .err()
        .unwrap()
        .to_string()
        .contains("val is not a directory"));
}
