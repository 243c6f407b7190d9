//! Images of every format and size.

use super::*;

#[test]
fn reads_every_format_size_and_number_of_channels() {
    let root = tree();
    let tree = open(root.path(), Unreadable::Error, 0).unwrap();
    assert_eq!(tree.classes, ["cat", "dog"]);
    assert_eq!((tree.num_classes(), tree.train_len(), tree.test_len()), (2, 6, 2));
    let train = contents(tree.train_batches(0, 0, Batching::all(4), 0));
    assert_eq!(train.iter().map(|b| b.0[0]).collect::<Vec<_>>(), [4, 2]);
    assert_eq!(train[0].0[1..], [3, 16, 16]);
    let five = contents(tree.train_batches(0, 0, Batching::all(5), 0));
    assert_eq!(five.iter().map(|b| b.0[0]).collect::<Vec<_>>(), [4, 2]);
    let mut labels: Vec<u32> = train.iter().flat_map(|b| b.2.clone()).collect();
    labels.sort_unstable();
    assert_eq!(labels, [0, 0, 0, 1, 1, 1]);

    let test = contents(tree.test_batches(1, Part::ALL));
    assert_eq!(test.iter().map(|b| b.2[0]).collect::<Vec<_>>(), [0, 1]);
    let white = (1.0 - 0.485) / 0.229;
    assert!(test[0].1[..256].iter().all(|v| (v - white).abs() < 1e-5));
}

#[test]
fn grey_models_get_one_channel() {
    let root = tree();
    let transform = transform(8, 1);
    let tree = ImageTree::open(
        root.path(),
        "val",
        transform,
        Unreadable::Error,
        Portion::default(),
        0,
        &Device::Cpu,
    )
    .unwrap();
    let test = contents(tree.test_batches(8, Part::ALL));
    assert_eq!(test[0].0, [2, 1, 8, 8]);
    let white = (1.0 - 0.449) / 0.226;
    assert!(test[0].1[..64].iter().all(|v| (v - white).abs() < 1e-5));
}
