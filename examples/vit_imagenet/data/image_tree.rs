//! A directory of images as ImageNet's is laid out: `train/CLASS/*` and `val/CLASS/*`, JPEG, PNG or WebP.

use super::draws::{rng, Purpose};
use super::file_list::FileList;
use super::loader::{Decoded, Loader, Readable};
use super::order::{permutation, repeated, repeated_len, training_batches};
use super::prefetch::Prefetch;
use super::transform::{Draw, Settings, Transform};
use super::{Batch, Batches, Batching, Dataset, Part, Portion};
use crate::ranks;
use crate::run::images;
use candle_core::{Device, Tensor};
use rayon::prelude::*;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use walkdir::WalkDir;

const EXTENSIONS: [&str; 4] = ["jpg", "jpeg", "png", "webp"];

/// What can be wrong with a directory of images.
#[derive(Debug, thiserror::Error)]
pub enum TreeError {
    #[error("{0} is not a directory: --data takes a directory that holds train/CLASS/* and val/CLASS/*")]
    NoDirectory(PathBuf),
    #[error("{0} holds no class: it must have a directory for each class, with that class's images in it")]
    NoClasses(PathBuf),
    #[error(
        "{0} holds no image: regular files that end in .jpg, .jpeg, .png or .webp are taken, in any case of letters"
    )]
    EmptyClass(PathBuf),
    #[error(
        "the classes of train and {val} must be the same, but {}",
        [missing(.val, .not_in_val), missing("train", .not_in_train)].into_iter().flatten().collect::<Vec<_>>().join("; ")
    )]
    ClassesDiffer {
        val: String,
        not_in_val: Vec<String>,
        not_in_train: Vec<String>,
    },
    #[error("cannot list {path}: {reason}")]
    Listing { path: PathBuf, reason: String },
    #[error("cannot read the image {path}: {reason} (--unreadable skip leaves such images out)")]
    Unreadable { path: PathBuf, reason: String },
    #[error("none of the {images} training images can be read, such as {path}: {reason}")]
    NoneReadable {
        images: usize,
        path: PathBuf,
        reason: String,
    },
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

/// The files of one split, or a portion of them. The class of a file is the place of its directory among the sorted names.
#[derive(Clone)]
pub struct Split {
    root: PathBuf,
    classes: Arc<[(String, FileList)]>,
    /// How many files come before each class.
    starts: Arc<[usize]>,
    /// Which of all the files take part, if not all do.
    chosen: Option<Vec<usize>>,
}

impl Split {
    pub fn len(&self) -> usize {
        let all = || self.classes.iter().map(|(_, files)| files.len()).sum();
        self.chosen.as_ref().map_or_else(all, Vec::len)
    }

    /// Path and class of file number `i`.
    pub fn file(&self, i: usize) -> (PathBuf, u32) {
        let i = self.chosen.as_ref().map_or(i, |chosen| chosen[i]);
        let label = self.starts.partition_point(|&start| start <= i) - 1;
        let (class, files) = &self.classes[label];
        let path = self.root.join(class).join(files.get(i - self.starts[label]));
        (path, label as u32)
    }

    /// The same files, of which those of these numbers take part.
    fn choosing(&self, chosen: Vec<usize>) -> Self {
        Self {
            chosen: Some(chosen),
            ..self.clone()
        }
    }

    /// A line for each file, whether it takes part or not, below `name`.
    fn files(&self, name: &Path) -> String {
        let lists = self.classes.par_iter().map(|(class, files)| {
            let size_of = |i: usize| {
                let file = Path::new(class).join(files.get(i));
                let path = self.root.join(&file);
                // Of one that cannot be read it is for `--unreadable` to decide.
                let bytes = path.metadata().map_or(0, |metadata| metadata.len());
                images::line(&name.join(file), bytes)
            };
            (0..files.len()).map(size_of).collect::<String>()
        });
        lists.collect()
    }
}

/// Images that are read, decoded and resized as they are needed, by as many threads as RAYON_NUM_THREADS says or the
/// machine has, one batch ahead of the model.
pub struct ImageTree {
    /// Names, in the order of the labels.
    classes: Vec<String>,
    train: Arc<Split>,
    /// What is evaluated on: `val`, or what is held out of `train`.
    test: Arc<Split>,
    val: Arc<Split>,
    /// The name of its directory.
    val_name: String,
    loader: Arc<Loader>,
    device: Device,
}

impl ImageTree {
    /// A portion of the training images, and all of the directory `val` unless others are held out. `threads` 0 means
    /// rayon's default.
    pub fn open(
        root: &Path,
        val: &str,
        transform: Transform,
        unreadable: Unreadable,
        portion: Portion,
        threads: usize,
        device: &Device,
    ) -> anyhow::Result<Self> {
        if !root.is_dir() {
            return Err(TreeError::NoDirectory(root.into()).into());
        }
        let (train_root, test_root) = (root.join("train"), root.join(val));
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
                val: val.into(),
                not_in_val: lacking(&classes, &test_classes),
                not_in_train: lacking(&test_classes, &classes),
            }
            .into());
        }
        // A pool of its own: shared with candle's matrix products, each of those would wait for images being decoded.
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build()?;
        let mut train = pool.install(|| list(&train_root, &classes))?;
        let val_name = val.to_string();
        let val = Arc::new(pool.install(|| list(&test_root, &classes))?);
        let mut test = val.clone();
        if !portion.is_all() {
            let (chosen, held_out) = portion.of(train.len())?;
            if portion.validation > 0 {
                test = Arc::new(train.choosing(held_out));
            }
            train = train.choosing(chosen);
        }
        Ok(Self {
            classes,
            train: Arc::new(train),
            test,
            val,
            val_name,
            loader: Arc::new(Loader::new(pool, transform, unreadable)),
            device: device.clone(),
        })
    }

    /// What `decoded` yields, one batch ahead of the model.
    fn batches<I>(&self, decoded: I) -> Batches<'_>
    where
        I: Iterator<Item = Result<Decoded, TreeError>> + Send + 'static,
    {
        Box::new(Prefetch::new(decoded.map(|decoded| Ok(decoded?))).map(|decoded| {
            let Decoded { images, labels, passed } = decoded?;
            let &Settings {
                image_size, channels, ..
            } = self.loader.transform().settings();
            Ok(Batch {
                images: Tensor::from_vec(images, (labels.len(), channels, image_size, image_size), &self.device)?,
                labels: Tensor::from_slice(&labels, labels.len(), &self.device)?,
                passed,
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
        repeated_len(self.train_len(), self.loader.transform().settings().augment.repeats)
    }

    fn test_len(&self) -> usize {
        self.test.len()
    }

    fn train_batches(&self, seed: u64, epoch: usize, batching: Batching, skip: usize) -> Batches<'_> {
        let order = permutation(self.train_len(), &mut rng(seed, epoch, 0, Purpose::Order));
        let shown = repeated(&order, self.loader.transform().settings().augment.repeats);
        let drawn = |(index, repeat)| {
            let draw = Draw::Train {
                seed,
                epoch,
                index,
                repeat,
            };
            (index, draw)
        };
        let shown: Vec<_> = shown.into_iter().skip(skip).map(drawn).collect();
        let (loader, split) = (self.loader.clone(), self.train.clone());
        match self.loader.unreadable {
            Unreadable::Error => {
                let batches = training_batches(&shown, batching).into_iter();
                self.batches(batches.map(move |images| {
                    let passed = images.len();
                    let here: Vec<_> = batching.part.take(images).collect();
                    Ok(Decoded {
                        passed,
                        ..loader.load(&split, &here)?
                    })
                }))
            }
            Unreadable::Skip => self.batches(Readable::new(loader, split, shown, batching, skip == 0)),
        }
    }

    fn test_batches(&self, batch_size: usize, part: Part) -> Batches<'_> {
        let order: Vec<_> = (0..self.test_len()).map(|index| (index, Draw::Test)).collect();
        let batches: Vec<_> = part.take(order.chunks(batch_size)).map(<[_]>::to_vec).collect();
        let (loader, split) = (self.loader.clone(), self.test.clone());
        self.batches(batches.into_iter().map(move |images| loader.load(&split, &images)))
    }

    fn files(&self) -> Option<String> {
        let list = |name: &str, split: &Split| split.files(Path::new(name));
        let both = || list("train", &self.train) + &list(&self.val_name, &self.val);
        Some(self.loader.pool().install(both))
    }

    fn skipped(&self) -> usize {
        self.loader.skipped()
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
    if names.is_empty() {
        return Err(TreeError::NoClasses(root.into()));
    }
    Ok(names)
}

/// All images below a directory, whatever lies between, as one class.
pub fn all_below(root: &Path) -> Result<Split, TreeError> {
    if !root.is_dir() {
        return Err(listing(root, "it is not a directory"));
    }
    list(root, &[String::new()])
}

/// The images below each class directory, sorted by path. What is left out is told.
fn list(root: &Path, classes: &[String]) -> Result<Split, TreeError> {
    let found = classes.par_iter().map(|class| below(&root.join(class)));
    let found = found.collect::<Result<Vec<_>, _>>()?;
    let links: Vec<&PathBuf> = found.iter().flat_map(|class| &class.links).collect();
    if let Some(first) = links.first().filter(|_| ranks::tells()) {
        let n = links.len();
        eprintln!(
            "links to directories inside a class are not followed: {n}, such as {}",
            first.display()
        );
    }
    if let Some(counts) = LeftOut::sum(found.iter().map(|class| &class.left_out))
        .counts()
        .filter(|_| ranks::tells())
    {
        let split = root.file_name().unwrap_or_default().to_string_lossy();
        eprintln!("left out of {split}: {counts} (images end in .jpg, .jpeg, .png or .webp)");
    }
    let before = |files: &mut usize, list: &FileList| {
        let start = *files;
        *files += list.len();
        Some(start)
    };
    let lists: Vec<FileList> = found.into_iter().map(|class| class.files).collect();
    Ok(Split {
        root: root.into(),
        starts: lists.iter().scan(0, before).collect(),
        classes: classes.iter().cloned().zip(lists).collect(),
        chosen: None,
    })
}

/// What is below the directory of a class.
struct Class {
    files: FileList,
    /// To directories.
    links: Vec<PathBuf>,
    left_out: LeftOut,
}

/// How many files are no images, by what they are.
#[derive(Default)]
struct LeftOut(BTreeMap<String, usize>);

impl LeftOut {
    fn sum<'a>(all: impl Iterator<Item = &'a Self>) -> Self {
        let mut sum = Self::default();
        for (kind, n) in all.flat_map(|left_out| &left_out.0) {
            *sum.0.entry(kind.clone()).or_default() += n;
        }
        sum
    }

    fn add(&mut self, kind: String) {
        *self.0.entry(kind).or_default() += 1;
    }

    /// The most frequent kinds; none where there is nothing.
    fn counts(&self) -> Option<String> {
        const SHOWN: usize = 6;
        let mut kinds: Vec<(&String, usize)> = self.0.iter().map(|(kind, n)| (kind, *n)).collect();
        kinds.sort_by_key(|(_, n)| std::cmp::Reverse(*n));
        let (shown, others) = kinds.split_at(kinds.len().min(SHOWN));
        let mut counts: Vec<String> = shown.iter().map(|(kind, n)| format!("{kind} {n}")).collect();
        if !others.is_empty() {
            counts.push(format!("others {}", others.iter().map(|(_, n)| n).sum::<usize>()));
        }
        (!counts.is_empty()).then(|| counts.join(", "))
    }
}

fn below(class: &Path) -> Result<Class, TreeError> {
    let (mut files, mut links, mut left_out) = (FileList::default(), Vec::new(), LeftOut::default());
    // Linked files are taken, linked directories inside a class are not: nothing can go round in circles. (The class
    // itself may be a link.)
    for entry in WalkDir::new(class) {
        let entry = entry.map_err(|e| listing(class, e))?;
        if entry.file_type().is_dir() {
            continue;
        }
        if entry.depth() > 0 && entry.file_name().as_encoded_bytes().starts_with(b".") {
            continue; // hidden: macOS leaves `._image.jpg` beside each on other file systems
        }
        let extension = entry.path().extension().unwrap_or_default();
        // A link to nowhere is an image that cannot be read, which is for `--unreadable` to decide.
        let linked = entry.path_is_symlink().then(|| entry.path().metadata().ok()).flatten();
        let kind = linked.map_or(entry.file_type(), |linked| linked.file_type());
        if kind.is_dir() {
            links.push(entry.into_path());
        } else if !EXTENSIONS.iter().any(|e| extension.eq_ignore_ascii_case(e)) {
            left_out.add(match extension.to_string_lossy().to_lowercase() {
                none if none.is_empty() => "without an extension".into(),
                extension => format!(".{extension}"),
            });
        } else if kind.is_file() || kind.is_symlink() {
            files.push(entry.path().strip_prefix(class).unwrap_or(entry.path()));
        } else {
            // To open a pipe is to wait for somebody who writes to it.
            left_out.add("pipes or devices".into());
        }
    }
    if files.is_empty() {
        return Err(TreeError::EmptyClass(class.into()));
    }
    Ok(Class {
        files: files.sorted(),
        links,
        left_out,
    })
}

#[cfg(test)]
mod tests;
