//! What is kept of a run: progress on the terminal, metrics.csv, curves.svg, the weights.

use super::clock::Clock;
use super::curves;
use super::dir::RunDir;
use super::metrics::{self, Epoch};
use super::progress::Progress;
use super::wait::{DataWait, Timed};
use crate::evaluate::{Mean, Scores, Tally};
use anyhow::{bail, Context, Result};
use candle_core::Tensor;
use masksub::train::distributed::{self, Communicator};
use masksub::{Difficulty, Step};
use std::collections::BTreeMap;
use std::time::Instant;

pub struct Recorder {
    out: RunDir,
    title: String,
    progress: Progress,
    epochs: Vec<Epoch>,
    step: usize,
    wait: DataWait,
    current: Current,
}

/// How far a run has come: epochs that are done with, and batches of the one that is running.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Moment {
    epochs: usize,
    batches: usize,
}

/// Of the epoch that is running.
struct Current {
    started: Instant,
    /// Seconds that the epoch took before the run was resumed.
    before: f64,
    in_steps: Clock,
    /// Batches taken, and how many of the epoch's images they used up, with those that could not be read.
    batches: usize,
    passed: usize,
    lr: f64,
    main: Mean,
    sub: Mean,
    difficulty: [Mean; 4],
    train: Tally,
}

impl Current {
    fn new() -> Self {
        Self {
            started: Instant::now(),
            before: 0.0,
            in_steps: Clock::new(0.0, 0.0),
            batches: 0,
            passed: 0,
            lr: 0.0,
            main: Mean::default(),
            sub: Mean::default(),
            difficulty: Default::default(),
            train: Tally::default(),
        }
    }

    /// Numbers that read back as the same ones.
    fn to_text(&self) -> String {
        let seconds = self.before + self.started.elapsed().as_secs_f64();
        let ([main, main_weight], [sub, sub_weight]) = (self.main.parts(), self.sub.parts());
        let [images, top1, top5, loss] = (&self.train).into();
        let sums = [
            seconds,
            self.in_steps.cpu,
            self.in_steps.wall,
            self.batches as f64,
            self.passed as f64,
            self.lr,
            main,
            main_weight,
            sub,
            sub_weight,
            images,
            top1,
            top5,
            loss,
        ];
        let difficulty = self.difficulty.iter().flat_map(|mean| mean.parts());
        let numbers: Vec<String> = sums
            .into_iter()
            .chain(difficulty)
            .map(|number| number.to_string())
            .collect();
        numbers.join(" ")
    }

    fn from_text(text: &str) -> Result<Self> {
        let numbers: Vec<f64> = text.split(' ').map(str::parse).collect::<Result<_, _>>()?;
        let wrong = || {
            format!(
                "the checkpoint's sums of the epoch are {} numbers instead of 22",
                numbers.len()
            )
        };
        let (sums, difficulty) = numbers.split_first_chunk().with_context(wrong)?;
        let [before, cpu, wall, batches, passed, lr, main, main_weight, sub, sub_weight, images, top1, top5, loss] =
            *sums;
        let (&[norm_main, norm_sub, cosine, agreement], []) = difficulty.as_chunks() else {
            bail!("{}", wrong());
        };
        Ok(Self {
            started: Instant::now(),
            before,
            in_steps: Clock::new(wall, cpu),
            batches: batches as usize,
            passed: passed as usize,
            lr,
            main: Mean::from_parts([main, main_weight]),
            sub: Mean::from_parts([sub, sub_weight]),
            difficulty: [norm_main, norm_sub, cosine, agreement].map(Mean::from_parts),
            train: Tally::from([images, top1, top5, loss]),
        })
    }
}

const METRICS: &str = "metrics";
const CURRENT: &str = "current epoch";

impl Recorder {
    /// Finds out whether there is room for `bytes`, and writes nothing yet.
    pub fn start(out: RunDir, title: String, total_steps: usize, bytes: usize) -> Result<Self> {
        const BESIDES: usize = 1 << 20; // names, metrics, picture
        out.check_room(bytes + BESIDES)?;
        if out.writes() {
            println!("{title}, to {}", out.path().display());
        }
        Ok(Self {
            out,
            title,
            progress: Progress::new(total_steps),
            epochs: Vec::new(),
            step: 0,
            wait: DataWait::default(),
            current: Current::new(),
        })
    }

    /// Goes on where [`state`](Self::state) was taken.
    pub fn resume(out: RunDir, title: String, total_steps: usize, step: usize, state: &[(&str, &str)]) -> Result<Self> {
        let part = |name: &str| {
            let found = state.iter().find(|part| part.0 == name);
            found
                .map(|part| part.1)
                .with_context(|| format!("the checkpoint has no {name}"))
        };
        let epochs = metrics::parse(part(METRICS)?).context("the checkpoint's metrics cannot be read")?;
        let current = Current::from_text(part(CURRENT)?)?;
        if out.writes() {
            println!("{title}, to {}, after step {step}", out.path().display());
        }
        let progress = Progress::new(total_steps);
        progress.at(step);
        Ok(Self {
            out,
            title,
            progress,
            epochs,
            step,
            wait: DataWait::default(),
            current,
        })
    }

    /// What a checkpoint has to keep.
    pub fn state(&self) -> Result<[(&'static str, String); 2]> {
        Ok([
            (METRICS, metrics::exact(&self.epochs)?),
            (CURRENT, self.current.to_text()),
        ])
    }

    /// The epoch that is running, or comes next, counted from 0.
    pub fn current_epoch(&self) -> usize {
        self.epochs.len()
    }

    /// Steps done.
    pub fn steps(&self) -> usize {
        self.step
    }

    pub fn moment(&self) -> Moment {
        Moment {
            epochs: self.epochs.len(),
            batches: self.current.batches,
        }
    }

    /// Images of the epoch's order that are done with.
    pub fn passed_of_epoch(&self) -> usize {
        self.current.passed
    }

    /// A batch is taken that uses up `passed` images; returns which of the epoch it is.
    pub fn take_batch(&mut self, passed: usize) -> usize {
        self.current.passed += passed;
        self.current.batches += 1;
        self.current.batches - 1
    }

    pub fn out(&self) -> &RunDir {
        &self.out
    }

    /// An epoch's batches, with a clock on how long each is waited for.
    pub fn timed<I: Iterator>(&mut self, batches: I) -> Timed<I> {
        self.current.in_steps.restart();
        self.wait.timed(batches)
    }

    /// A step that was made at learning rate `lr`, of which `step` and the labels `[B]` of its images are this rank's.
    pub fn step(&mut self, ranks: &dyn Communicator, lr: f64, step: &Step, labels: &Tensor) -> Result<()> {
        let batch = labels.dim(0)?;
        let (mut main, mut sub, mut train) = (Mean::default(), Mean::default(), Tally::default());
        main.add(step.main_loss, batch);
        if let Some(sub_loss) = step.sub_loss {
            sub.add(sub_loss, batch);
        }
        train.add(&step.main_logits, labels)?;
        let difficulty = difficulty_of(step.difficulty, batch);
        let ([a, b], [c, d], [e, f, g, h]) = (main.parts(), sub.parts(), (&train).into());
        let sums = [a, b, c, d, e, f, g, h].into_iter();
        let mut sums: Vec<f64> = sums.chain(difficulty.iter().flat_map(Mean::parts)).collect();
        distributed::sum(ranks, &mut sums)?;
        let (&[a, b, c, d, e, f, g, h], difficulty) = sums.split_first_chunk().context("eight sums come first")?;
        let current = &mut self.current;
        current.lr = lr;
        current.main.add_all(Mean::from_parts([a, b]));
        current.sub.add_all(Mean::from_parts([c, d]));
        current.train.add_all(&Tally::from([e, f, g, h]));
        for (mean, parts) in current.difficulty.iter_mut().zip(difficulty.chunks_exact(2)) {
            mean.add_all(Mean::from_parts([parts[0], parts[1]]));
        }
        current.in_steps.count();
        if !step.main_logits.device().is_cpu() {
            current.in_steps.cpu = f64::NAN; // The processors wait for the device then.
        }
        self.step += 1;
        let (main, sub) = (current.main.get(), current.sub.get());
        self.progress
            .step(self.epochs.len() + 1, main, sub, current.train.scores().top1);
        Ok(())
    }

    /// The end of an epoch, with its scores on the test images if it was evaluated, and those of the averaged weights where
    /// there are any.
    pub fn epoch(&mut self, test: Option<Scores>, ema: Option<Scores>) -> Result<()> {
        let done = std::mem::replace(&mut self.current, Current::new());
        let [grad_norm_main, grad_norm_sub, grad_cosine, agreement] = done.difficulty.map(|mean| mean.get());
        let epoch = Epoch {
            epoch: self.epochs.len() + 1,
            step: self.step,
            lr: done.lr,
            train_loss_main: done.main.get(),
            train_loss_sub: done.sub.get(),
            train_top1: done.train.scores().top1,
            test_loss: test.map_or(f64::NAN, |scores| scores.loss),
            test_top1: test.map_or(f64::NAN, |scores| scores.top1),
            test_top5: test.map_or(f64::NAN, |scores| scores.top5),
            ema_loss: ema.map_or(f64::NAN, |scores| scores.loss),
            ema_top1: ema.map_or(f64::NAN, |scores| scores.top1),
            grad_norm_main,
            grad_norm_sub,
            grad_cosine,
            agreement,
            train_cpu_seconds: done.in_steps.cpu,
            train_seconds: done.in_steps.wall,
            seconds: done.before + done.started.elapsed().as_secs_f64(),
        };
        self.epochs.push(epoch);
        self.write_metrics()?;
        let picture = curves::svg(&self.epochs, &self.title)?;
        self.out.write("curves.svg", picture.as_bytes())
    }

    /// Writes metrics.csv: what is there of epochs that a checkpoint knows nothing of is taken back.
    pub fn write_metrics(&self) -> Result<()> {
        self.out.write("metrics.csv", metrics::text(&self.epochs)?.as_bytes())
    }

    /// Writes weights to `name`, with what the file says beside them.
    pub fn write_weights(
        &self,
        name: &str,
        weights: &BTreeMap<String, Tensor>,
        metadata: BTreeMap<String, String>,
    ) -> Result<()> {
        let metadata = metadata.into_iter().collect();
        let file = safetensors::serialize(weights, Some(metadata)).context("cannot serialize the weights")?;
        self.out.write(name, &file)
    }

    /// Tells the result in one line.
    pub fn finish(self, branch: impl std::fmt::Display) -> Result<String> {
        self.progress.finish();
        let last = self.epochs.last().context("there was no epoch")?;
        let ema = if last.ema_top1.is_nan() {
            String::new()
        } else {
            format!(" ema_top1={:.2}", last.ema_top1)
        };
        let wait = match self.wait.share() {
            share if share.is_nan() => String::new(), // nothing was left to do
            share => format!(" data_wait={:.1}%", 100.0 * share),
        };
        Ok(format!(
            "result branch={branch} top1={:.2} top5={:.2} loss={:.4}{ema} epochs={} seconds={:.1}{wait}",
            last.test_top1,
            last.test_top5,
            last.test_loss,
            last.epoch,
            self.epochs.iter().map(|epoch| epoch.seconds).sum::<f64>(),
        ))
    }
}

/// Norms, cosine and agreement in per cent of a batch; a cosine with a gradient that vanishes is none, and is left out.
fn difficulty_of(difficulty: Option<Difficulty>, batch: usize) -> [Mean; 4] {
    let Some(difficulty) = difficulty else {
        return Default::default();
    };
    let agreement = difficulty.agreement.map_or(f64::NAN, |share| 100.0 * share);
    let values = [difficulty.main_norm, difficulty.sub_norm, difficulty.cosine, agreement];
    values.map(|value| {
        let mut mean = Mean::default();
        if value.is_finite() {
            mean.add(value, batch);
        }
        mean
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::backprop::GradStore;
    use candle_core::{DType, Device};
    use masksub::train::distributed::Alone;
    use masksub::{Seed, Weights};

    fn step(sub_loss: Option<f64>) -> Step {
        Step {
            grads: GradStore::default(),
            main_loss: 0.5,
            sub_loss,
            main_logits: Tensor::new(&[[1f32, 0.0], [1.0, 0.0]], &Device::Cpu).unwrap(),
            mask: None,
            difficulty: sub_loss.map(|loss| Difficulty {
                main_norm: 1.0,
                sub_norm: 3.0 * loss,
                cosine: f64::NAN,
                agreement: Some(0.5),
            }),
        }
    }

    #[test]
    fn a_run_leaves_metrics_curves_and_weights() {
        let root = tempfile::tempdir().unwrap();
        let weights = Weights::seeded(Seed::new(0));
        candle_nn::linear(4, 2, weights.var_builder(DType::F32, &Device::Cpu).pp("fc")).unwrap();
        let labels = Tensor::new(&[0u32, 1], &Device::Cpu).unwrap();
        let test = Scores {
            top1: 90.0,
            top5: 100.0,
            loss: 0.25,
        };

        let out = RunDir::create(Some(root.path())).unwrap();
        let mut record = Recorder::start(out, "title".into(), 4, 100).unwrap();
        for sub_loss in [Some(0.75), None] {
            assert_eq!(record.timed(0..2).count(), 2);
            record.step(&Alone, 2e-3, &step(sub_loss), &labels).unwrap();
            record.step(&Alone, 1e-3, &step(sub_loss), &labels).unwrap();
            record.epoch(Some(test), None).unwrap();
        }
        record
            .write_weights("model.safetensors", &weights.state(), BTreeMap::new())
            .unwrap();
        let result = record.finish("masksub").unwrap();
        let start = "result branch=masksub top1=90.00 top5=100.00 loss=0.2500 epochs=2 seconds=";
        assert!(result.starts_with(start), "{result}");
        // The share of the time; metrics.csv is the same in every run, so it is not there.
        let (_, wait) = result.split_once(" data_wait=").unwrap();
        let share: f64 = wait.strip_suffix('%').unwrap().parse().unwrap();
        assert!((0.0..=100.0).contains(&share), "{result}");

        let csv = std::fs::read_to_string(root.path().join("metrics.csv")).unwrap();
        let rows: Vec<&str> = csv.lines().collect();
        assert!(rows[1].starts_with("1,2,0.001,0.5,0.75,50,0.25,90,100,,,"), "{csv}");
        assert!(rows[2].starts_with("2,4,0.001,0.5,,50,0.25,90,100,,,"), "{csv}");
        let svg = std::fs::read_to_string(root.path().join("curves.svg")).unwrap();
        assert!(svg.contains("title"));

        let file = root.path().join("model.safetensors");
        let saved = candle_core::safetensors::load(&file, &Device::Cpu).unwrap();
        assert_eq!(saved.len(), 2);
        for (name, var) in weights.state() {
            let (saved, trained) = (saved[&name].flatten_all().unwrap(), var.flatten_all().unwrap());
            assert_eq!(saved.to_vec1::<f32>().unwrap(), trained.to_vec1::<f32>().unwrap());
        }
    }

    #[test]
    fn a_resumed_run_leaves_what_an_uninterrupted_one_does() {
        let labels = Tensor::new(&[0u32, 1], &Device::Cpu).unwrap();
        let test = Scores {
            top1: 90.0,
            top5: 100.0,
            loss: 0.1 + 0.2,
        };
        let root = tempfile::tempdir().unwrap();
        let out = || RunDir::create(Some(root.path())).unwrap();
        let mut record = Recorder::start(out(), "title".into(), 4, 100).unwrap();
        record.step(&Alone, 1e-3, &step(Some(0.1)), &labels).unwrap();
        record.epoch(Some(test), Some(test)).unwrap();
        assert_eq!(record.take_batch(3), 0);
        record.step(&Alone, 1e-3, &step(Some(0.7)), &labels).unwrap();
        let state = record.state().unwrap();
        // What comes after the checkpoint, and is lost.
        record.step(&Alone, 2e-3, &step(None), &labels).unwrap();
        record.epoch(Some(test), None).unwrap();
        drop(record);

        let state = state.each_ref().map(|(name, text)| (*name, text.as_str()));
        let out = RunDir::existing(root.path()).unwrap();
        let mut record = Recorder::resume(out, "title".into(), 4, 2, &state).unwrap();
        assert_eq!(
            (record.current_epoch(), record.steps(), record.passed_of_epoch()),
            (1, 2, 3)
        );
        record.step(&Alone, 2e-3, &step(Some(0.3)), &labels).unwrap();
        record.epoch(Some(test), None).unwrap();
        let csv = std::fs::read_to_string(root.path().join("metrics.csv")).unwrap();
        let rows: Vec<&str> = csv.lines().collect();
        assert_eq!(rows.len(), 3);
        // As it would have been at once: nothing is rounded in between.
        assert!(rows[1].starts_with("1,1,0.001,0.5,0.1,50,0.3,90,100,0.3,90,"), "{csv}");
        assert!(rows[2].starts_with("2,3,0.002,0.5,0.5,50,0.3,90,100,,,"), "{csv}");
        assert!(state[0].1.contains(&(0.1 + 0.2).to_string()), "{}", state[0].1);
        drop(record);
        let broken = [state[0], ("current epoch", "1 2 3")];
        let out = RunDir::existing(root.path()).unwrap();
        assert!(Recorder::resume(out, "title".into(), 4, 2, &broken).is_err());
    }
}
