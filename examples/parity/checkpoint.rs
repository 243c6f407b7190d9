//! Checkpoints that peers wrote, loaded into the crate's models: logits and gradients beside the peers' own.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{bail, ensure, Context, Result};
use candle_core::{DType, Device, Tensor};
use candle_nn::ModuleT;
use masksub::models::convnext::{self, ConvNeXt};
use masksub::models::resnet::{self, ResNet};
use masksub::models::swin::{self, SwinTransformer};
use masksub::models::vit::{self, Activation, VisionTransformer};
use masksub::pretrained::{Format, Pretrained, Resize};
use masksub::{MaskSub, Params, Seed, Weights};

use crate::model::vit_branch;
use crate::published;
use crate::recorded::Recorded;
use crate::report::{Group, Report};

/// Image sizes beside a checkpoint's own.
const SIZES: [&str; 2] = ["resized", "rectangular"];

/// Loads the checkpoint beside the file, and compares logits at its own image size and, where recorded, at others, the
/// gradients of a loss, and the logits of what is left when tokens are dropped. A file of wrappings names several
/// checkpoints, of the same logits.
pub fn compare(path: &Path, file: &Recorded, report: &mut Report) -> Result<()> {
    let beside = |name: &str| path.with_file_name(name);
    for wrapped in file.config["files"].as_array().into_iter().flatten() {
        let name = wrapped.as_str().context("its files are no names")?;
        wrapping(&beside(name), file, report)?;
    }
    let checkpoint = beside(file.text("checkpoint")?);
    report.checkpoint = file_name(&checkpoint);
    let recorded = |name: &str| file.tensors.contains_key(name);
    let loaded = load(&checkpoint, file, "input", report)?;
    loaded.logits(file, "input", "logits_eval", report)?;
    if recorded("loss") {
        gradients(&checkpoint, &loaded, file, report)?;
    }
    if recorded("noise") {
        loaded.dropped(file, report)?;
    }
    for size in SIZES {
        let [input, logits] = ["input", "logits"].map(|name| format!("{name}_{size}"));
        if let Some(reason) = file.config["none"][size].as_str() {
            report.not_recorded.insert(logits, reason.to_string());
        } else if recorded(&input) {
            load(&checkpoint, file, &input, report)?.logits(file, &input, &logits, report)?;
        }
    }
    Ok(())
}

/// A checkpoint of several wrappings: its likeliest weights at each size, and those of another key where it has averaged
/// ones, too.
fn wrapping(checkpoint: &Path, file: &Recorded, report: &mut Report) -> Result<()> {
    let name = file_name(checkpoint);
    let mut compare = |pretrained: Pretrained, input: &str, logits: &str| {
        report
            .formats
            .insert(name.clone(), pretrained.format().name().to_string());
        let model = Loaded::new(pretrained, file, file.get(input)?)?;
        let ours = model.network.forward(file.get(input)?)?;
        report.compare(Group::Main, format!("{name} {logits}"), &ours, file.get(logits)?)
    };
    compare(Pretrained::open(checkpoint)?, "input", "logits_eval")?;
    for size in SIZES
        .iter()
        .filter(|size| file.tensors.contains_key(&format!("input_{size}")))
    {
        let [input, logits] = ["input", "logits"].map(|name| format!("{name}_{size}"));
        compare(Pretrained::open(checkpoint)?, &input, &logits)?;
    }
    for (wrapped, key) in [("both", "state_dict_ema"), ("teacher", "student")] {
        if name.contains(wrapped) && file.tensors.contains_key("logits_ema") {
            compare(Pretrained::open_key(checkpoint, key)?, "input", "logits_ema")?;
        }
    }
    Ok(())
}

fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// A model, whichever it is.
pub enum Network {
    Vit(VisionTransformer),
    Swin(SwinTransformer, swin::Config),
    ResNet(ResNet, resnet::Config),
    ConvNeXt(ConvNeXt, convnext::Config),
}

impl Network {
    fn forward(&self, xs: &Tensor) -> candle_core::Result<Tensor> {
        match self {
            Self::Vit(model) => model.forward_t(xs, false),
            Self::Swin(model, _) => model.forward_t(xs, false),
            Self::ResNet(model, _) => model.forward_t(xs, false),
            Self::ConvNeXt(model, _) => model.forward_t(xs, false),
        }
    }
}

/// A checkpoint in a model of ours.
struct Loaded {
    weights: Weights,
    network: Network,
}

/// Loads a checkpoint for the images that are recorded as `input`.
fn load(checkpoint: &Path, file: &Recorded, input: &str, report: &mut Report) -> Result<Loaded> {
    let mut pretrained = Pretrained::open(checkpoint)?;
    let format = pretrained.format();
    report.formats.insert(file_name(checkpoint), format.name().to_string());
    if file.config["layout"].is_string() {
        // Those were all resized alike, whatever their writers do.
        pretrained = pretrained.with_resize(Resize::Bicubic);
    }
    if let Some(recorded) = file.config["layout"]
        .as_str()
        .filter(|recorded| format.name() != *recorded)
    {
        let failure = format!("recognised as {format}, but recorded as {recorded}");
        report.failures.push(failure);
    }
    let loaded = Loaded::new(pretrained, file, file.get(input)?)?;
    report.notes.extend(loaded.weights.notes());
    Ok(loaded)
}

/// A checkpoint in a model of ours for the images that were recorded, and its weights by the model's names.
pub fn loaded(checkpoint: &Path, file: &Recorded) -> Result<(Network, BTreeMap<String, Tensor>)> {
    let Loaded { weights, network } = Loaded::new(Pretrained::open(checkpoint)?, file, file.get("input")?)?;
    Ok((network, weights.state()))
}

impl Loaded {
    fn new(pretrained: Pretrained, file: &Recorded, xs: &Tensor) -> Result<Self> {
        let format = pretrained.format();
        let weights = pretrained.weights(Seed::new(0));
        let network = build(format, file, xs, &weights)?;
        weights.check_exact(|_| false)?;
        set_fresh(file, &weights)?;
        Ok(Self { weights, network })
    }

    fn logits(&self, file: &Recorded, input: &str, logits: &str, report: &mut Report) -> Result<()> {
        let ours = self.network.forward(file.get(input)?)?;
        report.compare(Group::Main, logits, &ours, file.get(logits)?)
    }

    /// The sub-branch that keeps the positions of the smallest noise.
    fn dropped(self, file: &Recorded, report: &mut Report) -> Result<()> {
        let Network::Vit(model) = self.network else {
            bail!("tokens of what is no ViT were dropped");
        };
        let branch = vit_branch(model.config(), file.get("noise")?, file.number("ratio")?)?;
        let params = Params::from_varmap(self.weights.varmap());
        let pair = MaskSub::new(model, branch, &params).forward_pair(file.get("input")?, Seed::new(0).at(0))?;
        report.compare(Group::Sub, "logits_sub", &pair.sub, file.get("logits_sub")?)
    }
}

/// Compares the loss and its gradients. They are recorded by the checkpoint's names, so that they are brought under the
/// model's own as weights are: as a checkpoint, of gradients where there are weights.
fn gradients(checkpoint: &Path, loaded: &Loaded, file: &Recorded, report: &mut Report) -> Result<()> {
    let classes = file.get("target_classes")?.to_dtype(DType::U32)?;
    let logits = loaded.network.forward(file.get("input")?)?;
    let loss = candle_nn::loss::cross_entropy(&logits, &classes)?;
    report.compare(Group::Loss, "loss", &loss, &file.number_at("loss")?)?;
    let params = Params::from_varmap(loaded.weights.varmap()).allow_missing("mask_token");
    let grads = masksub::grad::backward(&loss, &params)?;

    // Buffers have no gradients, and tell what model it is.
    let mut theirs: BTreeMap<_, _> = match checkpoint.extension().is_some_and(|ending| ending == "safetensors") {
        true => candle_core::safetensors::load(checkpoint, &Device::Cpu)?
            .into_iter()
            .collect(),
        false => BTreeMap::new(),
    };
    let recorded = file.below("grad/").map(|(name, grad)| (name.to_string(), grad.clone()));
    theirs.extend(recorded);
    let directory = tempfile::tempdir()?;
    let path = directory.path().join("gradients.safetensors");
    safetensors::serialize_to_file(&theirs, None, &path)?;
    let theirs = Pretrained::open(&path)?.weights(Seed::new(0));
    let format = Pretrained::open(checkpoint)?.format();
    build(format, file, file.get("input")?, &theirs)?;

    let (theirs, drawn) = (theirs.state(), theirs.drawn());
    for (name, var) in params
        .iter()
        .filter(|(name, _)| !drawn.iter().any(|drawn| drawn == name))
    {
        let ours = grads
            .get(var)
            .with_context(|| format!("there is no gradient of {name}"))?;
        let recorded = theirs
            .get(name)
            .with_context(|| format!("no gradient of {name} is recorded"))?;
        compare_gradient(name, ours, recorded, report)?;
    }
    Ok(())
}

/// Compares a gradient but for a key's bias, whose true one is 0: what is recorded there is rounding.
fn compare_gradient(name: &str, ours: &Tensor, recorded: &Tensor, report: &mut Report) -> Result<()> {
    if ["key.bias", "k_proj.bias"].iter().any(|key| name.ends_with(key)) {
        return Ok(());
    }
    if name.ends_with("qkv.bias") {
        let dim = ours.dim(0)? / 3;
        for part in [0, 2] {
            let [ours, recorded] = [ours, recorded].map(|bias| bias.narrow(0, part * dim, dim));
            report.compare(Group::Grad, format!("grad/{name}"), &ours?, &recorded?)?;
        }
        return Ok(());
    }
    report.compare(Group::Grad, format!("grad/{name}"), ours, recorded)
}

fn build(format: Format, file: &Recorded, xs: &Tensor, weights: &Weights) -> Result<Network> {
    let vb = weights.var_builder(DType::F32, xs.device());
    let (_, channels, height, width) = xs.dims4()?;
    ensure!(
        channels == file.count("in_channels")?,
        "its input has {channels} channels"
    );
    let image_size = (height, width);
    Ok(match format {
        Format::ResNet | Format::HfResNet => {
            // Its momentum does not matter in evaluation.
            let cfg = file.resnet_config()?;
            Network::ResNet(ResNet::new(&cfg, vb)?, cfg)
        }
        Format::TimmSwin | Format::MicrosoftSwin | Format::HfSwin | Format::TorchvisionSwin => {
            let resized = height != file.count("image_size")? && file.config["resized_window_size"].is_number();
            let window_size = if resized { "resized_window_size" } else { "window_size" };
            let cfg = swin::Config {
                weight_names: match format {
                    Format::TimmSwin => swin::WeightNames::Timm,
                    _ => swin::WeightNames::Microsoft,
                },
                image_size,
                window_size: file.count(window_size)?,
                ..file.swin_config()?
            };
            Network::Swin(SwinTransformer::new(&cfg, vb)?, cfg)
        }
        Format::TimmConvNeXt | Format::FacebookConvNeXt | Format::HfConvNeXt => {
            let cfg = published::convnext(file)?;
            Network::ConvNeXt(ConvNeXt::new(&cfg, vb)?, cfg)
        }
        _ => {
            let cfg = match published::vit(file)? {
                Some(cfg) => cfg,
                None => vit_config(format, file)?,
            };
            let cfg = vit::Config { image_size, ..cfg };
            Network::Vit(VisionTransformer::new(&cfg, vb)?)
        }
    })
}

/// The ViT of a format. What no file can tell (heads, activation, eps) is recorded.
fn vit_config(format: Format, file: &Recorded) -> Result<vit::Config> {
    let classes = file.count("num_classes")?;
    let class_token = |cfg| vit::Config {
        pool: vit::Pool::ClassToken,
        ..cfg
    };
    let form = match format {
        Format::TimmVit | Format::TorchvisionVit | Format::GoogleVit | Format::MmpretrainVit => {
            class_token(vit::Config::mae_base(classes))
        }
        Format::TimmDeit3 | Format::FacebookDeit3 => vit::Config::deit3_base(classes),
        Format::MaePretrained | Format::MaeFinetuned | Format::HfMaePretrained => vit::Config::mae_base(classes),
        Format::HfVit => vit::Config::hf_base(classes),
        Format::HfClip | Format::OpenClip => vit::Config::clip_base(classes),
        Format::HfClipClassifier => vit::Config::hf_clip_base(classes),
        Format::TimmClip => vit::Config {
            weight_names: vit::WeightNames::Timm,
            ..vit::Config::clip_base(classes)
        },
        other => bail!("{other} is no ViT"),
    };
    let embed_dim = file.count("embed_dim")?;
    Ok(vit::Config {
        embed_dim,
        depth: file.count("depth")?,
        num_heads: file.count("num_heads")?,
        mlp_dim: embed_dim * file.count("mlp_ratio")?,
        norm_eps: file.number("norm_eps")?,
        activation: match file.text("activation")? {
            "gelu_erf" => Activation::Gelu,
            "quick_gelu" => Activation::QuickGelu,
            other => bail!("the activation {other} is not known here"),
        },
        ..form.with_input(
            file.count("image_size")?,
            file.count("patch_size")?,
            file.count("in_channels")?,
        )
    })
}

/// Gives the weights that the checkpoint lacks their recorded values: all of them, and only them.
fn set_fresh(file: &Recorded, weights: &Weights) -> Result<()> {
    let data = weights.varmap().data();
    let data = data.lock().map_err(|_| anyhow::anyhow!("a thread panicked"))?;
    let fresh: Vec<_> = file.below("fresh/").collect();
    for (name, value) in &fresh {
        let var = data.get(*name).with_context(|| format!("the model has no {name}"))?;
        var.set(value)?;
    }
    // Swin's mask token is ours alone, and no logits in evaluation depend on it.
    let drawn = weights.drawn();
    let drawn: Vec<_> = drawn.iter().filter(|name| *name != "mask_token").collect();
    ensure!(
        drawn.iter().all(|name| fresh.iter().any(|(fresh, _)| fresh == name)) && drawn.len() == fresh.len(),
        "drawn were {drawn:?}, which is not what is recorded as lacking"
    );
    Ok(())
}
