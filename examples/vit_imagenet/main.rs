//! Trains a ViT, ResNet, ConvNeXt or Swin with MaskSub: on the handwritten digits that ship with the example, or on a tree of images.
//!
//!     cargo run --release --example vit_imagenet
//!     cargo run --release --example vit_imagenet -- --data imagenet --recipe deit3 --accumulate 32 --out runs/small
//!
//! `--help` explains the flags. This page is the part that a trainer writes; flags, data, networks and output have
//! modules of their own.

mod config;
mod data;
mod evaluate;
mod exit_code;
mod features;
mod flags;
mod heads;
mod interrupt;
mod mask_only;
mod network;
mod plan;
mod ranks;
mod recipe;
mod run;
mod saving;
mod sentence;
mod sources;
mod step;
mod target;
#[cfg(test)]
mod tests;

use std::ffi::OsString;
use std::path::Path;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{anyhow, ensure, Context, Result};
use candle_core::{DType, Device};
use candle_nn::ModuleT;
use data::image_tree::Unreadable;
use data::{Batch, Batching, Dataset};
use evaluate::{evaluate, Scores};
use flags::{Branch, Flags, PrintConfig, SubLoss};
use heads::BothHeads;
use mask_only::MaskOnly;
use masksub::models::{convnext::ConvNeXt, resnet::ResNet, swin::SwinTransformer, vit::VisionTransformer};
use masksub::pretrained::Pretrained;
use masksub::train::checkpoint::Checkpoint;
use masksub::train::distributed::{self, agree, Communicator};
use masksub::{
    grad, DropSub, DropToken, Error, Forward, MaskSub, MaskToken, Params, PatchDrop, PathSub, Seed, SubBranch,
    SubModelLoss, Weights,
};
use network::Network;
use ranks::Launch;
use run::{Run, Saved, Trained};
use saving::Saving;
use step::Stepper;

fn main() -> ExitCode {
    program(std::env::args_os().skip(1).collect()).into()
}

/// Does what the arguments say, and gives the exit code.
fn program(arguments: Vec<OsString>) -> u8 {
    leave_cores_to_rayon();
    let run = Launch::new().and_then(|launch| {
        let flags = Flags::from_arguments(arguments).and_then(|flags| flags.for_ranks(launch.ranks().size()));
        let refusal = flags.as_ref().err().map(ToString::to_string);
        ranks::tell_refusal(launch.ranks(), refusal.as_deref(), || {
            if let Err(error) = &flags {
                // To a terminal that is gone there is nothing to tell.
                let _ = error.print();
            }
        })?;
        let end = match flags {
            Ok(flags) => run(flags, launch.ranks())?,
            Err(error) if error.use_stderr() => return Ok(End::Refused(error.exit_code() as u8)),
            // Help that was asked for.
            Err(_) => End::Done,
        };
        launch.finish();
        Ok(end)
    });
    match run {
        Ok(End::Done) => 0,
        Ok(End::Interrupted) => interrupt::exit_code(),
        Ok(End::Refused(code)) => code,
        Err(error) => {
            let tells = ranks::tells() || !matches!(error.downcast_ref(), Some(Error::OtherRank { .. }));
            let (sentence, code) = sentence::of(error);
            if tells {
                eprintln!("{}{sentence}", ranks::prefix());
            }
            code
        }
    }
}

/// Leaves the cores to rayon, which runs the crate's kernels, unless `CANDLE_NUM_THREADS` says otherwise. To be called
/// before anything of candle's runs.
///
/// candle keeps a pool of threads of its own for large elementwise operations, pinned to cores and spinning while they
/// wait. On few cores the two pools take turns: the digits then take several times as long with two threads as with one.
fn leave_cores_to_rayon() {
    const POOL: &str = "CANDLE_NUM_THREADS";
    if std::env::var_os(POOL).is_none() {
        std::env::set_var(POOL, "1");
    }
}

enum End {
    Done,
    Interrupted,
    /// Arguments that are none, with the exit code.
    Refused(u8),
}

fn run(given: Flags, ranks: &dyn Communicator) -> Result<End> {
    let saved = if given.resume {
        Some(Saved::load(ranks, &given)?)
    } else {
        None
    };
    let flags = &match &saved {
        Some(saved) => saved.flags(&given)?,
        None => given,
    };
    if ranks::tells() {
        flags.warnings().iter().for_each(|warning| eprintln!("{warning}"));
    }
    flags.prepare_device()?;
    if let Some(what) = flags.print_config {
        let config = config::print(&config::config(flags)?);
        let sources = match what {
            PrintConfig::Sources => format!("\n{}", sources::print(flags)?),
            PrintConfig::Values => String::new(),
        };
        if ranks::tells() {
            print!("{config}{sources}");
        }
        return Ok(End::Done);
    }
    #[cfg(feature = "nccl")]
    let nccl = ranks::nccl(ranks, &flags.device)?;
    #[cfg(feature = "nccl")]
    let ranks = nccl.as_ref().map_or(ranks, |nccl| nccl as &dyn Communicator);
    // `Weights` makes variables that can be trained, from (seed, name) or from a file.
    let seed = Seed::new(flags.seed);
    let weights = match (&saved, &flags.init_from) {
        (Some(saved), _) => saved.weights()?,
        (None, Some(file)) => open(file, flags.init_key.as_deref())?.weights(seed),
        (None, None) => Weights::seeded(seed),
    };
    if let Some(directory) = &flags.features_of {
        // Its head's classes do not matter.
        println!("{}", features::write(flags, directory, &flags.network(1)?, &weights)?);
        return Ok(End::Done);
    }
    let data = flags.dataset()?;
    let network = flags.network(data.num_classes())?;

    if flags.eval_only {
        ensure!(
            saved.is_some() || flags.init_from.is_some(),
            "--eval-only needs weights: --init-from FILE, or --resume --out DIR"
        );
        let averaged = saved.map(|saved| saved.averaged_weights()).transpose()?.flatten();
        for (whose, weights) in [("", Some(&weights)), ("averaged ", averaged.as_ref())] {
            let Some(weights) = weights else { continue };
            let scores = evaluate_network(ranks, flags, &*data, &network, weights)?;
            if ranks::tells() {
                println!("{whose}{}", result(flags, scores));
            }
        }
        return Ok(End::Done);
    }

    // Each family of models has its own way of hiding things.
    let vb = weights.var_builder(DType::F32, &flags.device);
    let masking = flags.masking(data.epoch_len())?;
    let block = flags.mask_block.unwrap_or(network.mask_block());
    let training = Training {
        ranks,
        flags,
        data: &*data,
        network: &network,
        weights: &weights,
        saved,
    };
    match &network {
        Network::Vit(cfg) if BothHeads::are_of(cfg) => {
            let vit = VisionTransformer::new(cfg, vb)?;
            training.fit(BothHeads::new(vit)?, DropToken::new(masking))
        }
        Network::Vit(cfg) => training.fit(VisionTransformer::new(cfg, vb)?, DropToken::new(masking)),
        Network::ResNet(cfg, _) => training.fit(ResNet::new(cfg, vb)?, PatchDrop::new(masking, block)?),
        Network::ConvNeXt(cfg, _) => training.fit(ConvNeXt::new(cfg, vb)?, PatchDrop::new(masking, block)?),
        Network::Swin(cfg) => training.fit(SwinTransformer::new(cfg, vb)?, MaskToken::new(masking, block)?),
    }
}

/// The run's end before its time, which it tells how to go on from.
fn interrupted(run: &Run) -> End {
    if ranks::tells() {
        eprintln!("interrupted {}", run.how_to_resume());
    }
    End::Interrupted
}

struct Training<'a> {
    ranks: &'a dyn Communicator,
    flags: &'a Flags,
    data: &'a dyn Dataset,
    network: &'a Network,
    weights: &'a Weights,
    /// Where the run was left off, if it goes on.
    saved: Option<Saved>,
}

impl Training<'_> {
    /// The training loop, whatever the model.
    fn fit<M, S>(self, model: M, masked: S) -> Result<End>
    where
        M: Forward + 'static,
        S: SubBranch<M> + 'static,
    {
        let Self {
            ranks,
            flags,
            data,
            weights,
            ..
        } = self;
        // Before the optimizer and the average copy them.
        distributed::synchronize(ranks, weights.varmap())?;
        check_weights(flags, weights)?;
        ensure!(
            ranks.size() == 1 || flags.unreadable == Unreadable::Error,
            "--unreadable skip is for one process: several could not tell which images the others leave out"
        );
        let saving = Saving::new(flags, self.network, &weights.state())?;
        let (seed, settings) = (Seed::new(flags.seed), &flags.training);

        // MaskSub around it. With `params` each step checks that every parameter has a gradient.
        let params = Params::from_varmap(weights.varmap()).freeze(&settings.freeze)?;
        let params = match flags.branch {
            Branch::Masksub | Branch::MaskOnly => params,
            // Swin's mask token stands in for what a mask hides, so these do not use it.
            _ => params.allow_missing("mask_token"),
        };
        let model = MaskSub::new(model, branch(flags, masked)?, &params)
            .with_sub_loss(sub_loss(flags)?)
            .with_weight(flags.sub_weight())?
            .with_difficulty(flags.record_difficulty);

        // Everything else is what it would be without MaskSub.
        let mut opt = settings.optimizer(ranks, &params, self.network)?;
        let mut ema = settings.ema(weights.varmap())?;
        let model = model.with_target(target::target(flags, self.network, ema.as_ref())?);
        let stepper = Stepper::new(ranks, &model, &params, weights, settings, data.num_classes())?;
        let steps_per_epoch = settings.steps_per_epoch(data.epoch_len())?;
        let schedule = settings.schedule(steps_per_epoch)?;

        if flags.plan_images.is_some() {
            let mut batches = data.train_batches(flags.seed, 0, settings.batching(), 0);
            let batch = batches.next().context("there is no image to make a step with")??;
            plan::measure(&batch, |images, labels| {
                let step = stepper.backward(images, labels, seed.at(0), settings.combine(false))?;
                let start = Instant::now();
                opt.step(&step.grads)?;
                Ok(start.elapsed())
            })?;
            return Ok(End::Done);
        }
        if flags.plan {
            print!(
                "{}",
                plan::print(flags, self.network, data.epoch_len(), steps_per_epoch)?
            );
            return Ok(End::Done);
        }

        // The same weights, of which nothing is kept for a backward.
        let evaluated = for_evaluation(self.network, weights, &flags.device)?;

        let mut trained = Trained {
            weights,
            opt: &mut opt,
            ema: ema.as_mut(),
        };
        let total_steps = settings.epochs * steps_per_epoch;
        interrupt::watch()?;
        let mut run = Run::start(ranks, flags, data, self.saved, total_steps, &mut trained)?;
        if let Some(warning) = settings.ends_in_warmup(steps_per_epoch).filter(|_| ranks::tells()) {
            eprintln!("{warning}");
        }
        let part = ranks::part(ranks);
        let batching = Batching {
            part,
            ..settings.batching()
        };
        while run.record.current_epoch() < settings.epochs {
            let (epoch, done) = (run.record.current_epoch(), run.record.passed_of_epoch());
            for batch in run.record.timed(data.train_batches(flags.seed, epoch, batching, done)) {
                let Batch { images, labels, passed } = match agree(ranks, batch) {
                    Ok(batch) => batch,
                    Err(error) => {
                        run.save_before(&error, &trained)?;
                        return Err(error);
                    }
                };
                let batch = run.record.take_batch(passed);
                let t = epoch * steps_per_epoch + batch;
                let combine = settings.combine(batch + 1 == steps_per_epoch);
                let mut step = stepper.backward(&images, &labels, seed.at(t), combine)?;
                if settings.clip_grad > 0.0 {
                    grad::clip_grad_norm(&mut step.grads, &params, settings.clip_grad)?;
                }
                let lr = schedule.at(t);
                trained.opt.set_learning_rate(lr);
                trained.opt.step(&step.grads)?;
                if let Some(ema) = &mut trained.ema {
                    ema.update()?;
                }
                run.record.step(ranks, lr, &step, &labels)?;
                let asked = ranks::asked(ranks)?;
                if run.is_due() || asked {
                    run.save(&trained)?;
                }
                if asked {
                    return Ok(interrupted(&run));
                }
            }
            // An image that cannot be read or a full disk may end what follows: the epoch is safe from it.
            run.save(&trained)?;
            let scores = || {
                let batches = data.test_batches(settings.batch_size.div_ceil(settings.parts()), part);
                evaluate(ranks, Box::new(batches.take_while(|_| !interrupt::asked())), |images| {
                    Ok(evaluated.forward_t(images, false)?)
                })
            };
            if !flags.evaluates_after(epoch + 1) {
                run.record.epoch(None, None)?;
                continue;
            }
            let of_weights = scores();
            let of_average = trained.ema.as_mut().map(|ema| ema.averaged(scores)).transpose()?;
            // What was broken off is evaluated again when the run goes on.
            if ranks::asked(ranks)? {
                return Ok(interrupted(&run));
            }
            run.record.epoch(Some(of_weights?), of_average.transpose()?)?;
        }
        run.save(&trained)?;
        tell_skipped(data);
        let write = |name| {
            let named = saving.state(self.network, &weights.state())?;
            run.record.write_weights(name, &named.tensors, named.metadata)
        };
        write("model.safetensors")?;
        if let Some(ema) = &mut trained.ema {
            ema.averaged(|| write("model_ema.safetensors"))??;
        }
        let result = run.record.finish(flags.branch)?;
        if ranks::tells() {
            println!("{result}");
        }
        Ok(End::Done)
    }
}

/// A checkpoint that is recognised, or a hint where it is one of a run.
fn open(file: &Path, key: Option<&str>) -> Result<Pretrained> {
    let opened = match key {
        Some(key) => Pretrained::open_key(file, key),
        None => Pretrained::open(file),
    };
    opened.map_err(|error| match Checkpoint::load(file) {
        Ok(_) => anyhow!(
            "{} is the checkpoint of a run: go on with --resume --out, or begin from its model.safetensors",
            file.display()
        ),
        Err(_) => error.into(),
    })
}

/// Tells what was done to a file's weights, and refuses one of another model.
fn check_weights(flags: &Flags, weights: &Weights) -> Result<()> {
    if flags.init_from.is_some() && !flags.resume && ranks::tells() {
        weights.notes().iter().for_each(|note| println!("{note}"));
    }
    Ok(weights.check_exact(|name| name == "mask_token" || flags.allow_differences)?)
}

/// A network that predicts with what the weights are at the time.
fn for_evaluation(network: &Network, weights: &Weights, device: &Device) -> Result<Box<dyn ModuleT>> {
    let vb = weights.no_grad_builder(DType::F32, device);
    Ok(match network {
        Network::Vit(cfg) => Box::new(VisionTransformer::new(cfg, vb)?),
        Network::ResNet(cfg, _) => Box::new(ResNet::new(cfg, vb)?),
        Network::ConvNeXt(cfg, _) => Box::new(ConvNeXt::new(cfg, vb)?),
        Network::Swin(cfg) => Box::new(SwinTransformer::new(cfg, vb)?),
    })
}

fn evaluate_network(
    ranks: &dyn Communicator,
    flags: &Flags,
    data: &dyn Dataset,
    network: &Network,
    weights: &Weights,
) -> Result<Scores> {
    let model = for_evaluation(network, weights, &flags.device)?;
    check_weights(flags, weights)?;
    let batches = data.test_batches(flags.training.batch_size, ranks::part(ranks));
    let scores = evaluate(ranks, batches, |images| Ok(model.forward_t(images, false)?))?;
    tell_skipped(data);
    Ok(scores)
}

fn tell_skipped(data: &dyn Dataset) {
    if data.skipped() > 0 {
        eprintln!("images skipped because they cannot be read: {}", data.skipped());
    }
}

fn result(flags: &Flags, scores: Scores) -> String {
    let Scores { top1, top5, loss } = scores;
    format!(
        "result model={} top1={top1:.2} top5={top5:.2} loss={loss:.4}",
        flags.model()
    )
}

/// How the sub-branch runs. A box, since the flag decides; with one branch in mind its type can stand in `MaskSub`.
fn branch<M, S>(flags: &Flags, masked: S) -> Result<Box<dyn SubBranch<M>>>
where
    M: Forward + 'static,
    S: SubBranch<M> + 'static,
{
    Ok(match flags.branch {
        Branch::Masksub => Box::new(masked),
        Branch::None => Box::new(masked), // its weight is 0: it never runs
        Branch::MaskOnly => Box::new(MaskOnly(masked)),
        Branch::Dropsub => Box::new(DropSub::new(flags.sub_drop_rate)?),
        Branch::Pathsub => Box::new(PathSub::new(flags.sub_drop_rate)?),
    })
}

/// What the sub-branch is asked to agree on with the main branch.
fn sub_loss(flags: &Flags) -> Result<SubModelLoss> {
    let loss = match flags.sub_loss {
        SubLoss::SoftCe => SubModelLoss::soft_cross_entropy(),
        SubLoss::Kl => SubModelLoss::kl(),
        SubLoss::Bce => SubModelLoss::bce(),
    };
    Ok(loss.with_temperature(flags.temperature)?)
}
