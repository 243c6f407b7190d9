//! What follows from the flags for an epoch's batches: how they are cut, and who shares them.

use super::training::TrainingFlags;
use crate::data::{Batching, Part};
use anyhow::{ensure, Result};
use clap::ValueEnum;
use masksub::train::replicas::{Combine, Replicas};

/// Whose running statistics are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum DistBn {
    /// The first one's: PyTorch's DistributedDataParallel sends them to all
    Broadcast,
    /// The same, and at the end of each epoch their mean
    Reduce,
}

impl TrainingFlags {
    /// How an epoch is cut in batches.
    pub fn batching(&self) -> Batching {
        Batching {
            size: self.batch_size,
            drop_last: self.drop_last,
            part: Part::ALL,
        }
    }

    /// Steps of an epoch that shows so many images.
    pub fn steps_per_epoch(&self, images: usize) -> Result<usize> {
        let steps = self.batching().count(images);
        ensure!(
            steps > 0,
            "--batch-size is {}, but must be at most {images}, the images of an epoch, with --drop-last true",
            self.batch_size
        );
        Ok(steps)
    }

    /// The replicas that share a batch.
    pub fn replicas(&self) -> Result<Replicas> {
        let (count, batch) = (self.replicas, self.batch_size);
        let replicas = Replicas::new(count)?;
        ensure!(
            batch.is_multiple_of(count),
            "--replicas is {count}, but must divide {batch}, the --batch-size"
        );
        let mixes = self.mixup > 0.0 || self.cutmix > 0.0;
        ensure!(
            count == 1 || batch > count || !mixes,
            "--replicas is {count}, but must leave two of {batch} images, the --batch-size, to each: --mixup and --cutmix mix \
             pairs"
        );
        ensure!(
            count == 1 || self.drop_last,
            "--replicas is {count}, but must be 1 without --drop-last true: an incomplete batch cannot be shared evenly"
        );
        Ok(replicas)
    }

    /// In how many parts a batch is run at least, one after the other.
    pub fn parts(&self) -> usize {
        self.accumulate.max(self.replicas)
    }

    /// What becomes of running statistics after a step, which may be the last of its epoch. (An epoch that is shorter than
    /// it should be, for the images that --unreadable skips, has no such step.)
    pub fn combine(&self, is_last: bool) -> Combine {
        match self.dist_bn {
            DistBn::Reduce if is_last => Combine::Mean,
            _ => Combine::First,
        }
    }
}
