use super::*;
use crate::data::augment::{Augment, Crop, Interpolation};
use crate::data::idx::tests::{compressed, file};
use masksub::augment::Normalize;
use std::fs;

/// Training images of 3 x 2 pixels, of which each tells its number, and test images that tell theirs and 100.
const TRAIN: u8 = 10;
const TEST: u8 = 4;

fn pixels(count: u8, first: u8) -> Vec<u8> {
    (0..count).flat_map(|i| [first + i; 6]).collect()
}

fn labels(count: u8) -> Vec<u8> {
    (0..count).map(|i| i % 3).collect()
}

/// Some files are compressed, as somebody may have left them.
fn write(root: &Path) {
    let put = |name: &str, bytes: Vec<u8>| fs::write(root.join(name), bytes).unwrap();
    put(IMAGES[0], file(&[TRAIN.into(), 3, 2], &pixels(TRAIN, 0)));
    put(
        &format!("{}.gz", LABELS[0]),
        compressed(&file(&[TRAIN.into()], &labels(TRAIN))),
    );
    put(
        &format!("{}.gz", IMAGES[1]),
        compressed(&file(&[TEST.into(), 3, 2], &pixels(TEST, 100))),
    );
    put(LABELS[1], file(&[TEST.into()], &labels(TEST)));
}

fn open(root: &Path, portion: Portion, augment: Augment) -> Result<GreySet> {
    let settings = Settings {
        image_size: 8,
        channels: 1,
        normalize: Normalize::INCEPTION,
        interpolation: Interpolation::Bilinear,
        crop_pct: 1.0,
        augment,
    };
    GreySet::open(root, Transform::new(settings)?, portion, &Device::Cpu)
}

/// The number that each image tells, and its label.
fn told(batches: Batches) -> Vec<(u8, u32)> {
    let of_batch = |batch: Result<Batch>| {
        let batch = batch.unwrap();
        let images = batch.images.flatten_from(1).unwrap().to_vec2::<f32>().unwrap();
        let number = |values: &Vec<f32>| ((values[0] * 0.5 + 0.5) * 255.0).round() as u8;
        let labels = batch.labels.to_vec1::<u32>().unwrap();
        images.iter().map(number).zip(labels).collect::<Vec<_>>()
    };
    batches.flat_map(of_batch).collect()
}

#[test]
fn images_and_labels_belong_together_in_both_splits() {
    let root = tempfile::tempdir().unwrap();
    assert!(!is_at(root.path()));
    write(root.path());
    assert!(is_at(root.path()));
    let set = open(root.path(), Portion::default(), Augment::NONE).unwrap();
    assert_eq!((set.num_classes(), set.train_len(), set.test_len()), (3, 10, 4));
    let of = |i: u8| (i, u32::from(i % 3));
    let mut train = told(set.train_batches(0, 0, Batching::all(4), 0));
    assert_ne!(train, (0..TRAIN).map(of).collect::<Vec<_>>());
    train.sort_unstable();
    assert_eq!(train, (0..TRAIN).map(of).collect::<Vec<_>>());
    let test = told(set.test_batches(3, Part::ALL));
    assert_eq!(test, (0..TEST).map(|i| (100 + i, u32::from(i % 3))).collect::<Vec<_>>());
    let batch = set.test_batches(3, Part::ALL).next().unwrap().unwrap();
    assert_eq!(batch.images.dims(), [3, 1, 8, 8]);
    let files = set.files().unwrap();
    assert_eq!(files.lines().count(), 4);
    assert!(files.starts_with("76 train-images-idx3-ubyte\n"), "{files}");
}

/// An order of its own for each epoch, gone on with where it was left.
#[test]
fn an_epoch_is_as_a_trees() {
    let root = tempfile::tempdir().unwrap();
    write(root.path());
    let set = open(root.path(), Portion::default(), Augment::NONE).unwrap();
    let epoch = |epoch, skip| told(set.train_batches(7, epoch, Batching::all(4), skip));
    assert_ne!(epoch(0, 0), epoch(1, 0));
    assert_eq!(epoch(1, 0)[4..], epoch(1, 4));
    let sizes = set.train_batches(7, 0, Batching::all(9), 0).map(|b| b.unwrap().passed);
    assert_eq!(sizes.collect::<Vec<_>>(), [8, 2]);
    let parts = |rank| Batching {
        part: Part { rank, of: 2 },
        ..Batching::all(10)
    };
    let both = [0, 1].map(|rank| told(set.train_batches(7, 0, parts(rank), 0)));
    let mut both = both.concat();
    both.sort_unstable();
    let mut whole = epoch(0, 0);
    whole.sort_unstable();
    assert_eq!(both, whole);
}

#[test]
fn what_is_held_out_is_evaluated_on_and_not_trained_on() {
    let root = tempfile::tempdir().unwrap();
    write(root.path());
    let portion = Portion {
        train_size: Some(5),
        validation: 4,
        seed: 3,
    };
    let set = open(root.path(), portion, Augment::NONE).unwrap();
    assert_eq!((set.train_len(), set.test_len()), (5, 4));
    let mut both = told(set.test_batches(64, Part::ALL));
    both.extend(told(set.train_batches(0, 0, Batching::all(64), 0)));
    both.sort_unstable();
    both.dedup();
    assert_eq!(both.len(), 9);
    assert!(both
        .iter()
        .all(|(number, label)| *number < 10 && u32::from(number % 3) == *label));
}

/// The same draws whatever the batches.
#[test]
fn training_images_are_varied_and_test_images_are_not() {
    let root = tempfile::tempdir().unwrap();
    write(root.path());
    let varied = Augment {
        crop: Crop::Simple,
        flip: 0.5,
        erasing: 1.0,
        ..Augment::NONE
    };
    let set = open(root.path(), Portion::default(), varied).unwrap();
    let plain = open(root.path(), Portion::default(), Augment::NONE).unwrap();
    let values = |batches: Batches| {
        let values = batches.map(|batch| batch.unwrap().images.flatten_all().unwrap().to_vec1::<f32>().unwrap());
        values.collect::<Vec<_>>().concat()
    };
    let train = |set: &GreySet, size| values(set.train_batches(0, 0, Batching::all(size), 0));
    assert_eq!(train(&set, 10), train(&set, 3));
    assert_ne!(train(&set, 10), train(&plain, 10));
    let test = |set: &GreySet| values(set.test_batches(9, Part::ALL));
    assert_eq!(test(&set), test(&plain));
}

#[test]
fn files_that_do_not_belong_together_are_named() {
    let error = |name: &str, bytes: Option<Vec<u8>>| {
        let root = tempfile::tempdir().unwrap();
        write(root.path());
        let path = root.path().join(name);
        match bytes {
            Some(bytes) => fs::write(path, bytes).unwrap(),
            None => fs::remove_file(path).unwrap(),
        }
        let error = open(root.path(), Portion::default(), Augment::NONE).err().unwrap();
        (error.to_string(), error)
    };
    let (said, error_of) = error(IMAGES[0], None);
    assert!(matches!(error_of.downcast_ref(), Some(GreySetError::Missing { name, .. }) if *name == IMAGES[0]));
    assert!(said.contains("train-images-idx3-ubyte.gz"), "{said}");
    let (said, _) = error(LABELS[1], Some(file(&[5], &[0; 5])));
    assert!(said.ends_with("has 5 labels for 4 images"), "{said}");
    let (said, _) = error(LABELS[1], Some(file(&[4], &[0, 1, 2, 3])));
    assert!(said.contains("has the label 3"), "{said}");
    let (said, _) = error(IMAGES[0], Some(file(&[10, 2, 2], &[0; 40])));
    assert!(said.contains("[3, 2] pixels"), "{said}");
    let (_, error) = error(LABELS[1], Some(vec![1]));
    assert!(matches!(error.downcast_ref(), Some(IdxError::Magic { dims: 1, .. })));
}
