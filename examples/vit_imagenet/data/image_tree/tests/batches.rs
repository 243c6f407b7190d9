//! Batches: which images are in them, in which order, and where they go on.

use super::*;
use crate::data::augment::{Augment, AutoAugment};

#[test]
fn threads_change_nothing_and_the_key_does() {
    let root = tree();
    for i in 0..40 {
        save(noise(500, 400, i), root.path().join(format!("train/cat/more{i}.jpg")));
    }
    for auto in [
        AutoAugment::Three,
        AutoAugment::Rand {
            magnitude: 9.0,
            increasing: true,
        },
    ] {
        let mut settings = settings(16, 3);
        settings.augment = Augment {
            auto,
            color_jitter: 0.3,
            erasing: 0.25,
            repeats: 3,
            ..settings.augment
        };
        let transform = Transform::new(settings).unwrap();
        let batches = |threads, seed, epoch| {
            let open = ImageTree::open(
                root.path(),
                "val",
                transform.clone(),
                Unreadable::Error,
                Portion::default(),
                threads,
                &Device::Cpu,
            );
            contents(open.unwrap().train_batches(seed, epoch, Batching::all(20), 0))
        };
        let first = batches(1, 4, 5);
        assert_eq!(first, batches(2, 4, 5));
        assert_eq!(first, batches(4, 4, 5));
        assert_ne!(first, batches(1, 4, 6));
        assert_ne!(first, batches(1, 5, 5));
    }
}

#[test]
fn repeats_of_an_image_differ_and_share_its_label() {
    let root = tree();
    let mut settings = settings(16, 3);
    settings.augment.repeats = 3;
    let transform = Transform::new(settings).unwrap();
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
    assert_eq!((tree.train_len(), tree.epoch_len()), (6, 6));
    let batches = contents(tree.train_batches(0, 0, Batching::all(3), 0));
    assert_eq!(batches.len(), 2);
    let mut seen = 0;
    for (dims, values, labels) in batches {
        assert_eq!(dims, [3, 3, 16, 16]);
        assert!(labels.iter().all(|&label| label == labels[0]));
        let image = |i: usize| &values[i * 768..(i + 1) * 768];
        seen += usize::from(image(0) != image(1) && image(1) != image(2));
    }
    assert!(seen > 0); // an image of one colour looks the same whatever is cut from it
}

#[test]
fn train_size_draws_by_seed() {
    let root = tree();
    let portion = |n, validation, seed| Portion {
        train_size: Some(n),
        validation,
        seed,
    };
    let files = |n, seed| {
        let tree = ImageTree::open(
            root.path(),
            "val",
            transform(16, 3),
            Unreadable::Error,
            portion(n, 0, seed),
            0,
            &Device::Cpu,
        );
        tree.map(|tree| (0..tree.train_len()).map(|i| tree.train.file(i)).collect::<Vec<_>>())
    };
    assert_eq!(files(3, 1).unwrap().len(), 3);
    assert_eq!(files(3, 1).unwrap(), files(3, 1).unwrap());
    assert!((2..9).any(|seed| files(3, 1).unwrap() != files(3, seed).unwrap()));
    assert!(files(7, 1).unwrap_err().to_string().starts_with("--train-size is 7"));

    // What is held out is evaluated on in the place of val, which is on record all the same.
    let open = |portion| {
        ImageTree::open(
            root.path(),
            "val",
            transform(16, 3),
            Unreadable::Error,
            portion,
            0,
            &Device::Cpu,
        )
    };
    let choosing = open(portion(3, 2, 1)).unwrap();
    let of = |split: &Split| (0..split.len()).map(|i| split.file(i)).collect::<BTreeSet<_>>();
    assert_eq!(of(&choosing.train), files(3, 1).unwrap().into_iter().collect());
    assert_eq!((choosing.test_len(), of(&choosing.test).len()), (2, 2));
    assert!(of(&choosing.test).is_disjoint(&of(&choosing.train)));
    assert!(of(&choosing.test)
        .iter()
        .all(|(path, _)| path.starts_with(root.path().join("train"))));
    assert_eq!(choosing.files(), open(Portion::default()).unwrap().files());
}

#[test]
fn an_incomplete_batch_is_dropped_where_that_is_asked_for() {
    let root = tree();
    for unreadable in [Unreadable::Error, Unreadable::Skip] {
        let tree = open(root.path(), unreadable, 0).unwrap();
        for (size, batches) in [(1, 6), (2, 3), (4, 1), (5, 1), (6, 1), (7, 0)] {
            let batching = Batching {
                drop_last: true,
                ..Batching::all(size)
            };
            let all = contents(tree.train_batches(0, 0, Batching::all(size), 0));
            let full = contents(tree.train_batches(0, 0, batching, 0));
            assert_eq!(full.len(), batches);
            // The batches that there are otherwise, unless the last full one gave an image away.
            assert!(size == 5 || full == all[..batches]);
            assert_eq!(contents(tree.train_batches(0, 0, batching, size * batches)).len(), 0);
        }
    }
}

// With what was used up, any number of batches can be passed over.
#[test]
fn batches_go_on_where_they_were_left_off() {
    let root = tree();
    for broken in [false, true] {
        if broken {
            spoil(root.path());
        }
        let tree = open(root.path(), Unreadable::Skip, 0).unwrap();
        for (epoch, batch_size) in (0..6).flat_map(|epoch| (1..5).map(move |size| (epoch, size))) {
            let whole = contents(tree.train_batches(0, epoch, Batching::all(batch_size), 0));
            let (mut skip, mut n) = (0, 0);
            for batch in tree.train_batches(0, epoch, Batching::all(batch_size), 0) {
                (skip, n) = (skip + batch.unwrap().passed, n + 1);
                assert_eq!(
                    contents(tree.train_batches(0, epoch, Batching::all(batch_size), skip)),
                    whole[n..]
                );
            }
            assert_eq!((skip, n), (tree.train_len(), whole.len()));
            if !broken {
                let strict = open(root.path(), Unreadable::Error, 0).unwrap();
                assert_eq!(
                    contents(strict.train_batches(0, epoch, Batching::all(batch_size), 0)),
                    whole
                );
            }
        }
    }
}
