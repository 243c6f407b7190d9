//! Images that cannot be read.

use std::fs;

use super::*;

#[test]
fn an_unreadable_image_ends_the_run_by_name() {
    for which in 0..5 {
        let root = tree();
        let bad = spoil(root.path());
        for (i, path) in bad.iter().enumerate() {
            if i != which {
                fs::remove_file(path).unwrap();
            }
        }
        let tree = open(root.path(), Unreadable::Error, 0).unwrap();
        let error = tree
            .train_batches(0, 0, Batching::all(4), 0)
            .find_map(|batch| batch.err())
            .unwrap();
        assert!(
            matches!(error.downcast_ref(), Some(TreeError::Unreadable { path, .. }) if *path == bad[which]),
            "{error}"
        );
    }
}

#[test]
fn an_unreadable_image_is_skipped_and_counted_once() {
    let root = tree();
    spoil(root.path());
    let tree = open(root.path(), Unreadable::Skip, 0).unwrap();
    assert_eq!((tree.train_len(), tree.skipped()), (11, 0));
    for epoch in 0..2 {
        // In batches of one there are as many as images.
        let train = contents(tree.train_batches(0, epoch, Batching::all(1), 0));
        assert!(train.len() == 6 && train.iter().all(|batch| batch.2.len() == 1));
        assert_eq!(tree.skipped(), 5);
    }
}

// What the order holds before an image is left out decides nothing: five readable images of six make two batches, none of
// which is a single image.
#[test]
fn batches_are_cut_when_unreadable_images_are_left_out() {
    let root = tree();
    fs::write(root.path().join("train/dog/b.PNG"), "").unwrap();
    let tree = open(root.path(), Unreadable::Skip, 0).unwrap();
    for epoch in 0..10 {
        let sizes = |batch_size| -> Vec<usize> {
            let batches = contents(tree.train_batches(0, epoch, Batching::all(batch_size), 0));
            batches.iter().map(|batch| batch.2.len()).collect()
        };
        assert_eq!(sizes(4), [3, 2]);
        assert_eq!(sizes(3), [3, 2]);
        assert_eq!(sizes(2), [2, 2, 1]);
        assert_eq!(sizes(5), [5]);
        assert_eq!(sizes(64), [5]);
    }
}

#[test]
fn nothing_that_can_be_read_is_an_error() {
    let root = tree();
    for image in [
        "cat/a.JPEG",
        "cat/b.png",
        "cat/deeper/c.webp",
        "dog/a.jpg",
        "dog/b.PNG",
        "dog/c.webp",
    ] {
        fs::write(root.path().join("train").join(image), "").unwrap();
    }
    let tree = open(root.path(), Unreadable::Skip, 0).unwrap();
    let batches: Vec<_> = tree.train_batches(0, 0, Batching::all(4), 0).collect();
    let [Err(error)] = &batches[..] else {
        panic!("{} batches", batches.len());
    };
    let says = "none of the 6 training images can be read, such as ";
    assert!(error.to_string().starts_with(says), "{error}");
    // Behind the images that an epoch began with there may be nothing any more.
    assert_eq!(tree.train_batches(0, 0, Batching::all(4), 6).count(), 0);
}

#[test]
fn images_keep_their_labels_where_others_are_left_out() {
    let root = tree();
    let whole = contents(
        open(root.path(), Unreadable::Error, 0)
            .unwrap()
            .test_batches(8, Part::ALL),
    );
    for bad in ["val/cat/a.png", "val/cat/z.png", "val/dog/a.jpg"] {
        fs::write(root.path().join(bad), "no image").unwrap();
    }
    let tree = open(root.path(), Unreadable::Skip, 0).unwrap();
    assert_eq!(contents(tree.test_batches(8, Part::ALL)), whole);
    assert_eq!(tree.skipped(), 3);
}
