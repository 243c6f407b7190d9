//! From a list of files to batches of those that can be read.

use super::image_tree::{Split, TreeError, Unreadable};
use super::transform::{Draw, Transform};
use super::Batching;
use rayon::prelude::*;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard};

/// A batch: images one after another, and their labels.
pub struct Decoded {
    pub images: Vec<f32>,
    pub labels: Vec<u32>,
    /// How many of the images in their order it uses up, with those that were left out.
    pub passed: usize,
}

pub struct Loader {
    pool: rayon::ThreadPool,
    transform: Transform,
    pub unreadable: Unreadable,
    /// Images that were left out, and why.
    skipped: Mutex<BTreeMap<PathBuf, String>>,
}

impl Loader {
    pub fn new(pool: rayon::ThreadPool, transform: Transform, unreadable: Unreadable) -> Self {
        Self {
            pool,
            transform,
            unreadable,
            skipped: Mutex::default(),
        }
    }

    pub fn transform(&self) -> &Transform {
        &self.transform
    }

    pub fn pool(&self) -> &rayon::ThreadPool {
        &self.pool
    }

    /// How many different images were left out so far.
    pub fn skipped(&self) -> usize {
        self.left_out().len()
    }

    fn left_out(&self) -> MutexGuard<'_, BTreeMap<PathBuf, String>> {
        self.skipped.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// A batch of those of `images` that can be read. Of several unreadable images the first in it is named.
    pub fn load(&self, split: &Split, images: &[(usize, Draw)]) -> Result<Decoded, TreeError> {
        let (read, _) = self.load_placed(split, images)?;
        Ok(read)
    }

    /// The same, and the place in `images` of each that could be read.
    pub fn load_placed(&self, split: &Split, images: &[(usize, Draw)]) -> Result<(Decoded, Vec<usize>), TreeError> {
        let size = self.transform.len();
        let mut values = vec![0f32; images.len() * size];
        // Each image is written to its place in the batch. A thread takes one at a time: their costs differ.
        let loaded: Vec<_> = self.pool.install(|| {
            let images = values.par_chunks_exact_mut(size).zip(images).with_max_len(1);
            let load = |(out, &(index, draw)): (&mut [f32], &(usize, Draw))| {
                let (path, label) = split.file(index);
                match self.transform.load(&path, draw, out) {
                    Ok(()) => Ok(label),
                    Err(reason) => Err((path, format!("{reason:#}"))),
                }
            };
            images.map(load).collect()
        });
        let (mut labels, mut places) = (Vec::with_capacity(images.len()), Vec::with_capacity(images.len()));
        for (i, loaded) in loaded.into_iter().enumerate() {
            match (loaded, self.unreadable) {
                (Ok(label), _) => {
                    // Moved to where images that were left out would have been.
                    if labels.len() < i {
                        values.copy_within(i * size..(i + 1) * size, labels.len() * size);
                    }
                    labels.push(label);
                    places.push(i);
                }
                (Err((path, reason)), Unreadable::Skip) => {
                    self.left_out().insert(path, reason);
                }
                (Err((path, reason)), Unreadable::Error) => return Err(TreeError::Unreadable { path, reason }),
            }
        }
        values.truncate(labels.len() * size);
        let read = Decoded {
            images: values,
            labels,
            passed: images.len(),
        };
        Ok((read, places))
    }
}

/// Batches for training that are cut when the unreadable images are left out, so that each is full but the last. As with
/// [`training_batches`](super::order::training_batches), the last is no single image where another could be spared.
pub struct Readable {
    loader: Arc<Loader>,
    split: Arc<Split>,
    order: Vec<(usize, Draw)>,
    batching: Batching,
    /// None of the epoch's images was shown before.
    whole: bool,
    /// How far in `order` images were loaded, and how far they were handed over.
    loaded: usize,
    passed: usize,
    /// Images that were loaded and not handed over, their labels and their places in `order`.
    images: Vec<f32>,
    labels: Vec<u32>,
    places: Vec<usize>,
}

impl Readable {
    /// `whole` says that `order` is all of an epoch: if nothing in it can be read, that is an error.
    pub fn new(
        loader: Arc<Loader>,
        split: Arc<Split>,
        order: Vec<(usize, Draw)>,
        batching: Batching,
        whole: bool,
    ) -> Self {
        Self {
            loader,
            split,
            order,
            batching,
            whole,
            loaded: 0,
            passed: 0,
            images: Vec::new(),
            labels: Vec::new(),
            places: Vec::new(),
        }
    }

    /// Loads a batch and, if there are so many, two images more: with them it is known whether one would be left alone.
    fn look_ahead(&mut self) -> Result<(), TreeError> {
        while self.labels.len() < self.batching.size + 2 && self.loaded < self.order.len() {
            let wanted = self.batching.size + 2 - self.labels.len();
            let end = self.order.len().min(self.loaded + wanted);
            let next = &self.order[self.loaded..end];
            let (read, places) = self.loader.load_placed(&self.split, next)?;
            self.images.extend(read.images);
            self.labels.extend(read.labels);
            self.places.extend(places.iter().map(|place| self.loaded + place));
            self.loaded = end;
        }
        Ok(())
    }

    /// How many of the images at hand are the next batch.
    fn next_len(&self) -> usize {
        let (held, full) = (self.labels.len(), self.batching.size);
        if self.batching.drop_last {
            if held < full {
                0
            } else {
                full
            }
        } else if held == full + 1 && full > 2 {
            full - 1
        } else {
            held.min(full)
        }
    }

    fn nothing(&self) -> Option<TreeError> {
        let skipped = self.loader.left_out();
        let (path, reason) = skipped.first_key_value()?;
        Some(TreeError::NoneReadable {
            images: self.split.len(),
            path: path.clone(),
            reason: reason.clone(),
        })
    }
}

impl Iterator for Readable {
    type Item = Result<Decoded, TreeError>;

    fn next(&mut self) -> Option<Self::Item> {
        if let Err(error) = self.look_ahead() {
            return Some(Err(error));
        }
        let n = self.next_len();
        if n == 0 {
            let nothing = self.whole && self.passed == 0 && self.labels.is_empty() && !self.order.is_empty();
            self.passed = self.order.len();
            return if nothing { self.nothing().map(Err) } else { None };
        }
        let rest = self.images.split_off(n * self.loader.transform.len());
        let images = std::mem::replace(&mut self.images, rest);
        let labels = self.labels.drain(..n).collect();
        self.places.drain(..n);
        let end = self.places.first().copied().unwrap_or(self.loaded);
        let passed = end - std::mem::replace(&mut self.passed, end);
        Some(Ok(Decoded { images, labels, passed }))
    }
}
