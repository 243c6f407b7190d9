//! The handwritten digits that ship with the examples: 8x8 pixels, ten classes, 1200 to train on and 597 to test on.
//!
//! Optical Recognition of Handwritten Digits, E. Alpaydin and C. Kaynak, UCI Machine Learning Repository, 1998,
//! doi 10.24432/C50P49, CC BY 4.0.

use super::draws::{rng, Purpose};
use super::order::{permutation, training_batches};
use super::{Batch, Batches, Batching, Dataset, Part, Portion};
use anyhow::{ensure, Context, Result};
use candle_core::{Device, Tensor};
use safetensors::SafeTensors;

const FILE: &[u8] = include_bytes!("../../data/digits.safetensors");
/// Height and width of an image.
pub const SIDE: usize = 8;
const PIXELS: usize = SIDE * SIDE;
/// The images that may be trained on.
pub const POOL: usize = 1200;
/// The images that never are.
pub const TEST: usize = 597;
// The file is ordered by writer; a permutation that never changes puts every writer into both parts.
const SPLIT_SEED: u64 = 0;

/// Grey levels are normalised by the mean and standard deviation of all pixels of the training pool.
pub struct Digits {
    images: Vec<f32>,
    labels: Vec<u32>,
    train: Vec<usize>,
    test: Vec<usize>,
    enlarge: usize,
    device: Device,
}

impl Digits {
    /// The test images, which are always the same, and a portion of the pool. Each pixel is repeated `enlarge` times in
    /// both directions.
    pub fn load(portion: Portion, enlarge: usize, device: &Device) -> Result<Self> {
        let file = SafeTensors::deserialize(FILE).context("the embedded digits")?;
        let (images, labels) = (file.tensor("images")?, file.tensor("labels")?);
        ensure!(
            images.shape() == [POOL + TEST, SIDE, SIDE] && labels.shape() == [POOL + TEST],
            "the embedded digits have an unexpected shape"
        );
        let mut pool = permutation(POOL + TEST, &mut rng(SPLIT_SEED, 0, 0, Purpose::Split));
        let test = pool.split_off(POOL);
        let (train, held_out) = portion.of(POOL)?;
        let of_pool = |places: Vec<usize>| places.into_iter().map(|i| pool[i]).collect();
        let (train, test) = match portion.validation {
            0 => (of_pool(train), test),
            _ => (of_pool(train), of_pool(held_out)),
        };
        let (mean, std) = mean_std(pool.iter().flat_map(|&i| image(images.data(), i)).copied());
        Ok(Self {
            images: images.data().iter().map(|&grey| (grey as f32 - mean) / std).collect(),
            labels: labels.data().iter().map(|&digit| digit as u32).collect(),
            train,
            test,
            enlarge,
            device: device.clone(),
        })
    }

    fn batch(&self, indices: &[usize]) -> Result<Batch> {
        let images: Vec<f32> = indices.iter().flat_map(|&i| image(&self.images, i)).copied().collect();
        let labels: Vec<u32> = indices.iter().map(|&i| self.labels[i]).collect();
        let images = Tensor::from_vec(images, (indices.len(), 1, SIDE, SIDE), &self.device)?;
        let images = match self.enlarge {
            1 => images,
            by => images.upsample_nearest2d(by * SIDE, by * SIDE)?,
        };
        Ok(Batch {
            images,
            labels: Tensor::from_vec(labels, indices.len(), &self.device)?,
            passed: indices.len(),
        })
    }
}

impl Dataset for Digits {
    fn num_classes(&self) -> usize {
        10
    }

    fn train_len(&self) -> usize {
        self.train.len()
    }

    fn test_len(&self) -> usize {
        self.test.len()
    }

    fn train_batches(&self, seed: u64, epoch: usize, batching: Batching, skip: usize) -> Batches<'_> {
        let order = permutation(self.train.len(), &mut rng(seed, epoch, 0, Purpose::Order));
        let order: Vec<usize> = order.into_iter().skip(skip).map(|i| self.train[i]).collect();
        let batches = training_batches(&order, batching).into_iter();
        Box::new(batches.map(move |indices| {
            let passed = indices.len();
            let here: Vec<usize> = batching.part.take(indices).collect();
            Ok(Batch {
                passed,
                ..self.batch(&here)?
            })
        }))
    }

    fn test_batches(&self, batch_size: usize, part: Part) -> Batches<'_> {
        Box::new(
            part.take(self.test.chunks(batch_size))
                .map(|indices| self.batch(indices)),
        )
    }
}

fn image<T>(pixels: &[T], i: usize) -> &[T] {
    &pixels[i * PIXELS..(i + 1) * PIXELS]
}

// Sums of integers, hence exact and the same everywhere.
fn mean_std(values: impl Iterator<Item = u8>) -> (f32, f32) {
    let (mut n, mut sum, mut squares) = (0u64, 0u64, 0u64);
    for value in values.map(u64::from) {
        (n, sum, squares) = (n + 1, sum + value, squares + value * value);
    }
    let mean = sum as f64 / n as f64;
    let variance = squares as f64 / n as f64 - mean * mean;
    (mean as f32, variance.sqrt() as f32)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    fn load(train_size: usize, seed: u64) -> Digits {
        let portion = Portion {
            train_size: Some(train_size),
            validation: 0,
            seed,
        };
        Digits::load(portion, 1, &Device::Cpu).unwrap()
    }

    fn labels(batches: Batches) -> Vec<u32> {
        batches
            .flat_map(|batch| batch.unwrap().labels.to_vec1::<u32>().unwrap())
            .collect()
    }

    #[test]
    fn splits_have_their_sizes_and_share_no_image() {
        let digits = load(POOL, 3);
        let (train, test): (BTreeSet<_>, BTreeSet<_>) = (
            digits.train.iter().copied().collect(),
            digits.test.iter().copied().collect(),
        );
        assert_eq!((train.len(), test.len()), (1200, 597));
        assert!(train.is_disjoint(&test));
        let few = load(300, 3);
        assert_eq!(few.train.len(), 300);
        assert!(few.train.iter().all(|i| train.contains(i)));
    }

    // Recorded: results are comparable between releases only while this stays.
    #[test]
    fn test_images_are_always_the_same() {
        assert_eq!(load(POOL, 0).test[..5], FIRST_TEST_IMAGES);
    }
    const FIRST_TEST_IMAGES: [usize; 5] = [999, 902, 1299, 26, 659];

    #[test]
    fn seed_draws_the_training_images_and_leaves_the_test_images() {
        let (one, two) = (load(300, 1), load(300, 2));
        assert_ne!(one.train, two.train);
        assert_eq!(one.train, load(300, 1).train);
        assert_eq!(one.test, two.test);
        // Those held out are of the pool, so that no setting is ever chosen on a test image.
        let portion = Portion {
            train_size: Some(300),
            validation: 400,
            seed: 1,
        };
        let choosing = Digits::load(portion, 1, &Device::Cpu).unwrap();
        assert_eq!((&choosing.train, choosing.test_len()), (&one.train, 400));
        assert!(choosing
            .test
            .iter()
            .all(|i| !one.test.contains(i) && !one.train.contains(i)));
    }

    #[test]
    fn pool_is_normalised_and_classes_are_balanced() {
        let digits = load(POOL, 0);
        let pixels: Vec<f64> = digits
            .train
            .iter()
            .flat_map(|&i| image(&digits.images, i))
            .map(|&v| v as f64)
            .collect();
        let mean = pixels.iter().sum::<f64>() / pixels.len() as f64;
        let variance = pixels.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / pixels.len() as f64;
        assert!(mean.abs() < 1e-5 && (variance - 1.0).abs() < 1e-5, "{mean} {variance}");
        let test = labels(digits.test_batches(64, Part::ALL));
        for digit in 0..10 {
            let n = test.iter().filter(|&&label| label == digit).count();
            assert!((40..80).contains(&n), "{n} test images of {digit}");
        }
    }

    #[test]
    fn an_epoch_shows_every_image_once_in_an_order_of_its_own() {
        let digits = load(300, 5);
        let batches: Vec<Batch> = digits
            .train_batches(5, 0, Batching::all(64), 0)
            .map(|b| b.unwrap())
            .collect();
        let sizes: Vec<usize> = batches.iter().map(|b| b.labels.dims()[0]).collect();
        assert_eq!(sizes, [64, 64, 64, 64, 44]);
        assert_eq!(batches[0].images.dims(), [64, 1, 8, 8]);
        let one_more = load(65, 5);
        let sizes = one_more
            .train_batches(5, 0, Batching::all(64), 0)
            .map(|b| b.unwrap().labels.dims()[0]);
        assert_eq!(sizes.collect::<Vec<_>>(), [63, 2]);
        let (first, second) = (
            labels(digits.train_batches(5, 0, Batching::all(64), 0)),
            labels(digits.train_batches(5, 1, Batching::all(64), 0)),
        );
        assert_eq!(first, labels(digits.train_batches(5, 0, Batching::all(64), 0)));
        assert_ne!(first, second);
        let sorted = |mut labels: Vec<u32>| {
            labels.sort_unstable();
            labels
        };
        assert_eq!(sorted(first), sorted(second));
    }

    // Against the file, normalised by the text-book formula.
    #[test]
    fn images_and_labels_belong_together() {
        let file = SafeTensors::deserialize(FILE).unwrap();
        let (greys, file_labels) = (file.tensor("images").unwrap(), file.tensor("labels").unwrap());
        let digits = load(POOL, 0);
        let pool: Vec<f64> = digits
            .train
            .iter()
            .flat_map(|&i| image(greys.data(), i))
            .map(|&grey| grey as f64)
            .collect();
        let mean = pool.iter().sum::<f64>() / pool.len() as f64;
        let std = (pool.iter().map(|grey| (grey - mean).powi(2)).sum::<f64>() / pool.len() as f64).sqrt();

        let batch = digits.test_batches(TEST, Part::ALL).next().unwrap().unwrap();
        let images = batch.images.flatten(1, 3).unwrap().to_vec2::<f32>().unwrap();
        let labels = batch.labels.to_vec1::<u32>().unwrap();
        for (&i, (pixels, label)) in digits.test.iter().zip(images.iter().zip(labels)) {
            assert_eq!(label, file_labels.data()[i] as u32);
            for (&pixel, &grey) in pixels.iter().zip(image(greys.data(), i)) {
                assert!((pixel as f64 - (grey as f64 - mean) / std).abs() < 1e-5);
            }
        }
    }
}
