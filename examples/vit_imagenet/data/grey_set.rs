//! Sets like MNIST: four IDX files with grey images and their labels, to train on and to test on.
//!
//! All are in memory as bytes. What a [`Transform`] does to an image of a tree it does to these.

use super::draws::{rng, Purpose};
use super::idx::{self, Bytes, IdxError};
use super::order::{permutation, repeated, repeated_len, training_batches};
use super::transform::{Draw, Settings, Transform};
use super::{Batch, Batches, Batching, Dataset, Part, Portion};
use crate::run::images;
use anyhow::Result;
use candle_core::{Device, Tensor};
use masksub::augment::Image;
use rayon::prelude::*;
use std::path::{Path, PathBuf};

const IMAGES: [&str; 2] = ["train-images-idx3-ubyte", "t10k-images-idx3-ubyte"];
const LABELS: [&str; 2] = ["train-labels-idx1-ubyte", "t10k-labels-idx1-ubyte"];

/// What can be wrong with a set, its files apart.
#[derive(Debug, thiserror::Error)]
pub enum GreySetError {
    #[error("{root} lacks {name} (or {name}.gz), which belongs to a set like MNIST")]
    Missing { root: PathBuf, name: &'static str },
    #[error("{path} has {labels} labels for {images} images")]
    Lengths {
        path: PathBuf,
        labels: usize,
        images: usize,
    },
    #[error("the images to test on are of {test:?} pixels, those to train on of {train:?}")]
    Sizes { train: [usize; 2], test: [usize; 2] },
    #[error("{path} has the label {label}, but the training images only have those from 0 to {last}")]
    UnknownLabel { path: PathBuf, label: u8, last: u8 },
}

/// Whether `root` holds such a set, or a part of one.
pub fn is_at(root: &Path) -> bool {
    IMAGES.iter().chain(&LABELS).any(|name| idx::find(root, name).is_some())
}

/// Images of one size `[N, H, W]` and their labels `[N]`.
struct Labelled {
    images: Bytes<3>,
    labels: Vec<u8>,
    /// The files, with their lengths in bytes.
    files: [(PathBuf, u64); 2],
}

impl Labelled {
    fn read(root: &Path, split: usize) -> Result<Self> {
        let find = |name: &'static str| {
            let missing = || GreySetError::Missing {
                root: root.into(),
                name,
            };
            idx::find(root, name).ok_or_else(missing)
        };
        let (images_path, labels_path) = (find(IMAGES[split])?, find(LABELS[split])?);
        let images: Bytes<3> = idx::read(&images_path)?;
        let labels: Bytes<1> = idx::read(&labels_path)?;
        if labels.shape[0] != images.shape[0] {
            return Err(GreySetError::Lengths {
                path: labels_path,
                labels: labels.shape[0],
                images: images.shape[0],
            }
            .into());
        }
        let with_length = |path: PathBuf| -> Result<_, IdxError> {
            match path.metadata() {
                Ok(metadata) => Ok((path, metadata.len())),
                Err(reason) => Err(IdxError::Read { path, reason }),
            }
        };
        Ok(Self {
            images,
            labels: labels.values,
            files: [with_length(images_path)?, with_length(labels_path)?],
        })
    }

    /// `[H, W]`.
    fn size(&self) -> [usize; 2] {
        [self.images.shape[1], self.images.shape[2]]
    }

    fn largest_label(&self) -> u8 {
        self.labels.iter().copied().max().unwrap_or(0)
    }

    /// Each grey level as red, green and blue, which make the same level again where the network takes one channel.
    fn image(&self, i: usize) -> masksub::Result<Image> {
        let [height, width] = self.size();
        let pixels = &self.images.values[i * height * width..(i + 1) * height * width];
        Image::from_raw(width, height, pixels.iter().flat_map(|&grey| [grey; 3]).collect())
    }
}

pub struct GreySet {
    train: Labelled,
    test: Labelled,
    /// Which of the training images are trained on, and which are evaluated on in the place of the test images, if any are.
    chosen: Vec<usize>,
    held_out: Vec<usize>,
    transform: Transform,
    device: Device,
}

impl GreySet {
    /// A portion of the training images, and all test images unless others are held out.
    pub fn open(root: &Path, transform: Transform, portion: Portion, device: &Device) -> Result<Self> {
        let (train, test) = (Labelled::read(root, 0)?, Labelled::read(root, 1)?);
        if train.size() != test.size() {
            return Err(GreySetError::Sizes {
                train: train.size(),
                test: test.size(),
            }
            .into());
        }
        if test.largest_label() > train.largest_label() {
            return Err(GreySetError::UnknownLabel {
                path: test.files[1].0.clone(),
                label: test.largest_label(),
                last: train.largest_label(),
            }
            .into());
        }
        let (chosen, held_out) = match portion.is_all() {
            true => ((0..train.labels.len()).collect(), vec![]),
            false => portion.of(train.labels.len())?,
        };
        Ok(Self {
            train,
            test,
            chosen,
            held_out,
            transform,
            device: device.clone(),
        })
    }

    /// Those of these numbers, each with its draws.
    fn batch(&self, of: &Labelled, images: &[(usize, Draw)]) -> Result<Batch> {
        let length = self.transform.len();
        let mut values = vec![0f32; images.len() * length];
        let places = values.par_chunks_exact_mut(length).zip(images);
        places.try_for_each(|(out, &(i, draw))| self.transform.apply(&of.image(i)?, draw, out))?;
        let labels: Vec<u32> = images.iter().map(|&(i, _)| of.labels[i].into()).collect();
        let &Settings {
            image_size, channels, ..
        } = self.transform.settings();
        Ok(Batch {
            images: Tensor::from_vec(values, (labels.len(), channels, image_size, image_size), &self.device)?,
            labels: Tensor::from_vec(labels, images.len(), &self.device)?,
            passed: images.len(),
        })
    }
}

impl Dataset for GreySet {
    fn num_classes(&self) -> usize {
        usize::from(self.train.largest_label()) + 1
    }

    fn train_len(&self) -> usize {
        self.chosen.len()
    }

    fn epoch_len(&self) -> usize {
        repeated_len(self.train_len(), self.transform.settings().augment.repeats)
    }

    fn test_len(&self) -> usize {
        match self.held_out.len() {
            0 => self.test.labels.len(),
            n => n,
        }
    }

    fn train_batches(&self, seed: u64, epoch: usize, batching: Batching, skip: usize) -> Batches<'_> {
        let order = permutation(self.train_len(), &mut rng(seed, epoch, 0, Purpose::Order));
        let shown = repeated(&order, self.transform.settings().augment.repeats);
        let shown = shown.into_iter().skip(skip).map(|(index, repeat)| {
            let draw = Draw::Train {
                seed,
                epoch,
                index,
                repeat,
            };
            (self.chosen[index], draw)
        });
        let batches = training_batches(&shown.collect::<Vec<_>>(), batching).into_iter();
        Box::new(batches.map(move |images| {
            let here: Vec<_> = batching.part.take(images.iter().copied()).collect();
            Ok(Batch {
                passed: images.len(),
                ..self.batch(&self.train, &here)?
            })
        }))
    }

    fn test_batches(&self, batch_size: usize, part: Part) -> Batches<'_> {
        let (of, order) = match self.held_out.len() {
            0 => (&self.test, (0..self.test.labels.len()).collect()),
            _ => (&self.train, self.held_out.clone()),
        };
        let order: Vec<_> = order.into_iter().map(|i| (i, Draw::Test)).collect();
        let batches: Vec<_> = part.take(order.chunks(batch_size)).map(<[_]>::to_vec).collect();
        Box::new(batches.into_iter().map(move |images| self.batch(of, &images)))
    }

    fn files(&self) -> Option<String> {
        let files = self.train.files.iter().chain(&self.test.files);
        let line = |(path, bytes): &(PathBuf, u64)| Some(images::line(Path::new(path.file_name()?), *bytes));
        files.map(line).collect()
    }
}

#[cfg(test)]
mod tests;
