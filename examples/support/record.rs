//! What is kept of a run: progress on the terminal, metrics.csv, curves.svg, the weights.

use super::curves;
use super::evaluate::{Mean, Scores, Tally};
use super::metrics::{Epoch, Metrics};
use super::progress::Progress;
use super::run_dir::RunDir;
use super::wait::{DataWait, Timed};
use anyhow::{Context, Result};
use candle_core::Tensor;
use candle_nn::VarMap;
use masksub::{Params, Step};
use std::time::Instant;

pub struct Recorder {
    out: RunDir,
    title: String,
    metrics: Metrics,
    progress: Progress,
    epochs: Vec<Epoch>,
    started: Instant,
    step: usize,
    wait: DataWait,
    current: Current,
}

/// Of the epoch that is running.
struct Current {
    started: Instant,
    lr: f64,
    main: Mean,
    sub: Mean,
    train: Tally,
}

impl Current {
    fn new() -> Self {
        Self {
            started: Instant::now(),
            lr: 0.,
            main: Mean::default(),
            sub: Mean::default(),
            train: Tally::default(),
        }
    }
}

impl Recorder {
    /// Opens the files, and finds out whether there is room for the weights of `params`.
    pub fn start(out: RunDir, title: String, total_steps: usize, params: &Params) -> Result<Self> {
        const BESIDES: usize = 1 << 20; // names, metrics, picture
        out.check_room(params.num_elements() * size_of::<f32>() + BESIDES)?;
        let metrics = Metrics::create(&out.path().join("metrics.csv"))?;
        println!("{title}, to {}", out.path().display());
        Ok(Self {
            out,
            title,
            metrics,
            progress: Progress::new(total_steps),
            epochs: Vec::new(),
            started: Instant::now(),
            step: 0,
            wait: DataWait::default(),
            current: Current::new(),
        })
    }

    /// An epoch's batches, with a clock on how long each is waited for.
    pub fn timed<I: Iterator>(&self, batches: I) -> Timed<I> {
        self.wait.timed(batches)
    }

    /// A step that was made at learning rate `lr` on images of these labels `[B]`.
    pub fn step(&mut self, lr: f64, step: &Step, labels: &Tensor) -> Result<()> {
        let (batch, current) = (labels.dim(0)?, &mut self.current);
        current.lr = lr;
        current.main.add(step.main_loss, batch);
        if let Some(sub_loss) = step.sub_loss {
            current.sub.add(sub_loss, batch);
        }
        current.train.add(&step.main_logits, labels)?;
        self.step += 1;
        let (main, sub) = (current.main.get(), current.sub.get());
        self.progress
            .step(self.epochs.len() + 1, main, sub, current.train.scores().top1);
        Ok(())
    }

    /// The end of an epoch, with its scores on the test images.
    pub fn epoch(&mut self, test: Scores) -> Result<()> {
        let done = std::mem::replace(&mut self.current, Current::new());
        let epoch = Epoch {
            epoch: self.epochs.len() + 1,
            step: self.step,
            lr: done.lr,
            train_loss_main: done.main.get(),
            train_loss_sub: done.sub.get(),
            train_top1: done.train.scores().top1,
            test_loss: test.loss,
            test_top1: test.top1,
            test_top5: test.top5,
            seconds: done.started.elapsed().as_secs_f64(),
        };
        self.metrics.push(&epoch)?;
        self.epochs.push(epoch);
        let picture = curves::svg(&self.epochs, &self.title)?;
        self.out.write("curves.svg", picture.as_bytes())
    }

    /// Writes the weights, and tells the result in one line.
    pub fn finish(self, branch: impl std::fmt::Display, weights: &VarMap) -> Result<String> {
        self.progress.finish();
        let file = {
            let vars = weights.data().lock().unwrap_or_else(|poisoned| poisoned.into_inner());
            let tensors = vars.iter().map(|(name, var)| (name, var.as_tensor()));
            safetensors::serialize(tensors, None).context("cannot serialize the weights")?
        };
        self.out.write("model.safetensors", &file)?;
        let last = self.epochs.last().context("there was no epoch")?;
        Ok(format!(
            "result branch={branch} top1={:.2} top5={:.2} loss={:.4} epochs={} seconds={:.1} data_wait={:.1}%",
            last.test_top1,
            last.test_top5,
            last.test_loss,
            last.epoch,
            self.started.elapsed().as_secs_f64(),
            100. * self.wait.share()
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::backprop::GradStore;
    use candle_core::{DType, Device};
    use masksub::{Seed, Weights};

    fn step(sub_loss: Option<f64>) -> Step {
        Step {
            grads: GradStore::default(),
            main_loss: 0.5,
            sub_loss,
            main_logits: Tensor::new(&[[1f32, 0.], [1., 0.]], &Device::Cpu).unwrap(),
            mask: None,
        }
    }

    #[test]
    fn a_run_leaves_metrics_curves_and_weights() {
        let root = tempfile::tempdir().unwrap();
        let weights = Weights::seeded(Seed::new(0));
        candle_nn::linear(4, 2, weights.var_builder(DType::F32, &Device::Cpu).pp("fc")).unwrap();
        let params = Params::from_varmap(weights.varmap());
        let labels = Tensor::new(&[0u32, 1], &Device::Cpu).unwrap();
        let test = Scores {
            top1: 90.,
            top5: 100.,
            loss: 0.25,
        };

        let out = RunDir::create(Some(root.path())).unwrap();
        let mut record = Recorder::start(out, "title".into(), 4, &params).unwrap();
        for sub_loss in [Some(0.75), None] {
            assert_eq!(record.timed(0..2).count(), 2);
            record.step(2e-3, &step(sub_loss), &labels).unwrap();
            record.step(1e-3, &step(sub_loss), &labels).unwrap();
            record.epoch(test).unwrap();
        }
        let result = record.finish("masksub", weights.varmap()).unwrap();
        let start = "result branch=masksub top1=90.00 top5=100.00 loss=0.2500 epochs=2 seconds=";
        assert!(result.starts_with(start), "{result}");
        // The share of the time; metrics.csv is the same in every run, so it is not there.
        let (_, wait) = result.split_once(" data_wait=").unwrap();
        let share: f64 = wait.strip_suffix('%').unwrap().parse().unwrap();
        assert!((0. ..=100.).contains(&share), "{result}");

        let csv = std::fs::read_to_string(root.path().join("metrics.csv")).unwrap();
        let rows: Vec<&str> = csv.lines().collect();
        assert!(rows[1].starts_with("1,2,0.001,0.5,0.75,50,0.25,90,100,"), "{csv}");
        assert!(rows[2].starts_with("2,4,0.001,0.5,,50,0.25,90,100,"), "{csv}");
        let svg = std::fs::read_to_string(root.path().join("curves.svg")).unwrap();
        assert!(svg.contains("title"));

        let file = root.path().join("model.safetensors");
        let saved = candle_core::safetensors::load(&file, &Device::Cpu).unwrap();
        assert_eq!(saved.len(), 2);
        for (name, var) in params.iter() {
            let (saved, trained) = (saved[name].flatten_all().unwrap(), var.flatten_all().unwrap());
            assert_eq!(saved.to_vec1::<f32>().unwrap(), trained.to_vec1::<f32>().unwrap());
        }
    }
}
