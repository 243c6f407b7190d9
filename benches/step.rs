//! Time and peak memory of a forward pass, a plain training step and a MaskSub step; on request of a prediction, and of
//! what in a MaskSub step is not the model.
//!
//!     cargo bench --bench step -- --model deit3-small --batch 8 --iters 5 --json
//!
//! Each is measured in a process of its own, so that one's peak is not another's. A step is forward and backward with
//! all gradients merged, without an optimizer.

use std::process::Command;
use std::time::Instant;

use anyhow::{bail, ensure, Context, Result};
use candle_core::{DType, Device, Tensor, Var};
use clap::{value_parser, Parser, ValueEnum};
use masksub::models::convnext::{self, ConvNeXt};
use masksub::models::resnet::{self, ResNet};
use masksub::models::swin::{self, SwinTransformer};
use masksub::models::vit::{self, VisionTransformer};
use masksub::models::Recompute;
use masksub::{
    Criterion, DropToken, Forward, Grid, MainBranch, Mask, MaskSub, MaskToken, MaskedTeacher, Mutual, Params, Pass,
    PatchDrop, RandomMasking, Seed, SubBranch, SubTarget, Teacher, TokenModel, Weights,
};
use serde_json::json;

/// Time and peak memory of a forward pass, a plain training step and a MaskSub step, each in a process of its own
#[derive(Parser)]
struct Flags {
    /// A published size of ViT, ResNet, ConvNeXt or Swin
    #[arg(long, default_value = "deit3-small")]
    model: String,
    /// Images in a batch
    #[arg(long, default_value_t = 8)]
    batch: usize,
    /// Side of the images, in pixels
    #[arg(long, default_value_t = 224)]
    image_size: usize,
    /// Share of tokens or blocks that the sub-branch hides
    #[arg(long, default_value_t = 0.5)]
    ratio: f64,
    /// Rate of stochastic depth, of a ViT and, growing to it, of a Swin or ConvNeXt
    #[arg(long, default_value_t = 0.0)]
    drop_path: f64,
    /// Blocks of a ViT or Swin that compute again in the backward what they would keep: never, every-block, every-other
    #[arg(long, default_value = "never")]
    recompute: Recompute,
    /// What the sub-branch of a MaskSub step learns from; only with --what masksub
    #[arg(long, value_enum, default_value = "main")]
    target: Target,
    /// Measured repetitions, after one that is not
    #[arg(long, default_value_t = 5, value_parser = value_parser!(u32).range(1..))]
    iters: u32,
    /// Print one JSON object a line
    #[arg(long)]
    json: bool,
    /// Where to compute: cpu, cuda, cuda:N or metal
    #[arg(long, default_value = "cpu")]
    device: String,
    /// Measure this alone, instead of forward, plain and masksub
    #[arg(long)]
    what: Option<What>,
    /// Given by `cargo bench`
    #[arg(long, hide = true)]
    bench: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum What {
    /// A forward pass of training, with all that the backward will need
    Forward,
    /// A prediction, of which nothing is kept
    Evaluate,
    /// A training step of the main branch alone
    Plain,
    /// A training step of both branches
    Masksub,
    /// A MaskSub step of a ViT less the model: masks, losses, gathering of gradients, checks
    Rest,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Target {
    /// The main branch's prediction
    Main,
    /// Another model of the same size, as an averaged copy is one
    Teacher,
    /// Another ViT of the same size, which sees what the sub-branch sees
    MaskedTeacher,
    /// Each branch from the other's prediction
    Mutual,
}

/// A target in the place of a type.
fn target<M: Forward + 'static>(
    flags: &Flags,
    teacher: impl FnOnce() -> candle_core::Result<M>,
) -> Result<Box<dyn SubTarget>> {
    Ok(match flags.target {
        Target::Main => Box::new(MainBranch),
        Target::Teacher => Box::new(Teacher(teacher()?)),
        Target::Mutual => Box::new(Mutual::new(0.5)?),
        Target::MaskedTeacher => bail!("--target masked-teacher is for a ViT"),
    })
}

fn main() -> Result<()> {
    if std::env::var_os("CANDLE_NUM_THREADS").is_none() {
        std::env::set_var("CANDLE_NUM_THREADS", "1"); // as README recommends
    }
    let flags = Flags::parse();
    ensure!(
        flags.target == Target::Main || flags.what == Some(What::Masksub),
        "--target is for --what masksub"
    );
    match flags.what {
        Some(what) => measure(what, &flags),
        None => [What::Forward, What::Plain, What::Masksub]
            .iter()
            .try_for_each(|what| in_own_process(*what)),
    }
}

fn in_own_process(what: What) -> Result<()> {
    let name = what.to_possible_value().context("every variant has a name")?;
    let status = Command::new(std::env::current_exe()?)
        .args(std::env::args_os().skip(1))
        .args(["--what", name.get_name()])
        .status()?;
    ensure!(status.success(), "measuring {what:?} failed: {status}");
    Ok(())
}

fn device(name: &str) -> Result<Device> {
    Ok(match name.split_once(':').unwrap_or((name, "0")) {
        ("cpu", _) => Device::Cpu,
        ("cuda", ordinal) => Device::new_cuda(ordinal.parse()?)?,
        ("metal", _) => Device::new_metal(0)?,
        _ => bail!("{name} is no device"),
    })
}

fn measure(what: What, flags: &Flags) -> Result<()> {
    let device = device(&flags.device)?;
    let weights = Weights::seeded(Seed::new(0));
    let vb = match what {
        What::Evaluate => weights.no_grad_builder(DType::F32, &device),
        _ => weights.var_builder(DType::F32, &device),
    };
    let teaching = Weights::seeded(Seed::new(1));
    let teaching = teaching.no_grad_builder(DType::F32, &device);
    let image_size = (flags.image_size, flags.image_size);
    let masking = RandomMasking::new(flags.ratio)?;
    let (classes, block) = (1000, 32);
    if let Some(size) = find(vit::Config::SIZES, &flags.model) {
        let cfg = vit::Config {
            image_size,
            drop_path: flags.drop_path,
            recompute: flags.recompute,
            crop_remainder: true,
            ..size(classes)
        };
        if what == What::Rest {
            // For its parameters, which are looked for among the gradients.
            VisionTransformer::new(&cfg, vb)?;
            let rest = Rest::new(&cfg, flags.batch, &device)?;
            let target = Box::new(MainBranch);
            return time(what, flags, &device, &weights, rest, DropToken::new(masking), target);
        }
        let vit = VisionTransformer::new(&cfg, vb)?;
        let teacher = || VisionTransformer::new(&cfg, teaching);
        let target = match flags.target {
            Target::MaskedTeacher => Box::new(MaskedTeacher(teacher()?)),
            _ => target(flags, teacher)?,
        };
        return time(what, flags, &device, &weights, vit, DropToken::new(masking), target);
    }
    if let Some(size) = find(swin::Config::SIZES, &flags.model) {
        let cfg = swin::Config {
            image_size,
            drop_path: flags.drop_path,
            recompute: flags.recompute,
            ..size(classes)
        };
        let swin = SwinTransformer::new(&cfg, vb)?;
        let target = target(flags, || SwinTransformer::new(&cfg, teaching))?;
        return time(
            what,
            flags,
            &device,
            &weights,
            swin,
            MaskToken::new(masking, block)?,
            target,
        );
    }
    ensure!(
        flags.recompute == Recompute::Never,
        "--recompute is for a ViT or a Swin"
    );
    if let Some(size) = find(resnet::Config::SIZES, &flags.model) {
        ensure!(flags.drop_path == 0.0, "--drop-path is for a ViT or a Swin");
        ensure!(
            flags.recompute == Recompute::Never,
            "--recompute is for a ViT or a Swin"
        );
        let resnet = ResNet::new(&size(classes), vb)?;
        let target = target(flags, || ResNet::new(&size(classes), teaching))?;
        return time(
            what,
            flags,
            &device,
            &weights,
            resnet,
            PatchDrop::new(masking, block)?,
            target,
        );
    }
    if let Some(size) = find(convnext::Config::SIZES, &flags.model) {
        ensure!(
            flags.recompute == Recompute::Never,
            "--recompute is for a ViT or a Swin"
        );
        let cfg = convnext::Config {
            drop_path: flags.drop_path,
            ..size(classes)
        };
        let convnext = ConvNeXt::new(&cfg, vb)?;
        let target = target(flags, || ConvNeXt::new(&cfg, teaching))?;
        let branch = PatchDrop::new(masking, block)?;
        return time(what, flags, &device, &weights, convnext, branch, target);
    }
    bail!(
        "--model is {}, but must be the name of a published size of ViT, ResNet, ConvNeXt or Swin",
        flags.model
    )
}

/// A model that computes nothing: its logits are a variable.
struct Rest {
    grid: Grid,
    logits: Tensor,
    tokens: Tensor,
}

impl Rest {
    fn new(cfg: &vit::Config, batch: usize, device: &Device) -> Result<Self> {
        let (height, width) = cfg.image_size;
        let grid = Grid::new(height / cfg.patch_size, width / cfg.patch_size);
        Ok(Self {
            grid,
            logits: Var::rand(-1f32, 1.0, (batch, cfg.num_classes), device)?
                .as_tensor()
                .clone(),
            tokens: Tensor::zeros((batch, 1 + grid.len(), 1), DType::F32, device)?,
        })
    }
}

impl TokenModel for Rest {
    fn grid(&self, _: &Tensor) -> candle_core::Result<Grid> {
        Ok(self.grid)
    }

    fn num_prefix_tokens(&self) -> usize {
        1
    }

    fn embed(&self, _: &Tensor, keep: Option<&Mask>, _: &mut Pass) -> candle_core::Result<Tensor> {
        match keep {
            Some(mask) => Ok(mask.gather(&self.tokens, 1)?),
            None => Ok(self.tokens.clone()),
        }
    }

    fn classify(&self, _: &Tensor, _: Option<&Mask>, _: &mut Pass) -> candle_core::Result<Tensor> {
        Ok(self.logits.clone())
    }
}

impl Forward for Rest {
    fn forward_pass(&self, _: &Tensor, _: &mut Pass) -> candle_core::Result<Tensor> {
        Ok(self.logits.clone())
    }
}

fn find<T: Copy>(sizes: &[(&str, T)], name: &str) -> Option<T> {
    sizes.iter().find(|size| size.0 == name).map(|size| size.1)
}

fn time<M: Forward, S: SubBranch<M>>(
    what: What,
    flags: &Flags,
    device: &Device,
    weights: &Weights,
    model: M,
    branch: S,
    target: Box<dyn SubTarget>,
) -> Result<()> {
    let seed = Seed::new(0);
    let side = flags.image_size;
    let images = Tensor::rand(-1f32, 1.0, (flags.batch, 3, side, side), device)?;
    let labels = Tensor::arange(0u32, flags.batch as u32, device)?;
    let criterion = Criterion::cross_entropy();
    // A Swin's mask token takes part in MaskSub steps only.
    let (weight, params) = match what {
        What::Masksub => (0.5, Params::from_varmap(weights.varmap())),
        What::Rest => {
            let params = Params::from_varmap(weights.varmap());
            let names: Vec<_> = params.iter().map(|(name, _)| name.to_string()).collect();
            (0.5, names.into_iter().fold(params, Params::allow_missing))
        }
        _ => (0.0, Params::from_varmap(weights.varmap()).allow_missing("mask_token")),
    };
    let model = MaskSub::new(model, branch, params)
        .with_weight(weight)?
        .with_target(target);

    let mut seconds = Vec::with_capacity(flags.iters as usize);
    for step in 0..=flags.iters as usize {
        let start = Instant::now();
        match what {
            What::Forward => drop(model.model().forward_pass(&images, &mut Pass::train(seed.at(step)))?),
            What::Evaluate => drop(model.model().forward_pass(&images, &mut Pass::eval())?),
            _ => drop(model.backward(&images, seed.at(step), |logits| criterion.forward(logits, &labels))?),
        }
        device.synchronize()?;
        if step > 0 {
            seconds.push(start.elapsed().as_secs_f64());
        }
    }
    seconds.sort_by(f64::total_cmp);
    let (median, min) = (seconds[seconds.len() / 2], seconds[0]);
    let peak = peak_rss_mib();
    let target = match what {
        What::Masksub => flags.target.to_possible_value(),
        _ => None,
    };
    let target = target.map(|target| target.get_name().to_string());
    let what = format!("{what:?}").to_lowercase();
    if flags.json {
        let line = json!({
            "what": what, "model": flags.model, "batch": flags.batch, "ratio": flags.ratio, "drop_path": flags.drop_path,
            "target": target,
            "median_s": median, "min_s": min, "peak_rss_mib": peak,
        });
        println!("{line}");
    } else {
        let peak = peak.map_or("unknown".to_string(), |mib| format!("{mib:.0} MiB"));
        println!(
            "{what:8} {} batch {}: median {median:.3} s, min {min:.3} s, peak {peak}",
            flags.model, flags.batch
        );
    }
    Ok(())
}

/// The most memory this process ever had resident, where the system tells.
fn peak_rss_mib() -> Option<f64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.trim()
        .trim_end_matches("kB")
        .trim()
        .parse::<f64>()
        .ok()
        .map(|kib| kib / 1024.0)
}
