//! A data set as the training loop sees it: batches of images with their labels.

pub mod augment;
mod decode;
pub mod digits;
mod draws;
mod file_list;
pub mod grey_set;
mod idx;
pub mod image_tree;
pub mod loader;
mod order;
mod prefetch;
pub mod transform;

use anyhow::Result;
use candle_core::Tensor;
pub use order::{Batching, Part, Portion};

/// Images `[B, C, H, W]` f32, normalised, and their class indices `[B]` u32.
pub struct Batch {
    pub images: Tensor,
    pub labels: Tensor,
    /// How many images of the order it uses up, with those that were left out and those that other ranks load.
    pub passed: usize,
}

pub type Batches<'a> = Box<dyn Iterator<Item = Result<Batch>> + 'a>;

/// Images to train on and others to test on.
pub trait Dataset {
    fn num_classes(&self) -> usize;

    fn train_len(&self) -> usize;

    /// How many images `train_batches` shows, some of them more than once with repeated augmentation.
    fn epoch_len(&self) -> usize {
        self.train_len()
    }

    fn test_len(&self) -> usize;

    /// Every training image once (see [`epoch_len`](Self::epoch_len)), in an order that `(seed, epoch)` decides, without
    /// the first `skip` images of that order: the sum of `passed` of the batches before. None is empty. The last may be
    /// smaller, and the one before it by one, unless it is dropped: see [`training_batches`](order::training_batches). Of
    /// each batch the `part` of `batching` is loaded, where none is smaller.
    fn train_batches(&self, seed: u64, epoch: usize, batching: Batching, skip: usize) -> Batches<'_>;

    /// Every test image once, or in their place those held out (see [`Portion`]), in a fixed order, of which `part` takes
    /// every so manyth batch. The last batch may be smaller, and one is empty where none of its images could be read.
    fn test_batches(&self, batch_size: usize, part: Part) -> Batches<'_>;

    /// Where the images are files, all of them with their sizes: a [`line`](crate::run::images::line) each.
    fn files(&self) -> Option<String> {
        None
    }

    /// How many different images were left out so far because they could not be read.
    fn skipped(&self) -> usize {
        0
    }
}
