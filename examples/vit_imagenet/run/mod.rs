//! A run's checkpoints: when they are written, what is in them, and how a run is taken up again.

mod chart;
mod clock;
mod curves;
pub mod dir;
pub mod images;
mod metrics;
mod progress;
mod record;
mod wait;

use crate::config::{self, Config};
use crate::data::Dataset;
use crate::flags::Flags;
use crate::ranks::{self, check_same};
use anyhow::{bail, ensure, Context, Result};
use candle_core::Tensor;
use dir::RunDir;
use images::Images;
use masksub::train::checkpoint::{Checkpoint, Found};
use masksub::train::distributed::{agree, Communicator, ShardedOptimizer};
use masksub::train::ema::Ema;
use masksub::train::optim::Rule;
use masksub::Weights;
use record::{Moment, Recorder};
use serde_json::Value;
use std::collections::BTreeMap;
use std::ffi::OsString;

const FILE: &str = "checkpoint.safetensors";
const MODEL: &str = "model";
const OPTIMIZER: &str = "optimizer";
const AVERAGE: &str = "ema";
/// Names of settings, and what the others begin with.
const ARGUMENTS: &str = "arguments";
const TRAIN_LEN: &str = "training images";
const CLASSES: &str = "classes";
const CONFIG: &str = "config/";
const RECORD: &str = "record/";

/// A run that was left off.
pub struct Saved {
    checkpoint: Checkpoint,
    out: RunDir,
}

impl Saved {
    /// The last checkpoint in the directory `--out`, which all ranks can read.
    pub fn load(ranks: &dyn Communicator, flags: &Flags) -> Result<Self> {
        let out = flags.out.as_deref().context("--resume needs --out")?;
        ensure!(
            flags.init_from.is_none(),
            "--init-from is for a new run: one that is resumed has its weights"
        );
        let out = if ranks.rank() > 0 {
            RunDir::of_another_rank(Some(out))
        } else if flags.eval_only || flags.print_config.is_some() {
            RunDir::reading(out)?
        } else {
            RunDir::existing(out)?
        };
        let Some(found) = Checkpoint::load_last(out.path().join(FILE))? else {
            bail!("{} holds no checkpoint to resume", out.path().display());
        };
        let Found {
            checkpoint,
            path,
            refused,
        } = found;
        check_same(ranks, "the step of the checkpoint", &checkpoint.step().to_string())?;
        if let Some(refused) = refused.filter(|_| ranks::tells()) {
            eprintln!(
                "not used: {refused:?}; going on from {}, step {}",
                path.display(),
                checkpoint.step()
            );
        }
        Ok(Self { checkpoint, out })
    }

    /// The flags that the run was started with, and on top of them those given now.
    ///
    /// # Errors
    /// When the settings are then not the run's: names each that differs.
    pub fn flags(&self, given: &Flags) -> Result<Flags> {
        let mut arguments = arguments_of(self.setting(ARGUMENTS)?).context("the checkpoint's arguments")?;
        arguments.extend(given.arguments.iter().cloned());
        let flags = Flags::from_arguments(arguments).unwrap_or_else(|error| error.exit());
        if flags.eval_only {
            return Ok(flags);
        }
        let now = config::config(&flags)?;
        let was = now.iter().map(|(name, _)| *name);
        let was = was.filter_map(|name| {
            Some((
                name,
                self.checkpoint.settings().get(&format!("{CONFIG}{name}"))?.clone(),
            ))
        });
        let was: Config = was.collect();
        let contradictions = config::contradictions(&was, &now);
        ensure!(
            contradictions.is_empty(),
            "a run goes on with the settings it was started with, but {}",
            contradictions.join("; ")
        );
        Ok(flags)
    }

    /// The weights where the run was left off.
    pub fn weights(&self) -> Result<Weights> {
        Ok(Weights::from_tensors(self.checkpoint.section(MODEL)?.clone()))
    }

    /// The averaged weights, where the run has them.
    pub fn averaged_weights(&self) -> Result<Option<Weights>> {
        if !self.checkpoint.has_section(AVERAGE) {
            return Ok(None);
        }
        let average = self.checkpoint.section(AVERAGE)?;
        Ok(Some(Weights::from_tensors(Ema::weights_of(average))))
    }

    fn setting(&self, name: &str) -> Result<&str> {
        let setting = self.checkpoint.settings().get(name);
        setting
            .map(String::as_str)
            .with_context(|| format!("the checkpoint has no {name}"))
    }
}

/// What is trained.
pub struct Trained<'a, 'r> {
    pub weights: &'a Weights,
    pub opt: &'a mut ShardedOptimizer<'r, Box<dyn Rule>>,
    pub ema: Option<&'a mut Ema>,
}

pub struct Run<'a> {
    ranks: &'a dyn Communicator,
    /// Those that the run was started with, and where the images are, from wherever it is resumed.
    arguments: Vec<OsString>,
    config: Config,
    seed: u64,
    every: Option<usize>,
    train_len: usize,
    classes: usize,
    images: Images,
    /// The moment of the last checkpoint.
    saved: Option<Moment>,
    pub record: Recorder,
}

impl<'a> Run<'a> {
    /// Begins, or goes on from `saved`: what is trained is put in the state it had.
    pub fn start(
        ranks: &'a dyn Communicator,
        flags: &Flags,
        data: &dyn Dataset,
        saved: Option<Saved>,
        total_steps: usize,
        trained: &mut Trained,
    ) -> Result<Self> {
        let elements =
            |tensors: &BTreeMap<String, Tensor>| -> usize { tensors.values().map(|tensor| tensor.elem_count()).sum() };
        let weights = elements(&trained.weights.state());
        let state = elements(&trained.opt.state()?) + trained.ema.as_ref().map_or(0, |_| weights);
        let title = {
            let params = masksub::Params::from_varmap(trained.weights.varmap()).num_elements();
            let size = format!("{params} parameters, {} images", data.train_len());
            format!("{} with {}: {size}", flags.model(), flags.branch)
        };
        let (train_len, classes) = (data.train_len(), data.num_classes());
        let mut images = Images::of(data, flags.data.as_deref());
        let resumed = saved.is_some();
        let record = match saved {
            None => {
                // The last checkpoint, the one before and the next, and the weights by themselves at the end.
                let bytes = (3 * (weights + state) + 2 * weights) * size_of::<f32>() + images.bytes();
                let out = flags.out.as_deref();
                let out = match ranks.rank() {
                    0 => RunDir::create(out)?,
                    _ => RunDir::of_another_rank(out),
                };
                Recorder::start(out, title, total_steps, bytes)?
            }
            Some(saved) => {
                for (what, now) in [(TRAIN_LEN, train_len), (CLASSES, classes)] {
                    let was = saved.setting(what)?;
                    ensure!(
                        was == now.to_string(),
                        "the run was started with {was} {what}, but --data has {now}"
                    );
                }
                images.resume(saved.checkpoint.settings(), &saved.out)?;
                trained.opt.load_state(saved.checkpoint.section(OPTIMIZER)?)?;
                if let Some(ema) = trained.ema.as_mut() {
                    ema.load_state(saved.checkpoint.section(AVERAGE)?)?;
                }
                let record = saved.checkpoint.settings().iter();
                let record = record.filter_map(|(name, text)| Some((name.strip_prefix(RECORD)?, text.as_str())));
                let record: Vec<_> = record.collect();
                Recorder::resume(saved.out, title, total_steps, saved.checkpoint.step(), &record)?
            }
        };
        let mut arguments = flags.arguments.clone();
        if let Some(data) = &flags.data {
            arguments.extend(["--data".into(), std::path::absolute(data)?.into()]);
        }
        let mut run = Self {
            ranks,
            arguments,
            config: config::config(flags)?,
            seed: flags.seed,
            every: flags.checkpoint_every,
            train_len,
            classes,
            images,
            saved: resumed.then(|| record.moment()),
            record,
        };
        check_same(
            ranks,
            "settings and images",
            &format!("{}{:?}", config::print(&run.config), run.images.settings()?),
        )?;
        if run.record.steps() == 0 {
            // From here on the run can be resumed.
            run.save(trained)?;
        }
        // Behind the checkpoint: with one of them alone, the directory would be neither a new run's nor this one's.
        run.images.write(run.record.out())?;
        run.record.write_metrics()?;
        Ok(run)
    }

    /// Whether `--checkpoint-every` asks for a checkpoint after this step.
    pub fn is_due(&self) -> bool {
        self.every
            .is_some_and(|every| self.record.steps().is_multiple_of(every))
    }

    /// Writes a checkpoint, where the last one is not of this moment. All ranks call it, and one writes.
    pub fn save(&mut self, trained: &Trained) -> Result<()> {
        let moment = self.record.moment();
        if self.saved == Some(moment) {
            return Ok(());
        }
        let optimizer = trained.opt.state()?;
        let written = if self.record.out().writes() {
            self.write(trained, optimizer)
        } else {
            Ok(())
        };
        agree(self.ranks, written)?;
        self.saved = Some(moment);
        Ok(())
    }

    fn write(&self, trained: &Trained, optimizer: BTreeMap<String, Tensor>) -> Result<()> {
        let mut checkpoint = Checkpoint::new(self.record.steps(), masksub::Seed::new(self.seed))
            .with_setting(ARGUMENTS, text_of(&self.arguments)?)
            .with_setting(TRAIN_LEN, self.train_len)
            .with_setting(CLASSES, self.classes)
            .with_section(MODEL, trained.weights.state())
            .with_section(OPTIMIZER, optimizer);
        if let Some(ema) = &trained.ema {
            checkpoint = checkpoint.with_section(AVERAGE, ema.state()?);
        }
        for (name, value) in &self.config {
            checkpoint = checkpoint.with_setting(format!("{CONFIG}{name}"), value);
        }
        for (name, text) in self.images.settings()? {
            checkpoint = checkpoint.with_setting(name, text);
        }
        for (name, text) in self.record.state()? {
            checkpoint = checkpoint.with_setting(format!("{RECORD}{name}"), text);
        }
        Ok(checkpoint.save(self.record.out().path().join(FILE))?)
    }

    /// Writes a checkpoint before the run ends with `error`. If that is an image, it may be mended.
    pub fn save_before(&mut self, error: &anyhow::Error, trained: &Trained) -> Result<()> {
        // An image that one rank cannot read is told to all.
        let unreadable = self.images.unreadable(error).unwrap_or_default();
        for name in self.ranks.gather(unreadable.as_bytes())? {
            if self.images.note(&String::from_utf8_lossy(&name)) {
                self.saved = None;
            }
        }
        self.save(trained)
    }

    /// What to type to go on.
    pub fn how_to_resume(&self) -> String {
        let out = self.record.out().path().display();
        format!("after step {}: go on with --resume --out {out}", self.record.steps())
    }
}

/// Arguments as JSON: texts, and what is none as serde has it.
fn text_of(arguments: &[OsString]) -> Result<String> {
    let json = |argument: &OsString| match argument.to_str() {
        Some(text) => Ok(Value::from(text)),
        None => serde_json::to_value(argument),
    };
    let arguments = arguments.iter().map(json).collect::<Result<Vec<_>, _>>()?;
    Ok(serde_json::to_string(&arguments)?)
}

fn arguments_of(text: &str) -> Result<Vec<OsString>> {
    let arguments: Vec<Value> = serde_json::from_str(text)?;
    let argument = |json| match json {
        Value::String(text) => Ok(text.into()),
        other => serde_json::from_value(other),
    };
    Ok(arguments.into_iter().map(argument).collect::<Result<_, _>>()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_are_kept_whatever_they_are() {
        let mut arguments: Vec<OsString> = ["--data", "café", "", "a \"b\""].map(Into::into).to_vec();
        assert_eq!(text_of(&arguments).unwrap(), r#"["--data","café","","a \"b\""]"#);
        #[cfg(unix)]
        arguments.push(std::os::unix::ffi::OsStringExt::from_vec(b"caf\xe9".to_vec()));
        assert_eq!(arguments_of(&text_of(&arguments).unwrap()).unwrap(), arguments);
        arguments.clear();
        assert_eq!(arguments_of("[]").unwrap(), arguments);
        assert!(arguments_of("[1]").is_err());
    }
}
