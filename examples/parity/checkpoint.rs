//! Checkpoints that peers wrote, loaded into the crate's models: the logits beside the peers' own.

use std::path::Path;

use anyhow::{bail, ensure, Context, Result};
use candle_core::{DType, Tensor};
use candle_nn::ModuleT;
use masksub::models::resnet::ResNet;
use masksub::models::swin::{self, SwinTransformer};
use masksub::models::vit::{self, Activation, VisionTransformer};
use masksub::pretrained::{Format, Pretrained};
use masksub::{Seed, Weights};

use crate::recorded::Recorded;
use crate::report::{Group, Report};

/// Loads the checkpoint beside the file, and compares logits at its own image size and, where recorded, at another.
pub fn compare(path: &Path, file: &Recorded, report: &mut Report) -> Result<()> {
    let checkpoint = path.with_file_name(file.text("checkpoint")?);
    at_size(&checkpoint, file, "input", "logits_eval", report)?;
    if file.tensors.contains_key("input_resized") {
        at_size(&checkpoint, file, "input_resized", "logits_resized", report)?;
    }
    Ok(())
}

fn at_size(checkpoint: &Path, file: &Recorded, input: &str, logits: &str, report: &mut Report) -> Result<()> {
    let pretrained = Pretrained::open(checkpoint)?;
    let (format, recorded) = (pretrained.format(), file.text("layout")?);
    if format.name() != recorded {
        let failure = format!("recognised as {format}, but recorded as {recorded}");
        report.failures.push(failure);
    }
    let (xs, weights) = (file.get(input)?, pretrained.weights(Seed::new(0)));
    let model = build(format, file, xs, &weights)?;
    weights.check_exact(|_| false)?;
    set_fresh(file, &weights)?;
    report.notes.extend(weights.notes());
    let ours = model.forward_t(xs, false)?;
    report.compare(Group::Main, logits, &ours, file.get(logits)?)
}

fn build(format: Format, file: &Recorded, xs: &Tensor, weights: &Weights) -> Result<Box<dyn ModuleT>> {
    let vb = weights.var_builder(DType::F32, xs.device());
    let (_, channels, height, width) = xs.dims4()?;
    ensure!(
        channels == file.count("in_channels")?,
        "its input has {channels} channels"
    );
    let image_size = (height, width);
    Ok(match format {
        Format::ResNet => {
            // Its momentum does not matter in evaluation.
            Box::new(ResNet::new(&file.resnet_config()?, vb)?)
        }
        Format::TimmSwin | Format::MicrosoftSwin => {
            let resized = height != file.count("image_size")?;
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
            Box::new(SwinTransformer::new(&cfg, vb)?)
        }
        _ => {
            let cfg = vit::Config {
                image_size,
                ..vit_config(format, file)?
            };
            Box::new(VisionTransformer::new(&cfg, vb)?)
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
        Format::TimmVit => class_token(vit::Config::mae_base(classes)),
        Format::TimmDeit3 | Format::FacebookDeit3 => vit::Config::deit3_base(classes),
        Format::MaePretrained | Format::MaeFinetuned => vit::Config::mae_base(classes),
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
