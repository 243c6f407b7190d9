//! Compares the crate with values recorded from other implementations.

#[path = "parity/augment.rs"]
mod augment;

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use anyhow::{anyhow, bail, ensure, Context, Result};
use candle_core::{backprop::GradStore, DType, Device, Tensor, Var};
use candle_nn::{ModuleT, Optimizer, SGD};
use masksub::models::resnet::{self, BlockKind, ResNet};
use masksub::models::swin::{self, SwinTransformer};
use masksub::models::vit::{self, Activation, Pool, VisionTransformer, WeightNames};
use masksub::{
    num_keep, Criterion, DropToken, Grid, Mask, MaskGenerator, MaskSub, MaskToken, Params, PatchDrop, Seed, StepKey,
    SubBranch, SubModelLoss, Weights,
};
use serde_json::Value;

#[path = "parity/checkpoint.rs"]
mod checkpoint;
#[path = "parity/optim.rs"]
mod optim;

/// Largest error of values (logits, losses), and of gradients.
const VALUE_TOLERANCE: f64 = 1e-5;
const GRAD_TOLERANCE: f64 = 1e-4;

/// What is compared: a column of the report.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Group {
    Main,
    Sub,
    Loss,
    Grad,
}

impl Group {
    pub const ALL: [(Self, &'static str); 4] = [
        (Self::Main, "main"),
        (Self::Sub, "sub"),
        (Self::Loss, "loss"),
        (Self::Grad, "grad"),
    ];

    fn tolerance(self) -> f64 {
        match self {
            Self::Grad => GRAD_TOLERANCE,
            _ => VALUE_TOLERANCE,
        }
    }
}

/// The errors of one file, tensor by tensor.
#[derive(Default)]
pub struct Report {
    pub name: String,
    pub errors: Vec<(Group, String, f64)>,
    /// Images, which have tolerances of their own.
    pub images: Vec<augment::Case>,
    /// What could not be compared because it is not the same thing: a sentence each.
    pub failures: Vec<String>,
    /// What was done to the weights of a checkpoint: a line each.
    pub notes: Vec<String>,
}

impl Report {
    /// The largest error of a group, NaN where one is NaN; `None` if nothing of it was compared.
    pub fn largest(&self, group: Group) -> Option<f64> {
        let of_group = self.errors.iter().filter(|(g, _, _)| *g == group);
        let larger = |max: f64, error: f64| if error > max || error.is_nan() { error } else { max };
        of_group.map(|(_, _, error)| *error).reduce(larger)
    }

    /// Whether everything could be compared and every error is within its tolerance. NaN is not.
    pub fn is_ok(&self) -> bool {
        let within = |(group, _, error): &(Group, String, f64)| *error <= group.tolerance();
        let compared = !self.errors.is_empty() || !self.images.is_empty();
        let close = self.errors.iter().all(within) && self.images.iter().all(augment::Case::is_ok);
        self.failures.is_empty() && compared && close
    }

    /// Every tensor's error and every note, a line each.
    pub fn verbose(&self) -> String {
        let line = |(group, tensor, error): &(Group, String, f64)| {
            let mark = if *error <= group.tolerance() { "" } else { "  <-" };
            format!("    {error:9.2e}  {tensor}{mark}\n")
        };
        let notes = self.notes.iter().map(|note| format!("    {note}\n"));
        let images = self.images.iter().map(|case| format!("    {case}\n"));
        self.errors.iter().map(line).chain(images).chain(notes).collect()
    }

    fn compare(&mut self, group: Group, tensor: impl Into<String>, ours: &Tensor, theirs: &Tensor) -> Result<()> {
        let tensor = tensor.into();
        if ours.dims() != theirs.dims() {
            let (ours, theirs) = (ours.dims(), theirs.dims());
            self.failures
                .push(format!("{tensor} has shape {ours:?} here, {theirs:?} recorded"));
            return Ok(());
        }
        let (ours, theirs) = (to_host(ours)?, to_host(theirs)?);
        let norm = |values: &mut dyn Iterator<Item = f64>| values.map(|v| v * v).sum::<f64>().sqrt();
        let difference = norm(&mut ours.iter().zip(&theirs).map(|(a, b)| a - b));
        let size = norm(&mut theirs.iter().copied());
        self.errors.push((group, tensor, difference / size.max(1e-3)));
        Ok(())
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.name)?;
        if !self.images.is_empty() {
            let wrong: Vec<&str> = self
                .images
                .iter()
                .filter(|c| !c.is_ok())
                .map(|c| c.name.as_str())
                .collect();
            write!(f, " images={}", self.images.len())?;
            match wrong.is_empty() {
                true => return write!(f, " ok"),
                false => return write!(f, " FAIL: {}", wrong.join(", ")),
            }
        }
        for (group, name) in Group::ALL {
            match self.largest(group) {
                Some(error) => write!(f, " {name}={error:.1e}")?,
                None => write!(f, " {name}=-")?,
            }
        }
        match (self.is_ok(), self.failures.is_empty()) {
            (true, _) => write!(f, " ok"),
            (false, true) => write!(f, " FAIL"),
            (false, false) => write!(f, " FAIL: {}", self.failures.join("; ")),
        }
    }
}

/// Compares files, prints a line for each, and returns the exit code: 1 when a file fails, 2 when one cannot be read or
/// is of an unknown kind.
pub fn run(files: &[PathBuf], device: &Device, verbose: bool) -> u8 {
    let mut code = 0;
    for file in files {
        match compare(file, device) {
            Ok(report) => {
                println!("{report}");
                if verbose {
                    print!("{}", report.verbose());
                }
                code = code.max(u8::from(!report.is_ok()));
            }
            Err(error) => {
                eprintln!("{}: {error:#}", file.display());
                code = 2;
            }
        }
    }
    code
}

/// Reads a file of recorded values and runs the crate on the same weights, inputs and masks.
///
/// # Errors
/// When the file cannot be read, or its kind is not known here. An error of the crate is a failure of the report: what was
/// recorded did not fail.
pub fn compare(path: &Path, device: &Device) -> Result<Report> {
    let file = Recorded::open(path, device)?;
    let mut report = Report {
        name: path.file_stem().unwrap_or_default().to_string_lossy().into_owned(),
        ..Default::default()
    };
    let compared = match (file.text("kind")?, file.config["model"].as_str()) {
        ("losses", _) => losses(&file, &mut report),
        ("model", Some("deit3" | "mae_finetune" | "hf_vit" | "clip_vision" | "resnet" | "swin")) => {
            model(&file, &mut report)
        }
        ("checkpoint", _) => checkpoint::compare(path, &file, &mut report),
        ("trajectory", Some("deit3")) => trajectory(&file, &mut report),
        ("optim", _) => optim::compare(&file, &mut report),
        ("augment", _) => augment::compare(&file.config, |name| file.get(name)).map(|cases| report.images = cases),
        ("model" | "trajectory", Some(model)) => bail!("this release has no model of kind {model}"),
        (kind, _) => bail!("this release cannot compare files of kind {kind}"),
    };
    if let Err(error) = compared {
        let error = error.downcast::<candle_core::Error>().map(masksub::Error::from);
        let error = error.or_else(|other| other.downcast::<masksub::Error>())?;
        report.failures.push(format!("{error:?}"));
    }
    Ok(report)
}

/// A file of recorded tensors and its configuration.
struct Recorded {
    tensors: BTreeMap<String, Tensor>,
    config: Value,
}

impl Recorded {
    fn open(path: &Path, device: &Device) -> Result<Self> {
        let bytes = std::fs::read(path)?;
        let (_, metadata) = safetensors::SafeTensors::read_metadata(&bytes)?;
        let config = metadata.metadata().as_ref().and_then(|entries| entries.get("config"));
        let config =
            config.context("it has no configuration: a file of recorded values has `config` in its metadata")?;
        let tensors = candle_core::safetensors::load_buffer(&bytes, device)?;
        Ok(Self {
            tensors: tensors.into_iter().collect(),
            config: serde_json::from_str(config)?,
        })
    }

    fn get(&self, name: &str) -> Result<&Tensor> {
        self.tensors
            .get(name)
            .with_context(|| format!("it has no tensor {name}"))
    }

    /// A single number. (They are recorded with the shape \[1\].)
    fn number_at(&self, name: &str) -> Result<Tensor> {
        Ok(self.get(name)?.reshape(())?)
    }

    /// All tensors below `prefix`, by the rest of their name.
    fn below<'a>(&'a self, prefix: &'a str) -> impl Iterator<Item = (&'a str, &'a Tensor)> {
        self.tensors
            .iter()
            .filter_map(move |(name, t)| Some((name.strip_prefix(prefix)?, t)))
    }

    fn text(&self, key: &str) -> Result<&str> {
        self.config[key]
            .as_str()
            .with_context(|| format!("its configuration has no {key}"))
    }

    fn number(&self, key: &str) -> Result<f64> {
        self.config[key]
            .as_f64()
            .with_context(|| format!("its configuration has no {key}"))
    }

    fn count(&self, key: &str) -> Result<usize> {
        Ok(self.number(key)? as usize)
    }

    fn flag(&self, key: &str) -> bool {
        self.config[key].as_bool().unwrap_or(false)
    }

    /// The recorded weights, as a source for a model of ours.
    fn weights(&self) -> Weights {
        Weights::from_tensors(self.below("w/").map(|(name, t)| (name.to_string(), t.clone())))
    }

    fn counts(&self, key: &str) -> Result<Vec<usize>> {
        let list = self.config[key]
            .as_array()
            .with_context(|| format!("its configuration has no {key}"))?;
        let counts = list.iter().map(|count| count.as_u64().map(|count| count as usize));
        counts
            .collect::<Option<_>>()
            .with_context(|| format!("{key} are no counts"))
    }

    fn resnet_config(&self) -> Result<resnet::Config> {
        let four =
            |key| -> Result<[usize; 4]> { self.counts(key)?.try_into().map_err(|_| anyhow!("{key} are not four")) };
        Ok(resnet::Config {
            block: match self.text("block")? {
                "BasicBlock" => BlockKind::Basic,
                "Bottleneck" => BlockKind::Bottleneck,
                other => bail!("the block {other} is not known here"),
            },
            depths: four("layers")?,
            channels: four("channels")?,
            stem_channels: self.count("stem_channels")?,
            in_channels: self.count("in_channels")?,
            norm_eps: self.number("norm_eps")?,
            ..resnet::Config::resnet18(self.count("num_classes")?)
        })
    }

    fn swin_config(&self) -> Result<swin::Config> {
        let side = self.count("image_size")?;
        Ok(swin::Config {
            image_size: (side, side),
            patch_size: self.count("patch_size")?,
            in_channels: self.count("in_channels")?,
            embed_dim: self.count("embed_dim")?,
            depths: self.counts("depths")?,
            num_heads: self.counts("num_heads")?,
            window_size: self.count("window_size")?,
            mlp_ratio: self.count("mlp_ratio")?,
            norm_eps: self.number("norm_eps")?,
            ..swin::Config::tiny(self.count("num_classes")?)
        })
    }

    /// The ViT that the configuration describes.
    fn vit_config(&self) -> Result<vit::Config> {
        let classes = self.count("num_classes")?;
        let form = match self.text("model")? {
            "deit3" => vit::Config::deit3_tiny(classes),
            "mae_finetune" => vit::Config::mae_base(classes),
            "hf_vit" => vit::Config::hf_base(classes),
            "clip_vision" => vit::Config::clip_base(classes),
            other => bail!("{other} is no ViT"),
        };
        let pool = match form.weight_names {
            WeightNames::Timm if !self.flag("global_pool") => Pool::ClassToken,
            _ => form.pool,
        };
        let embed_dim = self.count("embed_dim")?;
        Ok(vit::Config {
            embed_dim,
            depth: self.count("depth")?,
            num_heads: self.count("num_heads")?,
            mlp_dim: embed_dim * self.count("mlp_ratio")?,
            norm_eps: self.number("norm_eps")?,
            // Its initial value does not matter: the weights are recorded.
            layer_scale: self.flag("layer_scale").then_some(1.),
            class_token_position: self.flag("cls_in_pos_embed"),
            activation: match self.text("activation")? {
                "gelu_erf" => Activation::Gelu,
                "quick_gelu" => Activation::QuickGelu,
                other => bail!("the activation {other} is not known here"),
            },
            pool,
            ..form.with_input(
                self.count("image_size")?,
                self.count("patch_size")?,
                self.count("in_channels")?,
            )
        })
    }
}

/// A generator that always gives the recorded mask.
#[derive(Clone)]
struct Fixed(Mask);

impl MaskGenerator for Fixed {
    fn generate(&self, _: usize, _: Grid, _: StepKey) -> candle_core::Result<Mask> {
        Ok(self.0.clone())
    }
}

/// What the authors' code drew from `noise`.
fn drawn(grid: Grid, noise: &Tensor, ratio: f64) -> Result<Fixed> {
    Ok(Fixed(Mask::from_noise(grid, noise, num_keep(grid.len(), ratio)?)?))
}

fn vit_branch(cfg: &vit::Config, noise: &Tensor, ratio: f64) -> Result<DropToken<Fixed>> {
    let side = |pixels: usize| pixels / cfg.patch_size;
    let grid = Grid::new(side(cfg.image_size.0), side(cfg.image_size.1));
    Ok(DropToken::new(drawn(grid, noise, ratio)?))
}

fn model(file: &Recorded, report: &mut Report) -> Result<()> {
    let (weights, device) = (file.weights(), file.get("input")?.device());
    let vb = weights.var_builder(DType::F32, device);
    match file.text("model")? {
        "resnet" => {
            let cfg = resnet::Config {
                norm_momentum: file.number("bn_momentum")?,
                ..file.resnet_config()?
            };
            let model = ResNet::new(&cfg, vb)?;
            let block = file.count("mask_patch_size")?;
            let side = file.count("image_size")? / block;
            let visible = file.get("visible_indices")?.to_dtype(DType::U32)?.to_vec2::<u32>()?;
            let mask = Mask::from_keep_indices(Grid::new(side, side), &visible)?;
            compare_model(file, &weights, model, PatchDrop::new(Fixed(mask), block)?, report)
        }
        "swin" => {
            let model = SwinTransformer::new(&file.swin_config()?, vb)?;
            let block = file.count("mask_patch_size")?;
            let side = file.count("image_size")? / block;
            let mask = drawn(Grid::new(side, side), file.get("noise")?, file.number("ratio")?)?;
            compare_model(file, &weights, model, MaskToken::new(mask, block)?, report)
        }
        _ => {
            let cfg = file.vit_config()?;
            let branch = vit_branch(&cfg, file.get("noise")?, file.number("ratio")?)?;
            compare_model(file, &weights, VisionTransformer::new(&cfg, vb)?, branch, report)
        }
    }
}

fn compare_model<M: Clone, S: SubBranch<M> + Clone>(
    file: &Recorded,
    weights: &Weights,
    model: M,
    branch: S,
    report: &mut Report,
) -> Result<()> {
    let left_over = weights.left_over();
    // Swin's attention masks are buffers that follow from the sizes.
    let unknown: Vec<_> = left_over.iter().filter(|name| !name.ends_with(".attn_mask")).collect();
    if !unknown.is_empty() {
        let failure = format!("the model does not know the weights {unknown:?}");
        report.failures.push(failure);
    }
    let params = Params::from_varmap(weights.varmap());
    let (input, key) = (file.get("input")?, Seed::new(0).at(0));
    let model = MaskSub::new(model, branch).with_params(params.clone());

    let evaluated = model.forward_t(input, false)?;
    report.compare(Group::Main, "logits_eval", &evaluated, file.get("logits_eval")?)?;
    let pair = model.forward_pair(input, key)?;
    report.compare(Group::Main, "logits_main", &pair.main, file.get("logits_main")?)?;
    report.compare(Group::Sub, "logits_sub", &pair.sub, file.get("logits_sub")?)?;
    pair.accept()?;
    let statistics = statistics(weights)?;
    for (name, ours) in &statistics {
        let name = format!("after/{name}");
        report.compare(Group::Main, &name, ours, file.get(&name)?)?;
    }
    for (name, _) in file.below("after/").filter(|(name, _)| !statistics.contains_key(*name)) {
        report.failures.push(format!("there is no running statistic {name}"));
    }

    for (kind, criterion, sub_loss) in [
        ("ce", Criterion::cross_entropy(), SubModelLoss::soft_cross_entropy()),
        (
            "bce",
            Criterion::bce_with_logits().with_target_threshold(0.)?,
            SubModelLoss::bce(),
        ),
    ] {
        let targets = file.get("target_soft")?;
        let model = model.clone().with_sub_loss(sub_loss);
        let step = model.backward(input, key, |logits| criterion.forward(logits, targets))?;
        let sub_loss = step.sub_loss.ok_or_else(|| anyhow!("no sub loss"))?;
        for (name, value) in [("loss_main", step.main_loss), ("loss_sub", sub_loss)] {
            let name = format!("{kind}/{name}");
            report.compare(Group::Loss, &name, &scalar(value)?, &file.number_at(&name)?)?;
        }
        compare_grads(file, &format!("{kind}/grad/"), &step.grads, &params, report)?;
    }
    Ok(())
}

fn compare_grads(file: &Recorded, prefix: &str, grads: &GradStore, params: &Params, report: &mut Report) -> Result<()> {
    for (name, theirs) in file.below(prefix) {
        match params.get(name).map(|var| grads.get(var)) {
            Some(Some(ours)) => report.compare(Group::Grad, format!("{prefix}{name}"), ours, theirs)?,
            Some(None) => report.failures.push(format!("{name} has no gradient")),
            None => report.failures.push(format!("there is no parameter {name}")),
        }
    }
    let recorded = |name: &str| file.tensors.contains_key(&format!("{prefix}{name}"));
    for (name, _) in params.iter().filter(|(name, _)| !recorded(name)) {
        report
            .failures
            .push(format!("no gradient of {name} is recorded below {prefix}"));
    }
    Ok(())
}

/// The running statistics of a model, by name.
fn statistics(weights: &Weights) -> Result<BTreeMap<String, Tensor>> {
    let data = weights
        .varmap()
        .data()
        .lock()
        .map_err(|_| anyhow!("a thread panicked"))?;
    let running = data.iter().filter(|(name, _)| name.contains("running_"));
    Ok(running
        .map(|(name, var)| (name.clone(), var.as_tensor().clone()))
        .collect())
}

fn trajectory(file: &Recorded, report: &mut Report) -> Result<()> {
    let (cfg, device) = (file.vit_config()?, file.get("loss_main")?.device().clone());
    let weights = file.weights();
    let vit = VisionTransformer::new(&cfg, weights.var_builder(DType::F32, &device))?;
    let params = Params::from_varmap(weights.varmap());
    let mut optimizer = SGD::new(params.vars(), file.number("lr")?)?;
    let (recorded_main, recorded_sub) = (to_host(file.get("loss_main")?)?, to_host(file.get("loss_sub")?)?);
    for step in 0..file.count("steps")? {
        let at = |name: &str| file.get(&format!("step{step}/{name}"));
        let branch = vit_branch(&cfg, at("noise")?, file.number("ratio")?)?;
        let model = MaskSub::new(&vit, branch).with_params(params.clone());
        let targets = at("target_soft")?;
        let result = model.backward(at("input")?, Seed::new(0).at(step), |logits| {
            Criterion::cross_entropy().forward(logits, targets)
        })?;
        optimizer.step(&result.grads)?;
        let sub_loss = result.sub_loss.ok_or_else(|| anyhow!("no sub loss"))?;
        let (main, sub) = (scalar(recorded_main[step])?, scalar(recorded_sub[step])?);
        report.compare(
            Group::Main,
            format!("step{step}/loss_main"),
            &scalar(result.main_loss)?,
            &main,
        )?;
        report.compare(Group::Sub, format!("step{step}/loss_sub"), &scalar(sub_loss)?, &sub)?;
        let (ours, theirs) = (result.main_loss + sub_loss, ((main + sub)? * 0.5)?);
        report.compare(Group::Loss, format!("step{step}/loss"), &scalar(ours / 2.)?, &theirs)?;
    }
    // How far each weight went: what all gradients together did.
    for (name, var) in params.iter() {
        let (start, last) = (file.get(&format!("w/{name}"))?, file.get(&format!("final/{name}"))?);
        report.compare(
            Group::Grad,
            format!("final/{name}"),
            &(var.as_tensor() - start)?,
            &(last - start)?,
        )?;
    }
    Ok(())
}

fn losses(file: &Recorded, report: &mut Report) -> Result<()> {
    let mut seen = 0;
    for name in file.tensors.keys().filter_map(|name| name.strip_suffix("/value")) {
        // Which logits, which loss, against what: all in the name.
        let (inputs, loss) = name.split_once('/').context("a loss without a section")?;
        let (inputs, group, prefix) = match inputs {
            "main" => ("main", Group::Main, ""),
            "sub" => ("sub", Group::Sub, ""),
            "extreme" if loss.starts_with("sub_") => ("extreme/sub", Group::Loss, "extreme/"),
            "extreme" => ("extreme/main", Group::Loss, "extreme/"),
            other => bail!("a loss on {other}"),
        };
        let logits = Var::from_tensor(file.get(inputs)?)?;
        let target = |name: &str| file.get(&format!("{prefix}{name}"));
        let value = if inputs.ends_with("main") {
            let (criterion, targets) = match loss {
                "ce_classes" => (Criterion::cross_entropy(), target("target_classes")?),
                "ce_soft" => (Criterion::cross_entropy(), target("target_soft")?),
                "ce_smooth0.1" => (
                    Criterion::cross_entropy().with_label_smoothing(0.1)?,
                    target("target_classes")?,
                ),
                "bce" => (Criterion::bce_with_logits(), target("target_classes")?),
                "bce_soft" => (Criterion::bce_with_logits(), target("target_soft")?),
                "bce_threshold0" => (
                    Criterion::bce_with_logits().with_target_threshold(0.)?,
                    target("target_soft")?,
                ),
                other => bail!("the loss {other} is not known here"),
            };
            criterion.forward(&logits, targets)?
        } else {
            let (kind, temperature) = match loss.trim_start_matches("sub_").split_once("_T") {
                Some((kind, temperature)) => (kind, temperature.parse::<f64>()?),
                None => (loss.trim_start_matches("sub_"), 1.),
            };
            let sub_loss = match kind {
                "soft_ce" => SubModelLoss::soft_cross_entropy(),
                "kl" => SubModelLoss::kl(),
                "bce" => SubModelLoss::bce(),
                other => bail!("the loss {other} is not known here"),
            };
            sub_loss
                .with_temperature(temperature)?
                .forward(&logits, target("main")?)?
        };
        report.compare(
            group,
            format!("{name}/value"),
            &value,
            &file.number_at(&format!("{name}/value"))?,
        )?;
        let grads = value.backward()?;
        let ours = grads.get(&logits).with_context(|| format!("{name} has no gradient"))?;
        report.compare(
            Group::Grad,
            format!("{name}/grad"),
            ours,
            file.get(&format!("{name}/grad"))?,
        )?;
        seen += 1;
    }
    ensure!(seen > 0, "it has no losses");
    Ok(())
}

fn scalar(value: f64) -> Result<Tensor> {
    Ok(Tensor::new(value, &Device::Cpu)?)
}

fn to_host(tensor: &Tensor) -> Result<Vec<f64>> {
    Ok(tensor
        .to_device(&Device::Cpu)?
        .to_dtype(DType::F64)?
        .flatten_all()?
        .to_vec1()?)
}
