use super::*;
use crate::data::augment::{Augment, AutoAugment, Crop, Interpolation};
use image::{DynamicImage, GrayImage, Luma, RgbImage, RgbaImage};
use masksub::augment::Normalize;
use std::fs;

fn settings(image_size: usize, channels: usize) -> Settings {
    Settings {
        image_size,
        channels,
        normalize: Normalize::IMAGENET,
        interpolation: Interpolation::Bicubic,
        crop_pct: 1.0,
        augment: Augment {
            crop: Crop::Resized,
            flip: 0.5,
            ..Augment::NONE
        },
    }
}

fn transform(image_size: usize, channels: usize) -> Transform {
    Transform::new(settings(image_size, channels)).unwrap()
}

fn open(root: &Path, unreadable: Unreadable, threads: usize) -> anyhow::Result<ImageTree> {
    ImageTree::open(
        root,
        "val",
        transform(16, 3),
        unreadable,
        Portion::default(),
        threads,
        &Device::Cpu,
    )
}

fn save(image: impl Into<DynamicImage>, path: PathBuf) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    image.into().save(path).unwrap();
}

fn noise(width: u32, height: u32, seed: u8) -> RgbImage {
    RgbImage::from_fn(width, height, |x, y| {
        let at = |k: u32| (x * k + y * (k + 3) + seed as u32 * 37) as u8;
        image::Rgb([at(5), at(11), at(23)])
    })
}

fn grey(side: u32, level: u8) -> GrayImage {
    GrayImage::from_pixel(side, side, Luma([level]))
}

/// Two classes with six training and two validation images: all three formats, several sizes, grey and alpha.
fn tree() -> tempfile::TempDir {
    let root = tempfile::tempdir().unwrap();
    let at = |path: &str| root.path().join(path);
    save(noise(40, 30, 1), at("train/cat/a.JPEG"));
    save(noise(20, 50, 2), at("train/cat/b.png"));
    save(noise(33, 33, 3), at("train/cat/deeper/c.webp"));
    save(grey(24, 200), at("train/dog/a.jpg"));
    save(
        RgbaImage::from_pixel(9, 70, image::Rgba([200, 100, 50, 10])),
        at("train/dog/b.PNG"),
    );
    save(grey(5, 100), at("train/dog/c.webp"));
    save(grey(16, 255), at("val/cat/white.png"));
    save(noise(18, 16, 4), at("val/dog/d.png"));
    fs::write(at("train/dog/notes.txt"), "no image").unwrap();
    fs::write(at("train/README.md"), "no class").unwrap();
    fs::create_dir(at("train/.cache")).unwrap();
    root
}

type Contents = Vec<(Vec<usize>, Vec<f32>, Vec<u32>)>;

fn contents(batches: Batches) -> Contents {
    let batch = |batch: anyhow::Result<Batch>| {
        let Batch { images, labels, .. } = batch.unwrap();
        (
            images.dims().to_vec(),
            images.flatten_all().unwrap().to_vec1().unwrap(),
            labels.to_vec1().unwrap(),
        )
    };
    batches.map(batch).collect()
}

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

/// An empty file, one that is no image, and one of each format that is cut off.
fn spoil(root: &Path) -> [PathBuf; 5] {
    let bad = [
        "cat/empty.jpg",
        "dog/text.png",
        "dog/cut.jpg",
        "cat/cut.png",
        "cat/cut.webp",
    ];
    let bad = bad.map(|path| root.join("train").join(path));
    fs::write(&bad[0], "").unwrap();
    fs::write(&bad[1], "hello").unwrap();
    for path in &bad[2..] {
        save(noise(90, 90, 9), path.clone());
        let whole = fs::read(path).unwrap();
        fs::write(path, &whole[..whole.len() - whole.len() / 8]).unwrap();
    }
    bad
}

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
