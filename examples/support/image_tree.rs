//! A directory of images as ImageNet's is laid out: `train/CLASS/*` and `val/CLASS/*`, JPEG, PNG or WebP.

use super::data::{
    permutation, repeated, repeated_len, rng, subset, training_batches, Batch, Batches, Dataset, Purpose,
};
use super::file_list::FileList;
use super::prefetch::Prefetch;
use super::transform::{Draw, Transform};
use candle_core::{Device, Tensor};
use rayon::prelude::*;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use walkdir::WalkDir;

const EXTENSIONS: [&str; 4] = ["jpg", "jpeg", "png", "webp"];

/// What can be wrong with a directory of images.
#[derive(Debug, thiserror::Error)]
pub enum TreeError {
    #[error("{0} is not a directory: --data takes a directory that holds train/CLASS/* and val/CLASS/*")]
    NoDirectory(PathBuf),
    #[error("{0} holds no class: it must have a directory for each class, with that class's images in it")]
    NoClasses(PathBuf),
    #[error("{0} holds no image: files that end in .jpg, .jpeg, .png or .webp are taken, in any case of letters")]
    EmptyClass(PathBuf),
    #[error(
        "the classes of train and val must be the same, but {}",
        [missing("val", .not_in_val), missing("train", .not_in_train)].into_iter().flatten().collect::<Vec<_>>().join("; ")
    )]
    ClassesDiffer {
        not_in_val: Vec<String>,
        not_in_train: Vec<String>,
    },
    #[error("cannot list {path}: {reason}")]
    Listing { path: PathBuf, reason: String },
    #[error("cannot read the image {path}: {reason} (--unreadable skip leaves such images out)")]
    Unreadable { path: PathBuf, reason: String },
}

fn missing(split: &str, classes: &[String]) -> Option<String> {
    const SHOWN: usize = 5;
    let names = classes.iter().take(SHOWN).cloned().collect::<Vec<_>>().join(", ");
    let more = classes.len().saturating_sub(SHOWN);
    let rest = match more {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    (!classes.is_empty()).then(|| format!("{split} lacks {names}{rest}"))
}

/// What to do about an image that cannot be decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Unreadable {
    /// End the run and name the file
    Error,
    /// Leave it out and count it
    Skip,
}

/// The files of one split. The class of a file is the place of its directory among the sorted names.
struct Split {
    root: PathBuf,
    classes: Vec<(String, FileList)>,
    /// How many files come before each class.
    starts: Vec<usize>,
    /// Which of all the files take part, if not all do.
    chosen: Option<Vec<usize>>,
}

impl Split {
    fn len(&self) -> usize {
        let all = || self.classes.iter().map(|(_, files)| files.len()).sum();
        self.chosen.as_ref().map_or_else(all, Vec::len)
    }

    /// Path and class of file number `i`.
    fn file(&self, i: usize) -> (PathBuf, u32) {
        let i = self.chosen.as_ref().map_or(i, |chosen| chosen[i]);
        let label = self.starts.partition_point(|&start| start <= i) - 1;
        let (class, files) = &self.classes[label];
        let path = self.root.join(class).join(files.get(i - self.starts[label]));
        (path, label as u32)
    }
}

/// Images that are read, decoded and resized as they are needed, by as many threads as RAYON_NUM_THREADS says or the
/// machine has, one batch ahead of the model.
pub struct ImageTree {
    classes: Vec<String>,
    train: Arc<Split>,
    test: Arc<Split>,
    loader: Arc<Loader>,
    device: Device,
}

impl ImageTree {
    /// `train_size` training images drawn by `seed` (all if `None`), and all of `val`. `threads` 0 means rayon's default.
    pub fn open(
        root: &Path,
        transform: Transform,
        unreadable: Unreadable,
        train_size: Option<usize>,
        seed: u64,
        threads: usize,
        device: &Device,
    ) -> anyhow::Result<Self> {
        if !root.is_dir() {
            return Err(TreeError::NoDirectory(root.into()).into());
        }
        let (train_root, test_root) = (root.join("train"), root.join("val"));
        let (classes, test_classes) = (class_names(&train_root)?, class_names(&test_root)?);
        let lacking = |from: &[String], other: &[String]| {
            let other: BTreeSet<&String> = other.iter().collect();
            from.iter()
                .filter(|name| !other.contains(name))
                .cloned()
                .collect::<Vec<_>>()
        };
        if classes != test_classes {
            return Err(TreeError::ClassesDiffer {
                not_in_val: lacking(&classes, &test_classes),
                not_in_train: lacking(&test_classes, &classes),
            }
            .into());
        }
        // A pool of its own: shared with candle's matrix products, each of those would wait for images being decoded.
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build()?;
        let mut train = pool.install(|| list(&train_root, &classes))?;
        let test = pool.install(|| list(&test_root, &classes))?;
        if let Some(n) = train_size {
            train.chosen = Some(subset(train.len(), n, seed)?);
        }
        Ok(Self {
            classes,
            train: Arc::new(train),
            test: Arc::new(test),
            loader: Arc::new(Loader {
                pool,
                transform,
                unreadable,
                skipped: Mutex::default(),
            }),
            device: device.clone(),
        })
    }

    /// Class names, in the order of the labels.
    pub fn classes(&self) -> &[String] {
        &self.classes
    }

    fn batches(&self, split: &Arc<Split>, batches: Vec<Vec<(usize, Draw)>>) -> Batches<'_> {
        let (loader, split) = (self.loader.clone(), split.clone());
        let decoded = batches.into_iter().map(move |images| Ok(loader.load(&split, &images)?));
        Box::new(Prefetch::new(decoded).map(|decoded| {
            let (images, labels) = decoded?;
            let Transform {
                image_size, channels, ..
            } = self.loader.transform;
            Ok(Batch {
                images: Tensor::from_vec(images, (labels.len(), channels, image_size, image_size), &self.device)?,
                labels: Tensor::from_slice(&labels, labels.len(), &self.device)?,
            })
        }))
    }
}

impl Dataset for ImageTree {
    fn num_classes(&self) -> usize {
        self.classes.len()
    }

    fn train_len(&self) -> usize {
        self.train.len()
    }

    fn epoch_len(&self) -> usize {
        repeated_len(self.train_len(), self.loader.transform.augment.repeats)
    }

    fn test_len(&self) -> usize {
        self.test.len()
    }

    fn train_batches(&self, seed: u64, epoch: usize, batch_size: usize, skip: usize) -> Batches<'_> {
        let order = permutation(self.train_len(), &mut rng(seed, epoch, 0, Purpose::Order));
        let shown = repeated(&order, self.loader.transform.augment.repeats);
        let drawn = |(index, repeat)| {
            let draw = Draw::Train {
                seed,
                epoch,
                index,
                repeat,
            };
            (index, draw)
        };
        let shown: Vec<_> = shown.into_iter().map(drawn).collect();
        let batches = training_batches(&shown, batch_size).into_iter().skip(skip);
        self.batches(&self.train, batches.collect())
    }

    fn test_batches(&self, batch_size: usize) -> Batches<'_> {
        let order: Vec<_> = (0..self.test_len()).map(|index| (index, Draw::Test)).collect();
        self.batches(&self.test, order.chunks(batch_size).map(<[_]>::to_vec).collect())
    }

    fn skipped(&self) -> usize {
        self.loader.skipped().len()
    }
}

/// Images one after another, and their labels.
type Decoded = (Vec<f32>, Vec<u32>);

struct Loader {
    pool: rayon::ThreadPool,
    transform: Transform,
    unreadable: Unreadable,
    skipped: Mutex<BTreeSet<PathBuf>>,
}

impl Loader {
    fn skipped(&self) -> std::sync::MutexGuard<'_, BTreeSet<PathBuf>> {
        self.skipped.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// A batch. Of several unreadable images the first in it is named.
    fn load(&self, split: &Split, images: &[(usize, Draw)]) -> Result<Decoded, TreeError> {
        let size = self.transform.len();
        let mut values = vec![0f32; images.len() * size];
        // Each image is written to its place in the batch. A thread takes one at a time: their costs differ.
        let loaded: Vec<_> = self.pool.install(|| {
            let images = values.par_chunks_exact_mut(size).zip(images).with_max_len(1);
            let load = |(out, &(index, draw)): (&mut [f32], &(usize, Draw))| {
                let (path, label) = split.file(index);
                match self.transform.load(&path, draw, out) {
                    Ok(()) => Ok(label),
                    Err(reason) => Err((path, reason)),
                }
            };
            images.map(load).collect()
        });
        let mut labels = Vec::with_capacity(images.len());
        for (i, loaded) in loaded.into_iter().enumerate() {
            match (loaded, self.unreadable) {
                (Ok(label), _) => {
                    // Moved to where images that were left out would have been.
                    if labels.len() < i {
                        values.copy_within(i * size..(i + 1) * size, labels.len() * size);
                    }
                    labels.push(label);
                }
                (Err((path, _)), Unreadable::Skip) => {
                    self.skipped().insert(path);
                }
                (Err((path, reason)), Unreadable::Error) => {
                    return Err(TreeError::Unreadable {
                        path,
                        reason: format!("{reason:#}"),
                    })
                }
            }
        }
        values.truncate(labels.len() * size);
        Ok((values, labels))
    }
}

fn listing(path: &Path, reason: impl ToString) -> TreeError {
    TreeError::Listing {
        path: path.into(),
        reason: reason.to_string(),
    }
}

/// The directories in `root`, links to directories too, sorted by name. Hidden ones are no classes.
fn class_names(root: &Path) -> Result<Vec<String>, TreeError> {
    if !root.is_dir() {
        return Err(TreeError::NoDirectory(root.into()));
    }
    let real_root = root.canonicalize().map_err(|e| listing(root, e))?;
    let mut names = Vec::new();
    for entry in std::fs::read_dir(root).map_err(|e| listing(root, e))? {
        let path = entry.map_err(|e| listing(root, e))?.path();
        let name = path.file_name().unwrap_or_default();
        let name = name.to_str().ok_or_else(|| listing(&path, "its name is not UTF-8"))?;
        if name.starts_with('.') {
            continue;
        }
        if path.is_symlink() {
            // A class that silently vanished would move every label after it.
            let real = path.canonicalize();
            let real = real.map_err(|e| listing(&path, format!("it is a link that leads nowhere ({e})")))?;
            if real_root.starts_with(&real) {
                let circle = format!("it is a link to {}, which it lies in", real.display());
                return Err(listing(&path, circle));
            }
        }
        if path.is_dir() {
            names.push(name.to_string());
        }
    }
    names.sort_unstable();
    match names.is_empty() {
        true => Err(TreeError::NoClasses(root.into())),
        false => Ok(names),
    }
}

/// The images below each class directory, sorted by path.
fn list(root: &Path, classes: &[String]) -> Result<Split, TreeError> {
    let listed = classes.par_iter().map(|class| images_below(&root.join(class)));
    let (lists, left_out): (Vec<FileList>, Vec<Vec<PathBuf>>) =
        listed.collect::<Result<Vec<_>, _>>()?.into_iter().unzip();
    let left_out = left_out.concat();
    if let Some(first) = left_out.first() {
        let n = left_out.len();
        eprintln!(
            "links to directories inside a class are not followed: {n}, such as {}",
            first.display()
        );
    }
    let before = |files: &mut usize, list: &FileList| {
        let start = *files;
        *files += list.len();
        Some(start)
    };
    Ok(Split {
        root: root.into(),
        starts: lists.iter().scan(0, before).collect(),
        classes: classes.iter().cloned().zip(lists).collect(),
        chosen: None,
    })
}

/// The images, and the links to directories that were left out.
fn images_below(class: &Path) -> Result<(FileList, Vec<PathBuf>), TreeError> {
    let (mut files, mut left_out) = (FileList::default(), Vec::new());
    // Linked files are taken, linked directories inside a class are not: nothing can go round in circles. (The class
    // itself may be a link.)
    for entry in WalkDir::new(class) {
        let entry = entry.map_err(|e| listing(class, e))?;
        let extension = entry.path().extension().unwrap_or_default();
        if entry.file_type().is_dir() {
            continue;
        }
        if entry.depth() > 0 && entry.file_name().as_encoded_bytes().starts_with(b".") {
            continue; // hidden: macOS leaves `._image.jpg` beside each on other file systems
        }
        if EXTENSIONS.iter().any(|e| extension.eq_ignore_ascii_case(e)) {
            files.push(entry.path().strip_prefix(class).unwrap_or(entry.path()));
        } else if entry.path_is_symlink() && entry.path().is_dir() {
            left_out.push(entry.into_path());
        }
    }
    match files.is_empty() {
        true => Err(TreeError::EmptyClass(class.into())),
        false => Ok((files.sorted(), left_out)),
    }
}

#[cfg(test)]
mod tests {
    use super::super::augment::crop::RandomResizedCrop;
    use super::super::augment::pixels::Interpolation;
    use super::super::augment::rand_augment::RandAugment;
    use super::super::transform::{Augment, AutoAugment, Crop, Normalization};
    use super::*;
    use image::{DynamicImage, GrayImage, Luma, RgbImage, RgbaImage};
    use std::fs;

    fn transform(image_size: usize, channels: usize) -> Transform {
        Transform {
            image_size,
            channels,
            normalization: Normalization::IMAGENET,
            interpolation: Interpolation::Bicubic,
            crop_share: 1.,
            augment: Augment {
                crop: Crop::RandomResized(RandomResizedCrop::default()),
                flip: 0.5,
                ..Augment::NONE
            },
        }
    }

    fn open(root: &Path, unreadable: Unreadable, threads: usize) -> anyhow::Result<ImageTree> {
        ImageTree::open(root, transform(16, 3), unreadable, None, 0, threads, &Device::Cpu)
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
            let Batch { images, labels } = batch.unwrap();
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
        assert_eq!(tree.classes(), ["cat", "dog"]);
        assert_eq!((tree.num_classes(), tree.train_len(), tree.test_len()), (2, 6, 2));
        let train = contents(tree.train_batches(0, 0, 4, 0));
        assert_eq!(train.iter().map(|b| b.0[0]).collect::<Vec<_>>(), [4, 2]);
        assert_eq!(train[0].0[1..], [3, 16, 16]);
        let five = contents(tree.train_batches(0, 0, 5, 0));
        assert_eq!(five.iter().map(|b| b.0[0]).collect::<Vec<_>>(), [4, 2]);
        let mut labels: Vec<u32> = train.iter().flat_map(|b| b.2.clone()).collect();
        labels.sort_unstable();
        assert_eq!(labels, [0, 0, 0, 1, 1, 1]);

        let test = contents(tree.test_batches(1));
        assert_eq!(test.iter().map(|b| b.2[0]).collect::<Vec<_>>(), [0, 1]);
        let white = (1. - 0.485) / 0.229;
        assert!(test[0].1[..256].iter().all(|v| (v - white).abs() < 1e-5));
    }

    #[test]
    fn grey_models_get_one_channel() {
        let root = tree();
        let transform = transform(8, 1);
        let tree = ImageTree::open(root.path(), transform, Unreadable::Error, None, 0, 0, &Device::Cpu).unwrap();
        let test = contents(tree.test_batches(8));
        assert_eq!(test[0].0, [2, 1, 8, 8]);
        let white = (1. - 0.449) / 0.226;
        assert!(test[0].1[..64].iter().all(|v| (v - white).abs() < 1e-5));
    }

    #[test]
    fn threads_change_nothing_and_the_key_does() {
        let root = tree();
        for i in 0..40 {
            save(noise(500, 400, i), root.path().join(format!("train/cat/more{i}.jpg")));
        }
        for auto in [AutoAugment::Three, AutoAugment::Rand(RandAugment::new(9.))] {
            let mut transform = transform(16, 3);
            transform.augment = Augment {
                auto,
                colour_jitter: 0.3,
                erasing: 0.25,
                repeats: 3,
                ..transform.augment
            };
            let batches = |threads, seed, epoch| {
                let open = ImageTree::open(
                    root.path(),
                    transform.clone(),
                    Unreadable::Error,
                    None,
                    0,
                    threads,
                    &Device::Cpu,
                );
                contents(open.unwrap().train_batches(seed, epoch, 20, 0))
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
        let mut transform = transform(16, 3);
        transform.augment.repeats = 3;
        let tree = ImageTree::open(root.path(), transform, Unreadable::Error, None, 0, 0, &Device::Cpu).unwrap();
        assert_eq!((tree.train_len(), tree.epoch_len()), (6, 6));
        let batches = contents(tree.train_batches(0, 0, 3, 0));
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
        let files = |n, seed| {
            let tree = ImageTree::open(
                root.path(),
                transform(16, 3),
                Unreadable::Error,
                Some(n),
                seed,
                0,
                &Device::Cpu,
            );
            tree.map(|tree| (0..tree.train_len()).map(|i| tree.train.file(i)).collect::<Vec<_>>())
        };
        assert_eq!(files(3, 1).unwrap().len(), 3);
        assert_eq!(files(3, 1).unwrap(), files(3, 1).unwrap());
        assert!((2..9).any(|seed| files(3, 1).unwrap() != files(3, seed).unwrap()));
        assert!(files(7, 1).unwrap_err().to_string().starts_with("--train-size is 7"));
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
            let error = tree.train_batches(0, 0, 4, 0).find_map(|batch| batch.err()).unwrap();
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
            // In batches of one, five are empty.
            let train = contents(tree.train_batches(0, epoch, 1, 0));
            assert_eq!(
                (train.len(), train.iter().filter(|batch| batch.2.is_empty()).count()),
                (11, 5)
            );
            assert_eq!(tree.skipped(), 5);
        }
        let sizes: usize = contents(tree.train_batches(0, 0, 4, 0)).iter().map(|b| b.2.len()).sum();
        assert_eq!(sizes, 6);
    }

    #[test]
    fn images_keep_their_labels_where_others_are_left_out() {
        let root = tree();
        let whole = contents(open(root.path(), Unreadable::Error, 0).unwrap().test_batches(8));
        for bad in ["val/cat/a.png", "val/cat/z.png", "val/dog/a.jpg"] {
            fs::write(root.path().join(bad), "no image").unwrap();
        }
        let tree = open(root.path(), Unreadable::Skip, 0).unwrap();
        assert_eq!(contents(tree.test_batches(8)), whole);
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
        assert_eq!(tree.classes(), ["bird", "cat", "dog"]);
        assert_eq!(tree.train_len(), 3 + 3 + 4);
        let (files, left_out) = images_below(&at("train/dog")).unwrap();
        assert_eq!((files.len(), left_out), (4, vec![at("train/dog/loop")]));
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
        let (files, _) = images_below(&class).unwrap();
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
}
