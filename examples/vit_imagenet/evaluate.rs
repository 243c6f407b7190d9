//! Top-1 and top-5 accuracy and mean cross-entropy.

use crate::data::Batches;
use anyhow::{ensure, Result};
use candle_core::{DType, Tensor};
use masksub::train::distributed::{self, agree, Communicator};

/// Sums over the images seen so far.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    images: usize,
    top1: usize,
    top5: usize,
    loss: f64,
}

/// Accuracies in per cent and the mean loss.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Scores {
    pub top1: f64,
    pub top5: f64,
    pub loss: f64,
}

impl Tally {
    /// Counts a batch: logits `[B, C]`, class indices `[B]`.
    pub fn add(&mut self, logits: &Tensor, labels: &Tensor) -> Result<()> {
        let (batch, classes) = logits.dims2()?;
        let logits = logits.to_dtype(DType::F32)?.to_vec2::<f32>()?;
        let labels = labels.to_dtype(DType::U32)?.to_vec1::<u32>()?;
        ensure!(
            labels.len() == batch,
            "{batch} rows of logits for {} labels",
            labels.len()
        );
        for (logits, label) in logits.iter().zip(labels) {
            let label = label as usize;
            ensure!(label < classes, "label {label} where there are {classes} classes");
            let rank = rank(logits, label);
            self.images += 1;
            self.top1 += (rank == 0) as usize;
            self.top5 += (rank < 5) as usize;
            self.loss += cross_entropy(logits, label);
        }
        Ok(())
    }

    /// Counts what another one has counted.
    pub fn add_all(&mut self, other: &Self) {
        self.images += other.images;
        self.top1 += other.top1;
        self.top5 += other.top5;
        self.loss += other.loss;
    }

    /// NaN before the first image.
    pub fn scores(&self) -> Scores {
        let images = self.images as f64;
        Scores {
            top1: 100.0 * self.top1 as f64 / images,
            top5: 100.0 * self.top5 as f64 / images,
            loss: self.loss / images,
        }
    }
}

/// Scores of `model`, which takes images `[B, C, H, W]` to logits, over all batches of all ranks.
pub fn evaluate(
    ranks: &dyn Communicator,
    batches: Batches,
    model: impl Fn(&Tensor) -> Result<Tensor>,
) -> Result<Scores> {
    let mut sums: [f64; 4] = (&agree(ranks, tally(batches, model))?).into();
    distributed::sum(ranks, &mut sums)?;
    let tally = Tally::from(sums);
    ensure!(tally.images > 0, "there is no readable image to evaluate on");
    Ok(tally.scores())
}

fn tally(batches: Batches, model: impl Fn(&Tensor) -> Result<Tensor>) -> Result<Tally> {
    let mut tally = Tally::default();
    for batch in batches {
        let batch = batch?;
        if batch.labels.elem_count() == 0 {
            continue;
        }
        tally.add(&model(&batch.images)?, &batch.labels)?;
    }
    Ok(tally)
}

/// How many classes come before `label`; of equal logits the lower class is first. An undefined logit is the last.
fn rank(logits: &[f32], label: usize) -> usize {
    let own = logits[label];
    if own.is_nan() {
        return logits.len();
    }
    let before = |(class, &logit): (usize, &f32)| logit > own || (logit == own && class < label);
    logits.iter().enumerate().filter(|&pair| before(pair)).count()
}

fn cross_entropy(logits: &[f32], label: usize) -> f64 {
    let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max) as f64;
    let sum: f64 = logits.iter().map(|&logit| (logit as f64 - largest).exp()).sum();
    largest + sum.ln() - logits[label] as f64
}

/// The four sums, to be kept in a checkpoint.
impl From<&Tally> for [f64; 4] {
    fn from(tally: &Tally) -> Self {
        [tally.images as f64, tally.top1 as f64, tally.top5 as f64, tally.loss]
    }
}

impl From<[f64; 4]> for Tally {
    fn from([images, top1, top5, loss]: [f64; 4]) -> Self {
        Self {
            images: images as usize,
            top1: top1 as usize,
            top5: top5 as usize,
            loss,
        }
    }
}

/// The mean of a value that comes once a batch, weighted by the batch's size.
#[derive(Clone, Copy, Debug, Default)]
pub struct Mean {
    sum: f64,
    weight: f64,
}

impl Mean {
    pub fn add(&mut self, value: f64, batch: usize) {
        self.add_all(Self::from_parts([value * batch as f64, batch as f64]));
    }

    /// Adds what another one has.
    pub fn add_all(&mut self, other: Self) {
        self.sum += other.sum;
        self.weight += other.weight;
    }

    /// Sum and weight, to be kept in a checkpoint.
    pub fn parts(&self) -> [f64; 2] {
        [self.sum, self.weight]
    }

    pub fn from_parts([sum, weight]: [f64; 2]) -> Self {
        Self { sum, weight }
    }

    /// NaN if nothing was added.
    pub fn get(&self) -> f64 {
        self.sum / self.weight
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::Batch;
    use candle_core::Device;
    use masksub::train::distributed::Alone;

    fn close(a: f64, b: f64) -> bool {
        (a - b).abs() < 1e-5
    }

    #[test]
    fn counts_hits_by_rank() {
        let device = Device::Cpu;
        // The label is 1st, 2nd, 5th and 6th of seven.
        let row = [7f32, 6.0, 5.0, 4.0, 3.0, 2.0, 1.0];
        let logits = Tensor::new(&[row, row, row, row], &device).unwrap();
        let labels = Tensor::new(&[0u32, 1, 4, 5], &device).unwrap();
        let mut tally = Tally::default();
        tally.add(&logits, &labels).unwrap();
        let scores = tally.scores();
        assert_eq!((scores.top1, scores.top5), (25.0, 75.0));
        let oracle = candle_nn::loss::cross_entropy(&logits, &labels).unwrap();
        assert!(close(scores.loss, oracle.to_scalar::<f32>().unwrap() as f64));
    }

    #[test]
    fn ties_and_undefined_logits_are_no_gift() {
        assert_eq!(rank(&[1.0, 1.0, 1.0], 0), 0);
        assert_eq!(rank(&[1.0, 1.0, 1.0], 2), 2);
        assert_eq!(rank(&[f32::NAN, 0.0], 0), 2);
        assert!(close(cross_entropy(&[1e30, 0.0], 0), 0.0));
    }

    #[test]
    fn batches_add_up_whatever_their_size() {
        let device = Device::Cpu;
        let images = Tensor::arange(0f32, 28.0, &device)
            .unwrap()
            .reshape((7, 4, 1, 1))
            .unwrap();
        let images = (images.sin().unwrap() * 3.0).unwrap();
        let labels = Tensor::new(&[2u32, 3, 0, 0, 1, 1, 2], &device).unwrap();
        let scores = |size: usize| {
            let batches = (0..7usize).step_by(size).map(|start| {
                let n = size.min(7 - start);
                Ok(Batch {
                    images: images.narrow(0, start, n)?,
                    labels: labels.narrow(0, start, n)?,
                    passed: n,
                })
            });
            evaluate(&Alone, Box::new(batches), |xs| Ok(xs.flatten_from(1)?)).unwrap()
        };
        let whole = scores(7);
        assert!(whole.top1 > 0.0 && whole.top1 < 100.0 && whole.top5 == 100.0);
        for size in [1, 2, 3] {
            let parts = scores(size);
            assert_eq!((parts.top1, parts.top5), (whole.top1, whole.top5));
            assert!(close(parts.loss, whole.loss));
        }
        assert!(evaluate(&Alone, Box::new(std::iter::empty()), |xs| Ok(xs.clone())).is_err());
    }

    #[test]
    fn labels_that_do_not_fit_are_errors() {
        let logits = Tensor::zeros((2, 3), DType::F32, &Device::Cpu).unwrap();
        let add = |labels: &[u32]| Tally::default().add(&logits, &Tensor::new(labels, &Device::Cpu).unwrap());
        assert!(add(&[0, 2]).is_ok());
        assert!(add(&[0, 3]).is_err());
        assert!(add(&[0]).is_err());
    }

    #[test]
    fn means_weigh_batches_by_their_size() {
        let mut mean = Mean::default();
        assert!(mean.get().is_nan());
        mean.add(1.0, 3);
        mean.add(5.0, 1);
        assert_eq!(mean.get(), 2.0);
    }
}
